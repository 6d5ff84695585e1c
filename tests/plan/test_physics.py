"""Does every placement obey what holds of any machine: no free bytes, no free time, nothing faster for being slower?"""

import numpy as np
import pytest
from placed import CASES, NAMES, mean_ms, run

from ghostsim.metrics.attribution import by_resource
from ghostsim.metrics.collect import moved, step_ms
from ghostsim.plan.plan import OPS, ROLES

SLACK = 1e-6
ANOMALY = 0.004
"""What a run may gain from a slower part: shorter queues at one place can make a shared schedule a better one."""


def used(name):
    """Return the resources that a run uses at all."""
    return [resource for resource, share in run(name).record.utilisation.items() if share]


# --- time -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_resource_is_used_beyond_its_capacity(name):
    assert max(run(name).record.utilisation.values()) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_no_run_ends_before_its_busiest_resource(name):
    done = run(name)
    busy_s = done.probe.units() / [resource.capacity for resource in done.network.resources.values()]
    assert done.end_ps >= busy_s.max() * 1e12 * (1 - SLACK)


@pytest.mark.parametrize("name", NAMES)
def test_waits_sum_to_the_step(name):
    record = run(name).record
    waits = by_resource(record.plan, record.bound, record.times, record.resources)
    assert sum(sum(kinds.values()) for kinds in waits.values()) == pytest.approx(step_ms(record).mean(), rel=SLACK)


def slowed(name):
    """Return how much longer a run takes with half of each resource, for every resource that it uses."""
    return {resource: mean_ms(name, resource) / mean_ms(name) for resource in used(name)}


@pytest.mark.parametrize("name", [name for name in NAMES if not CASES[name].policy.startswith("ghostkv")])
def test_half_of_any_resource_never_speeds_a_run(name):
    assert {resource: ratio for resource, ratio in slowed(name).items() if ratio < 1 - SLACK} == {}


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].policy.startswith("ghostkv")])
def test_half_of_any_resource_hardly_ever_speeds_a_run_with_a_filter(name):
    """Media serve in order of arrival, so requesters share them by what they keep outstanding.

    A filter keeps its SRAM outstanding, 1 or 2 MiB, a copy engine 64 KiB: while requests are scanned, the fetches of
    those before get a thirtieth of the media, and the link, which ends the layer, idles. Half of the filter's port
    gives them half of the media. What they gain is more than the last scan loses, by 0.4 % at most.
    """
    assert {resource: ratio for resource, ratio in slowed(name).items() if ratio < 1 - ANOMALY} == {}


WINDOWED = (
    "dram filter",
    "cxl filter, in place",
    "cxl filter, chunks",
    "cxl filter, peer to peer",
    "prefetch by query",
)


def windowed(name):
    """Return what gives the filters of a case the window of a copy engine."""
    host = ("host0",) if CASES[name].machine == "h100_filters" else ()
    return tuple(f"devices.{device}.filter.window=64 KiB" for device in ("cxl_exp0", "cxl_exp1", *host))


@pytest.mark.parametrize("name", WINDOWED)
def test_half_of_a_filter_never_speeds_a_run_whose_filter_keeps_little_outstanding(name):
    """With the window of a copy engine the media are shared so that the link never waits for a scan."""
    sets = windowed(name)
    engines = [resource for resource in used(name) if ".filter_" in resource]
    ratios = {engine: mean_ms(name, engine, sets) / mean_ms(name, sets=sets) for engine in engines}
    assert {engine: ratio for engine, ratio in ratios.items() if ratio < 1 - 2e-5} == {}


@pytest.mark.parametrize("name", WINDOWED)
def test_a_filter_that_keeps_less_outstanding_lets_fetches_pass(name):
    assert mean_ms(name, sets=windowed(name)) < mean_ms(name)


@pytest.mark.parametrize("name", NAMES)
def test_half_of_one_resource_at_most_doubles_a_run(name):
    assert {resource: ratio for resource, ratio in slowed(name).items() if ratio > 2 * (1 + SLACK)} == {}


@pytest.mark.parametrize("name", NAMES)
def test_twice_of_everything_at_most_halves_a_run(name):
    ratio = mean_ms(name, ",".join(run(name).network.resources), scale=2.0) / mean_ms(name)
    assert 0.5 * (1 - SLACK) <= ratio <= 1


