"""Sound upper bounds of q.k from what an index stores about keys: sketches, ellipsoids, rotation planes.

Every index is fitted on keys [n, d] and bounds their products with queries [r, d]. Records are held as they would be
stored: numbers and norms in fp16, norms rounded up, codes in 8 bits. What is known per head (basis, mean, ranges) costs
no bytes per token. Bounds are sound for products accumulated in fp32 in any order: gamma_n ||row|| ||record|| is added,
both norms being functions of what is stored. So is the rounding of numbers to fp16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ghostsim.policy.indexes import Codes, fit_codes, rounded_up, unit_roundoff
from ghostsim.trace.format import Rope
from ghostsim.trace.rope import rotate

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]
Form = Literal["one", "two", "box"]

UNKNOWN = 1e12
"""The error of a record that fp16 or the quantiser cannot hold: larger than that of any that they can."""
_LARGEST_HALF = float(np.finfo(np.float16).max)
_TINY = float(np.finfo(np.float32).tiny)
_CONDITION = 1e6
_EXACT = 1e-10  # relative error, generously, of everything that is computed in float64 when keys are stored
_LEVELS = 127
_NORM_LEVELS = 4095
_NORM_ROOM = 4  # later keys may lie further out than the fitted ones
_FRACTION = 256  # of a step of the query: weights of norms are rounded up to it


class Index(Protocol):
    """What is stored about keys, and the bound that it gives."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes of a record; those shared by a group of keys in equal parts."""

    def upper(self, queries: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
        """Return an upper bound [r, n] of q.k for `queries` [r, d]; `dtype` is that of the products."""


# --- arithmetic ---------------------------------------------------------------------------------------------


def norms(rows: Array) -> Floats:
    """Return the norms of `rows` [..., d], never rounded down, whatever their size."""
    wide = np.abs(rows.astype(np.float64))
    peak = wide.max(axis=-1, initial=0.0)
    unit = wide / np.where(peak > 0, peak, 1.0)[..., None]
    return np.asarray(peak * np.sqrt((unit**2).sum(axis=-1)) * (1 + _EXACT))


def stored(values: Array) -> Halves:
    """Round non-negative `values` up to fp16."""
    return rounded_up(np.asarray(values, dtype=np.float64))


def read(half: Halves) -> Floats:
    """Return stored norms as numbers; an infinite one becomes `UNKNOWN`, for 0 * inf would be no bound."""
    return np.asarray(np.nan_to_num(half.astype(np.float64), posinf=UNKNOWN))


def halved(values: Array) -> Halves:
    """Round `values` to fp16; what is too large for it becomes the largest."""
    return np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16)


def rounding(numbers: Halves) -> Floats:
    """Return the norm [n] of what rounding to fp16 may have changed, from the rounded `numbers` [n, m] alone."""
    wide = np.abs(numbers.astype(np.float64))
    error = norms(wide * 2.0**-11 + 2.0**-25)
    return np.where((wide >= _LARGEST_HALF).any(axis=-1), UNKNOWN, error)


