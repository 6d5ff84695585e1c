"""Does the attribution name what a step waited for, and does what-if foretell a real rerun?"""

from dataclasses import replace

import pytest
import simpy
from invented import CXL, HBM, OFFLOAD, PIM, llama, policy, replay, simulate, varied

from ghostsim.engine.network import Network
from ghostsim.metrics.attribution import by_resource
from ghostsim.metrics.collect import run_metrics, step_ms
from ghostsim.metrics.viability import viability
from ghostsim.metrics.what_if import candidates, what_if

SMALL = llama("layers=4")
BATCH = 3
PLACEMENTS = {
    "full_hbm": ("full", HBM),
    "full_offload": ("full", OFFLOAD),
    "full_ssd": ("full", replace(HBM, kv_tier="ssd")),
    "quest_zero_copy": ("quest", replace(OFFLOAD, fetch="zero_copy")),
    "ghostkv_gpu": ("ghostkv", OFFLOAD),
    "ghostkv_cxl": ("ghostkv", CXL),
    "ghostkv_chunks": ("ghostkv", replace(CXL, chunks=3)),
    "ghostkv_pim": ("ghostkv", PIM),
    "ghostkv_pim_kv": ("ghostkv", replace(PIM, kv_tier="pim")),
}


def chosen_for(label, share=0.1, steps=6):
    of = policy(PLACEMENTS[label][0])
    return varied(of, SMALL, context=16384, batch=BATCH, steps=steps, share=share)


def done_with(label, sets=(), **kwargs):
    name, placement = PLACEMENTS[label]
    return simulate(chosen_for(label, **kwargs), policy(name), SMALL, placement, BATCH, "h100_cxl_pim", sets).record


def waits(record):
    return by_resource(record.plan, record.bound, record.times, record.resources)


def whole(spent):
    return sum(sum(kinds.values()) for kinds in spent.values())


@pytest.mark.parametrize("label", PLACEMENTS)
def test_waits_sum_to_the_mean_step(label):
    record = done_with(label)
    assert whole(waits(record)) == pytest.approx(step_ms(record).mean(), rel=1e-9)


@pytest.mark.parametrize("label", PLACEMENTS)
def test_no_wait_is_negative(label):
    assert min(ms for kinds in waits(done_with(label)).values() for ms in kinds.values()) >= 0


@pytest.mark.parametrize("label", PLACEMENTS)
def test_a_resource_is_waited_for_no_longer_than_it_is_busy_or_full(label):
    """Service on the path is bytes over capacity, so no resource can give more of it than its busy time."""
    record = done_with(label)
    for name, kinds in waits(record).items():
        if name in record.resources:
            assert kinds["service"] <= record.utilisation[name] * step_ms(record).mean() * 1.001


def test_alone_on_a_link_all_time_is_service_or_latency():
    of = policy("ghostkv")
    chosen = varied(of, SMALL, context=16384, batch=1, steps=2)
    spent = waits(simulate(chosen, of, SMALL, OFFLOAD, 1).record)
    assert spent["pcie0"]["queue"] < 0.05 * spent["pcie0"]["service"]


def test_what_offloaded_layers_take_from_each_other_is_queueing_on_the_link():
    """Two layers are fetched ahead, so each waits for the other on the link."""
    spent = waits(done_with("full_offload"))
    assert max(spent, key=lambda name: spent[name]["queue"]) == "pcie0"


def test_requests_that_wait_for_the_filter_are_booked_on_it():
    slow = ("devices.cxl_exp0.filter.macs=0.02 TMAC/s", "devices.cxl_exp1.filter.macs=0.02 TMAC/s")
    record = done_with("ghostkv_cxl", slow, share=0.001)
    spent = {name: sum(kinds.values()) for name, kinds in waits(record).items()}
    assert max(spent, key=spent.get).endswith(".filter_macs")


def test_lost_bandwidth_is_blamed_on_the_resource_that_held_the_flow_down():
    """A flow that could use a fast link is held down by a disk that another flow shares."""
    env = simpy.Environment()
    network = Network(env)
    link, disk = network.resource("link", 100e9), network.resource("disk", 50e9)
    narrow = network.flow_class([(disk, 1.0)])
    both = network.flow_class([(link, 1.0), (disk, 1.0)])
    for each in (narrow, both):
        network.start(each, 10**9, lambda: None)
    env.run()
    assert [limit for rate, limit in both.shares if rate] == [disk.index]


