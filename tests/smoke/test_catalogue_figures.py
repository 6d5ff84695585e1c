"""Do the derived figures of the catalogue follow from the figures that they name?"""

from __future__ import annotations

import pytest
from rig import PS, Rig, part
from rig import platform as platform_named

from ghostsim.config.hardware import CxlExpander, Gpu, HostCpu, Memory, Platform, Upmem
from ghostsim.config.load import load_model, load_platform, load_scenario
from ghostsim.config.model import Model
from ghostsim.devices.dram import DramMedia
from ghostsim.devices.gpu_arch import gpu_spec
from ghostsim.devices.leg import join
from ghostsim.devices.link import data_bandwidth
from ghostsim.devices.nvme import NvmeDevice
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


def media(memory: Memory) -> DramMedia:
    return DramMedia(Rig().network, "media", memory)


def stream_gb_per_s(memory: Memory) -> float:
    found = media(memory)
    ((_, cost),) = found.stream().costs
    return found.peak / cost / 1e9


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [
        ("a100_sxm_40", 1555), ("a100_sxm_80", 2039), ("a100_pcie_80", 1935), ("h100_pcie", 2039), ("h100_sxm", 3350),
        ("h200_sxm", 4800), ("h20_sxm", 4000), ("gh200_96", 4000), ("b200_sxm", 7700), ("gb200", 8000),
        ("mi300x", 5300), ("mi325x", 6000), ("l40", 864), ("l40s", 864), ("rtx4090", 1008),
    ],
)  # fmt: skip
def test_gpu_memory_peaks_at_its_specification(name, gb_per_s):
    assert gpu_spec(part(name)).hbm_bytes_per_s / 1e9 == pytest.approx(gb_per_s, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "gb_per_s", "within"),
    [
        ("a100_sxm_40", 1500, 0.03), ("a100_sxm_80", 1776, 0.03), ("h100_pcie", 1942, 0.03), ("gh200_96", 3783, 0.05),
        ("l40", 845, 0.02), ("mi300x", 4199, 0.13),
    ],
)  # fmt: skip
def test_gpu_streams_as_measured(name, gb_per_s, within):
    """RRZE gpu-benches, gpu-stream; MI300X stays behind what refresh alone would leave it."""
    assert stream_gb_per_s(part(name).memory) == pytest.approx(gb_per_s, rel=within)


@pytest.mark.parametrize(
    ("name", "ns"), [("a100_sxm_80", 391), ("gh200_96", 344), ("mi300x", 399), ("l40", 251), ("h100_sxm", 344)]
)
def test_gpu_pointer_chase_takes_what_was_measured(name, ns):
    assert media(part(name).memory).latency_ps / 1000 == pytest.approx(ns, rel=0.02)


@pytest.mark.parametrize(
    ("name", "ns", "gb_per_s"),
    [
        ("xeon_spr_8ch", 110, 267.4), ("xeon_spr_8480_8ch", 115, 240.6), ("xeon_max_hbm", 129, 833),
        ("grace_lpddr5x", 176.5, 448.9), ("xeon_skx_6ch", 93.1, 116.8), ("epyc_turin_12ch", 130, 497),
    ],
)  # fmt: skip
def test_hosts_load_and_stream_as_measured(name, ns, gb_per_s):
    memory = part(name).memory
    assert media(memory).latency_ps / 1000 == pytest.approx(ns, rel=0.02)
    assert stream_gb_per_s(memory) == pytest.approx(gb_per_s, rel=0.01)


@pytest.mark.parametrize(
    ("name", "local_ns", "local_dram_ns", "ns", "gb_per_s"),
    [
        ("cxl1_expander_ddr4", 130, 43, 250, 24), ("cxl_amd_unnamed", 145.7, 43, 401.8, 24.1),
        ("cxl_melody_a", 110, 43, 214, 24), ("cxl_melody_b", 110, 43, 271, 22), ("cxl_melody_c", 110, 43, 394, 18),
        ("cxl_melody_d", 110, 43, 239, 52),
    ],
)  # fmt: skip
def test_expanders_load_and_stream_as_published(name, local_ns, local_dram_ns, ns, gb_per_s):
    """From the core: the host's part of a local load, the link both ways, the controller and the DRAM behind it."""
    device = part(name)
    way_ns = 2 * part("cxl1").latency / 1000
    found_ns = local_ns - local_dram_ns + way_ns + (device.controller + media(device.memory).latency_ps) / 1000
    assert found_ns == pytest.approx(ns, rel=0.02)
    assert stream_gb_per_s(device.memory) == pytest.approx(gb_per_s, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gb_per_s"), [("cxl_sun_a", 0.46 * 38.4), ("cxl_sun_b", 0.47 * 38.4), ("cxl_sun_c", 0.20 * 25.6),
                           ("cxl2_device_beluga", 22.5)],
)  # fmt: skip
def test_expanders_known_by_their_efficiency_stream_at_it(name, gb_per_s):
    assert stream_gb_per_s(part(name).memory) == pytest.approx(gb_per_s, rel=0.01)


