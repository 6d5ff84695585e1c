"""Exact attention of one head, a block of steps at a time: what every policy is measured against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.trace.compose import Head

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOP = 32
BLOCK_ELEMENTS = 17_000_000
_TOP_CHUNK = 128


@dataclass(frozen=True, eq=False)
class Block:
    """Consecutive decode steps of one head: n steps, g query heads, P positions (the last step's own token is P - 1).

    `weights` are exp(score - peak), 0 where a position is not attended; their dtype is the keys'.
    """

    first: int
    positions: Ints
    """[n] own position of each step."""
    begins: Ints
    """[n] first attended position (a sliding window cuts earlier ones)."""
    queries: Array
    """[n, g, d]"""
    products: Array
    """[n, g, P] scale * q.k, before any softcap (meaningful where attended)."""
    scores: Array
    """[n, g, P] after softcap; -inf where not attended."""
    peak: Array
    """[n, g] largest attended score."""
    weights: Array
    """[n, g, P]"""
    total: Floats
    """[n, g] sum of the weights, in float64."""
    memo: dict[object, Array] = field(default_factory=dict, repr=False)
    """What policies have computed of this block and share."""

    @property
    def steps(self) -> int:
        """Decode steps in the block."""
        return len(self.positions)

    def part(self, steps: slice) -> Block:
        """Return some of the steps, with the positions of all."""
        return replace(
            self,
            first=self.first + steps.start,
            positions=self.positions[steps],
            begins=self.begins[steps],
            queries=self.queries[steps],
            products=self.products[steps],
            scores=self.scores[steps],
            peak=self.peak[steps],
            weights=self.weights[steps],
            total=self.total[steps],
        )

    def query_head(self, j: int) -> Block:
        """Return query head j alone."""
        one = slice(j, j + 1)
        return replace(
            self,
            queries=self.queries[:, one],
            products=self.products[:, one],
            scores=self.scores[:, one],
            peak=self.peak[:, one],
            weights=self.weights[:, one],
            total=self.total[:, one],
        )

    @cached_property
    def top(self) -> Ints:
        """[n, g, 32] positions of the largest scores, best first, ties to the lower position; -1 pads."""
        n, g, _ = self.scores.shape
        out = np.full((n, g, TOP), -1, dtype=np.int64)
        for i, j in np.ndindex(n, g):
            found = top_positions(self.scores[i, j, self.begins[i] : self.positions[i] + 1], TOP) + self.begins[i]
            out[i, j, : len(found)] = found
        return out


def blocks(head: Head, elements: int = BLOCK_ELEMENTS) -> Iterator[Block]:
    """Yield the head's steps in blocks of about `elements` scores, so that temporaries stay small."""
    steps, g, _ = head.queries.shape
    size = max(1, elements // (g * len(head.keys)))
    for first in range(0, steps, size):
        yield block_of(head, first, min(first + size, steps))


def block_of(head: Head, first: int, end: int) -> Block:
    """Return steps first .. end of a head as one block."""
    positions = np.arange(head.context + first, head.context + end, dtype=np.int64)
    begins = np.maximum(0, positions - head.window + 1) if head.window else np.zeros_like(positions)
    queries = head.queries[first:end]
    products = scaled_products(queries, head.keys[: positions[-1] + 1], head.scale)
    scores = softcapped(products, head.softcap)
    for i, (begin, own) in enumerate(zip(begins.tolist(), positions.tolist(), strict=True)):
        scores[i, :, :begin] = -np.inf
        scores[i, :, own + 1 :] = -np.inf
    peak = scores.max(axis=-1)
    weights = np.subtract(scores, peak[..., None])
    np.exp(weights, out=weights)
    total = wide_sum(weights)
    return Block(first, positions, begins, queries, products, scores, peak, weights, total)


def wide_sum(rows: Array) -> Floats:
    """Sum non-negative `rows` [..., n] over the last axis in float64.

    Long fp32 rows are first added in fours in fp32: its two roundings are below those of exp itself, and only a
    quarter of the numbers is converted.
    """
    n = rows.shape[-1]
    if rows.dtype != np.float32 or n < 4096:
        return np.asarray(rows.sum(axis=-1, dtype=np.float64))
    quarter = n // 4
    fours = rows[..., :quarter] + rows[..., quarter : 2 * quarter]
    fours += rows[..., 2 * quarter : 3 * quarter]
    fours += rows[..., 3 * quarter : 4 * quarter]
    rest = rows[..., 4 * quarter :].sum(axis=-1, dtype=np.float64)
    return np.asarray(fours.sum(axis=-1, dtype=np.float64) + rest)


def scaled_products(queries: Array, keys: Array, scale: float) -> Array:
    """Return scale * q.k, [..., positions], in the dtype of the keys."""
    rows = (queries.reshape(-1, queries.shape[-1]) * scale).astype(keys.dtype)
    return (rows @ keys.T).reshape(*queries.shape[:-1], len(keys))


def softcapped(products: Array, softcap: float | None) -> Array:
    """Return softcap * tanh(products / softcap), or the products themselves without a softcap."""
    return products if softcap is None else softcap * np.tanh(products / softcap)


def top_positions(scores: Array, k: int) -> Ints:
    """Return the positions of the k largest of `scores` [n], best first, ties to the lower position.

    The k-th largest of the maxima of chunks bounds the k-th largest score from below, so few positions are sorted.
    """
    chunks = len(scores) // _TOP_CHUNK
    if chunks > k:
        maxima = scores[: chunks * _TOP_CHUNK].reshape(chunks, _TOP_CHUNK).max(axis=1)
        at_least = np.partition(maxima, chunks - k)[chunks - k]
        candidates = np.flatnonzero(scores >= at_least)
    else:
        candidates = np.arange(len(scores))
    order = np.lexsort((candidates, -scores[candidates]))
    return candidates[order[:k]]
