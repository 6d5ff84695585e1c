"""Do the figures of a run follow from its rows, and quality from the heads that a Selection serves?"""

from dataclasses import replace

import numpy as np
import pytest
from invented import CXL, HBM, OFFLOAD, PIM, llama, policy, selection, simulate, varied

from ghostsim.config.scenario import FIGURES, TABLES
from ghostsim.errors import ConfigError, GhostsimError
from ghostsim.metrics.collect import compare, moved, run_metrics, step_ms, step_rows
from ghostsim.metrics.energy import static_watts
from ghostsim.metrics.quality import quality, spread, step_quality, weights
from ghostsim.metrics.require import missed
from ghostsim.plan.plan import OPS

SMALL = llama("layers=3")


def run(name, placement, batch=2, steps=4):
    of = policy(name)
    return simulate(varied(of, SMALL, context=9000, batch=batch, steps=steps), of, SMALL, placement, batch)


def numbers(node):
    for value in node.values() if isinstance(node, dict) else [node]:
        if isinstance(value, dict):
            yield from numbers(value)
        elif isinstance(value, int | float):
            yield value


def test_steps_sum_to_the_run():
    record = run("ghostkv", CXL).record
    assert step_ms(record).sum() == pytest.approx(record.times.finish[len(record.plan) - 1] / 1e9)


def test_throughput_is_batch_over_mean_step():
    figures = run_metrics(run("full", HBM).record)
    assert figures["tokens_per_s"] == pytest.approx(2 / figures["step_ms"]["mean"] * 1000)


def test_quantiles_are_those_of_the_steps():
    record = run("ghostkv", CXL).record
    figures, steps = run_metrics(record)["step_ms"], step_ms(record)
    assert figures["p50"] == pytest.approx(np.median(steps))
    assert figures["max"] == steps.max()
    assert figures["n"] == 4


@pytest.mark.parametrize("placement", [CXL, PIM, replace(CXL, fetch="zero_copy")])
def test_critical_path_sums_to_the_mean_step(placement):
    figures = run_metrics(run("ghostkv", placement).record)
    assert sum(figures["critical_path_ms"].values()) == pytest.approx(figures["step_ms"]["mean"], rel=1e-9)


@pytest.mark.parametrize(("name", "placement"), [("full", HBM), ("ghostkv", CXL), ("ghostkv", PIM), ("h2o", HBM)])
def test_all_figures_are_finite(name, placement):
    found = list(numbers(run_metrics(run(name, placement).record)))
    assert found
    assert np.isfinite(found).all()


def paths(node, path=""):
    if not isinstance(node, dict):
        return [] if isinstance(node, str | bool) else [path]
    return [found for key, value in node.items() for found in paths(value, f"{path}.{key}" if path else key)]


def test_every_number_of_a_run_may_be_required():
    figures = run_metrics(run("ghostkv", CXL).record)
    lost = figures["quality"]["lost_mass"]
    figures["quality"] |= {"output_error": lost, "certified_mass": {"mean": 0, "max": 0}}  # null in this run
    figures["prefetch"] = dict.fromkeys(
        ("hit_rate", "waste_rate", "tokens", "hits", "misses", "waste", "late_rate", "late_ms"), 0
    )
    assert {path for path in paths(figures) if path.split(".")[0] not in TABLES} == set(FIGURES)


def test_a_resource_whose_name_has_dots_may_be_required():
    metrics = {"runs": {"a": {"utilisation": {"gpu0.hbm.bus": 0.5, "gpu0": 0.1}}}}
    assert missed(["a.utilisation.gpu0.hbm.bus >= 0.5", "a.utilisation.gpu0 < 0.2"], metrics) == []
    assert missed(["a.utilisation.gpu0.hbm.bus > 0.5"], metrics) != []


@pytest.mark.parametrize("path", ["a.utilisation.gpu1", "a.utilisation.gpu0.x", "a.quality.violations", "a.quality"])
def test_what_is_no_number_cannot_be_required(path):
    metrics = {"runs": {"a": {"utilisation": {"gpu0": 0.1}, "quality": {"violations": None}}}}
    with pytest.raises(ConfigError, match="expected"):
        missed([f"{path} > 0"], metrics)


def test_steps_beyond_what_the_clock_holds_are_refused():
    of = policy("full")
    slow = ("devices.host0.root_complex=1 kB/s",)
    with pytest.raises(GhostsimError, match="expected less than 100"):
        simulate(varied(of, SMALL, context=10**6, batch=1, steps=2), of, SMALL, CXL, 1, sets=slow)