FIELDS = {
    "half the lanes to the gpu": ("links.pcie0.width=8", "links.pcie0.bandwidth=27 GB/s"),
    "half the lanes to the expanders": ("links.cxl0.width=8", "links.cxl1.width=4", "links.cxl2.width=4"),
    "half the channels of the expanders": ("devices.cxl_exp0.memory.channels=2", "devices.cxl_exp1.memory.channels=2"),
    "half the channels of the host": ("devices.host0.memory.channels=4",),
    "half the stacks": ("devices.gpu0.memory.channels=40",),
    "half the copy engines": ("devices.gpu0.copy_engines.count=1",),
    "half the outstanding reads": ("devices.gpu0.read_window=10 KiB",),
    "half the cores": ("devices.host0.cores=28",),
    "half the dies": ("devices.ssd0.dies_per_channel=4",),
    "half the ranks": ("devices.upmem0.ranks=10",),
    "half the root complex": ("devices.host0.root_complex=13 GB/s",),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_smaller_part_hardly_ever_speeds_a_run(name):
    ratios = {what: mean_ms(name, sets=sets) / mean_ms(name) for what, sets in FIELDS.items()}
    assert {what: ratio for what, ratio in ratios.items() if ratio < 1 - ANOMALY} == {}


# --- bytes ----------------------------------------------------------------------------------------------------------


def work(record):
    """Return what each row of a plan asks of a device: bytes, or operations where none move."""
    plan = record.plan
    on_gpu = np.array([lane == "gpu select" for lane in (row.lane for row in record.bound)])
    compute = np.tile(on_gpu, plan.steps * plan.layers) | (plan.nbytes == 0)
    return np.where(compute, plan.flops, plan.nbytes)


@pytest.mark.parametrize("name", NAMES)
def test_flows_deliver_what_the_plan_asks_for(name):
    done = run(name)
    assert sum(done.classes.values()) == work(done.record).sum()


@pytest.mark.parametrize("name", NAMES)
def test_every_link_carries_the_bytes_that_the_figures_say(name):
    done = run(name)
    said = moved(done.record.plan, done.record.bound)
    for link in done.links.values():
        carried = sum(
            nbytes * (0.5 if link.name in ("cxl1", "cxl2") else 1)
            for flow_class, nbytes in done.classes.items()
            if {link.up, link.down} & {resource for resource, _ in flow_class.route}
        )
        expected = sum(int(per_step.sum()) for per_step in said.get(link.name, {}).values())
        assert carried == pytest.approx(expected, abs=len(done.record.plan)), link.name


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].ahead])
def test_a_prefetch_moves_what_is_read_and_its_waste(name):
    record = run(name).record
    plain = {"by query": "cxl filter", "of the next layer": "gpu filter", "by oracle": None}
    base = plain[name.removeprefix("prefetch ")]
    wasted = int(record.ahead.tokens.sum() - record.ahead.hits.sum())
    needed = int(record.selection.read_tokens.sum())
    assert base is None or int(run(base).record.plan.records[reads(run(base).record.plan)].sum()) == needed
    assert int(record.plan.records[reads(record.plan)].sum()) == needed + wasted


def reads(plan):
    return plan.op == OPS.index("read")


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].old])
def test_an_archive_divides_the_reads_and_adds_none(name):
    record = run(name).record
    selected = reads(record.plan) & (record.plan.role != ROLES.index("warm"))
    assert int(record.plan.records[selected].sum()) == int(record.selection.read_tokens.sum())


@pytest.mark.parametrize("name", [name for name in NAMES if CASES[name].placement.ghostify != "gpu"])
def test_who_makes_the_records_changes_no_byte(name):
    by_gpu = {"records by the host": "cxl filter", "records near memory": "dram filter"}[name]
    plans = [run(each).record.plan for each in (name, by_gpu)]
    totals = [{t: {c: int(v.sum()) for c, v in causes.items()} for t, causes in p.tier_bytes().items()} for p in plans]
    assert totals[0] == totals[1]


@pytest.mark.parametrize("name", ["full staged", "full in place", "full on the cores"])
def test_how_kv_is_fetched_changes_no_byte_of_its_tier(name):
    kv = [int(run(each).record.plan.tier_bytes()["dram"]["kv"].sum()) for each in (name, "full by dma")]
    partial = int(run(name).record.plan.nbytes[reads(run(name).record.plan)].sum()) if "cores" in name else 0
    assert kv[0] - partial == kv[1]
