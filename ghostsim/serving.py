"""The serving side of a scenario: from a request workload and Selections at several contexts to requests served."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostsim.config.base import MisfitError
from ghostsim.config.model import Model
from ghostsim.config.scenario import Run, Scenario
from ghostsim.config.serving import Serving, Sessions, Speculation
from ghostsim.engine.clock import PS_PER_S, CountingEnvironment
from ghostsim.metrics.serving import Served
from ghostsim.pipeline.capacity import footprint, stored_tokens
from ghostsim.pipeline.measured import Bulk
from ghostsim.pipeline.parallel import own_model
from ghostsim.pipeline.prefix_cache import PrefixCache
from ghostsim.pipeline.serving import (
    Channel,
    Gains,
    Job,
    Memory,
    Server,
    check,
    closed_loop,
    one_by_one,
    open_loop,
)
from ghostsim.pipeline.settling import Settling
from ghostsim.pipeline.step_cost import (
    SETTLE,
    IterationCosts,
    Prefill,
    Surface,
    Way,
    measure_bulk,
    measure_step,
    verified,
)
from ghostsim.plan.selection import Selection
from ghostsim.policy.costs import format_bytes
from ghostsim.seeding import generator
from ghostsim.trace.agent_sessions import AgentTurns, agent_sessions
from ghostsim.trace.compose import MIN_CONTEXT
from ghostsim.trace.format import file_sha256
from ghostsim.trace.request_forms import find_requests, import_requests
from ghostsim.trace.requests import Requests

_SMALLEST_CONTEXT = 512
_ANY_LENGTH = 2**20
_PROBES = 3


# --- what is asked for --------------------------------------------------------------------------------------------


def requests_of(serving: Serving, seed: int) -> Requests:
    """Return the request workload, its first `count` requests, without those that failed when they were recorded.

    Raises
    ------
    MisfitError, TraceError
        If there are fewer requests than asked for, or the file is not a request trace.
    """
    found = _drawn(serving.sessions, seed) if serving.sessions else import_requests(serving.requests or "")
    if serving.count is not None and serving.count > len(found):
        message = f"found {serving.count}, expected at most the {len(found)} requests there are"
        raise MisfitError(f"serving.count: {message}", "serving", "count")
    if not jobs_of(serving, found):
        raise MisfitError("serving.requests: found none with a prompt and an output, expected at least one", "serving")
    return found


def request_files(scenario: Scenario) -> dict[str, str]:
    """Return the sha256 of every request workload that runs name."""
    names = dict.fromkeys(run.serving.requests for run in scenario.runs.values() if run.serving)
    files = {name: find_requests(name) for name in names if name}
    return {name: file_sha256(file) for name, file in files.items() if file.is_file()}


def _drawn(sessions: Sessions, seed: int) -> Requests:
    shape = AgentTurns(
        system_tokens=sessions.system_tokens,
        task_tokens=sessions.task_tokens,
        result_tokens=sessions.result_tokens,
        output_tokens=sessions.output_tokens,
        session_gap_ps=sessions.gap,
        tool_ps=sessions.tool,
    )
    return agent_sessions(seed, sessions.count, sessions.turns, shape)


def jobs_of(serving: Serving, requests: Requests) -> list[Job]:
    """Return the requests to serve, with the blocks that they find and those that they leave to later turns."""
    count = serving.count or len(requests)
    jobs, later = [], dict[int, tuple[int, ...]]()
    size = requests.blocks.block_tokens if requests.blocks else 1
    for index in reversed(range(count)):
        request = requests[index]
        if not request.output_tokens or not request.prompt_tokens:
            continue
        blocks = (request.blocks or ())[: request.prompt_tokens // size]
        kept = blocks
        if request.session is not None:
            following = later.get(request.session, ())
            if following[: len(blocks)] == blocks:
                kept = following[: (request.prompt_tokens + request.output_tokens - 1) // size]
            later[request.session] = blocks
        jobs.append(Job(index, request.prompt_tokens, request.output_tokens, blocks, kept))
    return jobs[::-1]


def contexts_of(jobs: Sequence[Job]) -> tuple[int, ...]:
    """Return the contexts at which decode steps are simulated: doubling, around all that a mean over a batch can be."""
    shortest = min(job.prompt_tokens for job in jobs)
    longest = max(job.prompt_tokens + job.output_tokens for job in jobs)
    nodes = [max(MIN_CONTEXT, _SMALLEST_CONTEXT)]
    while nodes[-1] < longest:
        nodes.append(2 * nodes[-1])
    first = max(0, sum(node <= shortest for node in nodes) - 1)
    return tuple(nodes[first:])


def batches_of(run: Run, most: int) -> tuple[int, ...]:
    """Return the batches at which decode steps are simulated.

    Attention in HBM runs in waves over the SMs, and a batch more may cost a whole wave: every batch is a node. What
    fetches from other tiers grows smoothly: doubling nodes do.
    """
    if run.kv_tier == "hbm" and run.index_tier == "hbm":
        return tuple(range(1, most + 1))
    return tuple(sorted({most, *(1 << i for i in range(most.bit_length()))}))


def steps_needed(serving: Serving) -> int:
    """Return the decode steps that the workload must hold: as many as are verified together."""
    return serving.speculation.draft + 1 if serving.speculation else 1


# --- the system ---------------------------------------------------------------------------------------------------


class System:
    """One run's costs and memory.

    Parameters
    ----------
    run, model
        A run with a serving block, and the model that its bytes are charged at.
    selections
        Selections by context.
    """

    def __init__(self, run: Run, model: Model, selections: Mapping[int, Selection], block_tokens: int) -> None:
        assert run.serving is not None
        self.run, self.serving, self.model = run, run.serving, own_model(run, model)
        self.queries = steps_needed(self.serving)
        self.selections = {context: verified(each, self.queries) for context, each in selections.items()}
        heads = -(-self.model.layers // run.policy.layer_groups) * self.model.kv_heads
        self.token_bytes = heads * format_bytes(run.policy.keep[0].format, self.model.head_dim)
        self.block_tokens = block_tokens
        whole = stored_tokens(run.policy, _ANY_LENGTH) == _ANY_LENGTH
        below = (self.serving.prefix_cache or {}).items() if whole else ()
        self.below: dict[str, int] = {tier: room for tier, room in below if tier != run.kv_tier}
        self.keeps = self.serving.prefix_cache is not None and whole
        self.bulk = {way: self._bulk(way) for tier in self.below for way in ((tier, False), (tier, True))}
        self.settling = Settling(run, self.model)
        settles = self.settling.bulk(max(self.selections))
        if settles is not None:
            self.bulk[SETTLE] = settles
        self.surface = Surface(self._node, batches_of(run, self.serving.max_batch), sorted(self.selections))

    def _bulk(self, way: Way) -> Bulk:
        piece = self.block_tokens * self.token_bytes // self.model.layers
        return measure_bulk(self.run, self.model, way, max(1, piece))

    def _node(self, batch: int, context: int) -> tuple[float, ...]:
        return self.quantities(self.selections[context], batch)

    def quantities(self, selection: Selection, batch: int) -> tuple[float, ...]:
        """Return the step in ps, the added GPU time that hides behind fetches, and the conflict with each way."""
        step = measure_step(self.run, self.model, selection, batch)
        hidden = 0.0
        if self.run.kv_tier != "hbm" and not selection.stages:  # a fetch that waits for its ids cannot run ahead
            added = int(step.duration_ps)
            loaded = measure_step(self.run, self.model, selection, batch, added)
            hidden = max(0.0, step.duration_ps + added - loaded.duration_ps)
        return (step.duration_ps, hidden, *(bulk.conflict(step.used) for bulk in self.bulk.values()))

    def costs(self) -> IterationCosts:
        """Return what iterations take."""
        home = self._bulk((self.run.kv_tier, False)) if self.run.kv_tier != "hbm" else None
        prefill = Prefill(self.settling, self.serving.prefill_attention, self.token_bytes, home)
        draft = self.serving.speculation.cost if self.serving.speculation else 0
        return IterationCosts(self.surface, prefill, tuple(self.bulk), self.queries, draft)

    def memory(self) -> Memory:
        """Return the room that weights and kept blocks leave to requests."""
        base = footprint(self.run, self.model, 1, 0).tiers
        tiers = dict.fromkeys(("hbm", *footprint(self.run, self.model, 1, 1).tiers))
        capacity = {
            tier: self.run.platform.tier_capacity(tier) - base.get(tier, 0) - self.below.get(tier, 0)  # type: ignore[arg-type]
            for tier in tiers
        }

        @cache
        def need(tokens: int) -> Mapping[str, int]:
            found = footprint(self.run, self.model, tokens, 1).tiers
            return {tier: nbytes - base.get(tier, 0) for tier, nbytes in found.items()}

        return Memory(need, capacity, self.run.kv_tier)

    def prefix_cache(self) -> PrefixCache | None:
        """Return an empty cache, none if the run keeps nothing."""
        return PrefixCache(self.block_tokens * self.token_bytes, self.below) if self.keeps else None

    def spill_tier(self) -> str:
        """Return the tier that takes the KV of preempted requests, nothing if it is computed again."""
        return next(iter(self.below), "") if self.serving.preemption == "spill" and self.keeps else ""

    def settled_bytes(self, begin: int, end: int) -> int:
        """Return the bytes that move once the prompt tokens from `begin` to `end` are computed."""
        return self.settling.moved_bytes(self.settling.amount(end) - self.settling.amount(begin))

    def channels(self) -> dict[Way, Channel]:
        """Return the ways to the tiers below, and that of what settles."""
        return {way: Channel(bulk.latency_ps, bulk.bytes_per_s) for way, bulk in self.bulk.items()}


def gains_of(speculation: Speculation | None, seed: int) -> Gains:
    """Return how many tokens a request gains per iteration: accepted tokens of the draft up to the first miss, and one.

    The draws belong to the request, whatever the order in which requests are served.
    """
    if speculation is None:
        return one_by_one

    def gains(request: int, attempt: int, tokens: int) -> NDArray[np.int64]:
        draw = generator(seed, f"serving/speculation/{request}/{attempt}")
        accepted = draw.random((tokens, speculation.draft)) < speculation.acceptance
        gained = np.cumsum(1 + np.cumprod(accepted, axis=1).sum(axis=1))
        last = int(np.searchsorted(gained, tokens))
        return np.concatenate([[0], np.minimum(gained[: last + 1], tokens)])

    return gains


def serve(
    run: Run, model: Model, selections: Mapping[int, Selection], probes: Mapping[int, Selection], requests: Requests,
    seed: int,
) -> Served:  # fmt: skip
    """Serve the requests of a run.

    Parameters
    ----------
    selections, probes
        Selections at the contexts of the grid, and at those between them where it is checked.
    """
    serving = run.serving
    assert serving is not None
    block_tokens = requests.blocks.block_tokens if requests.blocks else 1
    jobs = jobs_of(serving, requests)
    system = System(run, model, selections, block_tokens)
    env = CountingEnvironment()
    server = Server(
        env, system.costs(), system.memory(), max_batch=serving.max_batch, prefill_chunk=serving.prefill_chunk,
        cache=system.prefix_cache(), block_tokens=block_tokens, channels=system.channels(),
        recompute=serving.preemption != "none", spill=system.spill_tier(), gains=gains_of(serving.speculation, seed),
        settled_bytes=system.settled_bytes,
    )  # fmt: skip
    _arrive(env, server, serving, jobs, requests, seed)
    env.run()
    check(server, jobs)
    ordered = sorted(jobs, key=lambda job: (job.arrival_ps, job.index))
    wanted = serving.prefix_cache is not None and not system.keeps
    return Served(server, ordered, serving.slo, grid_error(system, probes), block_tokens, wanted, system.settling)


def _arrive(
    env: CountingEnvironment, server: Server, serving: Serving, jobs: Sequence[Job], requests: Requests, seed: int
) -> None:
    arrivals = serving.arrivals
    if arrivals.clients is not None:
        closed_loop(env, server, deque(_units(jobs, requests)), arrivals.clients, arrivals.think)
        return
    if arrivals.rate is not None:
        gaps = generator(seed, "serving/arrivals").exponential(PS_PER_S / arrivals.rate, len(jobs))
        times = np.rint(np.cumsum(gaps) - gaps[0]).astype(np.int64)
    else:
        recorded = requests.arrival_ps[[job.index for job in jobs]]
        times = np.rint((recorded - recorded[0]) / (arrivals.scale or 1.0)).astype(np.int64)
    env.process(open_loop(env, server, zip(times.tolist(), jobs, strict=True)))


def _units(jobs: Sequence[Job], requests: Requests) -> list[Sequence[Job]]:
    """Return what a client does in one go: a session, or a request of none."""
    units: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        session = -1 if requests.session is None else int(requests.session[job.index])
        units.setdefault(("session", session) if session >= 0 else ("request", job.index), []).append(job)
    return list(units.values())


def grid_error(system: System, probes: Mapping[int, Selection]) -> dict[str, Any]:
    """Compare the grid with direct simulations between its nodes, at the batches between its batches too."""
    batches = system.surface.batches
    nodes = system.surface.nodes
    errors = []
    for number, (context, selection) in enumerate(sorted(probes.items())):
        batch = _between_nodes(batches, number)
        direct = system.quantities(verified(selection, system.queries), batch)[0]
        grid = float(system.surface(batch, np.array([float(context)]))[0, 0])
        errors.append(abs(grid / direct - 1))
    return {"nodes": nodes, "probes": len(errors), "max_error": max(errors, default=0.0)}


def _between_nodes(batches: Sequence[int], number: int) -> int:
    pairs = [(low + high) // 2 for low, high in pairwise(batches) if high - low > 1]
    return pairs[-1 - number % len(pairs)] if pairs else batches[-1]


def probe_contexts(contexts: Sequence[int]) -> tuple[int, ...]:
    """Return contexts in the middle between those of the grid, at most three."""
    middles = [(low + high) // 2 for low, high in pairwise(contexts)]
    picked = np.linspace(0, len(middles) - 1, min(_PROBES, len(middles))).round().astype(int)
    return tuple(middles[i] for i in picked)
