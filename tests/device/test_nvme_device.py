"""An NVMe drive: one command, pages, and what commands share."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.nvme import NvmeDevice
from ghostsim.timing.dram import channel_imbalance
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


def test_small_records_pay_for_whole_pages_and_codewords():
    """A 512 B record takes a page of 16 KiB from the array and 4 KiB of its channel."""
    rig = Rig()
    device = drive(rig)
    rig.flow("only", device.read(512, 10**6), GB // 32)
    rig.run()
    assert rig.units(device.channels) == pytest.approx(GB / 4, rel=1e-6)
    assert rig.units(device.dies) == pytest.approx(GB / 16384 * 75e-6, rel=1e-6)


def test_small_records_are_limited_by_commands():
    took = alone_ps(lambda rig: drive(rig).read(512, 10**6), GB)
    assert GB / took * PS == pytest.approx(1_500_000 * 512, rel=0.001)


@pytest.mark.parametrize("records", [128, 1024, 8192])
def test_a_gather_ends_with_its_fullest_die(records):
    """Latency has the first read of a die; the others of the fullest one follow."""
    rounds = channel_imbalance(records, 128) * records / 128
    slow = part("nvme_pm1733", "read=1 ms")
    took = alone_ps(lambda rig: NvmeDevice(rig.network, "s", slow).read(4096, records), 4096 * records)
    assert took == pytest.approx(rounds * 1e9, rel=0.03)


def test_a_gather_of_many_waits_for_a_slow_read():
    sets = ("slow_reads.share=0.01", "slow_reads.delay=2 ms")
    slow = part("nvme_pm1733", *sets)
    waits = [
        NvmeDevice(Rig().network, "s", slow).read(4096, n).latency_ps - drive(Rig()).read(4096, n).latency_ps
        for n in (1, 64, 4096)
    ]
    assert waits == [20_000_000, round(2e9 * (1 - 0.99**64)), round(2e9 * (1 - 0.99**4096))]


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
