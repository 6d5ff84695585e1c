"""Do the derived figures of the catalogue follow from the figures that they name?"""

from __future__ import annotations

import pytest

from ghostsim.config.hardware import CxlExpander, Gpu, HostCpu, Platform, Upmem
from ghostsim.config.load import load_model, load_platform, load_scenario
from ghostsim.config.model import Model
from ghostsim.timing.dram import Pattern, idle_latency_ns, peak_bandwidth, saturated_bandwidth
from ghostsim.timing.dram_table import load_timings

CONTEXT, BATCH, STEPS = 131_072, 8, 32
QKEYS4_RECORD = 66


@pytest.fixture(scope="module")
def platform() -> Platform:
    return load_platform("h100_cxl_pim").value


@pytest.fixture(scope="module")
def gpu(platform) -> Gpu:
    return platform.devices["gpu0"]


@pytest.fixture(scope="module")
def host(platform) -> HostCpu:
    return platform.devices["host0"]


def llama(size: str) -> Model:
    return load_model(f"llama_3_1_{size}").value


def kv_records(model: Model) -> int:
    return (CONTEXT + STEPS) * BATCH * model.layers * model.kv_heads


@pytest.mark.parametrize(("name", "gb_per_s"), [("h100_cxl_pim", 3350), ("h200_cxl_pim", 4800)])
def test_hbm_peaks_at_the_data_sheet(name, gb_per_s):
    memory = load_platform(name).value.devices["gpu0"].memory
    peak = memory.channels * memory.efficiency * peak_bandwidth(load_timings()[memory.dram.name])
    assert peak / 1e9 == pytest.approx(gb_per_s, rel=2e-3)


def test_host_streams_as_measured(host):
    timing = load_timings()[host.memory.dram.name]
    stream = saturated_bandwidth(timing, Pattern("stream", 4096, 1.0))
    assert host.memory.channels * host.memory.efficiency * stream / 1e9 == pytest.approx(267.4, rel=0.01)


def test_host_loads_take_what_was_measured(host):
    dram_ns = idle_latency_ns(load_timings()[host.memory.dram.name])
    assert host.memory.latency / 1000 + dram_ns == pytest.approx(110, rel=0.12)


def test_zero_copy_window_gives_the_measured_rate(platform, gpu, host):
    dram_ps = idle_latency_ns(load_timings()[host.memory.dram.name]) * 1000
    latency_ps = 2 * platform.links["pcie0"].latency + host.memory.latency + dram_ps
    assert gpu.read_window / latency_ps * 1000 == pytest.approx(35.2, rel=0.02)


def test_copy_engines_keep_the_link_busy(platform, gpu, host):
    latency_ps = 2 * platform.links["pcie0"].latency + host.memory.latency + 43_000
    assert gpu.copy_engines.window / latency_ps * 1e12 > platform.links["pcie0"].bandwidth


def test_root_complex_is_slower_than_the_link_to_the_gpu(platform, host):
    assert host.root_complex < platform.links["pcie0"].bandwidth


def test_expanders_hold_kv_and_index(platform):
    model = llama("8b")
    assert kv_records(model) * (model.kv_bytes + QKEYS4_RECORD) < platform.tier_capacity("cxl")


def test_expander_capacity_is_that_of_its_chips(platform):
    part = platform.devices["cxl_exp0"]
    assert isinstance(part, CxlExpander)
    chips = part.memory.dram.geometry
    banks = chips.subchannels * chips.ranks * chips.bankgroups * chips.banks_per_group
    assert part.memory.capacity == part.memory.channels * banks * chips.rows * chips.row_bytes


def test_filter_keeps_up_with_its_media(platform):
    part = platform.devices["cxl_exp0"]
    timing = load_timings()[part.memory.dram.name]
    media = part.memory.channels * part.memory.efficiency * saturated_bandwidth(timing, Pattern("stream", 4096, 1.0))
    model = llama("8b")
    assert part.filter.macs > media / QKEYS4_RECORD * model.head_dim * model.q_per_kv
    assert part.filter.media_bandwidth > media


def test_upmem_holds_the_index(platform):
    part = platform.devices["upmem0"]
    assert isinstance(part, Upmem)
    assert kv_records(llama("8b")) * QKEYS4_RECORD < part.capacity


def test_host_holds_the_kv(platform):
    model = llama("8b")
    assert kv_records(model) * model.kv_bytes < platform.tier_capacity("dram")


def test_hbm_holds_three_dense_requests_and_no_fourth(platform):
    model = llama("8b")
    request = (CONTEXT + STEPS) * model.layers * model.kv_heads * model.kv_bytes
    assert (platform.tier_capacity("hbm") - model.weight_bytes) // request == 3


@pytest.mark.parametrize(("size", "billions"), [("8b", 8.03), ("70b", 70.55)])
def test_model_shapes_have_their_parameters(size, billions):
    model = llama(size)
    assert model.weight_bytes / model.bytes_per_weight / 1e9 == pytest.approx(billions, rel=1e-3)


@pytest.mark.parametrize("name", ["cxl_pim", "dense_hbm", "recorded_4k"])
def test_scenarios_load(name):
    assert load_scenario(name).value.name == name