def raised_product(rows: Array, table: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
    """Return an upper bound of rows @ table.T whatever the order of accumulation, for products in fp32 or better.

    Parameters
    ----------
    rows, table
        [r, w] and [n, w].
    dtype
        What the products are computed in, float32 or float64.

    Notes
    -----
    The last term covers what fp32 flushes to zero.
    """
    product = (rows.astype(dtype) @ table.astype(dtype).T).astype(np.float64)
    across, down = norms(rows)[:, None], norms(table)[None, :]
    width = rows.shape[1]
    flushed = width * _TINY * (1 + across + down)
    return np.asarray(product + unit_roundoff(width, np.float32) * across * down + flushed)


def _about(keys: Array, mean: Array | None) -> tuple[Floats, Floats]:
    """Return the keys in float64 about a mean, and the mean."""
    wide = keys.astype(np.float64)
    centre = np.zeros(wide.shape[1]) if mean is None else np.asarray(mean, dtype=np.float64)
    return wide - centre, centre


def _raised(values: Floats, size: Floats) -> Halves:
    """Store error norms [n], raised by what float64 has rounded on vectors of norm `size` [n]."""
    return stored(values + _EXACT * size)


# --- sketches with residual norms -----------------------------------------------------------------------------


def even_blocks(d: int, count: int) -> tuple[Ints, ...]:
    """Divide d channels into `count` runs of nearly equal length."""
    return tuple(np.array_split(np.arange(d), count))


@dataclass(frozen=True, eq=False)
class ResidualSketch:
    """fp16 numbers A'k' of k' = k - mean, with the norm of what lies outside the span of A, whole or by blocks.

    2 m + 2 B bytes per token for m numbers and B norms. `matrix` A [d, m] may be any of full rank: with A = QR the
    query takes R^-1 Q'q, so that (R^-1 Q'q).(A'k') = (Q'q).(Q'k'). A Gaussian sketch thus needs no restoring.
    """

    matrix: Floats
    mean: Floats
    blocks: tuple[Ints, ...]
    """The channels of each residual norm."""
    numbers: Halves
    """[n, m]"""
    residuals: Halves
    """[n, B]"""

    @classmethod
    def fit(
        cls, keys: Array, matrix: Array, *, mean: Array | None = None, blocks: Sequence[Ints] | int = 1
    ) -> ResidualSketch:
        """Store `keys` [n, d]; `blocks` is a number of even blocks, or the channels of each.

        Raises
        ------
        ValueError
            If the matrix has no full rank within 1e-6.
        """
        centred, centre = _about(keys, mean)
        orthonormal, triangle = np.linalg.qr(np.asarray(matrix, dtype=np.float64))
        if np.linalg.cond(triangle) > _CONDITION:
            raise ValueError(f"matrix: found condition {np.linalg.cond(triangle):.1e}, expected at most {_CONDITION:g}")
        parts = even_blocks(keys.shape[1], blocks) if isinstance(blocks, int) else tuple(blocks)
        outside = centred - (centred @ orthonormal) @ orthonormal.T
        size = norms(centred)
        left = np.array([norms(outside[:, part]) for part in parts]).reshape(len(parts), len(keys)).T
        return cls(
            np.asarray(matrix, dtype=np.float64),
            centre,
            parts,
            halved(centred @ np.asarray(matrix, dtype=np.float64)),
            stored(left + _EXACT * size[:, None]),
        )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of a record."""
        return float(2 * (self.numbers.shape[1] + self.residuals.shape[1]))

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, rows: slice) -> ResidualSketch:
        """Return the records of some keys."""
        return replace(self, numbers=self.numbers[rows], residuals=self.residuals[rows])

    def table(self) -> Floats:
        """Return the records as a reader sees them, [n, m + 1 + B]: numbers, their rounding, residual norms."""
        return np.column_stack([self.numbers.astype(np.float64), rounding(self.numbers), read(self.residuals)])

    def estimate(self, queries: Array) -> Floats:
        """Return the product [r, n] without what lies outside the span: no bound."""
        numbers = self.numbers.astype(np.float64)
        inside = self.rows(queries)[:, : numbers.shape[1]] @ numbers.T
        return np.asarray(inside + queries.astype(np.float64) @ self.mean[:, None])

    def rows(self, queries: Array) -> Floats:
        """Return the query's side [r, m + 1 + B]."""
        wide = queries.astype(np.float64)
        orthonormal, triangle = np.linalg.qr(self.matrix)
        inside = wide @ orthonormal
        weights = np.linalg.solve(triangle, inside.T).T
        outside, slack = wide - inside @ orthonormal.T, _EXACT * norms(wide)
        left = [norms(outside[:, part]) + slack for part in self.blocks]
        return np.column_stack([weights, norms(weights), *left])

    def upper(self, queries: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
        """Return the bound [r, n]."""
        return raised_product(self.rows(queries), self.table(), dtype) + raised_product(queries, self.mean[None])


def gaussian_matrix(rng: np.random.Generator, d: int, m: int) -> Floats:
    """Return a Johnson-Lindenstrauss matrix [d, m], N(0, 1/m)."""
    return np.asarray(rng.standard_normal((d, m)) / np.sqrt(m))


def plane_channels(rope: Rope, d: int) -> tuple[Ints, ...]:
    """Return the channels of each rotation plane, and those that are not rotated as one last block."""
    half = rope.dims // 2
    first = np.arange(half) if rope.pairing == "half" else np.arange(0, rope.dims, 2)
    second = first + (half if rope.pairing == "half" else 1)
    planes = tuple(np.stack([first, second], axis=1))
    return (*planes, np.arange(rope.dims, d)) if rope.dims < d else planes


def plane_sketch(keys: Array, rope: Rope, kept: Sequence[int]) -> ResidualSketch:
    """Keep whole rotation planes of `keys` [n, d] and the norm in each other one, which rotation does not change.

    4 bytes per token for each of the kept planes, 2 for each other plane (and 2 for the channels not rotated).
    """
    planes = plane_channels(rope, keys.shape[1])
    inside = np.concatenate([planes[i] for i in kept])
    others = [channels for i, channels in enumerate(planes) if i not in set(kept)]
    return ResidualSketch.fit(keys, np.eye(keys.shape[1])[:, inside], blocks=others)


# --- quantised sketches -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class QuantisedSketch:
    """Codes of P'k', k' = k - mean, with its error in one of three forms; a^ is what the codes stand for.

    - `one`: (P'q).a^ + ||q|| rho, rho = ||k' - P a^||; m b / 8 + 2 bytes per token.
    - `two`: (P'q).a^ + ||P'q|| ||P'k' - a^|| + ||q_perp|| ||k'_perp||; m b / 8 + 4 bytes.
    - `box`: (P'q).a^ + sum |P'q|_j step_j / 2 + ||q_perp|| ||k'_perp||; m b / 8 + 2 bytes. A clipped record, for which
      half a step is no bound, is marked by the sign of its norm, and falls back to the form `one`.
    """

    basis: Floats
    mean: Floats
    quantiser: Codes
    bits: int
    form: Form
    codes: npt.NDArray[np.uint8]
    """[n, m]"""
    error: Halves
    """[n] rho; in the form `two` ||P'k' - a^||; in the form `box` minus rho of the clipped, 0 of the others."""
    outside: Halves
    """[n] ||k'_perp||, zero where it is not stored."""

    @classmethod
    def fit(
        cls,
        keys: Array,
        basis: Array,
        bits: int = 8,
        form: Form = "one",
        *,
        mean: Array | None = None,
        ranges: Array | None = None,
    ) -> QuantisedSketch:
        """Store `keys` [n, d] on an orthonormal `basis` [d, m]; code ranges are fitted on the keys `ranges`, or all."""
        centred, centre = _about(keys, mean)
        directions = np.asarray(basis, dtype=np.float64)
        projected = centred @ directions
        quantiser = fit_codes(projected if ranges is None else _about(ranges, mean)[0] @ directions, bits)
        codes = quantiser.encode(projected)
        numbers = expanded(quantiser, codes)
        size = norms(centred) + norms(numbers)
        whole = norms(centred - numbers @ directions.T)
        outside = norms(centred - projected @ directions.T)
        error, left = _raised(whole, size), np.zeros(len(keys), dtype=np.float16)
        if form == "two":
            error, left = _raised(norms(projected - numbers), size), _raised(outside, size)
        elif form == "box":
            clipped = (np.abs(projected - numbers) > half_steps(quantiser)).any(axis=1)
            left = np.where(clipped, np.float16(0), _raised(outside, size))
            error = np.where(clipped, -error, np.float16(0))
        return cls(directions, centre, quantiser, bits, form, codes, error, left)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of a record."""
        return float(self.codes.shape[1] * self.bits / 8 + (4 if self.form == "two" else 2))

    def __len__(self) -> int:
        return len(self.codes)

    def part(self, rows: slice) -> QuantisedSketch:
        """Return the records of some keys."""
        return replace(self, codes=self.codes[rows], error=self.error[rows], outside=self.outside[rows])

    def numbers(self) -> Floats:
        """Return a^ [n, m]."""
        return expanded(self.quantiser, self.codes)

    def table(self) -> Floats:
        """Return the records as a reader sees them, [n, m + 3]: a^, error, outside norm, whether half steps bound."""
        whole = read(np.abs(self.error))
        steps = (self.error == 0) if self.form == "box" else np.zeros(len(whole))
        return np.column_stack([self.numbers(), whole, read(self.outside), steps])

    def estimate(self, queries: Array) -> Floats:
        """Return the product [r, n] with what the codes stand for: no bound."""
        wide = queries.astype(np.float64)
        return np.asarray(wide @ self.basis @ self.numbers().T + wide @ self.mean[:, None])

    def rows(self, queries: Array) -> Floats:
        """Return the query's side [r, m + 3]."""
        wide = queries.astype(np.float64)
        inside = wide @ self.basis
        size = norms(wide)
        met = norms(inside) + _EXACT * size if self.form == "two" else size
        outside = norms(wide - inside @ self.basis.T) + _EXACT * size
        steps = np.abs(inside) @ half_steps(self.quantiser) * (1 + _EXACT)
        return np.column_stack([inside, met, outside, steps])

    def upper(self, queries: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
        """Return the bound [r, n]."""
        return raised_product(self.rows(queries), self.table(), dtype) + raised_product(queries, self.mean[None])


def expanded(quantiser: Codes, codes: Array) -> Floats:
    """Return what `codes` [n, m] stand for."""
    numbers = codes.astype(np.float64)
    quantiser.expand(numbers)
    return numbers


def half_steps(quantiser: Codes) -> Floats:
    """Return the largest error [m] of a code that is not clipped, with room for the rounding of low + code * step."""
    low, step = quantiser.low.astype(np.float64), quantiser.step.astype(np.float64)
    return np.asarray(step / 2 + _EXACT * (np.abs(low) + quantiser.largest * step))


@dataclass(frozen=True, eq=False)
class IntegerSketch:
    """Scoring in integers only: int8 queries, codes about their middle, 12-bit norms; the rescale rounds up.

    The bound is sigma T / 256 + c with T = 256 sum_j q_j code_j + w rho, a 32-bit integer; sigma, c, and the integers
    q_j and w are made once per query. w covers ||q|| rho and what quantising the query changes, which meets the norm
    of the codes. m b / 8 + 2 + 2 bytes per token: codes, rho, the norm of the codes. A rho beyond its range is never
    ruled out.
    """

    sketch: QuantisedSketch
    """In the form `one`."""
    error: npt.NDArray[np.int64]
    """[n] rho in steps of `error_step`, rounded up, at most 4,095, which stands for no bound."""
    error_step: float
    size: npt.NDArray[np.int64]
    """[n] norm of the codes about their middle, rounded up."""

    @classmethod
    def fit(
        cls, keys: Array, basis: Array, bits: int = 8, *, mean: Array | None = None, ranges: Array | None = None
    ) -> IntegerSketch:
        """Store `keys` [n, d] on an orthonormal `basis` [d, m]; ranges of codes and norms come from `ranges`."""
        sketch = QuantisedSketch.fit(keys, basis, bits, "one", mean=mean, ranges=ranges)
        rho = read(sketch.error)
        known = rho[rho < UNKNOWN]
        step = max(float(known.max(initial=0.0)) * _NORM_ROOM / (_NORM_LEVELS - 1), _TINY)
        error = np.minimum(np.ceil(rho / step * (1 + _EXACT)), _NORM_LEVELS).astype(np.int64)
        size = np.ceil(norms(_middle(sketch))).astype(np.int64)
        return cls(sketch, error, step, size)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of a record."""
        return self.sketch.bytes_per_token + 2

    def upper(self, queries: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
        """Return the bound [r, n]; `dtype` is not used, for the products are integers."""
        del dtype
        wide = queries.astype(np.float64)
        inside = wide @ self.sketch.basis
        steps = self.sketch.quantiser.step.astype(np.float64)
        weights = inside * steps
        sigma = self._sigma(weights, norms(wide))
        levels = np.rint(weights / sigma[:, None])
        left = norms(weights - sigma[:, None] * levels) + _EXACT * norms(weights)
        unit = sigma / _FRACTION
        for_error = np.ceil(norms(wide) * self.error_step / unit * (1 + _EXACT))
        for_size = np.ceil(left / unit * (1 + _EXACT))
        total = _FRACTION * (levels.astype(np.int64) @ _middle(self.sketch).T.astype(np.int64))
        total += for_error.astype(np.int64)[:, None] * self.error + for_size.astype(np.int64)[:, None] * self.size
        scaled = np.nextafter(unit[:, None] * total, np.inf)
        scaled = np.where(self.error >= _NORM_LEVELS, UNKNOWN * (1 + norms(wide)[:, None]), scaled)
        return np.asarray(scaled + self._constant(wide, inside)[:, None])

    def _sigma(self, weights: Floats, size: Floats) -> Floats:
        """Return the step [r] of the query, large enough that the weight of rho fits 17 bits."""
        finest = np.maximum(size * self.error_step * _FRACTION / 2**17, _TINY)
        return np.asarray(np.maximum(np.abs(weights).max(axis=1) / _LEVELS, finest))

    def _constant(self, wide: Floats, inside: Floats) -> Floats:
        quantiser = self.sketch.quantiser
        middle = quantiser.low + quantiser.step * ((quantiser.largest + 1) // 2)
        fixed = raised_product(inside, middle[None]) + raised_product(wide, self.sketch.mean[None])
        return np.asarray(fixed[:, 0] + _EXACT * norms(wide) * norms(self.sketch.numbers()).max(initial=0.0))


def _middle(sketch: QuantisedSketch) -> Array:
    """Return the codes about their middle, as signed integers."""
    return sketch.codes.astype(np.int16) - np.int16((sketch.quantiser.largest + 1) // 2)


# --- anchors: what is stored per group of keys ----------------------------------------------------------------


def page_labels(n: int, page: int) -> Ints:
    """Return the page of each of n positions."""
    return np.arange(n) // page


def _centres(keys: Floats, labels: Ints) -> Halves:
    """Return the mean of each group, [groups, d]."""
    count = np.bincount(labels)
    sums = np.zeros((len(count), keys.shape[1]))
    np.add.at(sums, labels, keys)
    return halved(sums / np.maximum(count, 1)[:, None])


def _largest(values: Floats, labels: Ints) -> Floats:
    out = np.zeros(int(labels.max(initial=-1)) + 1)
    np.maximum.at(out, labels, values)
    return out


@dataclass(frozen=True, eq=False)
class Ellipsoids:
    """An ellipsoid per group with one shape S = L L' for the whole head: q.c + ||L'q|| rho.

    (2 d + 2) / group size bytes per token; L [d, d] is stored once. S is the second moment of the keys about their
    group's centre; any positive definite one is sound.
    """

    shape: Floats
    """L, lower triangular."""
    labels: Ints
    centres: Halves
    radii: Halves

    @classmethod
    def fit(cls, keys: Array, labels: Ints) -> Ellipsoids:
        """Enclose `keys` [n, d] in ellipsoids of the groups `labels` [n]."""
        wide = keys.astype(np.float64)
        centres = _centres(wide, labels)
        offsets = wide - centres[labels].astype(np.float64)
        shape = _root_of_moment(offsets)
        unit = np.linalg.solve(shape, offsets.T).T
        # The solve's own error is bounded through what is left: offset = L unit + rest.
        rest = norms(offsets - unit @ shape.T) + _EXACT * norms(offsets) + _EXACT * norms(unit) * norms(shape.ravel())
        least = float(np.linalg.svd(shape, compute_uv=False)[-1])
        return cls(shape, labels, centres, stored(_largest(norms(unit) + rest / least, labels)))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of all ellipsoids over the keys."""
        return 2.0 * (self.centres.size + self.radii.size) / len(self.labels)

    def upper(self, queries: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
        """Return the bound [r, n]."""
        wide = queries.astype(np.float64)
        width = norms(wide @ self.shape) + _EXACT * norms(wide) * norms(self.shape.ravel())
        table = np.column_stack([self.centres.astype(np.float64), read(self.radii)])
        return raised_product(np.column_stack([wide, width]), table, dtype)[:, self.labels]


def _root_of_moment(offsets: Floats) -> Floats:
    """Return L with L L' = the second moment of `offsets`, widened so that no direction is flatter than 1e-4."""
    scale = max(float(np.abs(offsets).max(initial=0.0)), _TINY)
    unit = offsets / scale
    moment = unit.T @ unit / max(1, len(unit))
    widest = max(float(np.linalg.eigvalsh(moment)[-1]), 1e-12)
    return np.asarray(np.linalg.cholesky(moment + 1e-8 * widest * np.eye(len(moment))) * scale)


@dataclass(frozen=True, eq=False)
class AnchoredSketch:
    """A sketch of each key about its group's centre: q.c + (P'q).(P'(k - c)) + ||q_perp|| ||(k - c)_perp||.

    2 m + 2 bytes per token, 2 for the group's id, and 2 d / group size for its centre.
    """

    labels: Ints
    centres: Halves
    sketch: ResidualSketch

    @classmethod
    def fit(cls, keys: Array, labels: Ints, matrix: Array) -> AnchoredSketch:
        """Store `keys` [n, d] of the groups `labels` [n]; `matrix` [d, m] as in `ResidualSketch`."""
        wide = keys.astype(np.float64)
        centres = _centres(wide, labels)
        return cls(labels, centres, ResidualSketch.fit(wide - centres[labels].astype(np.float64), matrix))

    @property
    def bytes_per_token(self) -> float:
        """Bytes of a record and its part of the centre."""
        return self.sketch.bytes_per_token + 2 + 2.0 * self.centres.size / len(self.labels)

    def upper(self, queries: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
        """Return the bound [r, n]."""
        anchors = raised_product(queries.astype(np.float64), self.centres.astype(np.float64), dtype)
        return anchors[:, self.labels] + self.sketch.upper(queries, dtype)


# --- page-local RoPE frames --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PageLocalSketch:
    """A sketch of R(i - i0) k, k before rotation, i0 the first position of its page; the query turns by R(-i0).

    As many bytes per token as the sketch inside. One token per page is a sketch of keys before rotation (tight, but
    every token needs a query of its own), one page for all is one of rotated keys.
    """

    page: int
    first: int
    rope: Rope
    inv_freq: Floats
    sketch: ResidualSketch | QuantisedSketch
    """Of `local_frames`."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes of a record."""
        return self.sketch.bytes_per_token

    def upper(self, queries: Array, dtype: npt.DTypeLike = np.float64) -> Floats:
        """Return the bound [r, n] for `queries` [r, d] rotated to their own positions."""
        return self._by_page(queries, lambda part, turned: part.upper(turned, dtype) + self._slack(part, turned))

    def estimate(self, queries: Array) -> Floats:
        """Return the products [r, n] of the sketch inside: no bound."""
        return self._by_page(queries, lambda part, turned: part.estimate(turned))

    def _by_page(self, queries: Array, score: Callable[[ResidualSketch | QuantisedSketch, Floats], Floats]) -> Floats:
        n = len(self.sketch)
        out = np.empty((len(queries), n))
        for start in range(0, n, self.page):
            rows = slice(start, min(start + self.page, n))
            turned = turned_back(queries, self.first + start, self.rope, self.inv_freq)
            out[:, rows] = score(self.sketch.part(rows), turned)
        return out

    def _slack(self, part: ResidualSketch | QuantisedSketch, turned: Floats) -> Floats:
        """Return what turning query and key may have rounded: angles are as exact as position * 2^-53."""
        reach = norms(turned)[:, None] * norms(part.table())[None, :]
        return 1e-15 * (1 + self.first + len(self.sketch)) * reach


def local_frames(keys: Array, rope: Rope, inv_freq: Array, page: int, first: int = 0) -> Floats:
    """Turn rotated `keys` [n, d] of the positions `first` onwards back by the first position of their page.

    Pages are counted from `first`.
    """
    starts = first + np.arange(len(keys)) // page * page
    return turned_back(keys, starts, rope, inv_freq)


def turned_back(rows: Array, back: npt.ArrayLike, rope: Rope, inv_freq: Array) -> Floats:
    """Return R(-back) of rotated `rows` [..., d]."""
    plain = replace(rope, attention_factor=1.0)  # what is rotated holds its factor already
    return rotate(rows, -np.asarray(back), inv_freq, plain).astype(np.float64)
