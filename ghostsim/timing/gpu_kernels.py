"""How long decode-attention and GEMM kernels take on a GPU.

Both are rooflines with the effects that move decode latency: a floor below which no kernel falls, key-value splits
that fill the SMs, waves of work items, and the share of the KV cache that a repeated kernel finds in L2.
Constants belong to a kernel family on an architecture, never to a part: see ``hwmodels/gpu/arch``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

SplitRule = Literal["one_wave", "occupancy"]
"""How a kernel family decides into how many pieces keys are cut; see `kv_splits`."""

_BLOCK_TOKENS = 128
"""Tokens of one key block of the attention kernels; also the shortest piece a split makes."""
_SM_SHARE = 1.1
"""What one busy SM draws from HBM, in fair shares (bandwidth / SMs)."""
_ATTENTION_POWER = 5.0
_GEMM_POWER = 4.5
_L2_POWER = 8.0
"""Sharpness of the smooth maxima and of the L2 capacity edge; shared by all families."""
_TILE = 128
_PANEL = 64
_PS_PER_US = 1_000_000


@dataclass(frozen=True)
class GpuSpec:
    """What kernel times need to know of a GPU; `peak_flops` is the dense rate at two bytes per element."""

    sms: int
    peak_flops: float
    hbm_bytes_per_s: float
    l2_bytes: int


@dataclass(frozen=True)
class AttentionParams:
    """Constants of one decode-attention family on one architecture.

    The floor and the streaming path overlap; the longer one decides, with a soft corner.
    """

    floor_us: float
    """Time of the smallest kernel (one block of keys)."""
    floor_per_doubling_us: float
    """Growth of the floor with each doubling of the keys per request: dependent loop iterations."""
    start_us: float
    """Streaming path: before its first byte."""
    combine_us: float
    """Merging the pieces of an item, if there are several."""
    wave_us: float
    """Prologue and epilogue of one wave of work items."""
    cold_us: float
    """Ramp of a kernel that finds nothing in L2."""
    hbm_efficiency: float
    """Share of the datasheet bandwidth that a saturated kernel reaches."""
    l2_bytes_per_s_per_sm: float
    """What one SM reads from L2. It follows SMs and clock, not the memory that a part of the architecture has."""
    l2_share: float
    """Share of the L2 capacity that keys and values can hold."""
    slots_per_sm: int
    """Work items that one SM holds."""
    split_rule: SplitRule
    max_splits: int
    """Most pieces into which the keys of one (request, KV head) are split."""


@dataclass(frozen=True)
class GemmParams:
    """Constants of the dense GEMM on one architecture."""

    launch_us: float
    hbm_efficiency: float
    flop_efficiency: float
    wave_weight: float
    """How much of the last wave's idle tiles the arithmetic pays; other tile sizes and split-K hide the rest."""
    panel_weight: float
    """How much of the SMs left without a panel of the weights the reading of the weights pays."""


@dataclass(frozen=True)
class AttentionShape:
    """One decode-attention kernel: `batch` requests, each with one query token and `kv_len` keys."""

    q_heads: int
    kv_heads: int
    head_dim: int
    kv_bytes_per_element: float
    batch: int
    kv_len: int

    @property
    def items(self) -> int:
        """Independent (request, KV head) pairs."""
        return self.batch * self.kv_heads

    @property
    def nbytes(self) -> float:
        """Bytes of keys and values read; all query heads of a KV head share them."""
        return 2 * self.items * self.kv_len * self.head_dim * self.kv_bytes_per_element


@dataclass(frozen=True)
class GemmShape:
    """A dense product ``[m, k] x [k, n]``."""

    m: int
    n: int
    k: int
    bytes_per_element: float

    @property
    def nbytes(self) -> float:
        """Bytes of both operands and the result, each moved once."""
        return self.bytes_per_element * (self.n * self.k + self.m * self.k + self.m * self.n)

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True)
class KernelSplit:
    """A kernel as the flow network sees it: ``time = fixed_ps + bytes / bytes_per_s``."""

    fixed_ps: int
    bytes_per_s: float


@dataclass(frozen=True)
class GemmSplit:
    """A GEMM as the flow network sees it: ``time = fixed_ps + max(bytes / bytes_per_s, flops / flops_per_s)``."""

    fixed_ps: int
    bytes_per_s: float
    flops_per_s: float


