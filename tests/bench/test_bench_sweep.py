"""How many points a second does one process of a sweep finish, once their Selection is built?

Seconds are CPU seconds of the process, scaled to a quiet core by the yardstick that the decode bench uses too.
"""

import os
import resource
import time

import pytest
from yardstick import slowness

from ghostsim.sweep import worker
from ghostsim.sweep.executor import run_sweep

pytestmark = pytest.mark.bench

MOST_SECONDS = float(os.environ.get("GHOSTSIM_BENCH_SWEEP_S", "120"))
"""Of 1,000 points on two quiet cores."""
POINTS = 24
MOST_BESIDE = 1.6
"""A point may cost this many times its simulation: reading, naming and writing it must not dominate."""
MOST_MB = 500
SWEEP = """
schema: 1
scenario: cxl_pim
runs: [ghostkv_cxl]
latin_hypercube:
  n: {points}
  fields:
    workload.context: [16384]
    workload.steps: [8]
    platform.links.cxl0.width: [4, 8, 16]
    platform.devices.host0.root_complex: {{from: 20 GB/s, to: 100 GB/s, scale: log}}
    platform.devices.cxl_exp0.filter.macs, platform.devices.cxl_exp1.filter.macs:
      {{from: 0.1 TMAC/s, to: 8 TMAC/s, scale: log}}
    platform.devices.cxl_exp0.memory.capacity, platform.devices.cxl_exp1.memory.capacity: {{from: 256 GiB, to: 1 TiB}}
"""


class Stopwatch:
    """Calls a function and keeps the processor seconds of each call."""

    def __init__(self, function):
        self._function, self.seconds = function, []

    def __call__(self, *args, **options):
        begun = time.process_time()
        try:
            return self._function(*args, **options)
        finally:
            self.seconds.append(time.process_time() - begun)


def test_a_thousand_points_in_two_minutes_on_two_cores(tmp_path, monkeypatch):
    """A process resolves a point, simulates it and writes it; a share of the points is timed."""
    (tmp_path / "sweep.yaml").write_text(SWEEP.format(points=POINTS))
    computed, simulated = Stopwatch(worker.compute), Stopwatch(worker.simulate)
    monkeypatch.setattr(worker, "compute", computed)
    monkeypatch.setattr(worker, "simulate", simulated)
    monkeypatch.setattr(worker, "_recall", lambda *_: False)
    before, begun = slowness(), time.process_time()
    done = run_sweep(tmp_path / "sweep.yaml", [], tmp_path / "out")
    whole = time.process_time() - begun
    slowed = (before + slowness()) / 2
    resolved = (whole - sum(computed.seconds)) / POINTS
    # The first point opens the trace and the Selection for all.
    point = resolved + sum(computed.seconds[1:]) / (POINTS - 1)
    seconds = 1000 * point / 2 / slowed
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{1 / point:.1f} points per CPU s on a machine {slowed:.1f} x as slow as a quiet one: "
          f"{slowed / point:.1f} points/s, 1,000 on two cores in {seconds:.0f} s; {megabytes:.0f} MB")  # fmt: skip
    assert (done.done, done.failed) == (POINTS, 0)
    assert min(computed.seconds) + resolved < MOST_BESIDE * min(simulated.seconds)
    assert seconds <= MOST_SECONDS
    if "PYTEST_XDIST_WORKER" not in os.environ:  # there other tests have used the process before
        assert megabytes < MOST_MB
