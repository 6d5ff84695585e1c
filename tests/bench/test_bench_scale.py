"""Does a large decode fit: 1M tokens, 80 layers, batch 16, five tiers, on little memory?"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bench

GIB = 4.0
PROGRAM = """
import json
import sys
import time
sys.path[:0] = sys.argv[1:3]
from invented import FIVE, aged, policy, simulate, varied
from ghostsim.config.load import load_model
from ghostsim.metrics.collect import run_metrics
context, steps = int(sys.argv[3]), int(sys.argv[4])
model, of = load_model("llama_3_1_70b").value, policy("ghostkv_ages")
pinned = varied(of, model, context=context, batch=16, steps=steps, share=0.02, hot=1028)
chosen = aged(pinned, 0.3, warm=768)
begun = time.process_time()
done = simulate(chosen, of, model, FIVE, 16)
seconds = time.process_time() - begun
figures = run_metrics(done.record)
print(json.dumps({"seconds": seconds, "flows": done.network.flows_started, "events": done.network.env.events,
                  "tiers": sorted(tier for tier, b in figures["bytes_per_step"].items() if tier in
                                  ("hbm", "dram", "cxl", "pim", "ssd") and sum(b.values()))}))
"""


def measure(context, steps=4):
    """Return what a process that simulates some steps says, and its peak memory in GiB."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", PROGRAM, str(root / "tests"), str(root), str(context), str(steps)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        said = child.stdout.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return json.loads(said), used.ru_maxrss * 1024 / 2**30


@pytest.fixture(scope="module")
def million():
    return measure(1 << 20)


def test_a_million_tokens_by_80_layers_by_16_requests_pass_within_4_gib(million):
    said, gib = million
    print(f"\n{said['flows']} flows, {said['events'] / said['seconds']:.0f} events per CPU s, {gib:.2f} GiB")
    assert said["tiers"] == ["cxl", "dram", "hbm", "pim", "ssd"]
    assert gib <= GIB


def test_longer_runs_take_memory_in_proportion_to_their_rows(million):
    """Beyond what a short run has, some hundred bytes a flow."""
    (short, small), (long, large) = million, measure(1 << 20, steps=12)
    per_flow = (large - small) * 2**30 / (long["flows"] - short["flows"])
    print(f"\n{per_flow:.0f} B a flow")
    assert per_flow < 3000


def test_simulation_time_does_not_depend_on_the_context():
    looks = [[measure(context)[0]["seconds"] for context in (1 << 17, 1 << 20)] for _ in range(3)]
    short, long = map(min, zip(*looks, strict=True))
    print(f"\n128K tokens: {short:.2f} s; 1M tokens: {long:.2f} s")
    assert long < 1.6 * short
