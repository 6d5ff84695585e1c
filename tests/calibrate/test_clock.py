"""Does the clock time what it should, in the order it should? What it asks of CUDA is replaced."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from ghostsim.calibrate import cuda  # noqa: E402
from ghostsim.calibrate.points import Point  # noqa: E402


class Event:
    def __init__(self, *, enable_timing):
        assert enable_timing

    def record(self):
        calls.append("record")

    def synchronize(self):
        calls.append("synchronize")

    def elapsed_time(self, end):
        return 2.5


class Graph:
    def replay(self):
        calls.append("replay")


calls = []


@pytest.fixture
def clock(monkeypatch, works):
    stream = SimpleNamespace(wait_stream=lambda _: None)
    fakes = {
        "Event": Event, "CUDAGraph": Graph, "Stream": lambda: stream, "current_stream": lambda: stream,
        "stream": nullcontext, "graph": nullcontext, "_sleep": lambda _: calls.append("sleep"),
        "empty_cache": lambda: None, "mem_get_info": lambda _: (70 * 2**30, 80 * 2**30),
        "get_device_properties": lambda _: SimpleNamespace(
            name="NVIDIA Fake", major=9, minor=0, multi_processor_count=4, L2_cache_size=2**20
        ),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    calls.clear()
    return cuda.CudaClock(cuda.machine(), works)


def test_a_cold_point_is_timed_run_by_run_behind_a_sleep(clock):
    clock.flush = torch.ones(8)
    us = clock(Point("gpu_stream", {"op": "read", "working_set_bytes": 2**18}))
    assert us == 2500
    assert calls == ["sleep", "record", "record", "synchronize"] * 9
    assert not clock.flush.any()


def test_a_warm_point_is_timed_in_a_graph(clock):
    us = clock(Point("gpu_gemm", {"dtype": "bfloat16", "m": 2, "n": 8, "k": 16}))
    assert us == 2500 / 20
    assert calls == ["replay", *["sleep", "record", "replay", "record", "synchronize"] * 9]


def test_the_driver_version_is_read_from_its_file(tmp_path):
    path = tmp_path / "version"
    path.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n")
    assert cuda.driver_version(path) == "550.54.15"
    path.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.82.07  Release Build\n")
    assert cuda.driver_version(path) == "580.82.07"
    assert cuda.driver_version(tmp_path / "missing") == "unknown"
