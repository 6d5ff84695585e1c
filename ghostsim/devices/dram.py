"""DRAM behind one controller: the media of HBM stacks, host memory and CXL expanders alike.

A medium is two resources, because streams and scattered records meet different limits: the data bus, at its
raw rate, and the activation budget (tFAW, tRRD, banks, queue). What a pattern reaches on each comes from the
bank model in `ghostsim.timing.dram`, and so does what is left of the bus when reads and writes take turns.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from ghostsim.config.hardware import Dram, Memory, cycles
from ghostsim.devices.leg import Costs, Leg, Load
from ghostsim.devices.units import whole
from ghostsim.engine.network import Network
from ghostsim.timing import dram
from ghostsim.timing.dram import Pattern
from ghostsim.timing.dram_timing import DramTiming

_OUTSTANDING = 256
_LONGEST_RECORD = 4096
_SHORTEST_RECORD = 64
_PS_PER_NS = 1000
_WRITE_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_MOST_RECORDS = 17
"""Exponent of the number of records from which on channels are even."""


def timing_of(part: Dram) -> DramTiming:
    """Convert a catalogue part to the bank model's timing set, in clock cycles."""
    timing, geometry = part.timing, part.geometry
    clock_ps = part.clock_ps
    optional = {
        f"n{name[1:]}": cycles(value, clock_ps)
        for name in ("tCCD_S_WR", "tCCD_L_WR", "tCCD_R", "tRTW", "tPPD", "tCS")
        if (value := getattr(timing, name)) is not None
    }
    required = {
        f"n{name[1:]}": cycles(getattr(timing, name), clock_ps)
        for name in ("tCL", "tCWL", "tRP", "tRAS", "tRC", "tWR", "tRTP", "tCCD_S", "tCCD_L", "tRRD_S", "tRRD_L",
                     "tWTR_S", "tWTR_L", "tFAW", "tRFC", "tREFI")
    }  # fmt: skip
    return DramTiming(
        standard=part.standard,
        tCK_ps=clock_ps,
        nBL=timing.nBL,
        nRCD_RD=cycles(timing.tRCD, clock_ps),
        nRCD_WR=cycles(timing.tRCD_WR or timing.tRCD, clock_ps),
        **required,
        **optional,
        access_bytes=geometry.access_bytes,
        subchannels=geometry.subchannels,
        ranks=geometry.ranks,
        pseudochannels=geometry.pseudochannels,
        stack_ids=geometry.stack_ids,
        bankgroups=geometry.bankgroups,
        banks_per_group=geometry.banks_per_group,
        rows=geometry.rows,
        row_bytes=geometry.row_bytes,
    )


def channel_bandwidth(part: Dram, pattern: Pattern) -> float:
    """Return what one channel gives a pattern at saturation, bytes/s, from the bank model."""
    geometry = part.geometry
    return dram.saturated_bandwidth(
        timing_of(part),
        pattern,
        outstanding=_OUTSTANDING,
        read_queue=geometry.read_queue,
        write_queue=geometry.write_queue,
    )


def idle_latency_ps(part: Dram) -> int:
    """Return the mean latency of random lines, one at a time, from the controller's queue to data."""
    mean_ns, _ = dram.loaded_latency(timing_of(part), Pattern("random", _SHORTEST_RECORD, 1.0), None)
    return round(mean_ns * _PS_PER_NS)


def octave(records: int) -> int:
    """Return the power of two that is nearest to a number of records, as its exponent."""
    return min(_MOST_RECORDS, round(math.log2(max(1, records))))


def _record_size(piece_bytes: float) -> int:
    """Round a piece to a power of two that the bank model is asked for."""
    exponent = round(math.log2(max(_SHORTEST_RECORD, min(_LONGEST_RECORD, piece_bytes))))
    return int(2**exponent)


