"""The accuracy probes of a GPU's memories and of its way to the host: what its simulated device makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import simpy

from ghostsim.accuracy.kernels import FieldError, count, one_of
from ghostsim.accuracy.table import Row
from ghostsim.config.hardware import Gpu
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.job import Job
from ghostsim.devices.leg import Leg
from ghostsim.engine.network import Network

_PS_PER_US = 1e6
_WRITE_SHARES = {"read": 0.0, "write": 1.0, "copy": 0.5}
DIRECTIONS = ("h2d", "d2h")


def _device(part: Gpu) -> GpuDevice:
    return GpuDevice(Network(simpy.Environment()), "gpu", part)


def _rate_gbps(leg: Leg) -> float:
    """Return what a leg carries alone, in GB/s."""
    return min(resource.capacity / cost for resource, cost in leg.costs) / 1e9


def _job_us(device: GpuDevice, job: Job) -> float:
    """Return the microseconds of a job on an idle GPU."""
    alone = max(device.network.solo_ps(part.flow_class, part.nbytes) for part in job.parts)
    return (job.delay_ps + alone) / _PS_PER_US


def stream_gbps(part: Gpu, row: Row) -> float:
    """Predict the GB/s, reads and writes together, of a kernel that passes over HBM once."""
    count(row, "working_set_bytes")
    share = _WRITE_SHARES[one_of(row, "op", tuple(_WRITE_SHARES))]
    return _device(part).hbm.streamed(share) / 1e9


def gather_gbps(part: Gpu, row: Row) -> float:
    """Predict the GB/s of random aligned records of HBM."""
    return _rate_gbps(_device(part).hbm.gather(count(row, "record_bytes"), count(row, "n_records")))


def l2_gbps(part: Gpu, row: Row) -> float:
    """Predict the GB/s of reads of a working set that stays in the L2."""
    if part.l2_bandwidth is None:
        raise FieldError("part", "a GPU that states its l2_bandwidth")
    if count(row, "working_set_bytes") > part.l2:
        raise FieldError("working_set_bytes", f"at most the L2, {part.l2} bytes")
    return part.l2_bandwidth / 1e9


def launch_us(part: Gpu, row: Row) -> float:
    """Predict the microseconds from launch to launch of an empty kernel inside a graph."""
    count(row, "n_kernels")
    return part.launch / _PS_PER_US


def host_dma_us(part: Gpu, row: Row) -> float:
    """Predict the microseconds of one copy by one engine, the same in both directions."""
    one_of(row, "direction", DIRECTIONS)
    engines = part.copy_engines
    return engines.start / _PS_PER_US + count(row, "transfer_bytes") / engines.bandwidth * 1e6


def zero_copy_gbps(part: Gpu, row: Row) -> float:
    """Predict the GB/s of SM reads of host memory: bytes outstanding over latency, at most what a copy engine gets."""
    count(row, "record_bytes")
    latency_ns = float(row["latency_ns"])
    if not latency_ns > 0:
        raise FieldError("latency_ns", "a number above zero")
    outstanding = min(count(row, "outstanding_bytes"), part.read_window)
    return min(outstanding / latency_ns, part.copy_engines.bandwidth / 1e9)


def sketch_score_us(part: Gpu, row: Row) -> float:
    """Predict the microseconds in which the vector units score records of one byte per dimension."""
    device, nbytes = _device(part), count(row, "record_bytes") * count(row, "n_records")
    return _job_us(device, device.scan(nbytes, nbytes * count(row, "queries")))


GPU_PROBES: Mapping[str, Callable[[Gpu, Row], float]] = {
    "gpu_stream": stream_gbps,
    "gpu_gather": gather_gbps,
    "gpu_l2": l2_gbps,
    "gpu_launch": launch_us,
    "gpu_host_dma": host_dma_us,
    "gpu_zero_copy": zero_copy_gbps,
    "gpu_sketch_score": sketch_score_us,
}
COLUMNS: Mapping[str, Mapping[str, type]] = {
    "gpu_stream": {"op": str, "working_set_bytes": int},
    "gpu_gather": {"record_bytes": int, "n_records": int},
    "gpu_l2": {"working_set_bytes": int},
    "gpu_launch": {"n_kernels": int},
    "gpu_host_dma": {"direction": str, "transfer_bytes": int},
    "gpu_zero_copy": {"record_bytes": int, "outstanding_bytes": int, "latency_ns": float},
    "gpu_sketch_score": {"record_bytes": int, "queries": int, "n_records": int},
}
UNITS: Mapping[str, str] = {
    "gpu_stream": "GB/s",
    "gpu_gather": "GB/s",
    "gpu_l2": "GB/s",
    "gpu_launch": "us",
    "gpu_host_dma": "us",
    "gpu_zero_copy": "GB/s",
    "gpu_sketch_score": "us",
}