# --- what if --------------------------------------------------------------------------------------------------------

EXPANDERS = ("cxl_exp0", "cxl_exp1")
FASTER = {
    ("ghostkv_gpu", "pcie0"): ("links.pcie0.width=32", "links.pcie0.bandwidth=109.4 GB/s"),
    ("ghostkv_cxl", "host0.root_complex"): ("devices.host0.root_complex=52 GB/s",),
    ("ghostkv_pim", "upmem0.dpus"): ("devices.upmem0.clock=700 MHz",),
}
"""Label and resource to the settings that make it twice as fast."""


def asked(label, **kwargs):
    record = done_with(label, **kwargs)
    again = replay(chosen_for(label, **kwargs), SMALL, PLACEMENTS[label][1], BATCH)
    return {each.resource: each.change for each in what_if(record.plan, waits(record), record.resources, again)}


@pytest.mark.parametrize("label", PLACEMENTS)
def test_twice_as_fast_never_lengthens_the_step(label):
    assert max(asked(label).values()) <= 1e-9


@pytest.mark.parametrize("label", PLACEMENTS)
def test_no_answer_saves_more_than_the_time_spent_on_the_resource(label):
    record = done_with(label)
    mean = step_ms(record).mean()
    for name, change in asked(label).items():
        spent = waits(record)[name]
        assert -change <= (spent["service"] + spent["queue"]) / mean + 0.02


@pytest.mark.parametrize("label", PLACEMENTS)
def test_only_resources_on_the_critical_path_are_asked_about(label):
    record = done_with(label)
    assert set(candidates(waits(record), record.resources)) <= set(record.resources)


@pytest.mark.parametrize(("label", "resource"), [("ghostkv_cxl", "host0.root_complex"), ("full_hbm", "gpu0.hbm.bus")])
def test_the_answer_is_that_of_a_run_of_all_steps(label, resource):
    chosen, placement = chosen_for(label), PLACEMENTS[label][1]
    plan = done_with(label).plan
    again = replay(chosen, SMALL, placement, BATCH)
    slow, fast = (int(again(plan, scale).finish.max()) for scale in ({}, {resource: 2.0}))
    assert 1 + asked(label)[resource] == pytest.approx(fast / slow, rel=0.05)


@pytest.mark.parametrize(("label", "resource"), FASTER)
def test_the_answer_is_that_of_other_hardware(label, resource):
    before, after = (step_ms(done_with(label, sets)).mean() for sets in ((), FASTER[label, resource]))
    assert 1 + asked(label)[resource] == pytest.approx(after / before, rel=0.05)


# --- viability ------------------------------------------------------------------------------------------------------


def viable(record, rate=0.1):
    return viability(record.plan, record.times, rate)


def test_a_run_without_a_filter_has_no_viability_condition():
    assert viable(done_with("full_offload")) is None


def test_the_published_condition_holds_where_the_simulation_says_no():
    found = viable(done_with("ghostkv_cxl")).as_json()
    assert [found[name]["holds"] for name in ("published", "corrected", "simulated")] == [True, False, False]


def test_the_fetch_term_is_survivor_bytes_over_the_slowest_resource():
    record = done_with("ghostkv_gpu")
    per_layer = record.plan.tier_bytes()["dram"]["kv"].sum() / record.plan.steps / SMALL.layers
    assert viable(record).fetch_us == pytest.approx(per_layer / 54.7e9 * 1e6, rel=0.03)


def test_with_nothing_to_fetch_all_three_conditions_hold():
    """No survivors, an index scanned at once, much hot attention."""
    fast = [f"devices.{each}.filter.{field}" for each in EXPANDERS for field in ("macs=2000 TMAC/s", "start=0 ns")]
    of = policy("ghostkv_onepass")
    chosen = varied(of, SMALL, context=36_000, batch=BATCH, steps=2, hot=35_000, share=0)
    record = simulate(chosen, of, SMALL, CXL, BATCH, "h100_cxl_pim", tuple(fast)).record
    found = viable(record, 0.0).as_json()
    assert [found[name]["holds"] for name in ("published", "corrected", "simulated")] == [True, True, True]


def test_metrics_name_the_waits():
    assert "pcie0" in run_metrics(done_with("ghostkv_gpu"))["waits_ms"]
