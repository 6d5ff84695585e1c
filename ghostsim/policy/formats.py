"""Storage formats of K and V: what a reader gets back."""

from __future__ import annotations

import numpy as np

from ghostsim.config.policy import Int
from ghostsim.errors import ConfigError
from ghostsim.policy.exact import Array


def dequantised(rows: Array, fmt: Int) -> Array:
    """Return `rows` [n, d] as a reader of asymmetric group-wise integers sees them.

    Each group of channels of a row has an fp16 minimum and an fp16 scale (max - min over 2^bits - 1).
    """
    n, d = rows.shape
    if d % fmt.group:
        raise ConfigError(f"format.int.group: found {fmt.group}, expected a divisor of head_dim {d}, e.g. 32")
    groups = rows.reshape(n, d // fmt.group, fmt.group)
    low = groups.min(axis=2, keepdims=True).astype(np.float16).astype(rows.dtype)
    span = groups.max(axis=2, keepdims=True) - low
    scale = (span / (2**fmt.bits - 1)).astype(np.float16).astype(rows.dtype)
    scale = np.maximum(scale, np.finfo(np.float16).smallest_subnormal)
    codes = np.clip(np.rint((groups - low) / scale), 0, 2**fmt.bits - 1)
    return (low + codes * scale).reshape(n, d)
