"""Indexes with a record per token: what is stored, and the score that a query gets from it.

Bounds are sound in floating point: stored norms are rounded up to fp16, codes are dequantised exactly as stored, and
the error of the products' own accumulation (gamma_n = n * unit roundoff) is part of the stored norm's column.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ghostsim.config.scores import Chan, Jl, Published, Sketch
from ghostsim.errors import ConfigError
from ghostsim.policy.bases import fitted_basis, sampled
from ghostsim.policy.exact import Array, Block, softcapped
from ghostsim.policy.units import Units, token_units
from ghostsim.seeding import generator
from ghostsim.trace.compose import Head

_ROWS = 2048
_SEED = 0
_BEYOND_FP16 = 1e12

Claim = Literal["score", "logits", "cosine"]


@dataclass(frozen=True, eq=False)
class TokenIndex:
    """One record per token: a bound is the product of the record with the projected query, plus a constant.

    `stored` [n, m] are integer codes (with the quantiser in `codes`), or numbers. With `basis` [d, m] the query is
    projected first; `norms` [n] are stored error norms, which meet the norm of the query; `mean` [d] was taken off all
    keys, and its product with the query is added. `claim` names the scale in which the value is claimed to bound the
    exact score; None: it is an estimate.
    """

    stored: Array
    codes: Codes | None
    basis: Array | None
    norms: Array | None
    constant: float
    claim: Claim | None
    mean: Array | None = None

    def records(self, rows: slice, dtype: npt.DTypeLike) -> Array:
        """Return records [rows, m], and further columns for the error norm and the mean, as a reader sees them."""
        part = self.stored[rows]
        extra = (self.norms is not None) + (self.mean is not None)
        out = np.ones((len(part), part.shape[1] + extra), dtype=dtype)
        numbers = out[:, : part.shape[1]]
        numbers[...] = part
        if self.codes is not None:
            self.codes.expand(numbers)
        if self.norms is not None:
            out[:, part.shape[1]] = self.norms[rows]
        return out

    def units(self, c0: int, c1: int) -> Units:
        """Return the cold tokens themselves."""
        return token_units(c0, c1)

    def scores(self, block: Block, asked: Array, head: Head) -> Array:
        """Return the score [n, g, P] of every position of a block for the queries `asked` [n, g, d]."""
        n, g, d = asked.shape
        queries = query_rows(self, asked.reshape(n * g, d), head.scale).astype(block.scores.dtype)
        out = np.empty((n * g, block.scores.shape[-1]), dtype=queries.dtype)
        for rows in _chunks(out.shape[1]):
            np.matmul(queries, self.records(rows, queries.dtype).T, out=out[:, rows])
        if self.constant:
            out += out.dtype.type(self.constant)
        out = out.reshape(n, g, -1)
        return softcapped(out, head.softcap) if self.claim in ("score", None) else out


# --- fitting ------------------------------------------------------------------------------------------------


def rounded_up(norms: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float16]:
    """Round non-negative norms up to fp16; beyond its range they become infinite."""
    with np.errstate(over="ignore"):
        half = norms.astype(np.float16)
        return np.where(half.astype(norms.dtype) < norms, np.nextafter(half, np.float16(np.inf)), half)


def unit_roundoff(terms: int, dtype: npt.DTypeLike) -> float:
    """Return the bound gamma on the relative error of a sum of `terms` products, with a few roundings to spare."""
    return (terms + 8) * float(np.finfo(dtype).eps)


@dataclass(frozen=True, eq=False)
class Codes:
    """A static asymmetric quantiser: per channel a minimum and a step, both fp32; values outside are clipped."""

    low: Array
    step: Array
    largest: int

    def encode(self, values: Array) -> npt.NDArray[np.uint8]:
        """Return the codes of `values` [n, channels]."""
        out = values - self.low
        out /= self.step
        np.rint(out, out=out)
        np.clip(out, 0, self.largest, out=out)
        return out.astype(np.uint8)

    def expand(self, codes: Array) -> None:
        """Turn codes, held as floats, into the numbers that they stand for, in place."""
        codes *= self.step
        codes += self.low


def fit_codes(values: Array, bits: int) -> Codes:
    """Fit a quantiser's range per channel on `values` [n, channels]."""
    low = values.min(axis=0).astype(np.float32)
    span = values.max(axis=0).astype(np.float32) - low
    step = np.maximum(span / np.float32(2**bits - 1), np.finfo(np.float32).tiny)
    return Codes(low.astype(values.dtype), step.astype(values.dtype), 2**bits - 1)


