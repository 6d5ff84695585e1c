"""Does each way of a fetch cross the links that it must, and no other, and does the slowest of them set the pace?"""

from dataclasses import replace
from functools import cache

import pytest
from invented import HBM, llama, platform, policy, simulate, varied

from ghostsim.errors import ConfigError
from ghostsim.metrics.attribution import by_resource
from ghostsim.metrics.collect import moved, run_metrics

MODEL = llama("layers=3")
CORE = tuple(
    f"devices.host0.core.{field}"
    for field in ("bandwidth=12 GB/s", "macs=128 GMAC/s", "flops=64 GFLOP/s", "copy_bandwidth=8 GB/s", "start=1 us")
)
BELOW = ("cxl1", "cxl2")
"""Links to the two expanders, each of which has half of the bytes."""
NVME = tuple(f"nvme{i}" for i in range(8))
WAYS = {
    "dma from host memory": ("h100_cxl_pim", "dram", "dma"),
    "in place from host memory": ("h100_cxl_pim", "dram", "zero_copy"),
    "staged from host memory": ("h100_cxl_pim", "dram", "staged"),
    "cxl through the root complex": ("h100_cxl_pim", "cxl", "dma"),
    "cxl in place": ("h100_cxl_pim", "cxl", "zero_copy"),
    "cxl staged in host memory": ("h100_cxl_pim", "cxl", "staged"),
    "cxl peer to peer": ("h100_cxl_direct", "cxl", "dma"),
    "ssd to gpu": ("h100_cxl_pim", "ssd", "dma"),
    "ssd bounced off host memory": ("h100_cxl_pim", "ssd", "staged"),
    "ssd to gpu below one switch": ("h200_nvme_switch", "ssd", "dma"),
    "ssd bounced past a switch": ("h200_nvme_switch", "ssd", "staged"),
}
LINKS = {
    "dma from host memory": {"pcie0": 1},
    "in place from host memory": {"pcie0": 1},
    "staged from host memory": {"pcie0": 1},
    "cxl through the root complex": {"pcie0": 1, "cxl0": 1, **dict.fromkeys(BELOW, 0.5)},
    "cxl in place": {"pcie0": 1, "cxl0": 1, **dict.fromkeys(BELOW, 0.5)},
    "cxl staged in host memory": {"pcie0": 1, "cxl0": 1, **dict.fromkeys(BELOW, 0.5)},
    "cxl peer to peer": {"cxl0": 1, **dict.fromkeys(BELOW, 0.5)},
    "ssd to gpu": {"pcie0": 1, "nvme0": 1},
    "ssd bounced off host memory": {"pcie0": 1, "nvme0": 1},
    "ssd to gpu below one switch": {"pcie0": 1, **dict.fromkeys(NVME, 1 / 8)},
    "ssd bounced past a switch": {"pcie0": 1, "pcie1": 2, **dict.fromkeys(NVME, 1 / 8)},
}
SLOWEST = {
    "dma from host memory": "pcie0",
    "in place from host memory": "gpu0.read_window",
    "staged from host memory": "pcie0",
    "cxl through the root complex": "host0.root_complex",
    "cxl in place": "gpu0.read_window",
    "cxl staged in host memory": "pcie0",
    "cxl peer to peer": "gpu0.descriptors",
    "ssd to gpu": "ssd0.commands",
    "ssd bounced off host memory": "ssd0.commands",
    "ssd to gpu below one switch": "ssd7.commands",
    "ssd bounced past a switch": "ssd7.commands",
}
MEMORY_TIMES = {
    "dma from host memory": 1,
    "staged from host memory": 3,
    "cxl through the root complex": 0,
    "cxl staged in host memory": 2,
    "cxl peer to peer": 0,
    "ssd to gpu": 0,
    "ssd bounced off host memory": 4,
    "ssd to gpu below one switch": 0,
    "ssd bounced past a switch": 4,
}
"""How often host memory reads or writes a byte."""


