"""What is measured: the points of a calibration, and what a time at each says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Conditions = Mapping[str, str | int | float]

LATENCY = "host_latency"
"""A point that is no row of the table: a chain of dependent loads from host memory."""
LOADS = 2000
_KIB, _MIB, _GIB = 2**10, 2**20, 2**30
_COPY_BYTES = tuple(4**i * _KIB for i in range(1, 10))
_RECORDS = (64, 128, 256, 512, 1024, 2048, 4096)
_GATHERED = 512 * _MIB
_SKETCHED = 512 * _MIB
_HOST_RECORDS = (128, 256, 1024)
_OUTSTANDING = (4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, 1024 * _KIB)
_LAUNCHES = 200


@dataclass(frozen=True)
class Machine:
    """A GPU as its driver describes it, and what it is measured with."""

    name: str
    """As the driver names it, e.g. NVIDIA H100 80GB HBM3."""
    architecture: str
    """sm_90 and the like."""
    sms: int
    l2_bytes: int
    memory_bytes: int
    driver: str
    torch: str
    date: str

    @property
    def part(self) -> str:
        """The name as a part's name: lower case, letters and digits joined by underscores."""
        words = "".join(c if c.isalnum() else " " for c in self.name.removeprefix("NVIDIA ").lower())
        return "_".join(words.split())


@dataclass(frozen=True)
class Point:
    """One kernel or copy to time; `work` is what it does: bytes, or for kernels in a graph their number."""

    probe: str
    conditions: Conditions
    work: float = 1.0

    def value(self, us: float) -> float:
        """Return the value that the table states of a time: GB/s of probes that state rates, else the time."""
        if self.probe in ("gpu_stream", "gpu_gather", "gpu_l2", "gpu_zero_copy"):
            return self.work / us / 1e3
        return us / self.work


def points(machine: Machine) -> list[Point]:
    """Return the points of a GPU, in the order in which they are measured; the host's latency is the first."""
    return [
        Point(LATENCY, {"loads": LOADS}, LOADS),
        *_launch(),
        *_stream(machine),
        *_gather(),
        *_l2(machine),
        *_host_dma(),
        *_zero_copy(),
        *_sketch_score(),
        *_gemm(),
        *_attention(machine),
    ]


def _launch() -> Iterator[Point]:
    yield Point("gpu_launch", {"n_kernels": _LAUNCHES}, _LAUNCHES)


def _stream(machine: Machine) -> Iterator[Point]:
    nbytes = min(4 * _GIB, _power_of_two(machine.memory_bytes / 8))
    for op in ("read", "write", "copy"):
        yield Point("gpu_stream", {"op": op, "working_set_bytes": nbytes}, nbytes)


def _gather() -> Iterator[Point]:
    for size in _RECORDS:
        yield Point("gpu_gather", {"record_bytes": size, "n_records": _GATHERED // size}, _GATHERED)


def _l2(machine: Machine) -> Iterator[Point]:
    """Half and a quarter of the L2: an H100's two halves keep copies of each other's lines."""
    largest = _power_of_two(machine.l2_bytes / 4)
    for nbytes in (largest // 2, largest):
        yield Point("gpu_l2", {"working_set_bytes": nbytes}, l2_rounds(nbytes) * nbytes)


def l2_rounds(nbytes: int) -> int:
    """Return how often a kernel reads a working set of the L2: 2 GiB in all."""
    return 2 * _GIB // nbytes


def _host_dma() -> Iterator[Point]:
    for direction in ("h2d", "d2h"):
        for nbytes in _COPY_BYTES:
            yield Point("gpu_host_dma", {"direction": direction, "transfer_bytes": nbytes})


def _zero_copy() -> Iterator[Point]:
    for size in _HOST_RECORDS:
        for outstanding in _OUTSTANDING:
            conditions = {"record_bytes": size, "outstanding_bytes": outstanding}
            yield Point("gpu_zero_copy", conditions, zero_copy_steps(outstanding) * outstanding)


def zero_copy_steps(outstanding_bytes: int) -> int:
    """Return how often a kernel has all its bytes outstanding: some milliseconds in all, at most 128 MiB."""
    return min(2048, 128 * _MIB // outstanding_bytes)


def _sketch_score() -> Iterator[Point]:
    for size, queries in ((64, 1), (64, 4), (128, 4), (128, 8), (128, 32)):
        conditions = {"record_bytes": size, "queries": queries, "n_records": _SKETCHED // size}
        yield Point("gpu_sketch_score", conditions)


def _gemm() -> Iterator[Point]:
    for m in (1, 8, 64, 512, 4096, 8192):
        for n, k in ((6144, 4096), (4096, 14336), (8192, 8192)):
            yield Point("gpu_gemm", {"dtype": "bfloat16", "m": m, "n": n, "k": k})


def _attention(machine: Machine) -> Iterator[Point]:
    framework = f"torch {machine.torch.split('+')[0]} sdpa"
    for batch in (1, 4, 16):
        for kv_len in (1024, 4096, 16384, 65536):
            nbytes = 2 * batch * 8 * kv_len * 128 * 2
            if nbytes > machine.memory_bytes / 4:
                continue
            heads: Conditions = {"framework": framework, "q_heads": 32, "kv_heads": 8, "head_dim": 128}
            warm = "yes" if nbytes < machine.l2_bytes else "no"
            shape: Conditions = {"kv_dtype": "bfloat16", "batch": batch, "kv_len": kv_len, "warm_l2": warm}
            yield Point("gpu_decode_attention", {**heads, **shape})


def _power_of_two(most: float) -> int:
    return 1 << (int(most).bit_length() - 1)
