"""Storage formats of K and V: what a reader gets back."""

from __future__ import annotations

import numpy as np

from ghostsim.config.formats import (
    Channels,
    ChannelsFormat,
    Int,
    IntFormat,
    LowRank,
    LowRankFormat,
    Residual,
    ResidualFormat,
    Side,
    Sparse,
    SparseFormat,
    VqFormat,
)
from ghostsim.config.policy import Policy
from ghostsim.errors import ConfigError
from ghostsim.policy.bases import principal_basis
from ghostsim.policy.clusters import spherical_kmeans, summed
from ghostsim.policy.exact import Array

_ROWS = 4096


def decoded(rows: Array, side: Side) -> Array:
    """Return keys or values `rows` [n, d] as a reader of a format sees them, without a residual in fp16."""
    match side:
        case IntFormat(int=fmt) if fmt.axis == "channel":
            return _along_channels(rows, fmt)
        case IntFormat(int=fmt):
            return dequantised(rows, fmt)
        case LowRankFormat(lowrank=fmt):
            return _low_rank(rows, fmt)
        case ChannelsFormat(channels=fmt):
            return _channels(rows, fmt)
        case SparseFormat(nm=fmt):
            return _sparse(rows, fmt)
        case ResidualFormat(residual=fmt):
            return _anchored(rows, fmt)
        case _:
            return rows


def codec_known(policy: Policy) -> bool:
    """Whether the error of every format of a policy is modelled."""
    return not any(isinstance(side, VqFormat) for keep in policy.keep for side in (keep.format.k, keep.format.v))


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
    return _quantised_groups(groups, fmt.bits).reshape(n, d)


def _quantised_groups(groups: Array, bits: int) -> Array:
    """Quantise and dequantise along the last axis."""
    low = groups.min(axis=-1, keepdims=True).astype(np.float16).astype(groups.dtype)
    span = groups.max(axis=-1, keepdims=True) - low
    scale = (span / (2**bits - 1)).astype(np.float16).astype(groups.dtype)
    scale = np.maximum(scale, scale.dtype.type(np.finfo(np.float16).smallest_subnormal))
    codes = np.clip(np.rint((groups - low) / scale), 0, 2**bits - 1)
    return np.asarray(low + codes * scale)


def _along_channels(rows: Array, fmt: Int) -> Array:
    """Quantise groups of consecutive tokens per channel; a group that is not full yet stays as it is."""
    whole = len(rows) // fmt.group * fmt.group
    groups = rows[:whole].reshape(-1, fmt.group, rows.shape[1]).swapaxes(1, 2)
    back = _quantised_groups(groups, fmt.bits).swapaxes(1, 2).reshape(whole, rows.shape[1])
    return np.concatenate([back, rows[whole:]])


def _low_rank(rows: Array, fmt: LowRank) -> Array:
    """Project on the leading directions of the rows themselves; a rank of head_dim or more loses nothing."""
    if fmt.rank >= rows.shape[1]:
        return rows
    basis = principal_basis(rows, fmt.rank).astype(rows.dtype)
    near = (rows @ basis) @ basis.T
    if not fmt.bits:
        return np.asarray(near)
    return np.asarray(near + _quantised_groups(rows - near, fmt.bits))


def _channels(rows: Array, fmt: Channels) -> Array:
    width = int(fmt.share * rows.shape[1])
    kept = np.argsort(-np.square(rows).sum(axis=0), kind="stable")[:width]
    out = np.zeros_like(rows)
    out[:, kept] = rows[:, kept]
    return out


def _anchored(rows: Array, fmt: Residual) -> Array:
    """Take what an integer code keeps of the difference to the anchor; rows are clustered a segment at a time."""
    parts = [_anchored_part(rows[i : i + _ROWS], fmt) for i in range(0, len(rows), _ROWS)]
    return np.concatenate(parts)


def _anchored_part(rows: Array, fmt: Residual) -> Array:
    count = -(-len(rows) // fmt.tokens)
    labels = spherical_kmeans(rows, count, fmt.rounds)
    members = np.maximum(np.bincount(labels, minlength=count), 1)[:, None].astype(rows.dtype)
    centres = (summed(rows, labels, count) / members).astype(np.float16).astype(rows.dtype)
    near = centres[labels]
    return np.asarray(near + _quantised_groups(rows - near, fmt.bits))


def _sparse(rows: Array, fmt: Sparse) -> Array:
    n, d = rows.shape
    if d % fmt.m:
        raise ConfigError(f"format.nm.m: found {fmt.m}, expected a divisor of head_dim {d}, e.g. 4")
    groups = rows.reshape(n, d // fmt.m, fmt.m)
    order = np.argsort(-np.abs(groups), axis=2, kind="stable")
    out = np.zeros_like(groups)
    kept = order[:, :, : fmt.n]
    np.put_along_axis(out, kept, np.take_along_axis(groups, kept, axis=2), axis=2)
    return out.reshape(n, d)
