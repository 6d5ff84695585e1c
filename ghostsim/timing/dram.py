"""Bandwidth, gather time and loaded latency of one DRAM channel, simulated from its timing set.

Nothing here is fitted. Structural choices: refresh closes all banks of a rank or pseudo-channel at once, an access is
one burst, and the source sends reads in order and writes in order: one full queue of two sub-channels stops both, but
not the other kind. What is simulated per question, and how long, is said in each function.

Results are remembered on disk by timing set, question and source code.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from ghostsim import seeding
from ghostsim.timing import dram_bank, dram_mapping, dram_timing
from ghostsim.timing.cache import remembered
from ghostsim.timing.dram_bank import NEVER, Controller
from ghostsim.timing.dram_mapping import CHUNK256, decode
from ghostsim.timing.dram_timing import DramTiming

__all__ = [
    "DramTiming",
    "Pattern",
    "Settings",
    "activation_rate",
    "channel_imbalance",
    "decode",
    "default_queues",
    "gather_makespan",
    "idle_latency_ns",
    "loaded_latency",
    "peak_bandwidth",
    "refresh_duty",
    "saturated_bandwidth",
]

_SPAN_BYTES = 1 << 30
_LINE_BYTES = 64
_BANDWIDTH_BURSTS = 3000
_GATHER_BURSTS, _GATHER_DRAWN = 3000, 8000
_LATENCY_BURSTS, _LATENCY_RECORDS, _LATENCY_MOST = 8000, 1000, 20_000
_SOURCES = (sys.modules[__name__], dram_bank, dram_mapping, dram_timing, seeding)


@dataclass(frozen=True)
class Pattern:
    """What is accessed: records one after another (stream) or at uniform aligned addresses of 1 GiB (random).

    `read_fraction` is drawn per record; the bursts of a record go in ascending order. Reads and writes of a stream
    each go through their own half of the memory.
    """

    kind: str
    record_bytes: int
    read_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in {"stream", "random"}:
            raise ValueError(f"pattern {self.kind!r}: expected stream or random")
        if not 1 <= self.record_bytes <= _SPAN_BYTES // 2:
            raise ValueError(f"record of {self.record_bytes} B: expected 1 B to 512 MiB")
        if not 0 <= self.read_fraction <= 1:
            raise ValueError(f"read fraction {self.read_fraction}: expected 0 to 1")


@dataclass(frozen=True)
class Settings:
    """How a controller is set: address mapping, what it does with an open row, and how it refreshes.

    A closed page is precharged with its last access (auto-precharge), unless a waiting request wants the row.
    """

    mapping: str = CHUNK256
    page_policy: str = "open"
    refresh: str = "AllBank"

    def __post_init__(self) -> None:
        dram_mapping.mapping(self.mapping)
        if self.page_policy not in {"open", "closed"}:
            raise ValueError(f"page policy {self.page_policy!r}: expected open or closed")
        if self.refresh not in {"AllBank", "NoRefresh"}:
            raise ValueError(f"refresh {self.refresh!r}: expected AllBank or NoRefresh")

    @property
    def refreshed(self) -> bool:
        """Whether there is refresh at all."""
        return self.refresh != "NoRefresh"


_USUAL = Settings()


@dataclass(frozen=True)
class _Accesses:
    """Bursts in the order of their source; `arrival` in cycles."""

    controller: list[int]
    bank: list[int]
    row: list[int]
    write: list[bool]
    arrival: list[int]


def _accesses(
    timing: DramTiming,
    pattern: Pattern,
    records: int,
    rng: np.random.Generator,
    mapping: str,
    arrival: NDArray[np.int64] | None = None,
) -> _Accesses:
    is_write = rng.random(records) >= pattern.read_fraction
    if pattern.kind == "stream":
        nth = np.where(is_write, np.cumsum(is_write), np.cumsum(~is_write)) - 1
        first = nth * pattern.record_bytes + is_write * (_SPAN_BYTES // 2)
    else:
        first = rng.integers(0, _SPAN_BYTES // pattern.record_bytes, records) * pattern.record_bytes
    bursts = _bursts(timing, pattern)
    address = (first[:, None] + np.arange(bursts) * timing.access_bytes).ravel()
    subchannel, bank, row = decode(timing, address, mapping)
    write = np.repeat(is_write, bursts)
    arrived = np.zeros(records, np.int64) if arrival is None else arrival
    return _Accesses(
        subchannel.tolist(), bank.tolist(), row.tolist(), write.tolist(), np.repeat(arrived, bursts).tolist()
    )


@dataclass(frozen=True)
class _Source:
    """How the requester feeds the controllers: reads and writes each in order, at most `outstanding` bursts in all."""

    read_queue: int
    write_queue: int
    outstanding: int = NEVER
    closed_page: bool = False
    closed_loop: bool = False  # a burst arrives when its predecessor is back, not at its time of arrival
    first_refresh: int = NEVER
    until: int = NEVER


def _simulate(timing: DramTiming, accesses: _Accesses, source: _Source) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the cycles at which each burst reached the source and was done (0: not by `until`)."""
    run = _Run(timing, accesses, source)
    while run.done < len(accesses.bank) and run.now < source.until:
        run.admit()
        run.advance()
    return np.array(run.entered), np.array(run.finished)


