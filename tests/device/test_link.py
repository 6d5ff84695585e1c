"""Links and switches: framing, measured caps, directions, and what requesters share."""

import math

import pytest
from rig import PS, Rig, alone_ps, part, platform

from ghostsim.devices.link import LinkDevice, SwitchDevice, data_bandwidth
from ghostsim.timing.flit import link_bandwidth

GB = 10**9
LINKS = platform().links


def link(name, piece=4096, *, write=False):
    return lambda rig: LinkDevice(rig.network, name, LINKS[name]).carry(piece, write=write)


def test_the_first_byte_takes_the_latency_of_the_link():
    assert alone_ps(link("cxl0"), 64) == pytest.approx(35_000 + 64 / (64e9 * 16 / 8) * PS, rel=0.01)


def test_pcie_reaches_what_was_measured():
    rate = 10 * GB / alone_ps(link("pcie0"), 10 * GB) * PS
    assert 54e9 < rate <= 55.4e9


def test_pcie_pays_for_tlps():
    """20 B of header and framing on each 64 B completion, 16 + 8 B for the request, 9.8 % of link-layer traffic."""
    raw = 32e9 * 16 / 8 * 128 / 130 * 0.902
    assert data_bandwidth(LINKS["pcie0"], 64) == pytest.approx(raw * 64 / (64 + 20), rel=0.001)


def test_cxl3_pays_for_flits():
    """A 256 B flit holds 15 slots of 16 B; a line takes four and a third of a header slot."""
    lines = min(15 / (4 + 1 / 3), 14 / 4)
    assert data_bandwidth(LINKS["cxl0"], 4096) == pytest.approx(128e9 * lines * 64 / 256, rel=0.02)


def test_cxl2_pays_for_flits():
    cxl2 = platform("h100_cxl2_pool").links["cxl1"]
    wire = 32e9 * 8 / 8 * 128 / 130
    assert data_bandwidth(cxl2, 4096) == pytest.approx(wire * 4 / (4 + 1 / 3) * 64 / 68, rel=0.02)


def test_a_link_without_packets_keeps_what_its_line_code_leaves():
    bus = LINKS["ddr_pim0"]
    assert data_bandwidth(bus, 4096) == 2400e6 * 256 / 8


@pytest.mark.parametrize("name", sorted(LINKS))
def test_small_pieces_are_never_faster(name):
    rates = [data_bandwidth(LINKS[name], piece) for piece in (64, 256, 512, 4096)]
    assert rates == sorted(rates)
    assert rates[-1] <= LINKS[name].raw


def test_two_transfers_share_a_direction():
    rig = Rig()
    shared = link("cxl0")(rig)
    rig.flow("a", shared, GB)
    rig.flow("b", shared, GB)
    alone = alone_ps(link("cxl0"), GB)
    assert rig.run()["b"] == pytest.approx(2 * alone - shared.latency_ps, abs=2)


def both_ways(name, nbytes=10 * GB):
    """Return the rates of reads and writes of one link at once."""
    rig = Rig()
    device = LinkDevice(rig.network, name, LINKS[name])
    rig.flow("up", device.carry(4096), nbytes)
    rig.flow("down", device.carry(4096, write=True), nbytes)
    return {way: nbytes / end * PS for way, end in rig.run().items()}


def test_directions_of_a_bus_without_packets_do_not_share():
    assert both_ways("ddr_pim0") == pytest.approx(dict.fromkeys(("up", "down"), 2400e6 * 256 / 8), rel=1e-4)


def test_reads_and_writes_of_a_cxl_link_meet_in_request_and_response_slots():
    """A read takes a slot on the way to the device, a write a third of one back: as the slot arithmetic of the mix."""
    expected = link_bandwidth(64e9, 16, "256B", read_fraction=0.5)
    assert both_ways("cxl0")["up"] == pytest.approx(expected.read_bytes_per_s, rel=1e-4)
    assert both_ways("cxl0")["down"] == pytest.approx(expected.write_bytes_per_s, rel=1e-4)


def test_pcie_in_both_directions_loses_a_little_to_requests():
    """Measured on a PCIe 5.0 x16 GPU: 55.6 and 57.2 GB/s alone, 51.5 and 48.7 GB/s at once."""
    both, alone = both_ways("pcie0"), 10 * GB / alone_ps(link("pcie0"), 10 * GB) * PS
    assert sum(both.values()) == pytest.approx(51.5e9 + 48.7e9, rel=0.07)
    assert sum(both.values()) < 2 * alone


def test_link_is_busy_for_bytes_times_cost():
    rig = Rig()
    device = LinkDevice(rig.network, "cxl0", LINKS["cxl0"])
    leg = device.carry(4096)
    rig.flow("only", leg, GB)
    rig.run()
    assert rig.units(device.up) == pytest.approx(GB * leg.costs[0][1], rel=1e-9)
    assert math.isclose(rig.probe.utilisation()["cxl0"], 1.0, rel_tol=1e-3)


def test_a_switch_adds_its_hop():
    switch = part("cxl3_switch")
    assert alone_ps(lambda rig: SwitchDevice(rig.network, "s", switch).carry(512), 1000) == 100_000 + 1000


def test_a_switch_passes_its_bandwidth_to_all_together():
    rig = Rig()
    leg = SwitchDevice(rig.network, "s", part("cxl3_switch")).carry(512)
    for name in range(4):
        rig.flow(name, leg, GB)
    assert 4 * GB / (rig.run()[3] - leg.latency_ps) * PS == pytest.approx(1e12, rel=1e-6)


def test_writes_to_the_host_reach_what_was_measured():
    """55.2 GB/s device to host on an H100 (PCIe 5.0 x16)."""
    took = alone_ps(link("pcie0", write=True), 10 * GB)
    assert 10 * GB / took * PS == pytest.approx(55.2e9, rel=0.03)
