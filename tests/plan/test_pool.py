"""Hosts that share an expander: equal shares of it, and contention that a run and a serving run see."""

from dataclasses import replace

import pytest
from invented import HBM, llama, platform, policy, simulate, varied

from ghostsim import simulation
from ghostsim.config.load import load_scenario
from ghostsim.metrics.collect import step_ms
from ghostsim.pipeline.step_cost import measure_bulk

MODEL = llama("layers=4")
IN_CXL = replace(HBM, kv_tier="cxl")
FILTERED = replace(IN_CXL, index_tier="cxl", site="cxl")


def run(machine, hosts=0, load="", *, of="full", placement=IN_CXL, context=16384):
    names = [name for name in platform(machine).devices if name.startswith("cxl_exp")]
    sets = [f"devices.{name}.pool.hosts={hosts}" for name in names] if hosts else []
    sets += [f"devices.{name}.pool.load={load}" for name in names] if load else []
    chosen = varied(policy(of), MODEL, context=context, batch=2, steps=2)
    return simulate(chosen, policy(of), MODEL, placement, 2, machine, tuple(sets)).record


def ms(*args, **kwargs):
    return step_ms(run(*args, **kwargs)).mean()


def test_four_hosts_read_a_quarter_each_of_what_the_media_give():
    """Two expanders of 24 GB/s as measured, all-read."""
    record = run("h100_cxl2_pool", 3)
    read = record.plan.tier_bytes()["cxl"]["kv"].sum()
    assert read / step_ms(record).sum() * 1e3 == pytest.approx(48e9 / 4, rel=0.05)


def test_what_the_media_are_not_the_limit_of_is_not_shared():
    """A pool of 307 GB/s gives two hosts what their root complexes pass, 26 GB/s each."""
    assert ms("h100_mhd_pool", 1) == pytest.approx(ms("h100_mhd_pool"), rel=0.01)


def test_a_filter_scans_for_four_hosts_at_a_quarter_of_its_rate():
    """So slow that the scan is nearly all of the step."""
    slow = [f"devices.cxl_exp{i}.filter.macs=0.0001 TMAC/s" for i in (0, 1)]
    four = [f"devices.cxl_exp{i}.pool.hosts=3" for i in (0, 1)]
    chosen = varied(policy("ghostkv"), MODEL, context=4096, batch=2, steps=2, share=0.01)
    times = [
        step_ms(simulate(chosen, policy("ghostkv"), MODEL, FILTERED, 2, sets=tuple(sets)).record).mean()
        for sets in (slow, slow + four)
    ]
    assert times[1] / times[0] == pytest.approx(4, rel=0.01)


def test_the_link_behind_the_switch_is_shared_and_that_before_it_is_not():
    ports = run("h100_cxl2_pool", 3).utilisation
    alone = run("h100_cxl2_pool").utilisation
    slower = step_ms(run("h100_cxl2_pool", 3)).mean() / step_ms(run("h100_cxl2_pool")).mean()
    assert ports["cxl1"] * slower == pytest.approx(4 * alone["cxl1"], rel=0.01)
    assert ports["cxl0"] * slower == pytest.approx(alone["cxl0"], rel=0.01)


@pytest.mark.parametrize("hosts", [1, 3, 7])
def test_capacity_is_shared_by_hosts_that_do_the_same(hosts):
    sets = [f"devices.cxl_exp{i}.pool.hosts={hosts}" for i in (0, 1)]
    whole, own = (platform("h100_cxl2_pool", *each).tier_capacity("cxl") for each in ((), sets))
    assert own == whole // (hosts + 1)


def test_more_hosts_never_make_a_step_shorter():
    times = [ms("h100_cxl2_pool", hosts, of="quest") for hosts in (0, 1, 3, 7)]
    assert times == sorted(times)


SERVING = """\
schema: 1
name: pooled
model: docs_5m
platform: h100_cxl2_pool
workload: {trace: natural_4k, context: 1024, batch: 2, steps: 2}
serving:
  sessions: {count: 6, turns: 2, system_tokens: 512, task_tokens: 512, result_tokens: 256, output_tokens: 16, gap: 1 ms}
  max_batch: 4
  slo: {ttft: 1 s, tpot: 1 s}
runs:
  alone: {policy: full, kv_tier: cxl}
  of_4: {policy: full, kv_tier: cxl, platform: h100_cxl2_pool_4}
"""


@pytest.fixture
def pooled(tmp_path):
    file = tmp_path / "pooled.yaml"
    file.write_text(SERVING)
    return load_scenario(file).scenario


def test_serving_from_a_pool_is_slower_where_four_hosts_do_it(pooled):
    runs = {label: each["serving"] for label, each in simulation.simulate(pooled).metrics["runs"].items()}
    assert runs["of_4"]["completed"] == runs["alone"]["completed"] == 12
    for figure in ("tpot_ms", "settle_ms"):
        assert runs["of_4"][figure]["mean"] > 1.5 * runs["alone"][figure]["mean"]


def test_bulk_transfers_of_a_pool_get_its_share(pooled):
    alone, shared = (measure_bulk(run, run.model, ("cxl", False), 2**20) for run in pooled.runs.values())
    assert alone.bytes_per_s == pytest.approx(26e9, rel=0.05)
    assert shared.bytes_per_s == pytest.approx(12e9, rel=0.05)


def test_what_other_hosts_use_is_no_use_of_ones_own(tmp_path):
    loaded = [f"platform.devices.cxl_exp0.pool.{each}" for each in ("hosts=3", "load=20 GB/s")]
    file = tmp_path / "pooled.yaml"
    file.write_text(SERVING.replace("h100_cxl2_pool_4", "h100_cxl2_pool"))
    runs = [load_scenario(file, ["platform=h100_mhd_pool", *sets]).scenario.runs["alone"] for sets in ((), loaded)]
    alone, beside = (measure_bulk(run, run.model, ("cxl", False), 2**20).used["cxl_exp0.bus"] for run in runs)
    assert beside == pytest.approx(alone, rel=0.01)
