"""Rules: which units a query takes, given a score per unit. Ties go to the lower position; budgets round down."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.policy.exact import Array

Mask = npt.NDArray[np.bool_]

_BINS = 2048
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


def spend(bounds: Array, costs: Array, limits: npt.NDArray[np.float64], spread: float) -> Mask:
    """Leave units out, least bound first, while the sum of their costs stays within the limit; take the others.

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
    Sorting all units of all queries is too slow. A unit whose exp(bound) alone is over the limit is taken, and all units
    below limit / (n * spread) together fit; a histogram between the two finds the bin of the cut, and only that
    bin is sorted.
    """
    g, n = bounds.shape
    if n == 0:
        return np.zeros((g, 0), dtype=bool)
    top = np.log(limits)
    bottom = top - np.log(n * spread) - 1e-3
    bins = np.subtract(bounds, bottom[:, None].astype(bounds.dtype))
    bins *= (_BINS / (top - bottom))[:, None].astype(bounds.dtype)
    np.clip(bins, 0, _BINS, out=bins)
    index = bins.astype(np.int64)
    mask = np.empty((g, n), dtype=bool)
    for j in range(g):
        mask[j] = _spend_row(bounds[j], costs[j], index[j], float(limits[j]))
    return mask


def _spend_row(bounds: Array, costs: Array, index: npt.NDArray[np.int64], limit: float) -> Mask:
    spent = np.cumsum(np.bincount(index, weights=costs, minlength=_BINS + 1))
    cut = int(np.searchsorted(spent, limit, side="right"))
    mask: Mask = index > cut
    members = np.flatnonzero(index == cut)
    if len(members):
        order = members[np.lexsort((-members, bounds[members]))]
        before = spent[cut - 1] if cut else 0.0
        running = before + np.cumsum(costs[order], dtype=np.float64)
        mask[order[np.searchsorted(running, limit, side="right") :]] = True
    return mask


def pooled(values: npt.NDArray[np.float64], pool: int, kernel: str) -> npt.NDArray[np.float64]:
    """Pool `values` [..., n] over `pool` neighbours, stride 1, same length: avg pads with zeros and divides by `pool`."""
    half = pool // 2
    pad = [(0, 0)] * (values.ndim - 1) + [(half, half)]
    padded = np.pad(values, pad, constant_values=0.0 if kernel == "avg" else -np.inf)
    windows: npt.NDArray[Any] = np.lib.stride_tricks.sliding_window_view(padded, pool, axis=-1)
    return windows.sum(axis=-1) / pool if kernel == "avg" else windows.max(axis=-1)
