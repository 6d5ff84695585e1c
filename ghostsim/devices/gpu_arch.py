"""GPUs and their kernel constants, from the catalogue, as what the timing functions take."""

from __future__ import annotations

from ghostsim.config.hardware import AttentionKernel, GemmKernel, Gpu, GpuArch
from ghostsim.devices.dram import peak_bandwidth
from ghostsim.timing.gpu_kernels import AttentionParams, GemmParams, GpuSpec

_PS_PER_US = 1e6


def gpu_spec(part: Gpu) -> GpuSpec:
    """Return what the kernel models need to know of a GPU besides its architecture's constants."""
    return GpuSpec(part.sms, part.tensor, peak_bandwidth(part.memory), part.l2)


def attention_params(arch: GpuArch, family: str, q_heads: int, kv_heads: int) -> AttentionParams:
    """Return the constants of a family, of its own kernel for one query head per KV head if it has one."""
    own = f"{family}_mha"
    return attention_of(arch.attention[own if q_heads == kv_heads and own in arch.attention else family])


def attention_of(kernel: AttentionKernel) -> AttentionParams:
    """Return the constants of one family."""
    return AttentionParams(
        floor_us=kernel.floor / _PS_PER_US,
        floor_per_doubling_us=kernel.floor_per_doubling / _PS_PER_US,
        start_us=kernel.start / _PS_PER_US,
        combine_us=kernel.combine / _PS_PER_US,
        wave_us=kernel.wave / _PS_PER_US,
        cold_us=kernel.cold / _PS_PER_US,
        hbm_efficiency=kernel.hbm_efficiency,
        l2_bytes_per_s_per_sm=kernel.l2_bandwidth_per_sm,
        l2_share=kernel.l2_share,
        slots_per_sm=kernel.slots_per_sm,
        split_rule=kernel.split_rule,
        max_splits=kernel.max_splits,
    )


def gemm_params(arch: GpuArch, name: str = "dense") -> GemmParams:
    """Return the constants of a GEMM kernel."""
    kernel: GemmKernel = arch.gemm[name]
    return GemmParams(
        launch_us=kernel.launch / _PS_PER_US,
        hbm_efficiency=kernel.hbm_efficiency,
        flop_efficiency=kernel.flop_efficiency,
        wave_weight=kernel.wave_weight,
        panel_weight=kernel.panel_weight,
    )
