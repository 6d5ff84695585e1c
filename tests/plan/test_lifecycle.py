"""Do records of cold tokens get made by who is asked, in their time, and does a decode wait when too many are late?"""

from dataclasses import replace

import numpy as np
import pytest
from invented import CXL, OFFLOAD, llama, policy, simulate, varied

from ghostsim.config.load import load_scenario
from ghostsim.errors import ConfigError
from ghostsim.metrics.collect import moved, run_metrics, step_ms
from ghostsim.metrics.lifecycle import lifecycle_metrics

SMALL = llama("layers=4")
STEPS = 12
HOST = replace(OFFLOAD, index_tier="dram", site="cpu")
PLACEMENTS = {
    "cpu, index in hbm": replace(OFFLOAD, ghostify="cpu", behind=4),
    "cpu, index in dram": replace(HOST, ghostify="cpu", behind=4),
    "cpu, index in cxl": replace(CXL, ghostify="cpu", behind=4),
    "near, in dram": replace(HOST, ghostify="near", behind=4),
    "near, in cxl": replace(CXL, ghostify="near", behind=4),
}
SLOW = ("devices.host0.core.bandwidth=0.002 GB/s",)
"""A core that reads the 64 keys of 256 B of a step in eight milliseconds."""


def ran(placement, sets=(), steps=STEPS):
    of = policy("ghostkv")
    chosen = varied(of, SMALL, context=8192, batch=2, steps=steps, share=0.05)
    return simulate(chosen, of, SMALL, placement, 2, "h100_cxl_pim", sets).record


def lagging(record):
    return lifecycle_metrics(record.plan, record.times)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_quick_enough_maker_costs_the_decode_nothing(name):
    found = lagging(ran(PLACEMENTS[name]))
    assert found["stalled_ms"] == 0
    assert found["behind_steps_max"] <= 1


def test_a_slow_thread_falls_behind_and_then_sets_the_pace():
    record = ran(PLACEMENTS["cpu, index in cxl"], SLOW, steps=24)
    found = lagging(record)
    keys = 2 * SMALL.kv_heads * SMALL.layers * 256
    assert found["behind_steps_max"] >= 4
    assert found["stalled_ms"] > 0
    assert step_ms(record)[12:].mean() == pytest.approx(keys / 0.002e9 * 1e3, rel=0.03)


@pytest.mark.parametrize("behind", [1, 3, 8])
def test_records_never_lag_further_than_they_may(behind):
    record = ran(replace(CXL, ghostify="cpu", behind=behind), SLOW, steps=24)
    assert lagging(record)["behind_steps_max"] <= behind + 1


def test_a_longer_queue_never_makes_the_decode_slower():
    times = [step_ms(ran(replace(CXL, ghostify="cpu", behind=n), SLOW, steps=24)).mean() for n in (1, 4, 16)]
    assert times == sorted(times, reverse=True)


def test_an_engine_near_memory_uses_no_link():
    record = ran(PLACEMENTS["near, in cxl"])
    record_bytes, plan = moved(record.plan, record.bound), record.plan
    made = plan.nbytes[plan.names.index("ghostify") :: len(plan.names)].sum()
    assert made > 0
    assert record_bytes["cxl"]["migrate"].sum() - record_bytes["cxl0"]["migrate"].sum() == made


def test_records_for_the_gpu_cross_its_link():
    record = ran(PLACEMENTS["cpu, index in hbm"])
    assert record.utilisation["pcie0"] > 0
    assert record.utilisation["host0.cores"] > 0


def test_the_maker_changes_time_never_bytes():
    totals = []
    for name in ("cpu, index in cxl", "near, in cxl"):
        plan = ran(PLACEMENTS[name]).plan
        totals.append(
            {tier: {c: int(np.sum(v)) for c, v in causes.items()} for tier, causes in plan.tier_bytes().items()}
        )
    assert totals[0] == totals[1]


def test_a_run_without_an_index_has_no_lifecycle():
    of = policy("full")
    chosen = varied(of, SMALL, context=4096, batch=1, steps=2)
    assert run_metrics(simulate(chosen, of, SMALL, OFFLOAD, 1).record)["lifecycle"] is None


SCENARIO = """\
schema: 1
name: cycle
model: docs_5m
platform: h100_cxl_pim
workload: {{trace: natural_4k, steps: 2}}
runs:
  a: {run}
"""


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("{policy: full, ghostify: {by: cpu}}", "found ghostify for policy full, expected one with an index"),
        ("{policy: ghostkv, kv_tier: dram, ghostify: {by: near}}", "found ghostify near memory with KV in dram"),
    ],
)
def test_nothing_to_make_is_refused(tmp_path, run, message):
    file = tmp_path / "cycle.yaml"
    file.write_text(SCENARIO.format(run=run))
    with pytest.raises(ConfigError, match=message):
        load_scenario(file)