@cache
def run(way):
    machine, tier, fetch = WAYS[way]
    of = policy("full")
    chosen = varied(of, MODEL, context=65536, batch=2, steps=2)
    sets = CORE if machine == "h200_nvme_switch" else ()
    return simulate(chosen, of, MODEL, replace(HBM, kv_tier=tier, fetch=fetch), 2, machine, sets)


def fetched(way):
    return int(run(way).record.plan.tier_bytes()[WAYS[way][1]]["kv"].sum())


@pytest.mark.parametrize("way", WAYS)
def test_a_fetch_crosses_the_links_of_its_way_and_no_other(way):
    record = run(way).record
    crossed = {
        name: int(causes["kv"].sum()) / fetched(way)
        for name, causes in moved(record.plan, record.bound).items()
        if name in run(way).links and causes["kv"].any()
    }
    assert crossed == pytest.approx(LINKS[way], rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_slowest_resource_of_the_way_is_full_and_waited_for(way):
    record = run(way).record
    waits = by_resource(record.plan, record.bound, record.times, record.resources)
    assert record.utilisation[SLOWEST[way]] > 0.97
    assert next(iter(waits)) == SLOWEST[way]


@pytest.mark.parametrize("way", MEMORY_TIMES)
def test_host_memory_moves_a_byte_as_often_as_the_way_says(way):
    done = run(way)
    bus = next(name for name in done.network.resources if name == "host0.bus")
    units = done.probe.units()[done.network.resources[bus].index]
    stream = done.network.resources[bus].capacity / 267.4e9
    assert units / fetched(way) / stream == pytest.approx(MEMORY_TIMES[way], abs=0.5)


@pytest.mark.parametrize("way", [way for way in WAYS if "staged" in way or "bounced" in way])
def test_staged_data_do_not_pass_from_device_to_device(way):
    """The limit of the root complex is on what one device reads from another."""
    assert run(way).record.utilisation["host0.root_complex"] == 0


def test_a_bounce_takes_no_less_than_the_direct_way():
    ends = [run(way).end_ps for way in ("ssd to gpu", "ssd bounced off host memory")]
    assert ends[0] <= ends[1]


def test_past_the_root_complex_staging_pays():
    ends = [run(way).end_ps for way in ("cxl staged in host memory", "cxl through the root complex")]
    assert ends[0] < 0.6 * ends[1]


@pytest.mark.parametrize("way", [way for way in WAYS if "staged" in way or "bounced" in way])
def test_a_staged_copy_costs_the_bits_that_host_memory_moves(way):
    """Of the times that host memory moves a byte, the first read of its own bytes is that of the tier."""
    record = run(way).record
    machine, tier, _ = WAYS[way]
    bits = 8 * int(moved(record.plan, record.bound)[tier]["kv"].sum())
    times = MEMORY_TIMES[way] - (tier == "dram")
    picojoules = times * bits * platform(machine).devices["host0"].memory.dram.energy
    tokens = record.batch * record.plan.steps
    assert run_metrics(record)["energy_mj_per_token"]["host0.staged"] == pytest.approx(picojoules / 1e9 / tokens)


@pytest.mark.parametrize("way", [way for way in WAYS if "staged" not in way and "bounced" not in way])
def test_what_is_not_staged_costs_no_copy(way):
    assert "host0.staged" not in run_metrics(run(way).record)["energy_mj_per_token"]


def test_what_bounces_off_host_memory_is_written_to_hbm_once():
    energy = [
        run_metrics(run(way).record)["energy_mj_per_token"]["hbm"]
        for way in ("ssd bounced off host memory", "ssd to gpu")
    ]
    assert energy[0] == pytest.approx(energy[1], rel=1e-3)


def test_what_the_host_does_not_reach_cannot_be_staged():
    of = policy("full")
    chosen = varied(of, MODEL, context=4096, batch=1, steps=1)
    with pytest.raises(ConfigError, match="found fetch staged from cxl_exp0, expected a device that host0 reaches"):
        simulate(chosen, of, MODEL, replace(HBM, kv_tier="cxl", fetch="staged"), 1, "h100_cxl_direct")
