"""Bandwidth, gather time and loaded latency of one DRAM channel, simulated from its timing set.

Nothing here is fitted. What is simulated per question, and how long, is said in each function.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ghostsim.seeding import generator
from ghostsim.timing.dram_bank import NEVER, Controller
from ghostsim.timing.dram_timing import DramTiming

_SPAN_BYTES = 1 << 30
_CHUNK_BYTES = 256
_LINE_BYTES = 64


@dataclass(frozen=True)
class Pattern:
    """What is accessed: records one after another (stream) or at uniform aligned addresses of 1 GiB (random)."""

    kind: str
    record_bytes: int
    read_fraction: float = 1.0


@dataclass(frozen=True)
class _Accesses:
    """Bursts in the order of their source; `arrival` in cycles."""

    controller: list[int]
    bank: list[int]
    row: list[int]
    write: list[bool]
    arrival: list[int]


def decode(timing: DramTiming, address: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Return sub-channel, bank of that sub-channel and row of byte addresses under the mapping CHUNK256.

    From the lowest bit: 256 B chunk, sub-channel, pseudo-channel, bank group, bank, stack level, rank, rest of the
    column, row; bank group and bank are XORed with the low bits of the row.
    """
    rest, fields = address // _CHUNK_BYTES, []
    sizes = (timing.subchannels, timing.pseudochannels, timing.bankgroups, timing.banks_per_group,
             timing.stack_ids, timing.ranks, max(1, timing.row_bytes // _CHUNK_BYTES))  # fmt: skip
    for size in sizes:
        fields.append(rest % size)
        rest = rest // size
    subchannel, pseudochannel, group, bank, level, rank, _ = fields
    row = rest % timing.rows
    group = group ^ (row % timing.bankgroups)
    bank = bank ^ (row // timing.bankgroups % timing.banks_per_group)
    unit = rank * timing.pseudochannels + pseudochannel
    flat = ((unit * timing.stack_ids + level) * timing.bankgroups + group) * timing.banks_per_group + bank
    return subchannel, flat, row


def _accesses(
    timing: DramTiming, pattern: Pattern, records: int, rng: np.random.Generator, arrival: NDArray[np.int64] | None
) -> _Accesses:
    if pattern.kind == "stream":
        first = np.arange(records, dtype=np.int64) * pattern.record_bytes
    else:
        first = rng.integers(0, _SPAN_BYTES // pattern.record_bytes, records) * pattern.record_bytes
    bursts = max(1, pattern.record_bytes // timing.access_bytes)
    address = (first[:, None] + np.arange(bursts) * timing.access_bytes).ravel()
    subchannel, bank, row = decode(timing, address)
    write = np.repeat(rng.random(records) >= pattern.read_fraction, bursts)
    arrived = np.zeros(records, np.int64) if arrival is None else arrival
    return _Accesses(
        subchannel.tolist(), bank.tolist(), row.tolist(), write.tolist(), np.repeat(arrived, bursts).tolist()
    )


@dataclass(frozen=True)
class _Source:
    """How the requester feeds the controllers: in order, at most `outstanding` bursts, or batch after batch."""

    read_queue: int
    write_queue: int
    outstanding: int = NEVER
    batch: int = 0
    first_refresh: int = NEVER
    until: int = NEVER


def _simulate(timing: DramTiming, accesses: _Accesses, source: _Source) -> tuple[list[int], list[int]]:
    """Return the cycles at which each burst reached the controller's source queue and was done (0: not by `until`)."""
    run = _Run(timing, accesses, source)
    while run.done < len(accesses.bank) and run.now < source.until:
        run.admit()
        run.advance()
    return run.entered, run.finished


class _Run:
    """The loop over controllers, arrivals and refreshes."""

    def __init__(self, timing: DramTiming, accesses: _Accesses, source: _Source) -> None:
        self.timing, self.accesses, self.source = timing, accesses, source
        self.controllers = [
            Controller(timing, accesses.bank, accesses.row, source.read_queue, source.write_queue)
            for _ in range(timing.subchannels)
        ]
        self.entered = list(accesses.arrival)
        self.finished = [0] * len(accesses.bank)
        self.returning: deque[int] = deque()
        self.now = self.head = self.inflight = self.done = 0
        self.next_refresh = source.first_refresh
        self.wake = 0
        self.changed = dict.fromkeys(self.controllers)

    def admit(self) -> None:
        """Send what has arrived to the controllers, in order, and find when the source wants to be asked again."""
        accesses, source, now, head = self.accesses, self.source, self.now, self.head
        total = len(accesses.bank)
        self.wake = NEVER
        while head < total:
            if accesses.arrival[head] > now:
                self.wake = accesses.arrival[head]
                break
            if self.inflight >= source.outstanding or (source.batch and self.inflight and head % source.batch == 0):
                self.wake = self.returning[0] if self.returning else NEVER
                break
            write, controller = accesses.write[head], self.controllers[accesses.controller[head]]
            if not controller.room(write):
                break
            controller.add(head, write)
            self.changed[controller] = None
            if source.batch:
                self.entered[head] = now
            self.inflight += 1
            head += 1
        self.head = head
        for controller in self.changed:
            controller.plan(now + 1)
        self.changed.clear()

    def advance(self) -> None:
        """Go to the next command, arrival, return of data or refresh."""
        controller = min(self.controllers, key=_time)
        at = controller.time
        if self.next_refresh <= min(at, self.wake):
            self._refresh()
        elif self.wake < at:
            self._land(self.wake)
        else:
            self._land(at)
            self._issue(controller)

    def _land(self, at: int) -> None:
        self.now = at
        while self.returning and self.returning[0] <= at:
            self.returning.popleft()
            self.inflight -= 1

    def _refresh(self) -> None:
        self.now = self.next_refresh
        self.next_refresh += self.timing.nREFI
        for controller in self.controllers:
            controller.start_refresh()
            controller.plan(self.now)

    def _issue(self, controller: Controller) -> None:
        self._finish(controller.issue(), controller.command[4])
        if controller.rules.dual_bus:
            controller.plan_same_cycle()
            if controller.time == self.now:
                self._finish(controller.issue(), controller.command[4])
        self.changed[controller] = None

    def _finish(self, finished: int, seq: int) -> None:
        if finished < 0:
            return
        self.done += 1
        self.finished[seq] = finished
        if self.accesses.write[seq]:
            self.inflight -= 1
        else:
            self.returning.append(finished)


def _time(controller: Controller) -> int:
    return controller.time


def peak_bandwidth(timing: DramTiming) -> float:
    """Return the data-bus bandwidth of one channel in bytes/s."""
    spacing = max(timing.nBL, timing.nCCD_S)
    return timing.access_bytes * timing.subchannels * timing.pseudochannels / (spacing * timing.tCK_ps) * 1e12


def saturated_bandwidth(
    timing: DramTiming,
    pattern: Pattern,
    *,
    outstanding: int,
    read_queue: int,
    write_queue: int,
    refresh: bool = True,
    seed: int = 0,
) -> float:
    burst_cycles = max(timing.nBL, timing.nCCD_S) / (timing.subchannels * timing.pseudochannels)
    intervals = max(1, round(3000 * burst_cycles / timing.nREFI))
    warm = int(800 * burst_cycles * 1.5)
    until = warm + intervals * timing.nREFI
    bursts = max(1, pattern.record_bytes // timing.access_bytes)
    records = int(until / burst_cycles / bursts) + outstanding
    accesses = _accesses(timing, pattern, records, generator(seed, "dram/bandwidth"), None)
    source = _Source(read_queue, write_queue, outstanding, first_refresh=warm if refresh else NEVER, until=until)
    _, finished = _simulate(timing, accesses, source)
    done = sum(warm <= at < until for at in finished)
    return done * timing.access_bytes / ((until - warm) * timing.tCK_ps) * 1e12


def gather_makespan(
    timing: DramTiming, n_records: int, record_bytes: int, read_queue: int, *, seeds: int = 12, refresh: bool = True
) -> float:
    pattern = Pattern("random", record_bytes)
    source = _Source(read_queue, read_queue, first_refresh=timing.nREFI if refresh else NEVER)
    ends = []
    for seed in range(seeds):
        accesses = _accesses(timing, pattern, n_records, generator(seed, "dram/gather"), None)
        _, finished = _simulate(timing, accesses, source)
        ends.append(max(finished))
    return sum(ends) / seeds * timing.tCK_ps / 1000


def loaded_latency(timing, pattern, injected_bytes_per_s, *, read_queue, write_queue, seed=0, bursts=8000, lines=False):
    rng = generator(seed, "dram/latency")
    per = max(1, pattern.record_bytes // timing.access_bytes)
    if injected_bytes_per_s is None:
        n = bursts // per
        accesses = _accesses(timing, pattern, n, rng, None)
        source = _Source(read_queue, write_queue, batch=max(1, _LINE_BYTES // timing.access_bytes), first_refresh=timing.nREFI)
    else:
        cycles = pattern.record_bytes / injected_bytes_per_s * 1e12 / timing.tCK_ps
        n = bursts // per
        arrival = np.cumsum(rng.exponential(cycles, n)).astype(np.int64)
        accesses = _accesses(timing, pattern, n, rng, arrival)
        source = _Source(read_queue, write_queue, first_refresh=timing.nREFI)
    entered, finished = _simulate(timing, accesses, source)
    lat = (np.array(finished) - np.array(entered))[~np.array(accesses.write)]
    return lat * timing.tCK_ps / 1000