def test_a_byte_counts_on_every_link_of_its_route():
    """KV in two expanders: all of it crosses PCIe and the first CXL link, half of it each link below the switch."""
    record = run("ghostkv", replace(CXL, fetch="zero_copy")).record
    kv = run_metrics(record)["bytes_per_step"]
    total = kv["cxl"]["kv"]
    assert kv["pcie0"]["kv"] == kv["cxl0"]["kv"] == pytest.approx(total)
    assert kv["cxl1"]["kv"] == pytest.approx(total / 2, abs=1)


def test_a_recall_is_migration_on_its_link_and_on_the_path():
    done = run("arkvale", OFFLOAD)
    found, read = run_metrics(done.record), done.record.selection.read_tokens.sum() / 4 * 512
    assert found["bytes_per_step"]["dram"]["kv"] == found["bytes_per_step"]["pcie0"]["kv"] == 0
    assert found["bytes_per_step"]["pcie0"]["migrate"] == pytest.approx(read + 2 * 3 * 8 * 512)
    path = found["critical_path_ms"]
    assert path["migrate"] > path["fetch_queue"] + path["fetch_service"] == 0


def test_a_scan_near_memory_crosses_no_link():
    record = run("ghostkv", CXL).record
    links = moved(record.plan, record.bound)
    assert links["cxl"]["index"].sum() > 50 * links["cxl0"]["index"].sum() > 0


def test_step_rows_repeat_the_means():
    record = run("ghostkv", CXL).record
    rows, figures = step_rows(record), run_metrics(record)
    assert np.mean([row["step_ms"] for row in rows]) == pytest.approx(figures["step_ms"]["mean"])
    assert np.mean([row["bytes_cxl_kv"] for row in rows]) == pytest.approx(figures["bytes_per_step"]["cxl"]["kv"])


def test_ratios_above_one_are_better():
    slow = {"tokens_per_s": 10.0, "step_ms": {"p50": 4.0, "p95": 5.0}}
    fast = {"tokens_per_s": 30.0, "step_ms": {"p50": 1.0, "p95": 2.5}}
    assert compare({"slow": slow, "fast": fast}, ["slow"]) == {
        "slow": {"fast": {"tokens_per_s": 3.0, "step_p50": 4.0, "step_p95": 2.0}}
    }


# --- energy ---------------------------------------------------------------------------------------------------------


def energy_of(done):
    """Return mJ per token by component, tokens, and bytes over the run by tier and link."""
    figures = run_metrics(done.record)
    steps = figures["step_ms"]["n"]
    moved_bytes = {name: sum(causes.values()) * steps for name, causes in figures["bytes_per_step"].items()}
    return figures["energy_mj_per_token"], figures["batch"] * steps, moved_bytes


def test_copies_cost_the_host_memory_the_link_and_the_hbm_that_they_land_in():
    done = run("full", OFFLOAD)
    energy, tokens, nbytes = energy_of(done)
    platform = done.record.platform
    gpu, host = platform.devices["gpu0"], platform.devices["host0"]
    assert energy["pcie0"] == pytest.approx(nbytes["pcie0"] * 8 * platform.links["pcie0"].energy / 1e9 / tokens)
    assert energy["dram"] == pytest.approx(nbytes["dram"] * 8 * host.memory.dram.energy / 1e9 / tokens)
    landed = nbytes["hbm"] + nbytes["dram"]
    assert energy["hbm"] == pytest.approx(landed * 8 * gpu.memory.dram.energy / 1e9 / tokens)


def test_reads_in_place_land_nowhere():
    done = run("full", replace(OFFLOAD, fetch="zero_copy"))
    energy, tokens, nbytes = energy_of(done)
    written = sum(moved(done.record.plan, done.record.bound)["dram"]["write"])  # leaves HBM by copy engine
    price = done.record.platform.devices["gpu0"].memory.dram.energy
    assert energy["hbm"] == pytest.approx((nbytes["hbm"] + written) * 8 * price / 1e9 / tokens)


def test_static_power_of_every_device_is_paid_for_the_time_of_the_steps():
    done = run("full", HBM)
    energy, tokens, _ = energy_of(done)
    seconds = step_ms(done.record).sum() / 1000
    paid = {name: energy[f"{name}.static"] * tokens / 1000 / seconds for name in done.record.platform.devices}
    watts = {name: static_watts(part) for name, part in done.record.platform.devices.items()}
    assert paid == pytest.approx(watts)


def test_a_filter_near_memory_pays_for_its_arithmetic_and_the_gpu_does_not():
    done = run("ghostkv", CXL)
    energy, tokens, _ = energy_of(done)
    scanned = done.record.selection.scanned.sum()
    engine = done.record.platform.devices["cxl_exp0"].filter
    filters = energy["cxl_exp0.filter"] + energy["cxl_exp1.filter"]
    assert filters == pytest.approx(scanned * 128 * 4 * engine.energy / 1e9 / tokens)
    gemm = 2 * 2 * (3 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336) + 4096 * 128256) * 4
    attend = int((done.record.selection.hot_tokens + done.record.selection.read_tokens).sum()) * 4 * 128 * 4
    gpu = done.record.platform.devices["gpu0"]
    assert energy["gpu0.tensor"] == pytest.approx((gemm + attend) * gpu.compute_energy / 1e9 / tokens)
    assert "gpu0.vector" not in energy


