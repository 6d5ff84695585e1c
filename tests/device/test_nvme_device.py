"""An NVMe drive: one command, pages, and what commands share."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.nvme import NvmeDevice
from ghostsim.timing.nvme import NvmeSpec, idle_latency_ps

SSD = part("nvme_pm1733")
SPEC = NvmeSpec(16, 8, 16384, 75_000_000, 700_000_000, 1.6e9, 1_500_000, 8e18, 32, 1024, 20_000_000)
GB = 10**9


def drive(rig):
    return NvmeDevice(rig.network, "ssd0", SSD)


@pytest.mark.parametrize("nbytes", [512, 4096, 16384])
def test_one_read_takes_array_channel_and_overhead(nbytes):
    took = alone_ps(lambda rig: drive(rig).read(nbytes, 1), nbytes)
    assert took == pytest.approx(idle_latency_ps(SPEC, nbytes), rel=0.03)


def test_long_reads_reach_the_channels():
    took = alone_ps(lambda rig: drive(rig).read(131072, 10**6), 10 * GB)
    assert 10 * GB / took * PS == pytest.approx(16 * 1.6e9, rel=0.001)


def test_small_records_pay_for_whole_pages():
    """A 512 B record takes a page of 16 KiB from the array: 32 times its bytes."""
    rig = Rig()
    device = drive(rig)
    rig.flow("only", device.read(512, 10**6), GB // 32)
    rig.run()
    assert rig.units(device.channels) == pytest.approx(GB, rel=1e-6)


def test_small_records_come_as_fast_as_the_controller_takes_commands():
    took = alone_ps(lambda rig: drive(rig).read(512, 10**6), GB)
    assert GB / took * PS == pytest.approx(1_500_000 * 512, rel=0.001)


def test_commands_limit_small_pages():
    quick = part("nvme_pm1733", "page=512 B", "read=1 us")
    took = alone_ps(lambda rig: NvmeDevice(rig.network, "s", quick).read(512, 10**6), GB)
    assert GB / took * PS == pytest.approx(1_500_000 * 512, rel=0.001)


def test_slow_dies_limit_pages():
    slow = part("nvme_pm1733", "read=1 ms")
    took = alone_ps(lambda rig: NvmeDevice(rig.network, "s", slow).read(16384, 10**6), GB)
    assert GB / took * PS == pytest.approx(128 * 16384 / 1e-3, rel=0.01)


def test_a_short_queue_limits_by_littles_law():
    shallow = part("nvme_pm1733", "queue_pairs=1", "queue_depth=4")
    took = alone_ps(lambda rig: NvmeDevice(rig.network, "s", shallow).read(4096, 10**6), GB)
    littles = 4 * 4096 / (idle_latency_ps(SPEC, 4096) / PS)
    assert GB / took * PS == pytest.approx(littles, rel=0.02)


def test_writes_wait_for_programming():
    took = alone_ps(lambda rig: drive(rig).write(16384, 10**6), 10 * GB)
    assert 10 * GB / took * PS == pytest.approx(128 * 16384 / 700e-6, rel=0.001)


def test_two_readers_share_the_drive():
    rig = Rig()
    leg = drive(rig).read(16384, 10**6)
    rig.flow("a", leg, GB)
    rig.flow("b", leg, GB)
    alone = alone_ps(lambda rig: drive(rig).read(16384, 10**6), GB)
    assert rig.run()["b"] == pytest.approx(2 * alone - leg.latency_ps, abs=2)
