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


POOLED = ("devices.cxl_exp0.pool.hosts=4", "devices.cxl_exp0.pool.load=10 GB/s")


def fetched(nbytes, *sets, weight=65536.0, name="h100_cxl_direct"):
    """Return how long a long fetch from the first expander takes."""
    rig = Rig()
    machine = rig.machine(name, *sets)
    done = []
    leg = path(machine, piece=4096)
    rig.network.start(rig.network.flow_class(leg.costs, weight), nbytes, lambda: done.append(rig.env.now))
    while not done:
        rig.env.step()
    return done[0], rig


def test_hosts_of_a_pool_take_their_load_off_link_and_media():
    """Four hosts that read 10 GB/s each leave 55 - 40 GB/s of lines on an x8 link of 64 GT/s."""
    took, rig = fetched(GB, *POOLED)
    lines = 64e9 * 15 / (13 / 3) * 64 / 256
    assert lines == pytest.approx(55.4e9, rel=0.01)
    assert GB / took * PS == pytest.approx(lines - 40e9, rel=0.03)
    busy = dict(zip(rig.network.resources, rig.probe.units() / (took / PS), strict=True))
    assert busy["cxl1"] == pytest.approx(64e9, rel=1e-3)
    assert busy["cxl_exp0.bus"] > 40e9 + GB / took * PS


def test_other_hosts_meet_only_what_they_share():
    took, rig = fetched(GB, *POOLED)
    assert rig.units(rig.network.resources["pcie0"]) == 0
    assert rig.units(rig.network.resources["cxl2"]) == 0
    assert rig.units(rig.network.resources["switch0.fabric"]) == pytest.approx(GB + 40e9 * took / PS, rel=1e-3)


def test_hosts_of_a_pool_with_more_outstanding_leave_less():
    greedy = (*POOLED[:1], "devices.cxl_exp0.pool.load=40 GB/s")
    times = [fetched(GB, *greedy, f"devices.cxl_exp0.pool.window={window}")[0] for window in ("64 KiB", "256 KiB")]
    lines = 64e9 * 15 / (13 / 3) * 64 / 256
    assert GB / times[0] * PS == pytest.approx(lines / 5, rel=0.01)
    assert GB / times[1] * PS == pytest.approx(lines / 17, rel=0.01)


def test_a_pool_that_nobody_reads_much_of_changes_little():
    alone, _ = fetched(GB)
    shared, _ = fetched(GB, "devices.cxl_exp0.pool.hosts=1", "devices.cxl_exp0.pool.load=0.1 GB/s")
    assert alone < shared < 1.005 * alone
