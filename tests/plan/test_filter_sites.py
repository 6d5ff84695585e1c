"""Filters at every site: what crosses a link for them, how long a scan takes, and what is refused."""

from dataclasses import replace

import pytest
from invented import CXL, HBM, OFFLOAD, PIM, llama, platform, policy, simulate, varied
from rig import PS, Rig, alone_ps

from ghostsim.config.load import load_scenario
from ghostsim.devices.machine import Machine
from ghostsim.errors import ConfigError
from ghostsim.metrics.collect import moved, step_ms
from ghostsim.pipeline.binding import Binder
from ghostsim.plan.plan import OPS
from ghostsim.policy.costs import index_stages

MODEL = llama("layers=2")
GB = 10**9
BATCH, CONTEXT = 3, 16384
MACS_PER_BYTE = 128 * 4 / 66
SITES = {
    "hbm": replace(OFFLOAD, site="hbm"),
    "dram": replace(OFFLOAD, index_tier="dram", site="dram"),
    "cpu": replace(OFFLOAD, index_tier="dram", site="cpu"),
    "cxl": CXL,
    "pim": PIM,
    "ssd": replace(OFFLOAD, index_tier="ssd", site="ssd"),
}


def run(placement, sets=(), name="ghostkv", share=0.02):
    of = policy(name)
    chosen = varied(of, MODEL, context=CONTEXT, batch=BATCH, steps=2, share=share)
    return simulate(chosen, of, MODEL, placement, BATCH, "h100_filters", sets)


def index_bytes_on_links(done):
    """Bytes of queries, scans and results over all links, per run."""
    said = moved(done.record.plan, done.record.bound)
    return sum(int(causes["index"].sum()) for name, causes in said.items() if name in done.links)


def rows(plan, op, *names):
    chosen = [i for i, name in enumerate(plan.names) if not names or name.startswith(names)]
    return plan.nbytes.reshape(-1, len(plan.names))[:, chosen][:, plan.op[chosen] == OPS.index(op)]


# --- bytes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", [site for site in SITES if site != "hbm"])
@pytest.mark.parametrize("result", ["ids", "bitmap", "histogram"])
def test_a_filter_adds_no_link_bytes_beyond_its_protocol(site, result):
    """Queries, thresholds and results cross the links of the route, the records that are scanned do not."""
    done = run(replace(SITES[site], result=result))
    plan = done.record.plan
    hops = {"dram": 1, "cpu": 1, "cxl": 3, "pim": 2, "ssd": 2}[site]
    protocol = int(rows(plan, "filter").sum())
    assert index_bytes_on_links(done) == pytest.approx(hops * protocol, rel=1e-3)


@pytest.mark.parametrize("site", [site for site in SITES if site != "hbm"])
def test_a_filter_moves_no_more_over_links_than_the_index_itself(site):
    near, none = (index_bytes_on_links(run(replace(SITES[site], site=where))) for where in (site, "none"))
    assert near < 0.1 * none


def test_a_filter_in_the_base_die_uses_no_link():
    assert index_bytes_on_links(run(SITES["hbm"])) == 0


@pytest.mark.parametrize("site", sorted(SITES))
def test_what_survives_does_not_depend_on_the_site(site):
    reads = [int(rows(run(placement).record.plan, "read").sum()) for placement in (SITES[site], OFFLOAD)]
    assert reads[0] == reads[1]


def test_ids_take_four_bytes_each():
    plan = run(replace(CXL, result="ids")).record.plan
    survivors = plan.records[plan.op == OPS.index("read")].sum()
    assert rows(plan, "filter", "filter").sum() == 4 * survivors