def peak_bandwidth(memory: Memory) -> float:
    """Return the raw rate of all channels as far as the controller passes it on, bytes/s."""
    return memory.channels * memory.efficiency * dram.peak_bandwidth(timing_of(memory.dram))


class DramMedia:
    """Channels of one DRAM part, as the resources `NAME.bus` and `NAME.activations`."""

    def __init__(self, network: Network, name: str, memory: Memory) -> None:
        self.memory = memory
        self.part = memory.dram
        timing = timing_of(memory.dram)
        self.peak = peak_bandwidth(memory)
        self.bus = network.resource(f"{name}.bus", self.peak, self._left_by_turns)
        self.activation_rate = memory.channels * dram.activation_rate(timing)
        self.activations = network.resource(f"{name}.activations", self.activation_rate)
        self.latency_ps = memory.latency + idle_latency_ps(memory.dram)
        self.loads = (Load((self.bus, self.activations), self.latency_ps),)
        self.bandwidth = cache(self._bandwidth)
        self.stream = cache(self._stream)
        self._gather_of = cache(self._gather)

    def _bandwidth(self, pattern: Pattern) -> float:
        """Return what all channels give a pattern at saturation, bytes/s."""
        return self.memory.channels * self.memory.efficiency * channel_bandwidth(self.part, pattern)

    def streamed(self, write_share: float) -> float:
        """Return the bytes/s of a stream of which a share are writes."""
        return min(self.peak, self.peak / self._stream_cost(write_share))

    def _stream(self, *, write: bool = False) -> Leg:
        """Return the cost of a long run of consecutive bytes."""
        return self._leg(((self.bus, self._stream_cost(float(write))),), write=write)

    def _leg(self, costs: Costs, *, write: bool) -> Leg:
        """Return a leg of reads, which wait for the medium, or of writes, which take turns with reads."""
        return Leg(costs, self.latency_ps, () if write else self.loads, (self.bus,) if write else ())

    def _stream_cost(self, write_share: float) -> float:
        return max(1.0, self.peak / self.bandwidth(Pattern("stream", _LONGEST_RECORD, 1.0 - write_share)))

    def _left_by_turns(self, busy_share: float) -> float:
        """Return what the bus does per second if a share of its time goes to writes: turnarounds take the rest.

        Shares of bytes between those that the bank model is asked for are interpolated.
        """
        if busy_share in (0.0, 1.0):
            return self.peak
        read, write = self._stream_cost(0.0), self._stream_cost(1.0)
        share = busy_share * read / (busy_share * read + (1 - busy_share) * write)
        mixed = float(np.interp(share, _WRITE_SHARES, [self._stream_cost(each) for each in _WRITE_SHARES]))
        return self.peak * min(1.0, ((1 - share) * read + share * write) / mixed)

    def command(self) -> Leg:
        """Return the cost of a byte that stops at the memory device's own logic: the bus, and half the way."""
        return Leg(((self.bus, 1.0),), self.memory.latency // 2)

    def gather(self, piece_bytes: float, records: int, *, write: bool = False) -> Leg:
        """Return the cost of scattered pieces: bus time for whole bursts, the rest on the activation budget.

        A gather of few records ends with its fullest channel; their number counts in powers of two.
        """
        if piece_bytes > _LONGEST_RECORD:
            return self.stream(write=write)
        return self._gather_of(piece_bytes, octave(records), write)

    def _gather(self, piece_bytes: float, exponent: int, write: bool) -> Leg:
        access = self.part.geometry.access_bytes
        moved = whole(piece_bytes, access) / piece_bytes
        read_share = 0.0 if write else 1.0
        reached = self.bandwidth(Pattern("random", _record_size(piece_bytes), read_share))
        reached /= dram.channel_imbalance(2**exponent, self.memory.channels)
        activations = (self.activations, moved * self.activation_rate / reached)
        return self._leg(((self.bus, moved * self._stream_cost(1.0 - read_share)), activations), write=write)
