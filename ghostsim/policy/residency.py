"""Tokens that stay in HBM after they were read: what need not be fetched again."""

from __future__ import annotations

import numpy as np

from ghostsim.config.policy import Cache
from ghostsim.policy.exact import Array, Ints
from ghostsim.policy.rules import Mask, take_top


class Residency:
    """What the cache of one head holds, step by step."""

    def __init__(self, cache: Cache, tokens: int) -> None:
        self.cache = cache
        self._held = np.zeros(tokens, dtype=bool)
        self._used: Ints = np.zeros(tokens, dtype=np.int64)
        self._clock = 0

    def missing(self, c0: int, read: Mask, worth: Array | None) -> Mask:
        """Return the cold tokens of `read` that the cache lacks, and take them in; c0 is the first cold position.

        What leaves is the lowest in `worth` [cold tokens], and what is not among the cold tokens any more; without it
        the least recently used. Ties keep the older position.
        """
        part = slice(c0, c0 + len(read))
        missing = read & ~self._held[part]
        self._clock += 1
        self._held[part] |= read
        self._used[part][read] = self._clock
        order = np.array(self._used, dtype=np.float64)
        if worth is not None:
            order[:] = -np.inf
            order[part] = worth
        order[part][read] = np.finfo(np.float64).max / 2
        self._held = take_top(np.where(self._held, order, -np.inf), self.cache.tokens)
        return missing