def test_a_line_from_a_switched_pool_takes_what_beluga_reports():
    """64 B through an XConn switch: 750 ns, of which 130 ns are the host's."""
    links, devices = platform_named("h20_beluga_pool").links, platform_named("h20_beluga_pool").devices
    device, switch = devices["cxl_exp0"], devices["switch0"]
    ways_ns = 2 * (links["cxl0"].latency + switch.hop + links["cxl1"].latency) / 1000
    assert 87 + ways_ns + (device.controller + media(device.memory).latency_ps) / 1000 == pytest.approx(750, rel=0.02)


@pytest.mark.parametrize(
    ("name", "dpus", "gib", "tb_per_s"), [("upmem_p21", 2556, 159.75, 1.7), ("upmem_640", 640, 40, 0.34)]
)
def test_upmem_machines_have_their_totals(name, dpus, gib, tb_per_s):
    found = part(name)
    assert found.ranks * found.dpus_per_rank == pytest.approx(dpus, rel=0.002)
    assert found.capacity / 2**30 == pytest.approx(gib, rel=0.002)
    inside = found.ranks * found.dpus_per_rank * found.clock * found.dma.bytes_per_cycle
    assert inside / 1e12 == pytest.approx(tb_per_s, rel=0.06)


@pytest.mark.parametrize(
    ("name", "us", "kiops", "gb_per_s"),
    [
        ("nvme_pm1733", 100, 1500, None), ("nvme_990pro", 45.7, 1400, 7.45), ("nvme_ps1010", 74, 1900, 14.5),
        ("nvme_ps1030", 74, 2750, 14.5), ("nvme_pm1743", 74, 2500, 14), ("nvme_cm7", 74, 2700, 14),
        ("nvme_pm9a3", 90, 1000, 6.8), ("optane_p5800x", 6, 1500, 7.2), ("znand_sz985", 16, 750, 3.2),
    ],
)  # fmt: skip
def test_drives_reach_their_headline_figures(name, us, kiops, gb_per_s):
    rig = Rig()
    drive = NvmeDevice(rig.network, name, part(name))
    small, large = drive.read(4096, 10**6), drive.read(131_072, 10**6)
    assert small.latency_ps / 1e6 == pytest.approx(us, rel=0.15)
    assert rig.network.flow_class(small.costs, 1.0).solo_rate / 4096e3 == pytest.approx(kiops, rel=0.01)
    if gb_per_s:
        assert rig.network.flow_class(large.costs, 1.0).solo_rate / 1e9 == pytest.approx(gb_per_s, rel=0.01)


@pytest.mark.parametrize(
    ("name", "gb_per_s"),
    [("pcie3", 12.35), ("pcie4", 26.2), ("pcie5", 55.4), ("nvlink4", 395.1), ("nvlink5", 765), ("nvlink_c2c", 346),
     ("nvlink_c2c_gb200", 200.7)],
)  # fmt: skip
def test_links_carry_what_was_measured(name, gb_per_s):
    assert data_bandwidth(part(name), 4096) / 1e9 == pytest.approx(gb_per_s, rel=0.05)


@pytest.mark.parametrize(("platform_name", "ns"), [("gh200_c2c", 772.6), ("gb200_c2c", 586)])
def test_a_gpu_loads_from_grace_in_the_measured_time(platform_name, ns):
    found = platform_named(platform_name)
    took_ps = 2 * found.links["c2c0"].latency + media(found.devices["host0"].memory).latency_ps
    assert took_ps / 1000 == pytest.approx(ns, rel=0.02)


@pytest.mark.parametrize(
    ("platform_name", "gb_per_s", "within"), [("h100_nvme_gen5", 27, 0.1), ("h200_nvme_switch", 48, 0.2)]
)
def test_drives_together_fill_hbm_as_deep_nvme_measured(platform_name, gb_per_s, within):
    """DeepNVMe: four and eight PCIe 5.0 drives to HBM in large reads."""
    rig = Rig()
    machine = rig.machine(platform_name)
    drives = machine.stores("ssd")
    for name, drive in drives:
        leg = machine.gpu.receive(join([drive.read(131_072, 10**5), machine.routes[name].carry(131_072)]))
        rig.flow(name, leg, 10**10, drive.window)
    assert len(drives) * 10**10 / max(rig.run().values()) * PS / 1e9 == pytest.approx(gb_per_s, rel=within)
