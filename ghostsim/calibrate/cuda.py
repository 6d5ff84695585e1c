"""The clock of a real GPU: CUDA events and CUDA graphs."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import torch

from ghostsim.calibrate.points import Machine, Point
from ghostsim.calibrate.works import Works

_REPEATS = 9
_WARM_UPS = 3
_SLEEP_CYCLES = 500_000
"""Some 0.3 ms in which the host enqueues what is timed, so that its own pace is not."""


def machine() -> Machine:
    """Describe the first GPU."""
    found = torch.cuda.get_device_properties(0)
    free, _ = torch.cuda.mem_get_info(0)
    return Machine(
        name=found.name,
        architecture=f"sm_{found.major}{found.minor}",
        sms=found.multi_processor_count,
        l2_bytes=found.L2_cache_size,
        memory_bytes=free,
        driver=driver_version(),
        torch=torch.__version__,
        date=datetime.now(UTC).date().isoformat(),
    )


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Return the version of the kernel driver, or `unknown`."""
    try:
        found = re.search(r"\b\d{3,}(?:\.\d+)+", path.read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return found[0] if found else "unknown"


class CudaClock:
    """Times points on the first GPU."""

    def __init__(self, described: Machine, works: Works | None = None) -> None:
        buffer_bytes = min(2**32, 1 << (described.memory_bytes // 4).bit_length() - 1)
        self.works = works or Works("cuda", buffer_bytes=buffer_bytes)
        self.flush = torch.empty(4 * described.l2_bytes, dtype=torch.int8, device=self.works.device)

    def __call__(self, point: Point) -> float:
        """Return the microseconds of a point, the median of several repeats."""
        work = self.works.build(point)
        us = self._in_graph_us(work.run, work.in_graph) if work.in_graph else self._cold_us(work.run)
        del work
        gc.collect()
        torch.cuda.empty_cache()
        return us

    def _cold_us(self, run: Callable[[], object]) -> float:
        """Time one run at a time, each with another content in the L2."""
        for _ in range(_WARM_UPS):
            run()
        return median(_elapsed_us(run, before=self.flush.zero_) for _ in range(_REPEATS))

    def _in_graph_us(self, run: Callable[[], object], times: int) -> float:
        """Time a graph of `times` runs back to back."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(times):
                run()
        graph.replay()
        return median(_elapsed_us(graph.replay) for _ in range(_REPEATS)) / times


def _elapsed_us(run: Callable[[], object], before: Callable[[], object] | None = None) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if before is not None:
        before()
    torch.cuda._sleep(_SLEEP_CYCLES)  # noqa: SLF001  (PyTorch's own tests use it; there is no public one)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3
