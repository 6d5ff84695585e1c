"""Do the NVMe formulas respect the limit of every stage of a drive?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.timing.nvme import (
    NvmeSpec,
    channel_bytes,
    idle_latency_ps,
    mean_latency_ps,
    random_read_iops,
    read_amplification,
    slow_share,
    stream_bandwidth,
    tail_latency_ps,
)

US = 1_000_000
GEN4 = NvmeSpec(
    channels=16,
    dies_per_channel=8,
    page_bytes=4096,
    t_read_ps=60 * US,
    t_program_ps=600 * US,
    channel_bytes_per_s=1.2e9,
    controller_iops=1.5e6,
    pcie_bytes_per_s=6.8e9,
    queue_pairs=64,
    queue_depth=1024,
    overhead_ps=20 * US,
)
CLIENT = replace(
    GEN4,
    channels=4,
    dies_per_channel=5,
    t_read_ps=45 * US,
    channel_bytes_per_s=2.4e9,
    controller_iops=1e6,
    overhead_ps=12 * US,
)
requests = st.integers(1, 2048)
io_sizes = st.integers(1, 256).map(lambda count: 512 * count)


def test_idle_latency_adds_overhead_array_channel_and_link():
    expected = 80 * US + (4096 / 1.2e9 + 4096 / 6.8e9) * 1e12
    assert idle_latency_ps(GEN4, 4096) == pytest.approx(expected, abs=1)


def test_pages_of_one_read_are_fetched_side_by_side():
    sixteen = idle_latency_ps(GEN4, 16 * 4096)
    assert sixteen == pytest.approx(80 * US + (4096 / 1.2e9 + 16 * 4096 / 6.8e9) * 1e12, abs=1)


@pytest.mark.parametrize(("record", "expected"), [(512, 8.0), (4096, 1.0), (8192, 1.0), (5120, 1.6)])
def test_small_records_read_a_whole_page(record, expected):
    assert read_amplification(GEN4, record) == pytest.approx(expected)


def test_one_outstanding_read_is_latency_bound():
    assert random_read_iops(GEN4, 4096, 1) == pytest.approx(1e12 / idle_latency_ps(GEN4, 4096))


def test_deep_queues_reach_the_controller_limit():
    assert random_read_iops(GEN4, 4096, 2000) == 1.5e6


def test_slow_arrays_limit_by_dies():
    slow = replace(GEN4, t_read_ps=200 * US)
    assert random_read_iops(slow, 4096, 60_000) == pytest.approx(128 / 200e-6)


def test_commands_beyond_the_queues_add_nothing():
    small = replace(GEN4, queue_pairs=1, queue_depth=8)
    assert random_read_iops(small, 4096, 8) == random_read_iops(small, 4096, 500)


@given(io_sizes, requests)
def test_random_reads_never_exceed_link_or_stream(io_bytes, outstanding):
    moved = random_read_iops(GEN4, io_bytes, outstanding) * channel_bytes(io_bytes, 4096)
    assert random_read_iops(GEN4, io_bytes, outstanding) * io_bytes <= 6.8e9 * (1 + 1e-12)
    assert moved <= 16 * 1.2e9 * (1 + 1e-12)


@given(io_sizes, requests)
def test_more_outstanding_reads_never_lower_throughput(io_bytes, outstanding):
    assert random_read_iops(GEN4, io_bytes, outstanding) <= random_read_iops(GEN4, io_bytes, outstanding + 1)


@given(io_sizes, requests)
def test_loaded_latency_never_falls_below_idle_and_p99_never_below_mean_at_depth(io_bytes, outstanding):
    idle, mean = idle_latency_ps(GEN4, io_bytes), mean_latency_ps(GEN4, io_bytes, outstanding)
    assert mean >= idle - 1
    assert tail_latency_ps(GEN4, io_bytes, outstanding) >= mean


def test_stream_reads_at_link_rate_and_writes_at_program_rate():
    assert stream_bandwidth(GEN4) == 6.8e9
    assert stream_bandwidth(GEN4, "write") == pytest.approx(128 * 4096 / 600e-6)


@pytest.mark.parametrize(("depth", "mean_us", "p99_us"), [(8, 65.4, 138), (64, 152.6, 423)])
def test_queue_depths_of_a_measured_client_drive(depth, mean_us, p99_us):
    """The drive of ``4k_randread`` in the published fio tables: 59.5 us at queue depth 1."""
    assert idle_latency_ps(CLIENT, 4096) == pytest.approx(59.5 * US, rel=0.01)
    assert mean_latency_ps(CLIENT, 4096, depth) == pytest.approx(mean_us * US, rel=0.12)
    assert tail_latency_ps(CLIENT, 4096, depth) == pytest.approx(p99_us * US, rel=0.12)


@pytest.mark.parametrize("outstanding", [1, 2, 500, 50_000])
def test_drive_of_one_die_queues_everything(outstanding):
    single = replace(GEN4, channels=1, dies_per_channel=1)
    waiting = (outstanding - 1) * single.t_read_ps
    assert tail_latency_ps(single, 4096, outstanding) >= idle_latency_ps(single, 4096) + waiting


PM1733 = replace(GEN4, page_bytes=16384, t_read_ps=75 * US, queue_pairs=32, pcie_bytes_per_s=7.0e9)
PS1010 = replace(
    PM1733, dies_per_channel=16, t_read_ps=50 * US, controller_iops=2.75e6, pcie_bytes_per_s=14.5e9, queue_depth=256
)
"""As the parts of the catalogue behind their links."""


def test_one_random_read_of_an_enterprise_drive():
    """Samsung PM1733 (Haas and Leis, PVLDB 2023): about 100 us at queue depth 1."""
    assert idle_latency_ps(PM1733, 4096) == pytest.approx(100 * US, rel=0.05)


def test_4k_reads_of_eight_enterprise_drives_at_saturation():
    """12.5 million reads a second with about 3,000 outstanding, 240 us each by Little's law."""
    assert 8 * random_read_iops(PM1733, 4096, 375) == pytest.approx(12.5e6, rel=0.05)
    assert mean_latency_ps(PM1733, 4096, 375) == pytest.approx(240 * US, rel=0.05)


