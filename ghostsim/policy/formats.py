"""Storage formats of K and V: what a reader gets back."""

from __future__ import annotations

import numpy as np

from ghostsim.config.policy import Int
from ghostsim.errors import ConfigError
from ghostsim.policy.exact import Array

_ROWS = 4096


def dequantised(rows: Array, fmt: Int) -> Array:
    """Return `rows` [n, d] as a reader of asymmetric group-wise integers sees them.

    Each group of channels of a row has an fp16 minimum and an fp16 scale (max - min over 2^bits - 1).
    """
    d = rows.shape[1]
    if d % fmt.group:
        raise ConfigError(f"format.int.group: found {fmt.group}, expected a divisor of head_dim {d}, e.g. 32")
    return np.concatenate([_dequantised(rows[i : i + _ROWS], fmt) for i in range(0, len(rows), _ROWS)])


def _dequantised(rows: Array, fmt: Int) -> Array:
    n, d = rows.shape
    groups = rows.reshape(n, d // fmt.group, fmt.group)
    low = groups.min(axis=2, keepdims=True).astype(np.float16).astype(rows.dtype)
    span = groups.max(axis=2, keepdims=True) - low
    scale = (span / (2**fmt.bits - 1)).astype(np.float16).astype(rows.dtype)
    scale = np.maximum(scale, scale.dtype.type(np.finfo(np.float16).smallest_subnormal))
    codes = np.clip(np.rint((groups - low) / scale), 0, 2**fmt.bits - 1)
    return np.asarray(low + codes * scale).reshape(n, d)
