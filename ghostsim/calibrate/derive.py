"""Constants of a GPU part from measured samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ghostsim.calibrate.measure import Sample
from ghostsim.config.hardware import GpuArch, Memory
from ghostsim.devices.dram import channel_bandwidth
from ghostsim.timing.dram import Pattern

_STREAM = Pattern("stream", 4096, 1.0)
_STACK_CHANNELS = 16


@dataclass(frozen=True)
class Constants:
    """What the samples say of a GPU, in bytes, seconds and operations."""

    stream_bytes_per_s: float
    l2_bytes_per_s: float
    launch_s: float
    copy_start_s: float
    copy_bytes_per_s: float
    read_window_bytes: float
    sketch_macs_per_s: float
    gemm_flops_per_s: float


def constants(samples: Sequence[Sample]) -> Constants:
    """Return the constants that the samples show; each is a median or a fit over its probe."""
    launch_s = median(value for _, value in _of(samples, "gpu_launch")) / 1e6
    start_s, rate = copy_fit([(int(c["transfer_bytes"]), us) for c, us in _of(samples, "gpu_host_dma")])
    return Constants(
        stream_bytes_per_s=1e9 * max(value for c, value in _of(samples, "gpu_stream") if c["op"] == "read"),
        l2_bytes_per_s=1e9 * median(value for _, value in _of(samples, "gpu_l2")),
        launch_s=launch_s,
        copy_start_s=start_s,
        copy_bytes_per_s=rate,
        read_window_bytes=_window(samples),
        sketch_macs_per_s=_sketch_rate(samples, launch_s),
        gemm_flops_per_s=max(2e6 * int(c["m"]) * int(c["n"]) * int(c["k"]) / us for c, us in _of(samples, "gpu_gemm")),
    )


def copy_fit(copies: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Fit ``seconds = start + bytes / rate`` to copies of (bytes, microseconds), by relative error.

    Returns
    -------
    start, rate
        Seconds, not below zero, and bytes per second.
    """
    nbytes, us = np.array(copies, dtype=np.float64).T
    design = np.stack([np.ones_like(us), nbytes / 1e6], axis=1) / us[:, None]
    (start_us, us_per_mb), *_ = np.linalg.lstsq(design, np.ones_like(us), rcond=None)
    return max(0.0, float(start_us)) / 1e6, 1e12 / float(us_per_mb)


def _window(samples: Sequence[Sample]) -> float:
    """Return the bytes outstanding at the plateau, by Little's law: the median of the largest windows."""
    rows = list(_of(samples, "gpu_zero_copy"))
    most = max(int(c["outstanding_bytes"]) for c, _ in rows)
    return median(gbps * float(c["latency_ns"]) for c, gbps in rows if c["outstanding_bytes"] == most)


def _sketch_rate(samples: Sequence[Sample], launch_s: float) -> float:
    """Return MAC/s of the point of most queries, where arithmetic is the limit rather than HBM."""
    conditions, us = max(_of(samples, "gpu_sketch_score"), key=lambda row: int(row[0]["queries"]))
    macs = int(conditions["record_bytes"]) * int(conditions["n_records"]) * int(conditions["queries"])
    return macs / (us / 1e6 - launch_s)


def _of(samples: Sequence[Sample], probe: str) -> Iterator[tuple[dict[str, str | int | float], float]]:
    return ((dict(one.point.conditions), one.value) for one in samples if one.point.probe == probe)


def memory_like(base: Memory, stream_bytes_per_s: float) -> tuple[int, float]:
    """Return channels and efficiency with which memory of the base's DRAM streams so much.

    The base's channels, if they can; otherwise as many whole stacks as it takes.
    """
    each = channel_bandwidth(base.dram, _STREAM)
    channels = base.channels
    if channels * each < stream_bytes_per_s:
        channels = _STACK_CHANNELS * math.ceil(stream_bytes_per_s / each / _STACK_CHANNELS)
    return channels, stream_bytes_per_s / (channels * each)


def tensor_flops_per_s(arch: GpuArch, gemm_flops_per_s: float) -> float:
    """Return the peak rate whose share `flop_efficiency` of the architecture is the best GEMM."""
    return gemm_flops_per_s / arch.gemm["dense"].flop_efficiency