def test_a_bitmap_takes_a_bit_per_record():
    plan = run(CXL).record.plan
    scanned = plan.records[plan.op == OPS.index("scan")]
    assert rows(plan, "filter", "filter").sum() == (-(-scanned // 8)).sum()


def test_a_histogram_takes_a_kibibyte_per_query_head_and_a_second_pass():
    once, twice = (run(replace(CXL, result=result)).record.plan for result in ("ids", "histogram"))
    heads = BATCH * MODEL.kv_heads * MODEL.q_per_kv * MODEL.layers * 2
    assert rows(twice, "filter", "histogram").sum() == 1024 * heads
    assert rows(twice, "filter", "threshold").sum() == 4 * heads
    assert rows(twice, "filter", "filter").sum() == rows(once, "filter", "filter").sum()
    assert rows(twice, "scan").sum() == 2 * rows(once, "scan").sum()


@pytest.mark.parametrize("site", sorted(SITES))
def test_a_second_pass_takes_longer(site):
    times = [step_ms(run(replace(SITES[site], result=result)).record).mean() for result in ("ids", "histogram")]
    assert times[0] < times[1]


# --- time ---------------------------------------------------------------------------------------------------------


def engine(rig, site, *sets):
    machine = rig.machine("h100_filters", *sets)
    device = {"hbm": "gpu0", "dram": "host0", "cpu": "host0", "cxl": "cxl_exp0", "ssd": "ssd0"}[site]
    return machine.devices[device].scorer if site == "cpu" else machine.devices[device].filter


def scan(site, nbytes, *sets):
    return lambda rig: engine(rig, site, *sets).scan(nbytes, MACS_PER_BYTE)


ALONE = {
    # Start, the way to the DRAM, and the DRAM; a drive reads a page.
    "hbm": (100_000 + 344_000, 3350e9),
    "dram": (200_000 + 110_000, 267.4e9),
    "cpu": (1_000_000 + 110_000, 267.4e9),
    "cxl": (200_000 + 63_000, 4 * 34.95e9 * 0.956),
    "ssd": (5_000_000 + 75_000_000 + 10_240_000, 16 * 1.6e9),
}


@pytest.mark.parametrize("site", list(ALONE))
def test_one_record_takes_start_and_media_latency(site):
    assert alone_ps(scan(site, 66)) == pytest.approx(ALONE[site][0], rel=0.02)


@pytest.mark.parametrize("site", list(ALONE))
def test_a_long_scan_keeps_up_with_its_media(site):
    latency_ps, rate = ALONE[site]
    assert 100 * GB / (alone_ps(scan(site, 100 * GB)) - latency_ps) * PS == pytest.approx(rate, rel=0.03)


@pytest.mark.parametrize(("cores", "sets"), [(4, ()), (8, ("devices.host0.core.macs=16 GMAC/s",))])
def test_host_cores_score_at_the_slower_of_their_loads_and_their_arithmetic(cores, sets):
    rate = cores * min(12e9, (16e9 if sets else 128e9) / MACS_PER_BYTE)
    took = alone_ps(scan("cpu", 10 * GB, f"devices.host0.cores={cores}", *sets))
    assert 10 * GB / took * PS == pytest.approx(rate, rel=1e-3)


@pytest.mark.parametrize("site", list(ALONE))
def test_a_filter_shares_the_media_with_other_traffic(site):
    rig = Rig()
    machine = rig.machine("h100_filters")
    device = {"hbm": "gpu0", "dram": "host0", "cpu": "host0", "cxl": "cxl_exp0", "ssd": "ssd0"}[site]
    found = machine.devices[device]
    found = getattr(found, "scorer", found.filter) if site == "cpu" else found.filter
    media = found.media()
    rig.job("scan", found.scan(10 * GB, MACS_PER_BYTE))
    rig.flow("host", media, 10 * GB, found.window)
    assert max(rig.run().values()) > 1.9 * (alone_ps(scan(site, 10 * GB)) - ALONE[site][0])


def test_in_fair_order_all_scans_end_together():
    rig = Rig()
    shared = engine(rig, "cxl", "devices.cxl_exp0.filter.order=fair")
    for name in range(4):
        rig.job(name, shared.scan(GB, MACS_PER_BYTE, request=name))
    assert len(set(rig.run().values())) == 1


def test_in_fifo_order_the_last_scan_ends_as_late_and_the_first_much_earlier():
    ends = []
    for order in ("fifo", "fair"):
        rig = Rig()
        shared = engine(rig, "cxl", f"devices.cxl_exp0.filter.order={order}")
        for name in range(4):
            rig.job(name, shared.scan(GB, MACS_PER_BYTE, request=name))
        ends.append(sorted(rig.run().values()))
    assert ends[0][-1] == pytest.approx(ends[1][-1], rel=1e-3)
    assert ends[0][0] == pytest.approx(ends[1][0] / 4, rel=1e-3)


FAIR = ("devices.cxl_exp0.filter.order=fair", "devices.cxl_exp1.filter.order=fair")
SLOW = ("devices.cxl_exp0.filter.macs=0.2 TMAC/s", "devices.cxl_exp1.filter.macs=0.2 TMAC/s")


def test_order_and_chunks_move_a_layer():
    """Fetches overlap the scans of later requests or chunks; side by side and whole, every fetch waits for all."""
    times = {
        (order, chunks): step_ms(run(replace(CXL, chunks=chunks), (*sets, *SLOW), share=0.05).record).mean()
        for order, sets in (("fair", FAIR), ("fifo", ()))
        for chunks in (1, 4)
    }
    assert times["fifo", 4] < times["fifo", 1] < times["fair", 1]
    assert times["fair", 4] < times["fair", 1]
    assert times["fifo", 1] < 0.95 * times["fair", 1]


# --- what is refused ----------------------------------------------------------------------------------------------


def bind(placement, name="ghostkv", machine="h100_filters"):
    rig = Rig()
    built = Machine(rig.env, rig.network, platform(machine))
    stages = index_stages(policy(name), MODEL.head_dim)
    return Binder(built, MODEL, placement, stages, 1)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("hbm", "found filter hbm on gpu0, expected a device with a filter: block"),
        ("dram", "found filter dram on host0, expected a device with a filter: block"),
        ("ssd", "found filter ssd on ssd0, expected a device with a filter: block"),
    ],
)
def test_a_filter_that_the_device_does_not_have_is_refused(site, message):
    with pytest.raises(ConfigError, match=message):
        bind(SITES[site], machine="h100_cxl_pim")


@pytest.mark.parametrize("tier", ["ssd", "pim"])
def test_reads_in_place_of_what_no_load_reaches_are_refused(tier):
    with pytest.raises(ConfigError, match=f"found fetch zero_copy from tier {tier}, expected dma"):
        bind(replace(HBM, kv_tier=tier, fetch="zero_copy"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("index_tier: hbm, filter: none", "expected index_tier: dram or cxl or pim or ssd"),
        ("index_tier: dram, filter: hbm", "expected index_tier: hbm"),
        ("index_tier: cxl, filter: cpu", "expected index_tier: dram"),
        ("index_tier: hbm, filter: dram", "expected index_tier: dram"),
        ("index_tier: cxl, filter: ssd", "expected index_tier: ssd"),
    ],
)
def test_a_filter_away_from_its_index_is_refused(tmp_path, fields, message):
    file = tmp_path / "s.yaml"
    file.write_text(
        "{schema: 1, name: s, model: llama_3_1_8b, platform: h100_filters, workload: {trace: natural_4k},\n"
        f"runs: {{a: {{policy: ghostkv, kv_tier: dram, {fields}}}}}}}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match=message):
        load_scenario(file)