@lru_cache(maxsize=1 << 14)
def kv_splits(items: int, slots: int, kv_len: int, max_splits: int, rule: SplitRule = "one_wave") -> int:
    """Return into how many pieces the keys of one item are cut.

    ``one_wave`` (FlashInfer): as many as fit the slots in one wave. ``occupancy`` (flash-attention): one if the items
    fill four fifths of the slots, else the fewest that occupy 85 % as much of their waves as the best number does.
    """
    blocks = math.ceil(kv_len / _BLOCK_TOKENS)
    if rule == "one_wave":
        return max(1, min(slots // items, blocks, max_splits))
    if items >= 0.8 * slots:
        return 1
    busy = [_occupied(items * splits / slots) for splits in range(1, min(max_splits, slots, blocks) + 1)]
    return next(splits for splits, each in enumerate(busy, start=1) if each >= 0.85 * max(busy))


def _occupied(waves: float) -> float:
    return waves / math.ceil(waves)


def _smooth_max(a: float, b: float, power: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return float(high * (1 + (low / high) ** power) ** (1 / power)) if high > 0 else 0.0


def _stream_seconds(spec: GpuSpec, params: AttentionParams, shape: AttentionShape) -> tuple[float, float, int]:
    """Return the seconds in which all waves read HBM, the number of waves and of pieces per item.

    Full waves run at the reached bandwidth; the last one is limited by the SMs it occupies.
    """
    slots = spec.sms * params.slots_per_sm
    splits = kv_splits(shape.items, slots, shape.kv_len, params.max_splits, params.split_rule)
    pieces = shape.items * splits
    reached = params.hbm_efficiency * spec.hbm_bytes_per_s
    full, last = divmod(pieces, slots)
    piece = shape.nbytes / pieces
    seconds = full * slots * piece / reached
    if last:
        seconds += last * piece / (reached * min(1.0, last * _SM_SHARE / spec.sms))
    return seconds, pieces / slots, splits


def _attention_us(spec: GpuSpec, params: AttentionParams, shape: AttentionShape, found: float) -> float:
    """Return the kernel time if the share `found` of the bytes is in L2."""
    stream, waves, splits = _stream_seconds(spec, params, shape)
    l2_rate = params.l2_bytes_per_s_per_sm * spec.sms
    floor = params.floor_us + params.floor_per_doubling_us * math.log2(max(1.0, shape.kv_len / _BLOCK_TOKENS))
    cold = params.cold_us + stream * 1e6
    merging = params.combine_us if splits > 1 else 0.0
    warm = found * shape.nbytes / l2_rate * 1e6
    path = params.start_us + merging + params.wave_us * waves + warm + (1 - found) * cold
    return _smooth_max(floor, path, _ATTENTION_POWER)


def decode_attention_us(spec: GpuSpec, params: AttentionParams, shape: AttentionShape) -> float:
    """Return the microseconds of one decode-attention kernel that is run again and again on the same KV.

    Parameters
    ----------
    spec, params
        The GPU and the constants of the kernel family on its architecture.
    shape
        Heads, requests and keys.

    Notes
    -----
    A repeated kernel finds ``1 / (1 + (bytes / (l2_share * l2_bytes)) ** 8)`` of its bytes in L2. A decode step walks
    through all layers in between, so that it finds nothing: `attention_split`.
    """
    found = 1 / (1 + (shape.nbytes / (params.l2_share * spec.l2_bytes)) ** _L2_POWER)
    return _attention_us(spec, params, shape, found)


def attention_split(spec: GpuSpec, params: AttentionParams, shape: AttentionShape) -> KernelSplit:
    """Return fixed time and read rate of an L2-cold kernel of this shape.

    The rate is what the kernel draws from HBM when it has HBM to itself; the rest of its time is fixed.
    """
    stream, _, _ = _stream_seconds(spec, params, shape)
    fixed_us = _attention_us(spec, params, shape, found=0.0) - stream * 1e6
    return KernelSplit(round(fixed_us * _PS_PER_US), shape.nbytes / stream)


def _idle_share(spec: GpuSpec, m: int, n: int, tile: int) -> float:
    """Return the idle SM time of output tiles that run in waves, over the busy time."""
    waves = math.ceil(m / tile) * math.ceil(n / tile) / spec.sms
    return math.ceil(waves) / waves - 1


def _gemm_terms(spec: GpuSpec, params: GemmParams, shape: GemmShape) -> tuple[float, float]:
    """Return the microseconds of the memory side and of the arithmetic side."""
    memory = shape.nbytes / (params.hbm_efficiency * spec.hbm_bytes_per_s)
    arithmetic = shape.flops / (params.flop_efficiency * spec.peak_flops * 2 / shape.bytes_per_element)
    unread = params.panel_weight * min(1.0, _idle_share(spec, shape.m, shape.n, _PANEL))
    idle = params.wave_weight * _idle_share(spec, shape.m, shape.n, _TILE)
    return memory * (1 + unread) * 1e6, arithmetic * (1 + idle) * 1e6


def gemm_us(spec: GpuSpec, params: GemmParams, shape: GemmShape) -> float:
    """Return the microseconds of a dense product.

    A roofline with a soft corner above a launch cost. Output tiles run in waves over the SMs: 128 x 128 where
    arithmetic is the limit, 64 x 64 where reading the weights is. The peak rate is taken to grow as elements shrink
    (fp8 doubles bf16).
    """
    memory, arithmetic = _gemm_terms(spec, params, shape)
    return params.launch_us + _smooth_max(memory, arithmetic, _GEMM_POWER)


def gemm_split(spec: GpuSpec, params: GemmParams, shape: GemmShape) -> GemmSplit:
    """Return fixed time and the two rates of a GEMM of this shape.

    The fixed part holds the launch cost and what the soft corner of the roofline adds to its sharp one.
    """
    memory, arithmetic = _gemm_terms(spec, params, shape)
    fixed_us = gemm_us(spec, params, shape) - max(memory, arithmetic)
    return GemmSplit(round(fixed_us * _PS_PER_US), shape.nbytes / memory * 1e6, shape.flops / arithmetic * 1e6)
