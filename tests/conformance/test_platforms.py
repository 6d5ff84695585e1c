"""Does every platform decode, with KV in each of its tiers, and obey the physics while it does?"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from invented import CXL, HBM, PIM, llama, platform, policy, simulate, varied

from ghostsim.config import catalogue
from ghostsim.config.hardware import NearBankPim
from ghostsim.devices.gpu_arch import gpu_spec
from ghostsim.metrics import critical_path
from ghostsim.metrics.collect import moved, step_ms

MODEL = llama("layers=2")
STEPS, CONTEXT = 2, 4096
PLATFORMS = sorted(catalogue.files("platform"))


def placements(name):
    """Return what runs on a platform: everything in each tier, and a filter wherever there is one."""
    built = platform(name)
    found = {f"full_{tier}": ("full", replace(HBM, kv_tier=tier)) for tier in built.tiers if tier != "pim"}
    found["ghostkv_gpu"] = ("ghostkv", replace(HBM, kv_tier="dram"))
    if "cxl" in built.tiers and all(built.devices[each].filter for each in built.tiers["cxl"]):
        found["ghostkv_cxl"] = ("ghostkv", CXL)
    if "pim" in built.tiers:
        banks = isinstance(built.devices[built.tiers["pim"][0]], NearBankPim)
        found["ghostkv_pim"] = ("quest" if banks else "ghostkv", PIM)
    return found


RUNS = [(name, label) for name in PLATFORMS for label in placements(name)]


@cache
def run(name, label):
    chosen, placement = placements(name)[label]
    of = policy(chosen)
    return simulate(varied(of, MODEL, context=CONTEXT, batch=1, steps=STEPS), of, MODEL, placement, 1, name)


@pytest.mark.parametrize(("name", "label"), RUNS)
def test_steps_take_time_and_the_critical_path_explains_all_of_it(name, label):
    record = run(name, label).record
    ends = critical_path.step_ends(record.plan, record.times)
    spent = critical_path.attribute(record.plan, record.times)
    assert len(ends) == STEPS
    assert (np.diff(ends, prepend=0) > 0).all()
    assert spent.sum(axis=1).tolist() == np.diff(ends, prepend=0).tolist()


@pytest.mark.parametrize(("name", "label"), RUNS)
def test_no_resource_is_busier_than_full_and_none_is_outrun(name, label):
    done = run(name, label)
    capacity = np.array([resource.capacity for resource in done.network.resources.values()])
    assert all(0 <= share <= 1 for share in done.record.utilisation.values())
    assert done.end_ps >= (done.probe.units() / capacity).max() * 1e12 * (1 - 1e-9)


@pytest.mark.parametrize(("name", "label"), RUNS)
def test_every_resource_serves_what_the_flows_cost(name, label):
    """But for the whole picosecond that a flow ends on, 8 bytes of the fastest HBM; turns of a bus take more."""
    done = run(name, label)
    expected = np.zeros(len(done.network.resources))
    for flow_class, nbytes in done.classes.items():
        for resource, cost in flow_class.route:
            expected[resource.index] += nbytes * cost
    turns = np.array([resource.mix is not None for resource in done.network.resources.values()])
    assert done.probe.units()[~turns] == pytest.approx(expected[~turns], rel=1e-5, abs=1.0)
    assert (done.probe.units()[turns] >= expected[turns] * (1 - 1e-5) - 1).all()
    assert (done.probe.units()[turns] <= expected[turns] * 1.05 + 1).all()


@pytest.mark.parametrize(("name", "label"), RUNS)
def test_what_is_read_from_a_tier_crosses_a_link_of_the_gpu(name, label):
    done = run(name, label)
    said = moved(done.record.plan, done.record.bound)
    tier = placements(name)[label][1].kv_tier
    if tier != "hbm":
        links = [link for link, each in platform(name).links.items() if "gpu0" in each.between]
        assert sum(said[link]["kv"].sum() for link in links if link in said) == said[tier]["kv"].sum() > 0


@pytest.mark.parametrize("name", PLATFORMS)
def test_the_gpu_reads_its_own_memory_fastest(name):
    in_hbm = step_ms(run(name, "full_hbm").record).mean()
    for label in placements(name):
        if label.startswith("full_"):
            assert step_ms(run(name, label).record).mean() >= in_hbm


@pytest.mark.parametrize("name", PLATFORMS)
def test_no_step_reads_its_weights_faster_than_the_data_sheet(name):
    record = run(name, "full_hbm").record
    weights = moved(record.plan, record.bound)["hbm"]["weights"]
    peak = gpu_spec(platform(name).devices["gpu0"]).hbm_bytes_per_s
    assert (step_ms(record) * 1e-3 > weights / peak).all()
