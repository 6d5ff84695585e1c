"""The attention output over what is read, compared with the output over everything."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import IntFormat, Policy
from ghostsim.policy.exact import Array, Block, Floats, scaled_products, softcapped, wide_sum
from ghostsim.policy.formats import dequantised
from ghostsim.policy.rules import Mask
from ghostsim.trace.compose import Head

Owners = npt.NDArray[np.int64]


def weighted_values(weights: Array, values: Array) -> Array:
    """Return the sums [n, g, d] of `values` [positions, d] weighted by `weights` [n, g, P]."""
    n, g, size = weights.shape
    return (weights.reshape(n * g, size) @ values[:size]).reshape(n, g, -1)


def exact_output(block: Block, values: Array) -> Array:
    """Return the attention output [n, g, d] over all attended positions."""
    return np.asarray(weighted_values(block.weights, values) / block.total[..., None])


def read_output(block: Block, reads: Mask, values: Array) -> Array:
    """Return the output [n, g, d] renormalised over the positions read, `reads` [n, P]."""
    masked = block.weights * reads[:, None, :]
    return np.asarray(weighted_values(masked, values) / wide_sum(masked)[..., None])


def relative_error(given: Array, exact: Array) -> Floats:
    """Return ||given - exact|| / ||exact|| over the last axis."""
    size = np.maximum(np.linalg.norm(exact, axis=-1), np.finfo(np.float64).tiny)
    return np.asarray(np.linalg.norm(given - exact, axis=-1) / size, dtype=np.float64)


def owners(masks: list[Mask | None], size: int) -> Owners:
    """Return for each position the first clause that stores it (a mask of None stores all), -1 for none."""
    owner = np.full(size, -1, dtype=np.int64)
    for c in reversed(range(len(masks))):
        mask = masks[c]
        owner[... if mask is None else mask] = c
    return owner


class LossyReader:
    """Keys and values as they come back from the formats of the KEEP clauses."""

    def __init__(self, policy: Policy, head: Head, values: Array) -> None:
        self._head = head
        self._stored = [
            (dequantised(head.keys, keep.format.int), dequantised(values, keep.format.int))
            if isinstance(keep.format, IntFormat)
            else (head.keys, values)
            for keep in policy.keep
        ]

    def output(self, block: Block, reads: Mask, owned: list[Owners]) -> Array:
        """Return the output [n, g, d] over reads, each position in the format of the clause that owns it."""
        owner = np.where(reads, np.stack(owned), -1)[:, None, :]
        clauses = np.unique(owner[owner >= 0]).tolist()
        weights = np.full_like(block.scores, -np.inf)
        for c in clauses:
            keys = self._stored[c][0][: weights.shape[-1]]
            scores = softcapped(scaled_products(block.queries, keys, self._head.scale), self._head.softcap)
            np.copyto(weights, scores, where=owner == c)
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        parts = [weighted_values(weights * (owner == c), self._stored[c][1]) for c in clauses]
        return np.asarray(sum(parts) / wide_sum(weights)[..., None])
