"""The filter engine: media, port or arithmetic, whichever is slowest, and one request after the other."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.cxl_expander import CxlExpanderDevice

GB = 10**9
MACS_PER_BYTE = 512 / 66


def scan(nbytes, macs_per_byte=MACS_PER_BYTE, *sets):
    return lambda rig: _filter(rig, *sets).scan(nbytes, macs_per_byte)


def _filter(rig, *sets):
    return CxlExpanderDevice(rig.network, "e", part("cxl3_expander_filter", *sets)).filter


def test_one_record_takes_start_and_media_latency():
    """200 ns to start, 20 ns to the memory controller, 43 ns of DDR5."""
    assert alone_ps(scan(66)) == pytest.approx(263_000, rel=0.02)


def test_scan_keeps_up_with_the_media():
    assert 10 * GB / alone_ps(scan(10 * GB)) * PS == pytest.approx(4 * 34.95e9 * 0.956, rel=0.02)


def test_slow_arithmetic_limits_a_scan():
    took = alone_ps(scan(GB, MACS_PER_BYTE, "filter.macs=0.1 TMAC/s"))
    assert took == pytest.approx(GB * MACS_PER_BYTE / 0.1e12 * PS, rel=0.001)


def test_a_narrow_port_limits_a_scan():
    took = alone_ps(scan(GB, MACS_PER_BYTE, "filter.media_bandwidth=10 GB/s"))
    assert took == pytest.approx(GB / 10e9 * PS, rel=0.001)


def test_requests_are_served_in_the_order_of_arrival():
    rig = Rig()
    engine = _filter(rig)
    for name, nbytes in (("long", GB), ("short", GB // 100), ("middle", GB // 10)):
        rig.job(name, engine.scan(nbytes, MACS_PER_BYTE))
    assert list(rig.run()) == ["long", "short", "middle"]


def test_one_request_at_a_time_has_the_engine_to_itself():
    rig = Rig()
    engine = _filter(rig)
    alone = alone_ps(scan(GB // 10))
    for name in range(5):
        rig.job(name, engine.scan(GB // 10, MACS_PER_BYTE))
    assert list(rig.run().values()) == [alone * (n + 1) for n in range(5)]


def test_a_request_that_comes_later_waits_only_for_the_rest():
    rig = Rig()
    engine = _filter(rig)
    alone = alone_ps(scan(GB // 10))
    rig.job("first", engine.scan(GB // 10, MACS_PER_BYTE))
    rig.job("second", engine.scan(GB // 10, MACS_PER_BYTE), after_ps=alone // 2)
    assert rig.run() == {"first": alone, "second": 2 * alone}
    assert engine.server.waits_ps == [0, alone - alone // 2]


def test_the_filter_shares_the_media_with_fetches():
    rig = Rig()
    device = CxlExpanderDevice(rig.network, "e", part("cxl3_expander_filter"))
    rig.job("scan", device.filter.scan(GB, MACS_PER_BYTE))
    rig.flow("fetch", device.read(8192, 10**6), GB, weight=float(2**20))
    assert max(rig.run().values()) > 1.9 * alone_ps(scan(GB))