def _chunks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS))


def row_norms(rows: Array) -> Array:
    """Return the norms of `rows` [..., d], in their own precision."""
    return np.asarray(np.sqrt(np.einsum("...j,...j->...", rows, rows)))


def _finite(column: npt.NDArray[np.float16], dtype: npt.DTypeLike) -> Array:
    """Return stored norms with an infinite one as a number beyond all fp16 vectors: 0 * inf would be no bound."""
    return np.asarray(np.nan_to_num(column.astype(dtype), posinf=_BEYOND_FP16))


def build_qkeys(keys: Array, fit: slice, bits: int) -> TokenIndex:
    """Quantise every channel of `keys` [n, d] to `bits`, with one error norm per key; ranges from the rows `fit`."""
    n, d = keys.shape
    codes = fit_codes(keys[fit], bits)
    gamma = unit_roundoff(d + 1, keys.dtype)
    stored, norms = np.empty((n, d), dtype=np.uint8), np.empty(n, dtype=keys.dtype)
    for rows in _chunks(n):
        stored[rows] = codes.encode(keys[rows])
        numbers = stored[rows].astype(keys.dtype)
        codes.expand(numbers)
        size = row_norms(numbers)
        numbers -= keys[rows]
        norms[rows] = _error_norms(row_norms(numbers), size, gamma)
    return TokenIndex(stored, codes, None, norms, 0.0, "score")


def _error_norms(error: Array, size: Array, gamma: float) -> Array:
    """Return the fp16 norms that are stored for `error`, plus what the products' accumulation may add per ||q||.

    Roundings on the way are relative to the stored vector (`size`) or to the key, whose norm is at most size + error.
    """
    rho = _finite(rounded_up((error + gamma * (2 * size + error)) * (1 + gamma)), error.dtype)
    return np.asarray(rho + 2 * gamma * (size + rho))


def ball_radius(reach: Array, size: Array, gamma: float) -> Array:
    """Return the radii that are stored for balls that reach so far, plus what accumulation may add per ||q||.

    Parameters
    ----------
    reach
        Largest distance of a member from the stored centre, as computed in the keys' precision.
    size
        Norm of the stored centre.
    gamma
        Relative error of a product with the centre.
    """
    radius = _finite(rounded_up(reach * (1 + gamma) + gamma * size), reach.dtype)
    return np.asarray(radius + 2 * gamma * (size + radius))


def build_sketch(keys: Array, fit: slice, sketch: Sketch, queries: Array | None = None) -> TokenIndex:
    """Project `keys` [n, d] to the numbers of `sketch`; basis and ranges are fitted on the rows `fit`.

    Bases that look at queries are fitted on the prompt `queries` [.., d].
    """
    n, d = keys.shape
    m = sketch.dims
    if m > d:
        raise ConfigError(f"sketch.dims: found {m}, expected at most head_dim {d}, e.g. 32")
    asked = keys[fit] if queries is None else queries
    basis = fitted_basis(sketch.basis, keys[fit], asked, m, centred=sketch.centred).astype(keys.dtype)  # type: ignore[arg-type]
    mean = keys[fit].mean(axis=0) if sketch.centred else None
    origin = keys.dtype.type(0) if mean is None else mean
    codes = None if sketch.bits == 16 else fit_codes((sampled(keys[fit]) - origin) @ basis, sketch.bits)
    gamma = unit_roundoff(d + m + 1, keys.dtype) * float(np.sqrt(m))
    stored = np.empty((n, m), dtype=np.float16 if codes is None else np.uint8)
    norms = np.empty(n, dtype=keys.dtype) if sketch.residual == "single" else None
    for rows in _chunks(n):
        moved = keys[rows] - origin
        projected = moved @ basis
        stored[rows] = half(projected) if codes is None else codes.encode(projected)
        if norms is not None:
            numbers = stored[rows].astype(keys.dtype)
            if codes is not None:
                codes.expand(numbers)
            size = row_norms(numbers) + (0 if mean is None else float(np.linalg.norm(mean)))
            norms[rows] = _error_norms(row_norms(moved - numbers @ basis.T), size, gamma)
    claim: Claim | None = None if norms is None else "score"
    return TokenIndex(stored, codes, basis.astype(np.float64), norms, 0.0, claim, mean)