class _Run:
    """The loop over controllers, arrivals and refreshes."""

    def __init__(self, timing: DramTiming, accesses: _Accesses, source: _Source) -> None:
        self.timing, self.accesses, self.source = timing, accesses, source
        self.controllers = [
            Controller(
                timing,
                accesses.bank,
                accesses.row,
                source.read_queue,
                source.write_queue,
                closed_page=source.closed_page,
            )
            for _ in range(timing.subchannels)
        ]
        self.entered = list(accesses.arrival)
        self.finished = [0] * len(accesses.bank)
        self.returning: deque[int] = deque()
        self.now = self.head = self.inflight = self.done = 0
        self.next_refresh = source.first_refresh
        self.wake = 0
        self.waiting: tuple[deque[int], deque[int]] = (deque(), deque())
        self.changed = dict.fromkeys(self.controllers)

    def admit(self) -> None:
        """Let the requester ask, and find when it wants to be asked again; then fill the controllers' queues."""
        arrival, write, now, head = self.accesses.arrival, self.accesses.write, self.now, self.head
        total, spare = len(arrival), self.source.outstanding - self.inflight
        while head < total and spare > 0 and arrival[head] <= now:
            self.waiting[write[head]].append(head)
            if self.source.closed_loop:
                self.entered[head] = now
            spare -= 1
            head += 1
        self.head, self.inflight = head, self.source.outstanding - spare
        self.wake = self._next_question(spare) if head < total else NEVER
        for is_write in (False, True):
            self._fill(is_write)
        for controller in self.changed:
            controller.plan(now + 1)
        self.changed.clear()

    def _next_question(self, spare: int) -> int:
        if spare > 0:
            return self.accesses.arrival[self.head]
        return self.returning[0] if self.returning else NEVER

    def _fill(self, is_write: bool) -> None:
        waiting = self.waiting[is_write]
        while waiting:
            controller = self.controllers[self.accesses.controller[waiting[0]]]
            if not controller.room(is_write):
                break
            controller.add(waiting.popleft(), is_write)
            self.changed[controller] = None

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
    """Return the bandwidth of the data bus of one channel in bytes/s."""
    return timing.access_bytes / (_burst_cycles(timing) * timing.tCK_ps) * 1e12


def refresh_duty(timing: DramTiming) -> float:
    """Return the share of time that refresh leaves, 1 - tRFC/tREFI."""
    return 1 - timing.nRFC / timing.nREFI


def activation_rate(timing: DramTiming) -> float:
    """Return the rows per second that tFAW and tRRD_S allow one channel to open, refresh taken off."""
    per_unit = min(4 / timing.nFAW, 1 / timing.nRRD_S) / timing.tCK_ps * 1e12
    return per_unit * timing.units * timing.subchannels * refresh_duty(timing)


def idle_latency_ns(timing: DramTiming, row: str = "closed") -> float:
    """Return the latency in ns of a read that meets an idle channel whose row is `hit`, `closed` or in `conflict`."""
    opening = {"hit": 0, "closed": timing.nRCD_RD, "conflict": timing.nRP + timing.nRCD_RD}[row]
    return (opening + timing.nCL + timing.nBL) * timing.tCK_ps / 1000