def test_a_scan_on_the_gpu_pays_for_scores_and_their_selection():
    done = run("ghostkv", OFFLOAD)
    energy, tokens, _ = energy_of(done)
    plan = done.record.plan
    macs = plan.flops[plan.op == OPS.index("scan")].sum() // 2 + plan.flops[plan.op == OPS.index("filter")].sum()
    price = done.record.platform.devices["gpu0"].vector_energy
    assert energy["gpu0.vector"] == pytest.approx(macs * price / 1e9 / tokens)


def test_dpus_cost_power_while_they_run():
    done = run("ghostkv", PIM)
    part = done.record.platform.devices["upmem0"]
    busy_s = done.record.utilisation["upmem0.dpus"] * done.end_ps / 1e12
    expected = part.ranks * part.dpu_power * busy_s * 1000 / 8
    assert run_metrics(done.record)["energy_mj_per_token"]["upmem0.dpus"] == pytest.approx(expected)


# --- quality --------------------------------------------------------------------------------------------------------


def quality_selection():
    """Return a Selection of two evaluations: the first serves three heads, the second one."""
    whole = selection(policy("ghostkv"), llama("layers=2", "kv_heads=2", "q_heads=2"), hot=10, cold=100, read=20)
    rng = np.random.default_rng(0)

    def of(*shape):
        return rng.integers(0, 50, shape)

    return replace(
        whole,
        unit_of=np.array([[[0, 0], [0, 1]]], np.int32),
        attended=np.array([[110], [110]]),
        hot_tokens=np.array([[10], [10]]),
        cold_tokens=np.array([[100], [100]]),
        stored_tokens=np.array([[110], [110]]),
        read_tokens=np.array([[20], [60]]),
        needless_reads=np.array([[5], [10]]),
        lost_mass=np.array([[[0.01]], [[0.05]]]),
        top_cold=np.array([[[30]], [[20]]]),
        top_eliminated=np.array([[[3]], [[0]]]),
        bound_checks=of(2, 1, 1),
        violations=np.array([[[1]], [[7]]]),
    )


def test_an_evaluation_counts_for_every_head_that_it_serves():
    assert weights(quality_selection(), 1).tolist() == [3, 1]


def test_rates_are_over_heads_not_over_evaluations():
    figures = quality(quality_selection(), 1)
    assert figures["resurrection_rate"] == (3 * 20 + 60) / 400
    assert figures["elimination_rate"] == 1 - (3 * 20 + 60) / 400
    assert figures["false_resurrection_rate"] == (3 * 5 + 10) / (3 * 20 + 60)
    assert figures["false_elimination_rate"] == 9 / 110
    assert figures["violations"] == 10


def test_lost_mass_is_over_heads():
    figures = quality(quality_selection(), 1)["lost_mass"]
    assert figures["mean"] == pytest.approx((3 * 0.01 + 0.05) / 4)
    assert figures["max"] == 0.05
    assert figures["p99"] == pytest.approx(np.percentile([0.01, 0.01, 0.01, 0.05], 99))


def test_a_ratio_over_nothing_is_zero():
    nothing = replace(
        quality_selection(),
        cold_tokens=np.zeros((2, 1), np.int64),
        read_tokens=np.zeros((2, 1), np.int64),
        needless_reads=np.zeros((2, 1), np.int64),
        top_cold=np.zeros((2, 1, 1), np.int64),
        top_eliminated=np.zeros((2, 1, 1), np.int64),
    )
    figures = quality(nothing, 1)
    rates = ("elimination_rate", "resurrection_rate", "false_elimination_rate", "false_resurrection_rate")
    assert [figures[rate] for rate in rates] == [0.0] * 4


def test_nothing_is_said_of_what_is_not_claimed():
    figures = quality(replace(quality_selection(), violations=None), 1)
    assert figures["violations"] is None
    assert figures["certified_mass"] is None
    assert figures["output_error"] is None


def test_quality_per_step_agrees_with_the_whole():
    columns = step_quality(quality_selection(), 1)
    assert columns["read_tokens"] == [120]
    assert columns["cold_tokens"] == [400]
    assert columns["lost_mass_mean"] == pytest.approx([0.02])
    assert columns["violations"] == [10]


def test_spread_uses_the_linear_quantile():
    assert spread(np.arange(101.0)) == {"mean": 50.0, "p99": 99.0, "max": 100.0}
