"""The serving loop: requests arrive, wait, share the GPU in a continuous batch, and leave.

First come, first served. An iteration is one decode step of all running requests, in which the first requests that
still prefill take in a chunk of their prompts. A prompt that is in decodes from the next iteration on that begins when
its KV and its index are where decode looks for them. Iterations of equal composition are one event, which an arrival or
the end of a transfer cuts short at the next iteration's end.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import simpy
from numpy.typing import NDArray

from ghostsim.engine.clock import PS_PER_S, call_after, whole_ps
from ghostsim.errors import InvariantError
from ghostsim.pipeline.prefix_cache import HOME, PrefixCache
from ghostsim.pipeline.step_cost import SETTLE, Chunk, Way

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Process = Generator[simpy.Event, object, None]
_MOST_ITERATIONS = 4096
_GROWTH_TOKENS = 256
"""Tokens for which a request takes room at once where it does not reserve its whole output."""


class Costs(Protocol):
    """What iterations take."""

    def __call__(self, batch: int, contexts: Floats, chunks: Sequence[Chunk]) -> tuple[Ints, Mapping[Way, float]]:
        """Return durations in ps [k] at sums of contexts [k], and the share of time that each way of bulk meets."""


class Gains(Protocol):
    """How many tokens a request gains in its iterations."""

    def __call__(self, request: int, attempt: int, tokens: int) -> Ints:
        """Return tokens gained before each iteration and after the last, from 0 to `tokens`."""


def one_by_one(request: int, attempt: int, tokens: int) -> Ints:  # noqa: ARG001  (of the protocol)
    """Gain one token per iteration."""
    return np.arange(tokens + 1)


@dataclass(slots=True)
class Job:
    """A request and how far it is; times in ps, -1 for not yet."""

    index: int
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int] = ()
    """Ids of the whole blocks of its prompt."""
    kept_blocks: Sequence[int] = ()
    """Ids of the whole blocks of prompt and output, as far as a later request names them."""
    arrival_ps: int = -1
    admitted_ps: int = -1
    prefilled_ps: int = -1
    """When its prompt was computed; until its first token that settles."""
    first_token_ps: int = -1
    finish_ps: int = -1
    rejected: bool = False
    hit_tokens: int = 0
    prefilled_tokens: int = 0
    """Prompt tokens computed, those of repeated attempts included."""
    decoded_tokens: int = 0
    preemptions: int = 0
    spilled_blocks: int = 0
    """Blocks of its KV in the tier below, while it waits to come back."""
    done: int = 0
    """Tokens in the cache while it prefills."""
    room_tokens: int = 0
    room: dict[str, int] = field(default_factory=dict)
    holds: list[int] = field(default_factory=list)
    gained: Ints | None = None
    began: int = 0
    base: int = 0

    @property
    def known_tokens(self) -> int:
        """Tokens that must be in the cache before the next one can be made."""
        return self.prompt_tokens + self.decoded_tokens


@dataclass(frozen=True)
class Memory:
    """Room for KV.

    `need(tokens)` returns the bytes by tier of a request of so many tokens, `capacity` what the tiers hold of requests
    and of cached blocks; `home` is the tier that both share.
    """

    need: Callable[[int], Mapping[str, int]]
    capacity: Mapping[str, int]
    home: str = "hbm"


@dataclass
class Channel:
    """Bulk transfers in one direction of one tier, one after the other."""

    latency_ps: int
    bytes_per_s: float
    free_ps: int = 0
    nbytes: int = 0

    def send(self, nbytes: int, now_ps: int, slowdown: float) -> int:
        """Queue a transfer and return when it ends."""
        took = self.latency_ps + whole_ps(nbytes / self.bytes_per_s * PS_PER_S * slowdown)
        self.free_ps = max(now_ps, self.free_ps) + took
        self.nbytes += nbytes
        return self.free_ps


def step_stretch(met: float, batch: int) -> float:
    """Return how much longer a decode step takes beside a transfer that meets its fetches a share `met` of the time.

    Each of `batch` requests fetches for itself and has as much outstanding as the transfer: where they meet, the
    transfer gets one share in ``batch + 1``.
    """
    return 1 + met / max(1, batch)


def transfer_stretch(met: float, batch: int) -> float:
    """Return how much longer the transfer takes; together they use the resource as before, `step_stretch` apart."""
    share = met / max(1, batch)
    return (1 + share) / (1 - met + share)


@dataclass
class Log:
    """State after every event, and the exact integral of the number in the system."""

    tiers: Sequence[str]
    rows: list[tuple[int, ...]] = field(default_factory=list)
    """Time in ps, waiting, in service, bytes used of each tier."""
    present: int = 0
    area: int = 0
    since_ps: int = 0

    def count(self, now_ps: int, change: int) -> None:
        """Note that a request came or left."""
        self.area += self.present * (now_ps - self.since_ps)
        self.present, self.since_ps = self.present + change, now_ps


class Server:
    """One GPU (or several in step) that serves requests.

    Parameters
    ----------
    costs
        Durations of iterations.
    memory, cache, channels
        Room for KV, prompt blocks that are kept, and the ways of bulk transfers by tier and direction.
    max_batch, prefill_chunk
        Requests in service, and prompt tokens per iteration, at most.
    recompute, spill
        Take room as outputs grow, and preempt where there is none; KV goes to the tier `spill`, if one is named.
    gains
        Tokens per iteration.
    settled_bytes
        Bytes that cross `SETTLE` once the prompt tokens from one number to another are computed.
    """

    def __init__(
        self,
        env: simpy.Environment,
        costs: Costs,
        memory: Memory,
        *,
        max_batch: int,
        prefill_chunk: int,
        cache: PrefixCache | None = None,
        block_tokens: int = 1,
        channels: Mapping[Way, Channel] | None = None,
        recompute: bool = False,
        spill: str = "",
        gains: Gains = one_by_one,
        settled_bytes: Callable[[int, int], int] = lambda _begin, _end: 0,
    ) -> None:
        self.env, self.costs, self.memory, self.cache = env, costs, memory, cache
        self.max_batch, self.prefill_chunk, self.block_tokens = max_batch, prefill_chunk, block_tokens
        self.channels, self.recompute, self.spill, self.gains = dict(channels or {}), recompute, spill, gains
        self.settled_bytes, self.settled = settled_bytes, Counter[tuple[int, int]]()
        self.joining: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.active: dict[int, Job] = {}
        self.prefilling: list[Job] = []
        self.decoding: dict[int, Job] = {}
        self.events: list[tuple[int, int, int]] = []
        self.used: Counter[str] = Counter()
        self.iteration = 0
        self.iterations = 0
        self.busy_ps = 0
        self.conflict: Mapping[Way, float] = {}
        self.ended: dict[int, simpy.Event] = {}
        self.log = Log(tuple(dict.fromkeys((*memory.capacity, *(cache.below if cache else ())))))
        self.sleeper: simpy.Event | None = None
        env.process(self._serve())

    # --- coming and going ---

    def submit(self, job: Job) -> simpy.Event:
        """Let a request arrive; the event that is returned happens when it leaves."""
        job.arrival_ps = int(self.env.now)
        event = self.ended[job.index] = self.env.event()
        if self._never_fits(job):
            job.rejected = True
            self.ended.pop(job.index).succeed()
            return event
        self.log.count(job.arrival_ps, 1)
        self.waiting.append(job)
        self._note()
        if len(self.active) < self.max_batch:
            self._wake()
        return event

    def _never_fits(self, job: Job) -> bool:
        need = self.memory.need(job.prompt_tokens + job.output_tokens)
        return any(nbytes > self.memory.capacity[tier] for tier, nbytes in need.items())

    def _leave(self, job: Job) -> None:
        now = int(self.env.now)
        job.finish_ps = now
        del self.active[job.index]
        if self.cache is not None:
            self._keep(job, job.kept_blocks)
        self._give_back(job)
        self.log.count(now, -1)
        self.ended.pop(job.index).succeed()

    def _wake(self) -> None:
        if self.sleeper is not None and not self.sleeper.triggered:
            self.sleeper.succeed()

    def _note(self) -> None:
        sizes = (self.used[tier] + self._cached(tier) for tier in self.log.tiers)
        self.log.rows.append((int(self.env.now), len(self.waiting), len(self.active), *sizes))

    def _cached(self, tier: str) -> int:
        """Return the bytes of kept blocks in a tier."""
        if self.cache is None:
            return 0
        return self.cache.home_bytes if tier == self.memory.home else self.cache.tier_bytes(tier)

    # --- admission ---

    def _admit(self) -> None:
        while self.waiting and len(self.active) < self.max_batch and self._try(self.waiting[0]):
            self.waiting.popleft()

    def _try(self, job: Job) -> bool:
        """Admit a request if there is room for it, with what the cache holds of its prompt."""
        whole = (job.known_tokens - 1) // self.block_tokens
        ids = job.blocks[:whole] if self.cache and not job.spilled_blocks else ()
        found = self.cache.find(ids) if self.cache else []
        at_home = [block for block, tier in zip(ids, found, strict=False) if tier == HOME]
        tokens = job.prompt_tokens + job.output_tokens
        tokens = min(tokens, job.known_tokens + _GROWTH_TOKENS) if self.recompute else tokens
        need = Counter(self.memory.need(tokens))
        if self.cache is not None:
            self.cache.hold(at_home)
            self.cache.touch(found, ids)
            need[self.memory.home] -= len(at_home) * self.cache.block_bytes
        ready = self._take(job, need)
        if ready is None:
            if self.cache is not None:
                self.cache.release(at_home)
            return False
        job.room_tokens, job.holds = tokens, at_home
        self._start(job, found, ids, ready)
        return True

    def _take(self, job: Job, need: Mapping[str, int]) -> int | None:
        """Take bytes for a request; return when they are free, none if there is no room."""
        home, lacking = self.memory.home, 0
        for tier, nbytes in need.items():
            cached = self._cached(tier) if tier == home else 0
            short = self.used[tier] + cached + nbytes - self.memory.capacity[tier]
            if short > (self.cache.free_bytes if self.cache and tier == home else 0):
                return None
            lacking = max(lacking, short) if tier == home else lacking
        ready = int(self.env.now)
        if lacking > 0 and self.cache is not None:
            out, behind = self.cache.evict(lacking)
            ready = max([ready, *(self._send((tier, True), nbytes) for tier, nbytes in out.items())])
            for tier, nbytes in behind.items():
                self._send((tier, True), nbytes)
        for tier, nbytes in need.items():
            self.used[tier] += nbytes
            job.room[tier] = job.room.get(tier, 0) + nbytes
        return ready

    def _send(self, way: Way, nbytes: int) -> int:
        slower = transfer_stretch(self.conflict.get(way, 0.0), len(self.decoding))
        return self.channels[way].send(nbytes, int(self.env.now), slower)

    def _start(self, job: Job, found: Sequence[str], ids: Sequence[int], ready_ps: int) -> None:
        """Load what is in tiers below, and prefill when it is there."""
        now = int(self.env.now)
        if self.cache is not None:
            self.cache.count(found, ids)
            for tier, blocks in Counter(tier for tier in found if tier).items():
                ready_ps = max(ready_ps, self._send((tier, False), blocks * self.cache.block_bytes))
        job.admitted_ps = now if job.admitted_ps < 0 else job.admitted_ps
        ready_ps = max(ready_ps, self._come_back(job))
        job.done = len(found) * self.block_tokens
        job.hit_tokens += job.done
        if job.spilled_blocks:
            job.done, job.spilled_blocks = job.known_tokens - 1, 0
        self.active[job.index] = job
        self._then(ready_ps, job, self.prefilling)

    def _come_back(self, job: Job) -> int:
        """Read the KV of a preempted request from where it is; return when that ends."""
        if not job.spilled_blocks or self.cache is None:
            return 0
        self.cache.lend(self.spill, -job.spilled_blocks)
        self.cache.counts["returned"] += job.spilled_blocks
        return self._send((self.spill, False), job.spilled_blocks * self.cache.block_bytes)

    def _then(self, ready_ps: int, job: Job, queue: list[Job]) -> None:
        """Put a request into a queue when what it waits for is there, unless it was preempted meanwhile."""
        attempt = job.preemptions

        def ready() -> None:
            if job.preemptions == attempt:
                queue.append(job)
                self._wake()

        if ready_ps <= int(self.env.now):
            queue.append(job)
        else:
            call_after(self.env, ready_ps - int(self.env.now), ready)

    def _keep(self, job: Job, ids: Sequence[int]) -> None:
        """Turn room of a request into cached blocks, which it holds until it leaves."""
        assert self.cache is not None
        new = self.cache.add(ids)
        nbytes = len(new) * self.cache.block_bytes
        job.room[self.memory.home] -= nbytes
        self.used[self.memory.home] -= nbytes
        job.holds.extend(new)

    def _give_back(self, job: Job) -> None:
        for tier, nbytes in job.room.items():
            self.used[tier] -= nbytes
        if self.cache is not None:
            self.cache.release(job.holds)
        job.room, job.holds = {}, []

    # --- iterations ---

    def _serve(self) -> Process:
        while True:
            self._join()
            self._admit()
            self._grow()
            self._note()
            if self.prefilling or self.decoding:
                yield from self._iterate()
            else:
                self.conflict = {}
                self.sleeper = self.env.event()
                yield self.sleeper

    def _iterate(self) -> Process:
        chunks = self._chunks()
        while self.events and self._stale(self.events[0]):
            heapq.heappop(self.events)
        count = 1 if chunks else min(_MOST_ITERATIONS, self.events[0][0] - self.iteration)
        contexts = self._contexts(count)
        parts = [(tokens, job.done) for job, tokens in chunks]
        times, self.conflict = self.costs(len(self.decoding), contexts, parts)
        now = int(self.env.now)
        meeting = [share for way, share in self.conflict.items() if self.channels[way].free_ps > now]
        slower = math.prod(step_stretch(share, len(self.decoding)) for share in meeting)
        ends = now + np.cumsum(times if not meeting else np.rint(times * slower).astype(np.int64))
        yield from self._until(int(ends[-1]), alone=count == 1)
        over = int(np.searchsorted(ends, int(self.env.now))) + 1
        if int(self.env.now) < int(ends[over - 1]):
            yield self.env.timeout(int(ends[over - 1]) - int(self.env.now))
        self.busy_ps += int(self.env.now) - now
        self._advance(over, chunks)

    def _until(self, end_ps: int, *, alone: bool) -> Process:
        end = self.env.timeout(end_ps - int(self.env.now))
        if alone:
            yield end
            return
        self.sleeper = self.env.event()
        yield self.sleeper | end
        self.sleeper = None

    def _chunks(self) -> list[tuple[Job, int]]:
        left, chunks = self.prefill_chunk, []
        for job in self.prefilling:
            tokens = min(left, job.known_tokens - job.done)
            chunks.append((job, tokens))
            left -= tokens
            if not left:
                break
        return chunks

    def _contexts(self, count: int) -> Floats:
        """Return the sum of contexts before each of the next iterations."""
        if self.gains is one_by_one:
            first = sum(job.base + self.iteration - job.began for job in self.decoding.values())
            return np.asarray(first + len(self.decoding) * np.arange(count), np.float64)
        total = np.zeros(count)
        for job in self.decoding.values():
            assert job.gained is not None
            at = self.iteration - job.began
            total += job.base + job.gained[at : at + count]
        return total

    def _advance(self, count: int, chunks: Sequence[tuple[Job, int]]) -> None:
        self.iterations += count
        if self.decoding:
            self.iteration += count
        while self.events and (self._stale(self.events[0]) or self.events[0][0] <= self.iteration):
            _, index, attempt = heapq.heappop(self.events)
            job = self.decoding.get(index)
            if job is not None and job.preemptions == attempt:
                self._reach(job)
        for job, tokens in chunks:
            ready_ps = self._settle(job.done, job.done + tokens)
            job.done += tokens
            job.prefilled_tokens += tokens
            if job.done == job.known_tokens:
                self.prefilling.remove(job)
                if job.first_token_ps < 0:
                    job.prefilled_ps = int(self.env.now)
                self._then(ready_ps, job, self.joining)

    def _settle(self, begin: int, end: int) -> int:
        """Send what a chunk leaves to be moved; return when that ends."""
        self.settled[begin, end] += 1
        nbytes = self.settled_bytes(begin, end)
        return self._send(SETTLE, nbytes) if nbytes else int(self.env.now)

    def _join(self) -> None:
        """Let prompts that are in make their first tokens."""
        joining = self.joining[:]
        self.joining.clear()
        for job in joining:
            self._first_token(job)

    def _stale(self, event: tuple[int, int, int]) -> bool:
        job = self.decoding.get(event[1])
        return job is None or job.preemptions != event[2]

    def _first_token(self, job: Job) -> None:
        if self.cache is not None:
            self._keep(job, job.blocks)
        if job.first_token_ps < 0:
            job.first_token_ps = int(self.env.now)
        job.base = job.known_tokens
        job.decoded_tokens += 1
        job.began = self.iteration
        if job.decoded_tokens == job.output_tokens:
            self._leave(job)
            return
        job.gained = self.gains(job.index, job.preemptions, job.output_tokens - job.decoded_tokens)
        self.decoding[job.index] = job
        self._schedule(job)

    def _schedule(self, job: Job) -> None:
        """Note the iteration after which a request has all its tokens, or no more room for one."""
        assert job.gained is not None
        last = len(job.gained) - 1
        if self.recompute and job.room_tokens < job.prompt_tokens + job.output_tokens:
            fitting = int(np.searchsorted(job.gained, job.room_tokens - job.base, side="right")) - 1
            last = min(last, fitting)
        heapq.heappush(self.events, (job.began + last, job.index, job.preemptions))

    def _catch_up(self, job: Job) -> None:
        """Count the tokens that a request has gained since it began to decode."""
        assert job.gained is not None
        gained = int(job.gained[self.iteration - job.began])
        job.decoded_tokens = job.base - job.prompt_tokens + 1 + gained

    def _reach(self, job: Job) -> None:
        self._catch_up(job)
        if job.decoded_tokens == job.output_tokens:
            del self.decoding[job.index]
            self._leave(job)

    # --- growth ---

    def _grow(self) -> None:
        """Give decoding requests room for further tokens, oldest first; the youngest give way."""
        if not self.recompute:
            return
        for job in list(self.decoding.values()):
            assert job.gained is not None
            full = job.prompt_tokens + job.output_tokens
            at = self.iteration - job.began
            while job.index in self.decoding and job.room_tokens < full and self._is_full(job, at):
                tokens = min(full, job.room_tokens + _GROWTH_TOKENS)
                before, after = self.memory.need(job.room_tokens), self.memory.need(tokens)
                more = {tier: after[tier] - before.get(tier, 0) for tier in after}
                if self._take(job, more) is None:
                    self._preempt(next(reversed(self.active.values())))
                else:
                    job.room_tokens = tokens
                    self._schedule(job)

    @staticmethod
    def _is_full(job: Job, at: int) -> bool:
        """Tell whether the tokens of the next iteration do not fit."""
        assert job.gained is not None
        return bool(job.base + int(job.gained[at + 1]) > job.room_tokens)

    def _preempt(self, job: Job) -> None:
        if job.index in self.decoding:
            self._catch_up(job)
            del self.decoding[job.index]
            self._spill(job)
        if job in self.prefilling:
            self.prefilling.remove(job)
        del self.active[job.index]
        self._give_back(job)
        job.preemptions += 1
        job.done = 0
        self.waiting.appendleft(job)

    def _spill(self, job: Job) -> None:
        """Write the KV of a request to the tier below, if there is room; its own room is free at once."""
        if not self.spill or self.cache is None:
            return
        blocks = -(-(job.known_tokens - 1) // self.block_tokens)
        behind = self.cache.lend(self.spill, blocks)
        if behind is None:
            return
        job.spilled_blocks = blocks
        self._send((self.spill, True), blocks * self.cache.block_bytes)
        for tier, nbytes in behind.items():
            self._send((tier, True), nbytes)


# --- arrivals ---------------------------------------------------------------------------------------------------


def open_loop(env: simpy.Environment, server: Server, jobs: Iterable[tuple[int, Job]]) -> Process:
    """Let requests arrive at their times, in ps."""
    for arrival_ps, job in jobs:
        if arrival_ps > env.now:
            yield env.timeout(arrival_ps - int(env.now))
        server.submit(job)


def closed_loop(
    env: simpy.Environment, server: Server, units: deque[Sequence[Job]], clients: int, think_ps: int
) -> None:
    """Start clients that take units of work, each a sequence of requests, until none is left."""

    def client() -> Process:
        while units:
            for job in units.popleft():
                yield server.submit(job)
                yield env.timeout(think_ps)

    for _ in range(clients):
        env.process(client())


def check(server: Server, jobs: Sequence[Job]) -> None:
    """Raise `InvariantError` if a token was lost or made twice, or room was not given back."""
    for job in jobs:
        made = 0 if job.rejected else job.output_tokens
        if job.decoded_tokens != made or (job.finish_ps < job.first_token_ps):
            raise InvariantError(f"found {job.decoded_tokens} tokens of request {job.index}, expected {made}")
    if any(server.used.values()) or (server.cache is not None and server.cache.held):
        raise InvariantError("found room that is taken after the last request left, expected none")
