"""How many points a second does one process of a sweep finish, once their Selection is built?"""

import os
import resource
import time

import pytest

from ghostsim.sweep import worker
from ghostsim.sweep.executor import run_sweep

pytestmark = pytest.mark.bench

BAR = float(os.environ.get("GHOSTSIM_BENCH_POINTS_PER_S", "4.2"))
"""1,000 points in two minutes on two cores."""
MOST_MB = 500
SWEEP = """
schema: 1
scenario: cxl_pim
runs: [ghostkv_cxl]
latin_hypercube:
  n: 12
  fields:
    workload.context: [16384]
    workload.steps: [8]
    platform.links.cxl0.width: [4, 8, 16]
    platform.devices.host0.root_complex: {from: 20 GB/s, to: 100 GB/s, scale: log}
    platform.devices.cxl_exp0.filter.macs, platform.devices.cxl_exp1.filter.macs:
      {from: 0.1 TMAC/s, to: 8 TMAC/s, scale: log}
    platform.devices.cxl_exp0.memory.capacity, platform.devices.cxl_exp1.memory.capacity: {from: 256 GiB, to: 1 TiB}
"""


def test_points_per_second(tmp_path, monkeypatch):
    """A process resolves a point and computes it: both count."""
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    real, seconds = worker.compute, []

    def compute(task):
        begun = time.process_time()
        outcome = real(task)
        seconds.append(time.process_time() - begun)
        return outcome

    monkeypatch.setattr(worker, "compute", compute)
    monkeypatch.setattr(worker, "_recall", lambda *_: False)
    begun = time.process_time()
    done = run_sweep(tmp_path / "sweep.yaml", [], tmp_path / "out")
    resolved = (time.process_time() - begun - sum(seconds)) / len(seconds)
    rate = 1 / (min(seconds) + resolved)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{rate:.1f} points/s and process, {1000 * resolved:.0f} ms of it outside the point, {megabytes:.0f} MB")
    assert (done.done, done.failed) == (12, 0)
    assert rate >= BAR
    assert megabytes < MOST_MB