def build_chan(keys: Array, queries: Array, chan: Chan) -> TokenIndex:
    """Keep the share of the channels of `keys` [n, d] on which prompt `queries` [.., d] are largest in sum."""
    d = keys.shape[1]
    width = max(1, int(chan.share * d))
    weight = np.abs(queries.reshape(-1, d)).sum(axis=0)
    channels = np.sort(np.argsort(-weight, kind="stable")[:width])
    basis = np.eye(d)[:, channels]
    part = keys[:, channels]
    codes = None if chan.bits == 16 else fit_codes(sampled(part), chan.bits)
    stored = half(part) if codes is None else codes.encode(part)
    return TokenIndex(stored, codes, basis, None, 0.0, None)


def half(values: Array) -> npt.NDArray[np.float16]:
    """Round to fp16; what is beyond its range becomes its largest number."""
    largest = np.finfo(np.float16).max
    return np.clip(values, -largest, largest).astype(np.float16)


def build_published(keys: Array, published: Published) -> TokenIndex:
    """Project `keys` [n, d] with a Gaussian N(0, 1/m) matrix; the two constants are added to the product."""
    d, m = keys.shape[1], published.dims
    gaussian = generator(_SEED, f"policy/published/{d}x{m}").standard_normal((d, m)) / np.sqrt(m)
    table = keys @ gaussian.astype(keys.dtype)
    if published.scale == "cosine":
        table /= np.maximum(row_norms(table), np.finfo(np.float32).tiny)[:, None]
    return TokenIndex(table, None, gaussian, None, published.epsilon + published.sigma, published.scale)


def build_jl(keys: Array, tokens: int, jl: Jl) -> TokenIndex:
    """Project `keys` [n, d] with a Gaussian N(0, 1/m) matrix; the margin for `tokens` of them meets ||q||."""
    d, m = keys.shape[1], jl.dims
    gaussian = generator(_SEED, f"policy/jl/{d}x{m}").standard_normal((d, m)) / np.sqrt(m)
    margin = float(np.sqrt(jl.c * np.log(tokens) / m))
    norms = _finite(rounded_up(margin * row_norms(keys)), keys.dtype)
    return TokenIndex(half(keys @ gaussian.astype(keys.dtype)), None, gaussian, norms, 0.0, "score")


# --- scoring ------------------------------------------------------------------------------------------------


def query_rows(index: TokenIndex, queries: Array, scale: float) -> npt.NDArray[np.float64]:
    """Return the query's side of the product [rows, table width], in float64."""
    wide = queries.astype(np.float64)
    projected = wide if index.basis is None else wide @ index.basis
    if index.claim == "cosine":
        length = np.linalg.norm(projected, axis=1, keepdims=True)
        return np.asarray(projected / np.maximum(length, np.finfo(np.float32).tiny))
    if index.claim == "logits":
        return np.asarray(projected / np.sqrt(projected.shape[1]))
    columns = [projected]
    if index.norms is not None:
        columns.append(np.linalg.norm(wide, axis=1, keepdims=True) * (1 + 1e-6))
    if index.mean is not None:
        columns.append((wide @ index.mean.astype(np.float64))[:, None])
    return np.concatenate(columns, axis=1) * scale
