"""A CXL expander from the GPU: latency by hops, the narrowest stretch, and the pool behind one switch."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.cxl_expander import CxlExpanderDevice
from ghostsim.devices.leg import Leg, join

EXPANDER = part("cxl3_expander_filter")
GB = 10**9


def expander(rig):
    return CxlExpanderDevice(rig.network, "cxl_exp0", EXPANDER)


def path(machine, name="cxl_exp0", piece=4096, records=10**6):
    way = machine.routes[name].carry(piece)
    return join([machine.devices[name].read(piece, records), way, Leg((), way.latency_ps)])


def test_a_line_takes_controller_memory_and_dram():
    """50 ns of port and controller, 20 ns to the memory controller, 43 ns of DDR5."""
    assert alone_ps(lambda rig: expander(rig).read(64, 1), 64) == pytest.approx(113_000, rel=0.03)


def test_a_load_from_the_gpu_takes_the_sum_of_its_hops():
    there = 400_000 + 50_000 + 35_000 + 100_000 + 35_000  # PCIe, root complex, link, switch, link
    latency = path(Rig().machine()).latency_ps
    assert latency == pytest.approx(2 * there + 113_000, rel=0.01)


def test_a_stream_reaches_four_channels_less_refresh_and_controller():
    rate = 10 * GB / alone_ps(lambda rig: expander(rig).read(8192, 10**6), 10 * GB) * PS
    assert rate == pytest.approx(4 * 34.95e9 * 0.956, rel=0.02)


def test_the_root_complex_is_the_narrowest_stretch_from_the_gpu():
    rig = Rig()
    rig.flow("only", path(rig.machine()), 26 * GB)
    assert 26 * GB / rig.run()["only"] * PS == pytest.approx(26e9, rel=0.001)


def test_without_the_root_complex_the_x8_link_is_the_narrowest():
    """As h100_cxl_direct: 64 GT/s x 8 lanes in 256 B flits."""
    rig = Rig()
    rig.flow("only", path(rig.machine("h100_cxl_direct")), 50 * GB)
    assert 50 * GB / rig.run()["only"] * PS == pytest.approx(64e9 * 14 / 16, rel=0.02)


def test_two_expanders_double_what_one_gives():
    rig = Rig()
    machine = rig.machine("h100_cxl_direct")
    for name in ("cxl_exp0", "cxl_exp1"):
        rig.flow(name, path(machine, name), 50 * GB)
    assert 100 * GB / max(rig.run().values()) * PS == pytest.approx(2 * 64e9 * 14 / 16, rel=0.02)


def test_two_hosts_of_one_expander_share_its_media():
    rig = Rig()
    leg = expander(rig).read(8192, 10**6)
    rig.flow("a", leg, GB)
    rig.flow("b", leg, GB)
    alone = alone_ps(lambda rig: expander(rig).read(8192, 10**6), GB)
    assert rig.run()["b"] == pytest.approx(2 * alone - leg.latency_ps, abs=2)


def test_an_expander_without_a_filter_has_none():
    rig = Rig()
    assert CxlExpanderDevice(rig.network, "e", part("cxl1_expander_ddr4")).filter is None