def test_pages_of_16_kb_reach_the_link_and_pages_of_4_kb_do_not():
    """The same source: pages of 16 KB are needed for full bandwidth."""
    rates = [size * random_read_iops(PM1733, size, 375) for size in (4096, 16384)]
    assert rates[0] < 0.9 * 7.0e9
    assert rates[1] == pytest.approx(7.0e9, rel=0.01)


def test_4k_reads_of_an_array_of_six_gen5_drives():
    """Solidigm PS1010 x 6: 11.4 million at 0.269 ms, so 511 outstanding a drive; 1.9 of its 2.75 million each.

    The array's software is the limit there: the model gives what the drives could do and must not lie below.
    """
    assert 11.4e6 <= 6 * random_read_iops(PS1010, 4096, 511) <= 6 * 2.75e6


@pytest.mark.parametrize(("kib", "measured_us"), [(16, 76.3), (128, 111)])
def test_one_direct_read_of_a_gen5_drive(kib, measured_us):
    """GPUDirect Storage from one PS1010 at queue depth 1: 0.2 and 1.1 GiB/s."""
    assert idle_latency_ps(PS1010, kib * 1024) == pytest.approx(measured_us * US, rel=0.25)


@pytest.mark.parametrize(("kib", "gib_per_s", "mean_ms"), [(16, 1.3, 1.55), (128, 6.5, 2.41), (1024, 8.5, 14.6)])
def test_deep_queues_of_direct_reads_of_a_gen5_drive(kib, gib_per_s, mean_ms):
    """The same drive and path at queue depth 128.

    85,000 commands a second and 9.13 GB/s of that path are the rows at both ends; the middle one is a prediction.
    """
    path = replace(PS1010, controller_iops=85e3, pcie_bytes_per_s=9.13e9)
    assert kib * 1024 * random_read_iops(path, kib * 1024, 128) == pytest.approx(gib_per_s * 2**30, rel=0.35)
    assert mean_latency_ps(path, kib * 1024, 128) == pytest.approx(mean_ms * 1e9, rel=0.35)


def test_slow_reads_show_only_beyond_their_share():
    drive = replace(PM1733, retry_share=0.005, retry_ps=1000 * US)
    p99, p999 = (tail_latency_ps(drive, 4096, 8, quantile) for quantile in (0.99, 0.999))
    assert p99 == tail_latency_ps(PM1733, 4096, 8, 0.99)
    assert p999 == tail_latency_ps(PM1733, 4096, 8, 0.999) + 1000 * US


@pytest.mark.parametrize(
    ("share", "reads", "expected"), [(0.0, 1000, 0.0), (0.5, 1, 0.5), (0.5, 2, 0.75), (1.0, 3, 1.0)]
)
def test_one_of_many_reads_is_slow_more_often(share, reads, expected):
    assert slow_share(share, reads) == expected
