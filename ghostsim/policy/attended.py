"""The attention output over what is read, compared with the output over everything."""

from __future__ import annotations

import numpy as np

from ghostsim.config.policy import Int
from ghostsim.policy.exact import Array, Block, Floats, scaled_products, softcapped, wide_sum
from ghostsim.policy.formats import dequantised
from ghostsim.policy.rules import Mask
from ghostsim.trace.compose import Head


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


class LossyReader:
    """Keys and values as they come back from an integer format."""

    def __init__(self, fmt: Int, head: Head, values: Array) -> None:
        self._head = head
        self._keys, self._values = dequantised(head.keys, fmt), dequantised(values, fmt)

    def output(self, block: Block, reads: Mask) -> Array:
        """Return the output [n, g, d] over the positions read, `reads` [n, P]."""
        products = scaled_products(block.queries, self._keys[: reads.shape[1]], self._head.scale)
        weights = np.where(reads[:, None, :], softcapped(products, self._head.softcap), -np.inf)
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        return np.asarray(weighted_values(weights, self._values) / wide_sum(weights)[..., None])
