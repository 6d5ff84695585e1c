"""Rules: which units a query takes, given a score per unit. Ties go to the lower position; budgets round down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.policy.exact import Array

Mask = npt.NDArray[np.bool_]

_BINS = 2048
_LOW_BINS = 6144
CLIP = 80.0
"""Bounds are cut off at peak + CLIP: e^80 is beyond any budget, and fits fp32."""


def take_top(scores: Array, k: int) -> Mask:
    """Take the k largest of `scores` [n]; -inf is never taken."""
    there = np.isfinite(scores)
    if k >= np.count_nonzero(there):
        return there
    if k <= 0:
        return np.zeros(len(scores), dtype=bool)
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    mask: Mask = scores > least
    mask[np.flatnonzero(scores == least)[: k - np.count_nonzero(mask)]] = True
    return mask


def agreed_top(scores: Array, k: int, reduce: str) -> Mask:
    """Take the k best units for a KV head from the scores [g, n] of its query heads."""
    if reduce == "any":
        return np.asarray(np.stack([take_top(row, k) for row in scores]).any(axis=0))
    return take_top(combined(scores, reduce), k)


def combined(scores: Array, reduce: str) -> Array:
    """Return one score [n] for the group from `scores` [g, n]."""
    if reduce == "max":
        return np.asarray(scores.max(axis=0))
    return np.asarray(scores.mean(axis=0) if reduce == "mean" else scores.sum(axis=0))


@dataclass(frozen=True, eq=False)
class Ledger:
    """What leaving units out costs, sorted into bins of their bound; floor(`bins`) [g, n] is the bin of each unit."""

    bounds: Array
    costs: Array
    limits: npt.NDArray[np.float64]
    bins: Array
    spent: npt.NDArray[np.float64]
    """[g, bins] sum of the costs of a bin."""


def ledger(bounds: Array, costs: Array, limits: npt.NDArray[np.float64], spread: float) -> Ledger:
    """Sort units into bins of their bound, so that `spend` needs to sort one bin only.

    Parameters
    ----------
    bounds
        [g, n] upper bound of the exponent of each unit.
    costs
        [g, n] cost of leaving a unit out, between exp(bound) and spread * exp(bound).
    limits
        [g] largest sum of costs.

    Notes
    -----
    Sorting all units of all queries is too slow. A unit whose exp(bound) alone is over the limit is taken, and all
    units below limit / (n * spread) together fit: the cut lies between the two. Bins go on below, because additions
    to one and the same bin wait for each other.
    """
    top = np.log(limits)
    bottom = top - np.log(max(1, bounds.shape[1]) * spread) - 1e-3
    per_unit = _BINS / (top - bottom)
    bins = bounds * per_unit[:, None].astype(bounds.dtype)
    bins += (_LOW_BINS - bottom * per_unit)[:, None].astype(bounds.dtype)
    np.clip(bins, 0, _LOW_BINS + _BINS, out=bins)
    return Ledger(bounds, costs, limits, bins, _by_bin(bins, costs))


def _by_bin(bins: Array, costs: Array) -> npt.NDArray[np.float64]:
    rows = zip(bins.astype(np.int64), costs, strict=True)
    return np.stack([np.bincount(i, weights=c, minlength=_LOW_BINS + _BINS + 1) for i, c in rows])


def spend(book: Ledger, start: int, stop: int) -> Mask:
    """Leave units start .. stop out, least bound first, while their costs stay within the limit; take the others.

    Returns
    -------
    mask
        [g, stop - start] units taken, each query head by its own limit.
    """
    spent = book.spent
    for aside in (slice(0, start), slice(stop, book.bins.shape[1])):
        if aside.stop > aside.start:
            spent = spent - _by_bin(book.bins[:, aside], book.costs[:, aside])
    running = np.cumsum(spent, axis=1)
    part = slice(start, stop)
    rows = [_cut(book, j, part, running[j]) for j in range(len(book.limits))]
    return np.stack(rows)


def _cut(book: Ledger, j: int, part: slice, running: npt.NDArray[np.float64]) -> Mask:
    bounds, costs, bins, limit = book.bounds[j, part], book.costs[j, part], book.bins[j, part], book.limits[j]
    cut = int(np.searchsorted(running, limit, side="right"))
    mask: Mask = bins >= cut + 1
    members = np.flatnonzero((bins >= cut) ^ mask)
    if len(members):
        order = members[np.lexsort((-members, bounds[members]))]
        before = running[cut - 1] if cut else 0.0
        sums = before + np.cumsum(costs[order], dtype=np.float64)
        mask[order[np.searchsorted(sums, limit, side="right") :]] = True
    return mask


def pooled(values: npt.NDArray[np.float64], pool: int, kernel: str) -> npt.NDArray[np.float64]:
    """Pool `values` [..., n] over `pool` neighbours, stride 1, same length; avg pads with zeros, divides by `pool`."""
    half = pool // 2
    pad = [(0, 0)] * (values.ndim - 1) + [(half, half)]
    padded = np.pad(values, pad, constant_values=0.0 if kernel == "avg" else -np.inf)
    windows: npt.NDArray[Any] = np.lib.stride_tricks.sliding_window_view(padded, pool, axis=-1)
    return np.asarray(windows.sum(axis=-1) / pool if kernel == "avg" else windows.max(axis=-1))