def default_queues(timing: DramTiming) -> tuple[int, int]:
    """Return the read and write queue that the reference tables use where they name none."""
    return {"HBM2": (64, 64), "HBM3": (128, 64), "HBM4": (128, 64)}.get(timing.family, (32, 32))


def _burst_cycles(timing: DramTiming) -> float:
    return max(timing.nBL, timing.nCCD_S) / (timing.subchannels * timing.pseudochannels)


def _bursts(timing: DramTiming, pattern: Pattern) -> int:
    return max(1, pattern.record_bytes // timing.access_bytes)


@remembered(*_SOURCES)
def saturated_bandwidth(
    timing: DramTiming,
    pattern: Pattern,
    *,
    outstanding: int = 256,
    read_queue: int | None = None,
    write_queue: int | None = None,
    settings: Settings = _USUAL,
    seed: int = 0,
) -> float:
    """Return the bytes/s of one channel whose requester always has more to ask.

    Counts what is done from one refresh to the same phase of a later one, about 3,000 bursts of bus time or more, after
    a warm-up of 1,200.

    Parameters
    ----------
    outstanding
        Bursts that the requester has under way, waiting at the source included.
    read_queue, write_queue
        Entries of each controller's queues; `default_queues` where None.
    """
    queues = default_queues(timing)
    burst = _burst_cycles(timing)
    warm = int(1200 * burst)
    until = warm + max(1, round(_BANDWIDTH_BURSTS * burst / timing.nREFI)) * timing.nREFI
    records = ceil((until / burst + outstanding) / _bursts(timing, pattern)) + 1
    accesses = _accesses(timing, pattern, records, seeding.generator(seed, "dram/bandwidth"), settings.mapping)
    source = _Source(
        read_queue or queues[0],
        write_queue or queues[1],
        outstanding,
        closed_page=settings.page_policy == "closed",
        first_refresh=warm if settings.refreshed else NEVER,
        until=until,
    )
    _, finished = _simulate(timing, accesses, source)
    done = int(np.count_nonzero((finished >= warm) & (finished < until)))
    return done * timing.access_bytes / ((until - warm) * timing.tCK_ps) * 1e12


@remembered(*_SOURCES)
def gather_makespan(
    timing: DramTiming,
    n_records: int,
    record_bytes: int,
    *,
    read_queue: int | None = None,
    settings: Settings = _USUAL,
    seed: int = 0,
) -> float:
    """Return the ns until the last of `n_records` random reads, all asked at t = 0, is back from one idle channel.

    The mean over 4 to 64 draws, the more the smaller the gather. Beyond 3,000 bursts the rest is added at the rate of
    the second half, and each whole tREFI costs what one refresh costs.
    """
    pattern, queue = Pattern("random", record_bytes), read_queue or default_queues(timing)[0]
    total = n_records * _bursts(timing, pattern)
    simulated = min(n_records, max(1, _GATHER_BURSTS // _bursts(timing, pattern)))
    whole = simulated == n_records
    source = _Source(
        queue,
        queue,
        closed_page=settings.page_policy == "closed",
        first_refresh=timing.nREFI if settings.refreshed and whole else NEVER,
    )
    draws = min(64, max(4, _GATHER_DRAWN // total))
    ends = [
        _gather(timing, pattern, simulated, n_records, source, settings.mapping, seed + draw) for draw in range(draws)
    ]
    cycles = sum(ends) / draws
    if settings.refreshed and not whole:
        cycles = _with_refresh(timing, cycles)
    return cycles * timing.tCK_ps / 1000


def _gather(
    timing: DramTiming, pattern: Pattern, simulated: int, records: int, source: _Source, mapping: str, seed: int
) -> float:
    accesses = _accesses(timing, pattern, simulated, seeding.generator(seed, "dram/gather"), mapping)
    finished = np.sort(_simulate(timing, accesses, source)[1])
    half = len(finished) // 2
    rest = (records - simulated) * _bursts(timing, pattern)
    return float(finished[-1] + rest * (finished[-1] - finished[half - 1]) / (len(finished) - half))


def _with_refresh(timing: DramTiming, cycles: float) -> float:
    """Return a length of work after the refreshes that fall into it: tRFC and closing and opening rows each time."""
    cost = timing.nRFC + timing.units * timing.nRP + timing.nRCD_RD
    return cycles + cost * (cycles // (timing.nREFI - cost))


@remembered(*_SOURCES)
def loaded_latency(
    timing: DramTiming,
    pattern: Pattern,
    injected_bytes_per_s: float | None,
    *,
    read_queue: int | None = None,
    write_queue: int | None = None,
    settings: Settings = _USUAL,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the mean and 95th percentile of read latency in ns, from arrival at the controller to the last data.

    Records arrive as a Poisson process; every burst of a record is a sample. `None` or 0 is an idle channel: one access
    per 64 B line, the next when the last is back. Covers whole refresh intervals, at least two, at least 8,000 bursts
    and 1,000 records (of large records 20,000 bursts).
    Beyond the saturated bandwidth the queue grows without bound and the figures only say so.
    """
    queues = default_queues(timing)
    idle = not injected_bytes_per_s
    first = timing.nREFI // 4
    source = _Source(
        read_queue or queues[0],
        write_queue or queues[1],
        closed_page=settings.page_policy == "closed",
        first_refresh=first if settings.refreshed else NEVER,
        outstanding=1 if idle else NEVER,
        closed_loop=idle,
    )
    rng = seeding.generator(seed, "dram/latency")
    if injected_bytes_per_s:
        accesses = _poisson_accesses(timing, pattern, rng, settings.mapping, injected_bytes_per_s)
    else:
        accesses = _line_accesses(timing, pattern, rng, settings.mapping)
    entered, finished = _simulate(timing, accesses, source)
    last = first + (int(entered[-1]) - first) // timing.nREFI * timing.nREFI
    sample = (entered >= first) & (entered < last) & ~np.asarray(accesses.write)
    latency = (finished - entered)[sample] * (timing.tCK_ps / 1000)
    return float(np.mean(latency)), float(np.percentile(latency, 95))


def _line_accesses(timing: DramTiming, pattern: Pattern, rng: np.random.Generator, mapping: str) -> _Accesses:
    lines = replace(pattern, record_bytes=max(_LINE_BYTES, pattern.record_bytes))
    step = max(1, _LINE_BYTES // timing.access_bytes)
    every = _accesses(timing, lines, _LATENCY_BURSTS * step // _bursts(timing, lines), rng, mapping)
    return _Accesses(
        every.controller[::step], every.bank[::step], every.row[::step], every.write[::step], every.arrival[::step]
    )


def _poisson_accesses(
    timing: DramTiming, pattern: Pattern, rng: np.random.Generator, mapping: str, bytes_per_s: float
) -> _Accesses:
    # Beyond some refresh intervals without a record each finds closed rows, however much longer it waits.
    cycles = min(pattern.record_bytes / bytes_per_s * 1e12 / timing.tCK_ps, 4.0 * timing.nREFI)
    bursts_per_interval = timing.nREFI / cycles * _bursts(timing, pattern)
    wanted = min(_LATENCY_MOST, max(_LATENCY_BURSTS, _LATENCY_RECORDS * _bursts(timing, pattern)))
    intervals = max(2, ceil(wanted / bursts_per_interval))
    end = timing.nREFI // 4 + intervals * timing.nREFI
    arrival = np.cumsum(rng.exponential(cycles, int(end / cycles * 1.3) + 100)).astype(np.int64)
    arrival = arrival[: int(np.searchsorted(arrival, end)) + 1]
    return _accesses(timing, pattern, len(arrival), rng, mapping, arrival)


@remembered(*_SOURCES)
def channel_imbalance(n_records: int, channels: int) -> float:
    """Return the expected load of the fullest channel over the mean, `n_records` falling on channels at random.

    The mean of 1,000 seeded multinomial draws, whose standard error is about 0.3 %.
    """
    if n_records < 1 or channels < 1:
        raise ValueError(f"{n_records} records on {channels} channels: expected at least one of each")
    rng = seeding.generator(0, "dram/imbalance")
    fullest = rng.multinomial(n_records, np.full(channels, 1 / channels), 1000).max(axis=1)
    return float(fullest.mean() * channels / n_records)
