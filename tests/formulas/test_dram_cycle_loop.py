"""The bank model against a plain cycle loop that was written from the rules of the standards."""

from itertools import pairwise

import pytest
from dram_cycle_loop import cycles_per_access

from ghostsim.timing import dram
from ghostsim.timing.dram import Pattern, Settings
from ghostsim.timing.dram_table import load_timings

CASES = [
    ("DDR4_3200AA_1ch_2R", 64, 1.0, 32, 0.03),
    ("DDR4_3200AA_1ch_2R", 256, 0.7, 32, 0.04),
    ("DDR4_8Gb_x8_3200_1ch_1R", 1024, 1.0, 32, 0.03),
    ("DDR5_4800C_1sub_2R", 64, 1.0, 32, 0.03),
    ("DDR5_4800C_1sub_2R", 256, 0.7, 32, 0.06),
    ("DDR5_4800_custom_on_DDR4_protocol_1sub_1R", 256, 1.0, 16, 0.06),
    ("HBM2_2400_1ch_2PC", 64, 1.0, 128, 0.04),
    ("HBM2_2400_1ch_2PC", 256, 0.7, 32, 0.09),
    ("HBM4_8000_1ch_2PC", 64, 1.0, 32, 0.04),
    ("HBM4_8000_1ch_2PC", 1024, 1.0, 32, 0.10),
    ("HBM4_8000_1ch_2PC", 256, 0.7, 32, 0.06),
]
"""Configurations and queues without a row in any table: record bytes, share of reads, queue, tolerance."""


@pytest.mark.parametrize(("name", "record_bytes", "reads", "queue", "tolerance"), CASES)
def test_random_records_take_the_cycles_of_the_loop(name, record_bytes, reads, queue, tolerance, tmp_path, monkeypatch):
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path))
    timing = load_timings()[name]
    cycles = cycles_per_access(timing, "random", record_bytes, reads, queue)
    expected = timing.access_bytes / (cycles * timing.tCK_ps) * 1e12
    measured = dram.saturated_bandwidth(
        timing,
        Pattern("random", record_bytes, reads),
        read_queue=queue,
        write_queue=queue,
        settings=Settings(refresh="NoRefresh"),
    )
    assert measured == pytest.approx(expected, rel=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(load_timings()))
def test_deeper_queues_never_slow_a_channel_and_the_bus_bounds_it(name):
    timing = load_timings()[name]
    rates = [
        dram.saturated_bandwidth(timing, Pattern("random", 256), outstanding=512, read_queue=queue, write_queue=queue)
        for queue in (16, 64, 256)
    ]
    assert all(deeper >= 0.95 * shallower for shallower, deeper in pairwise(rates))
    assert rates[-1] <= dram.peak_bandwidth(timing) * dram.refresh_duty(timing)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(load_timings()))
def test_more_outstanding_never_slows_a_channel(name):
    timing = load_timings()[name]
    rates = [dram.saturated_bandwidth(timing, Pattern("random", 1024), outstanding=out) for out in (16, 64, 256)]
    assert all(more >= 0.98 * fewer for fewer, more in pairwise(rates))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(load_timings()))
def test_more_records_never_take_less_time(name):
    timing = load_timings()[name]
    times = [dram.gather_makespan(timing, records, 256) for records in (4, 64, 1024)]
    assert times == sorted(times)


@pytest.mark.parametrize(("page_policy", "row"), [("closed", "closed"), ("open", "conflict")])
def test_a_lone_line_finds_the_row_as_the_page_policy_left_it(page_policy, row):
    timing = load_timings()["DDR4_3200AA_1ch_1R"]
    settings = Settings(page_policy=page_policy, refresh="NoRefresh")
    mean, _ = dram.loaded_latency(timing, Pattern("random", 64), None, settings=settings)
    assert mean == pytest.approx(dram.idle_latency_ns(timing, row), rel=0.06)
