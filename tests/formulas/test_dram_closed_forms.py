"""The simulated channel against what its timing set says in closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.timing import dram
from ghostsim.timing.dram import DramTiming, Pattern, Settings
from ghostsim.timing.dram_bank import Controller
from ghostsim.timing.dram_table import load_timings

DDR4 = load_timings()["DDR4_3200AA_1ch_1R"]
DDR5 = load_timings()["DDR5_4800C_1sub_1R"]
HBM2 = load_timings()["HBM2_2000_1ch_2PC"]
HBM3 = load_timings()["HBM3_6400_1ch_2PC"]
RAMULATOR = [name for name in load_timings() if not name.startswith(("DDR4_8Gb", "HBM2_8Gb", "DDR5_4800_custom_on"))]
STREAM = Pattern("stream", 64)


@pytest.fixture(autouse=True)
def _fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path))


def one_read(timing: DramTiming, bank_rows: list[int]) -> int:
    """Return the cycles of the last of reads to bank 0 that are asked one after another, each when all is quiet."""
    channel = Controller(timing, [0] * len(bank_rows), bank_rows, 32, 32)
    now, done = 0, -1
    for seq in range(len(bank_rows)):
        now += 10_000
        channel.add(seq, write=False)
        channel.plan(now + 1)
        while (done := channel.issue()) < 0:
            channel.plan(channel.time + 1)
    return done - now


def test_read_of_a_closed_row_takes_rcd_cl_and_burst():
    assert one_read(DDR4, [5]) == DDR4.nRCD_RD + DDR4.nCL + DDR4.nBL + 1  # the request is seen a cycle after arrival


def test_read_of_an_open_row_takes_cl_and_burst():
    assert one_read(DDR4, [5, 5]) == DDR4.nCL + DDR4.nBL + 1


def test_read_of_another_row_closes_the_open_one_first():
    assert one_read(DDR4, [5, 6]) == DDR4.nRP + DDR4.nRCD_RD + DDR4.nCL + DDR4.nBL + 1


@pytest.mark.parametrize(("row", "opening"), [("hit", 0), ("closed", 38), ("conflict", 76)])
def test_idle_latency_formula_in_ns(row, opening):
    assert dram.idle_latency_ns(DDR5, row) == pytest.approx((opening + 46) * DDR5.tCK_ps / 1000)


@pytest.mark.parametrize("name", RAMULATOR)
def test_gather_of_one_burst_is_the_idle_latency(name):
    timing = load_timings()[name]
    cycle_ns = timing.tCK_ps / 1000
    measured = dram.gather_makespan(timing, 1, timing.access_bytes)
    # Two-cycle commands, the clock edge of HBM3 commands and the CAS command of LPDDR5 add up to four cycles.
    assert 0 <= measured - dram.idle_latency_ns(timing) <= 4.01 * cycle_ns


@pytest.mark.parametrize("name", RAMULATOR)
def test_stream_reads_run_at_peak_less_refresh(name):
    timing = load_timings()[name]
    bound = dram.peak_bandwidth(timing) * dram.refresh_duty(timing)
    measured = dram.saturated_bandwidth(timing, STREAM, outstanding=512)
    assert 0.95 * bound <= measured <= 1.005 * bound


@pytest.mark.parametrize("timing", [DDR4, DDR5, HBM2, HBM3], ids=lambda timing: timing.standard)
def test_without_refresh_a_stream_gains_the_refresh_duty(timing):
    with_refresh, without = (
        dram.saturated_bandwidth(timing, STREAM, outstanding=512, settings=Settings(refresh=refresh))
        for refresh in ("AllBank", "NoRefresh")
    )
    overhead = (timing.nRFC + timing.units * timing.nRP + timing.nRCD_RD) / timing.nREFI
    assert 1 - overhead - 0.02 <= with_refresh / without <= dram.refresh_duty(timing) + 0.01


@pytest.mark.parametrize("timing", [DDR4, DDR5], ids=lambda timing: timing.standard)
def test_random_64_byte_reads_are_bound_by_faw(timing):
    bound = dram.activation_rate(timing) * timing.access_bytes
    measured = dram.saturated_bandwidth(timing, Pattern("random", 64), read_queue=128)
    assert 0.93 * bound <= measured <= 1.02 * bound


def test_activation_rate_counts_ranks_and_subchannels():
    four = load_timings()["DDR5_4800C_2sub_2R"]
    assert dram.activation_rate(four) == pytest.approx(4 * dram.activation_rate(DDR5))


def test_peak_of_a_ddr5_subchannel_is_4_bytes_at_4800_mt():
    assert dram.peak_bandwidth(DDR5) == pytest.approx(19.2e9, rel=1e-3)


@pytest.mark.parametrize("kind", ["stream", "random"])
@pytest.mark.parametrize("timing", [DDR5, HBM2], ids=lambda timing: timing.standard)
def test_bigger_records_are_never_less_efficient_with_as_many_records_queued(kind, timing):
    rates = [
        dram.saturated_bandwidth(timing, Pattern(kind, size), outstanding=1024, read_queue=16 * size // 32)
        for size in (64, 128, 256)
    ]
    assert rates[0] <= 1.02 * rates[1]
    assert rates[1] <= 1.02 * rates[2]


@pytest.mark.parametrize("timing", [DDR5, HBM3], ids=lambda timing: timing.standard)
def test_deeper_read_queues_are_never_slower(timing):
    rates = [dram.saturated_bandwidth(timing, Pattern("random", 64), read_queue=depth) for depth in (8, 32, 128)]
    assert rates[0] < rates[1] * 1.02
    assert rates[1] < rates[2] * 1.02


TIMINGS = [
    "nRCD_RD",
    "nRP",
    "nRAS",
    "nRC",
    "nRTP",
    "nRRD_S",
    "nRRD_L",
    "nFAW",
    "nCCD_L",
    "nRFC",
    "nWR",
    "nWTR_L",
    "nCL",
]


@pytest.mark.parametrize("name", TIMINGS)
@pytest.mark.parametrize("timing", [DDR4, DDR5, HBM2], ids=lambda timing: timing.standard)
def test_tightening_any_timing_never_slows(name, timing):
    # Records of one burst: between two bursts of a record, a shorter tRAS lets another request close the row.
    pattern = Pattern("random", timing.access_bytes, 0.7 if name.startswith("nW") else 1.0)
    tighter = replace(timing, **{name: int(0.6 * getattr(timing, name))})
    before, after = (dram.saturated_bandwidth(each, pattern) for each in (timing, tighter))
    assert after >= 0.98 * before  # first-ready scheduling may lose a few cycles to a luckier order


def test_mixed_writes_cost_turnarounds():
    pure, mixed = (dram.saturated_bandwidth(DDR5, Pattern("stream", 64, share)) for share in (1.0, 0.7))
    assert 0.75 * pure < mixed < 0.95 * pure


def test_latency_grows_with_load():
    loads = [None, 2e9, 6e9, 10e9]
    means = [dram.loaded_latency(DDR5, Pattern("random", 64), load)[0] for load in loads]
    assert means == sorted(means)


def test_p95_at_low_load_is_refresh():
    pattern, load = Pattern("random", 64), 0.3 * 11.6e9
    quiet = dram.loaded_latency(DDR5, pattern, load, settings=Settings(refresh="NoRefresh"))[1]
    assert dram.loaded_latency(DDR5, pattern, load)[1] > 2 * quiet


def test_gather_beyond_the_simulated_part_follows_the_saturated_rate():
    nbytes = 100_000 * 256
    rate = dram.saturated_bandwidth(DDR4, Pattern("random", 256), outstanding=4096)
    assert dram.gather_makespan(DDR4, 100_000, 256) == pytest.approx(nbytes / rate * 1e9, rel=0.05)


@pytest.mark.parametrize(
    ("records", "channels", "expected"),
    [(2048, 32, 1.26), (2048, 80, 1.51), (2048, 160, 1.84), (512, 80, 2.11), (16384, 160, 1.28)],
)
def test_imbalance_of_channels(records, channels, expected):
    assert dram.channel_imbalance(records, channels) == pytest.approx(expected, rel=0.02)


def test_one_channel_is_balanced():
    assert dram.channel_imbalance(7, 1) == pytest.approx(1)


def test_one_record_loads_one_channel():
    assert dram.channel_imbalance(1, 80) == pytest.approx(80, rel=0.01)


def test_chunk_mapping_spreads_neighbouring_chunks():
    subchannel, bank, row = dram.decode(load_timings()["DDR5_4800C_2sub_1R"], np.arange(0, 1024, 64))
    assert subchannel.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert len(set(bank[:8].tolist())) == 1
    assert bank[0] != bank[8]
    assert set(row.tolist()) == {0}


@settings(max_examples=20, deadline=None)
@given(name=st.sampled_from(RAMULATOR), start=st.integers(0, 1 << 20))
def test_mapping_is_one_to_one(name, start):
    timing = load_timings()[name]
    chunks = np.arange(start, start + 4096, dtype=np.int64) * 256
    subchannel, bank, row = dram.decode(timing, chunks)
    per_row = timing.row_bytes // 256
    places, counts = np.unique(np.stack([subchannel, bank, row]), axis=1, return_counts=True)
    assert bank.max() < timing.units * timing.banks
    assert counts.max() <= per_row
    assert places.shape[1] >= 4096 // per_row


def test_same_question_same_answer_in_another_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "a"))
    first = dram.gather_makespan(HBM2, 33, 128)
    assert dram.gather_makespan.__wrapped__(HBM2, 33, 128) == first


def test_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match="stream or random"):
        Pattern("zigzag", 64)


def test_refresh_longer_than_its_interval_is_refused():
    with pytest.raises(ValueError, match="tREFI"):
        replace(DDR4, nREFI=DDR4.nRFC)


def test_three_bank_groups_map_one_to_one():
    subchannel, bank, row = dram.decode(replace(DDR4, bankgroups=3), np.arange(0, 1 << 22, 256))
    _, counts = np.unique(np.stack([subchannel, bank, row]), axis=1, return_counts=True)
    assert counts.max() <= DDR4.row_bytes // 256
    assert bank.max() < 3 * DDR4.banks_per_group


def test_a_trickle_finds_closed_rows():
    mean, p95 = dram.loaded_latency(DDR4, Pattern("random", 64), 1e3)
    closed = dram.idle_latency_ns(DDR4)
    assert closed < mean < 1.4 * closed
    assert p95 >= closed
