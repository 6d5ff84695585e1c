"""Do the ages of a token lie in the tiers that a run names, up to five in one run, and move what they must?"""

from dataclasses import replace
from functools import cache

import pytest
import yaml
from invented import FIVE, HBM, aged, llama, policy, simulate, varied

from ghostsim.config.hardware import TIERS
from ghostsim.config.load import load_platform, load_scenario
from ghostsim.errors import ConfigError
from ghostsim.metrics.collect import moved
from ghostsim.pipeline.capacity import footprint

MODEL = llama("layers=2")
BATCH, WARM = 2, 768
HEADS = BATCH * MODEL.layers * MODEL.kv_heads
TOKEN = 512


@cache
def run(placement=FIVE, *sets, old=0.4):
    of = policy("ghostkv_ages", *sets)
    chosen = varied(of, MODEL, context=16384, batch=BATCH, steps=2, hot=1028)
    return simulate(aged(chosen, old, WARM), of, MODEL, placement, BATCH)


def figures(done):
    """Return the bytes of a step by tier or link, and cause; steps are alike but for what is read."""
    record = done.record
    return {
        place: {cause: int(n[0]) for cause, n in each.items()}
        for place, each in moved(record.plan, record.bound).items()
    }


def test_a_run_moves_bytes_in_all_five_tiers():
    assert {place for place, causes in figures(run()).items() if sum(causes.values())} >= set(TIERS)


def test_warm_tokens_come_at_every_step():
    assert figures(run())["dram"]["kv"] == HEADS * WARM * TOKEN


def test_a_token_of_every_head_turns_warm_at_a_step():
    assert figures(run())["dram"]["migrate"] == HEADS * TOKEN


def test_warm_tokens_cross_the_link_of_their_tier():
    link = figures(run())["pcie0"]["kv"] - figures(run(replace(FIVE, warm_tier="hbm")))["pcie0"]["kv"]
    assert link == pytest.approx(HEADS * WARM * TOKEN, abs=2)


@pytest.mark.parametrize("tier", ["hbm", "cxl", "ssd", "pim"])
def test_where_warm_tokens_lie_changes_no_byte_of_another_tier(tier):
    assert figures(run())[tier] == figures(run(replace(FIVE, warm_tier="hbm")))[tier]


def test_warm_tokens_read_in_place_leave_hbm_alone():
    there, here = (
        figures(run(replace(FIVE, warm_tier=tier, fetch="zero_copy")))["hbm"]["kv"] for tier in ("dram", "hbm")
    )
    assert here - there == HEADS * WARM * TOKEN


def test_the_format_of_warm_tokens_sets_their_bytes():
    """INT4 with a scale and a minimum in fp16 per key and value: 68 B each."""
    four = "keep.1.format={int: {bits: 4, group: 128}}"
    sets = (four, "read.rule={topk: 64}", "read.then.0.rule={topk: 64}")
    assert figures(run(FIVE, *sets))["dram"]["kv"] == HEADS * WARM * 2 * 68


def names_before(done, name):
    plan = done.record.plan
    row = len(plan.names) * (MODEL.layers - 1) + plan.names.index(name)
    return {
        plan.names[before % len(plan.names)]
        for before in plan.after[plan.offsets[row] : plan.offsets[row + 1]].tolist()
    }


def test_a_staged_decision_waits_for_the_softmax_sum_of_warm_tokens():
    assert "attend_warm" in names_before(run(), "filter")


def test_a_layer_ends_after_its_warm_tokens_are_attended():
    assert "attend_warm" in names_before(run(), "output")


def test_warm_tokens_alone_may_lie_outside_hbm():
    done = run(replace(HBM, warm_tier="dram"))
    assert {place for place, causes in figures(done).items() if sum(causes.values())} == {"hbm", "dram", "pcie0"}


def test_slower_host_memory_slows_a_run_that_is_warm_there():
    of, sets = policy("ghostkv_ages"), ("devices.host0.memory.channels=1",)
    chosen = aged(varied(of, MODEL, context=16384, batch=BATCH, steps=2, share=0.001, hot=8196), 0.4, 8000)
    fast, slow = (simulate(chosen, of, MODEL, FIVE, BATCH, "h100_cxl_pim", each).end_ps for each in ((), sets))
    assert slow > 1.2 * fast


# --- capacity and refusals ------------------------------------------------------------------------------------------

RUN = {
    "policy": "ghostkv_ages",
    "kv_tier": "cxl",
    "index_tier": "pim",
    "filter": "pim",
    "warm_tier": "dram",
    "archive_tier": "ssd",
}


def scenario(tmp_path, **changes):
    file = tmp_path / "ages.yaml"
    head = {
        "schema": 1,
        "name": "ages",
        "model": "docs_5m",
        "platform": "h100_cxl_pim",
        "workload": {"trace": "natural_4k"},
    }
    file.write_text(yaml.safe_dump(head | {"runs": {"ages": RUN | changes}}))
    return load_scenario(file, ()).value.runs["ages"]


def test_capacity_counts_warm_tokens_in_their_tier(tmp_path):
    run = scenario(tmp_path)
    tiers, heads, tokens = footprint(run, run.model, 5000, 1).tiers, 8, 5000
    assert tiers["dram"] == heads * WARM * TOKEN
    buffers = 2 * 2 * TOKEN * (WARM + tokens)
    assert tiers["hbm"] == run.model.weight_bytes + heads * 261 * TOKEN + buffers


def test_some_platform_has_all_tiers():
    assert set(load_platform("h100_cxl_pim").value.tiers) == set(TIERS)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"policy": "ghostkv_lifecycle"}, "found warm_tier for ghostkv_lifecycle, expected a policy with role: warm"),
        ({"kv_tier": "dram", "fetch": "cpu"}, "found warm_tier dram with fetch cpu, expected dma, zero_copy or staged"),
    ],
)
def test_a_warm_tier_that_nothing_uses_is_refused(tmp_path, changes, found):
    with pytest.raises(ConfigError, match=found):
        scenario(tmp_path, filter="cxl", index_tier="cxl", **changes)


def test_warm_tokens_on_a_drive_cannot_be_read_in_place():
    with pytest.raises(ConfigError, match="found fetch zero_copy from tier ssd, expected dma"):
        run(replace(FIVE, warm_tier="ssd", fetch="zero_copy"))
