"""DRAM media: one line, a stream, scattered records, and requesters that share them."""

import math

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.dram import DramMedia, channel_bandwidth, idle_latency_ps, timing_of
from ghostsim.devices.leg import queueing_ps
from ghostsim.timing.dram import Pattern, channel_imbalance
from ghostsim.timing.loaded import DRAM

HOST = part("xeon_spr_8ch").memory
GB = 10**9


def media(rig):
    return DramMedia(rig.network, "m", HOST)


def test_one_line_finds_its_row_closed_or_another_one_open():
    timing = timing_of(HOST.dram)
    closed = (timing.nRCD_RD + timing.nCL + timing.nBL) * timing.tCK_ps
    conflict = closed + timing.nRP * timing.tCK_ps
    assert HOST.latency + closed < alone_ps(lambda rig: media(rig).gather(64, 1), 64) < HOST.latency + conflict


def test_idle_latency_of_a_ddr5_line_is_near_the_measured_43_ns():
    assert idle_latency_ps(HOST.dram) == pytest.approx(43_000, rel=0.05)


def test_stream_reaches_what_was_measured():
    took = alone_ps(lambda rig: media(rig).stream(), 10 * GB)
    assert 10 * GB / took * PS == pytest.approx(267.4e9, rel=0.02)


def test_stream_stays_below_peak_less_refresh():
    timing = timing_of(HOST.dram)
    duty = 1 - timing.nRFC / timing.nREFI
    took = alone_ps(lambda rig: media(rig).stream(), 10 * GB)
    assert 10 * GB / took * PS <= 8 * 38.4e9 * 0.956 * duty * 1.001


def test_gather_of_512_byte_records_reaches_what_the_bank_model_says():
    records = 2**20
    took = alone_ps(lambda rig: media(rig).gather(512, records), 512 * records)
    bank_model = 8 * HOST.efficiency * channel_bandwidth(HOST.dram, Pattern("random", 512, 1.0))
    assert 512 * records / took * PS == pytest.approx(bank_model, rel=0.02)


def test_few_records_wait_for_the_fullest_channel():
    def rate(records):
        rig = Rig()
        leg = media(rig).gather(512, records)
        return rig.network.flow_class(leg.costs).solo_rate

    expected = channel_imbalance(64, 8) / channel_imbalance(2**17, 8)
    assert rate(2**17) / rate(64) == pytest.approx(expected, rel=1e-9)


def test_a_power_of_two_of_records_counts_as_itself():
    rig = Rig()
    many = 2**14
    gathered = media(rig).gather(512, many)
    bank_model = 8 * HOST.efficiency * channel_bandwidth(HOST.dram, Pattern("random", 512, 1.0))
    reached = rig.network.flow_class(gathered.costs).solo_rate
    assert reached == pytest.approx(bank_model / channel_imbalance(many, 8), rel=1e-9)


@pytest.mark.parametrize("piece", [1, 24, 66, 100])
def test_a_piece_pays_for_whole_bursts(piece):
    rig = Rig()
    memory = media(rig)
    (_, cost), *_ = memory.gather(piece, 10**6).costs
    (_, stream) = memory.stream().costs[0]
    assert cost == pytest.approx(stream * math.ceil(piece / 64) * 64 / piece)


def test_long_pieces_are_a_stream():
    rig = Rig()
    memory = media(rig)
    assert memory.gather(10_000, 50) == memory.stream()


def test_writes_never_beat_reads():
    rig = Rig()
    memory = media(rig)
    write, read = (rig.network.flow_class(memory.gather(512, 10**6, write=w).costs).solo_rate for w in (True, False))
    assert write <= read


def test_two_streams_share_the_bus():
    rig = Rig()
    leg = media(rig).stream()
    rig.flow("a", leg, GB)
    rig.flow("b", leg, GB)
    ends = rig.run()
    alone = alone_ps(lambda rig: media(rig).stream(), GB)
    assert ends["a"] == ends["b"] == pytest.approx(2 * alone - leg.latency_ps, abs=2)


def test_requesters_share_by_what_they_keep_outstanding():
    rig = Rig()
    leg = media(rig).stream()
    rig.flow("big", leg, 3 * GB, weight=3.0)
    rig.flow("small", leg, GB, weight=1.0)
    ends = rig.run()
    assert ends["big"] == pytest.approx(ends["small"], abs=2)


def test_reads_and_writes_that_take_turns_share_what_the_bank_model_leaves():
    """Half reads and half writes, by bytes: the bus loses to turnarounds what the bank model says."""
    rig = Rig()
    memory = media(rig)
    half = 8 * HOST.efficiency * channel_bandwidth(HOST.dram, Pattern("stream", 4096, 0.5))
    read, write = memory.stream(), memory.stream(write=True)
    rig.network.start(rig.network.flow_class(read.costs, writes=read.writes), 10 * GB, lambda: None)
    ends = []
    rig.network.start(
        rig.network.flow_class(write.costs, writes=write.writes), 10 * GB, lambda: ends.append(rig.env.now)
    )
    rig.env.run()
    assert 20 * GB / ends[0] * PS == pytest.approx(half, rel=0.02)
    pure = [memory.bandwidth(Pattern("stream", 4096, share)) for share in (1.0, 0.0)]
    assert 20 * GB / ends[0] * PS < 0.97 * min(pure)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_a_fetch_waits_for_the_latency_of_a_loaded_medium(share):
    """The loaded-latency curve of DRAM systems, at the share of the bus that a stream holds when the fetch starts."""
    rig = Rig()
    memory = media(rig)
    leg = memory.stream()
    capacity = rig.network.flow_class(leg.costs).solo_rate
    if share:
        rig.network.start(rig.network.flow_class(leg.costs, 1.0, share * capacity), 10 * GB, lambda: None)
        rig.env.run(1000)
    expected = memory.latency_ps * (DRAM.factor(share) - 1)
    assert queueing_ps(rig.network, leg.loads) == pytest.approx(expected, abs=2)
