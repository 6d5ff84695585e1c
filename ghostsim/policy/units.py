"""Units: how an index groups tokens, and the arithmetic between tokens and units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghostsim.policy.exact import Array, Floats, Ints
from ghostsim.policy.rules import Mask


@dataclass(frozen=True, eq=False)
class Units:
    """The units that the cold tokens of a step fall into.

    Tokens stand for themselves where `sizes` is None. Pages are consecutive: `sizes` tokens each. Clusters have
    `labels` [tokens], -1 for a token of no cluster, which is always taken. `columns` are the units' columns in the
    scores of the index.
    """

    columns: slice
    count: int
    sizes: Ints | None = None
    labels: Ints | None = None

    def sums(self, values: Array) -> Array:
        """Sum `values` [g, tokens] over each unit, [g, units]."""
        if self.sizes is None:
            return values
        if self.labels is not None:
            return np.stack([self._binned(row) for row in values]) if len(values) else values
        if not self.count:
            return values[:, :0]
        return np.asarray(np.add.reduceat(values, self._starts(), axis=1))

    def _binned(self, row: Array) -> Floats:
        assert self.labels is not None
        member = self.labels >= 0
        return np.bincount(self.labels[member], row[member], minlength=self.count).astype(np.float64)

    def _starts(self) -> Ints:
        assert self.sizes is not None
        return np.asarray(np.cumsum(self.sizes) - self.sizes)

    def spread(self, mask: Mask) -> Mask:
        """Return the tokens of the units in `mask` [units]."""
        if self.sizes is None:
            return mask
        if self.labels is not None:
            return np.append(mask, True)[self.labels]
        return np.repeat(mask, self.sizes)

    def repeat(self, values: Array) -> Array:
        """Return `values` [g, units] for each token; a token of no unit has +inf."""
        if self.sizes is None:
            return values
        if self.labels is not None:
            wide = np.concatenate([values, np.full((len(values), 1), np.inf, dtype=values.dtype)], axis=1)
            return np.asarray(wide[:, self.labels])
        return np.repeat(values, self.sizes, axis=1)

    def any(self, mask: Mask) -> Mask:
        """Return the units with a token in `mask` [tokens]."""
        if self.sizes is None:
            return mask
        if self.labels is not None:
            found = np.zeros(self.count, dtype=bool)
            found[self.labels[mask & (self.labels >= 0)]] = True
            return found
        return np.logical_or.reduceat(mask, self._starts()) if self.count else np.zeros(0, dtype=bool)


def token_units(c0: int, c1: int) -> Units:
    """Return the tokens c0 .. c1 as units."""
    return Units(slice(c0, c1), c1 - c0)


def page_units(c0: int, c1: int, page: int) -> Units:
    """Return the pages that the positions c0 .. c1 lie in, cut off at the ends."""
    if c1 <= c0:
        return Units(slice(0, 0), 0, np.zeros(0, dtype=np.int64))
    first, last = c0 // page, (c1 - 1) // page
    edges = np.clip(np.arange(first, last + 2) * page, c0, c1)
    return Units(slice(first, last + 1), last + 1 - first, np.asarray(np.diff(edges)))


def cluster_units(c0: int, c1: int, labels: Ints, count: int) -> Units:
    """Return the clusters of the positions c0 .. c1; tokens beyond `labels` belong to none."""
    inside = np.full(c1 - c0, -1, dtype=np.int64)
    known = max(0, min(c1, len(labels)) - c0)
    inside[:known] = labels[c0 : c0 + known]
    sizes = np.bincount(inside[inside >= 0], minlength=count)
    return Units(slice(0, count), count, sizes, inside)
