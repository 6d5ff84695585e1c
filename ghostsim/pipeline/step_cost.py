"""What an iteration of a serving system costs: decode steps and bulk transfers as the whole simulation has them.

A decode step is simulated flow by flow at the nodes of a grid over batch and context. Between nodes its time is
bilinear, which is exact for what is fixed, per request, per token of context or per byte.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostsim.config.model import Model
from ghostsim.config.scenario import Run
from ghostsim.devices.gpu_arch import gemm_params
from ghostsim.engine.clock import PS_PER_S, PS_PER_US
from ghostsim.engine.probes import UtilisationProbe
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.decode import decode, machine_of, own_use
from ghostsim.pipeline.executor import Executor
from ghostsim.pipeline.measured import Bulk, Measured
from ghostsim.pipeline.parallel import all_reduce_ps
from ghostsim.pipeline.settling import Settling
from ghostsim.plan.plan import Work, build
from ghostsim.plan.selection import Selection
from ghostsim.policy.placement import Placement
from ghostsim.timing.gpu_kernels import GemmShape, gemm_us

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Chunk = tuple[int, int]
"""Prompt tokens that an iteration takes in of one request, and tokens of it that are in the cache before."""
Way = tuple[str, bool]
"""A tier and whether it is written."""
SETTLE: Way = ("settle", True)
"""What prompts leave behind, on its way to its tiers."""

_SMALL_BULK, _LARGE_BULK = 2**26, 2**30


def spread(selection: Selection, batch: int) -> Selection:
    """Return a Selection of `batch` requests: request r reads as request r mod n does."""
    return replace(selection, unit_of=selection.unit_of[np.arange(batch) % len(selection.unit_of)])


def verified(selection: Selection, queries: int) -> Selection:
    """Return one step per group of `queries` steps that are verified together: one scan serves all their queries."""
    if queries == 1:
        return selection
    whole = selection.steps // queries * queries
    unit_axis = {"unit_of", "sets"}
    cut: dict[str, Any] = {}
    for item in fields(selection):
        value = getattr(selection, item.name)
        if isinstance(value, np.ndarray) and item.name not in unit_axis:
            axis = 2 if item.name in ("scanned", "scan_bytes", "stream_tokens", "stream_bytes") else 1
            cut[item.name] = value[(slice(None),) * axis + (slice(0, whole, queries),)]
    stages = tuple(replace(stage, macs=stage.macs * queries) for stage in selection.stages)
    return replace(selection, stages=stages, **cut)


def measure_step(run: Run, model: Model, selection: Selection, batch: int, late_ps: int = 0) -> Measured:
    """Simulate the decode steps of a Selection; each takes `late_ps` of GPU time more, spread over its layers."""
    late = {"qkv": late_ps // model.layers}
    ready = decode(run, model, spread(selection, batch), batch, late)
    probe = UtilisationProbe(ready.network)
    times = Executor(ready.env, ready.network, ready.plan, ready.bound).run()
    return Measured(int(times.finish.max()) / ready.plan.steps, own_use(run, ready.network, probe))


def measure_bulk(run: Run, model: Model, way: Way, piece_bytes: int) -> Bulk:
    """Simulate a copy of pieces from or to the devices of a tier on an idle machine."""
    small, large = (_copy(run, model, way, nbytes, piece_bytes) for nbytes in (_SMALL_BULK, _LARGE_BULK))
    return Bulk.between(small, _SMALL_BULK, large, _LARGE_BULK)


def _copy(run: Run, model: Model, way: Way, nbytes: int, piece_bytes: int) -> Measured:
    tier, write = way
    machine, env, network = machine_of(run)
    pieces = max(1, nbytes // piece_bytes)
    row = Work("bulk", "write" if write else "read", "cold", nbytes=nbytes, records=pieces, runs=pieces)
    plan = build([row], {"cold": tier}, 1, 1)
    bound = Binder(machine, model, Placement(tier, "hbm", "gpu", "dma", 1, "ids"), (), 1).bind(plan)
    probe = UtilisationProbe(network)
    times = Executor(env, network, plan, bound).run()
    return Measured(float(times.finish.max()), own_use(run, network, probe))


class Surface:
    """Quantities over batch and context, measured at the nodes of a grid when they are first needed.

    Parameters
    ----------
    measure
        Returns the quantities [v] at a node (batch, context).
    batches, contexts
        Nodes of the axes, ascending.
    """

    def __init__(
        self, measure: Callable[[int, int], Sequence[float]], batches: Sequence[int], contexts: Sequence[int]
    ) -> None:
        self.measure = lru_cache(maxsize=None)(measure)
        self.batches, self.contexts = tuple(batches), tuple(contexts)
        self._axis = np.array(contexts, np.float64)

    @property
    def nodes(self) -> int:
        """Nodes measured so far."""
        return self.measure.cache_info().currsize

    def __call__(self, batch: int, contexts: Floats) -> Floats:
        """Return the quantities [k, v] of one batch at mean contexts [k]; beyond the grid its edge counts."""
        low, share = _between(self.batches, batch)
        found = self._at(self.batches[low], contexts)
        if share:
            found = found + share * (self._at(self.batches[low + 1], contexts) - found)
        return found

    def _at(self, batch: int, contexts: Floats) -> Floats:
        inside = np.clip(contexts, self._axis[0], self._axis[-1])
        high = np.clip(np.searchsorted(self._axis, inside, side="right"), 1, len(self._axis) - 1)
        if len(self._axis) == 1:
            return np.tile(np.asarray(self.measure(batch, self.contexts[0])), (len(inside), 1))
        first, last = int(high.min()) - 1, int(high.max())
        table = np.array([self.measure(batch, context) for context in self.contexts[first : last + 1]])
        below, above = self._axis[high - 1], self._axis[high]
        share = ((inside - below) / (above - below))[:, None]
        low, up = table[high - 1 - first], table[high - first]
        return np.asarray(low + share * (up - low))


def _between(nodes: Sequence[int], value: int) -> tuple[int, float]:
    """Return the node at or below a value, and how far the value is on the way to the next."""
    at = min(max(bisect_right(nodes, value) - 1, 0), len(nodes) - 1)
    if at == len(nodes) - 1 or value <= nodes[at]:
        return at, 0.0
    return at, (value - nodes[at]) / (nodes[at + 1] - nodes[at])


class Prefill:
    """Time that prompt tokens add to an iteration: matrix products, causal attention over the prompt so far, an index.

    Matrix products read their weights once for all tokens of the iteration. Attention is a roofline over the
    arithmetic and the KV that it reads; where KV lives outside HBM, over the copies of what came before as well.
    """

    def __init__(self, settling: Settling, efficiency: float, token_bytes: int, home: Bulk | None) -> None:
        run, model = settling.run, settling.model
        gpu = machine_of(run)[0].gpu
        self.settling, self.run, self.model, self.spec = settling, run, model, gpu.spec
        self.params = gemm_params(gpu.part.architecture)
        self.flops_per_s = efficiency * gpu.spec.peak_flops
        self.token_bytes, self.home = token_bytes, home
        self.gemm_ps = lru_cache(maxsize=None)(self._gemm_ps)

    def _gemm_ps(self, tokens: int) -> float:
        """Return the time of all layers' matrix products and all-reduces for some tokens."""
        if not tokens:
            return 0.0
        m = self.model
        shapes = (
            ((m.q_heads + 2 * m.kv_heads) * m.head_dim, m.hidden),
            (m.hidden, m.q_heads * m.head_dim),
            (2 * m.intermediate, m.hidden),
            (m.hidden, m.intermediate),
        )
        layer = sum(self._product_ps(tokens, n, k) for n, k in shapes) + 2 * all_reduce_ps(self.run, m, tokens)
        return layer * m.layers

    def _product_ps(self, m: int, n: int, k: int) -> float:
        return gemm_us(self.spec, self.params, GemmShape(m, n, k, self.model.bytes_per_weight)) * PS_PER_US

    def attention_ps(self, chunk: Chunk) -> float:
        """Return the time of all layers' attention of `chunk` tokens, each over all that stand before it."""
        tokens, past = chunk
        m = self.model
        pairs = tokens * past + tokens * (tokens + 1) / 2
        flops = 4 * m.head_dim * m.q_heads * m.layers * pairs
        near = (past + tokens) * self.token_bytes / (self.params.hbm_efficiency * self.spec.hbm_bytes_per_s)
        away = past * self.token_bytes / self.home.bytes_per_s if self.home else 0.0
        return max(flops / self.flops_per_s, near, away) * PS_PER_S

    def index_ps(self, chunk: Chunk) -> float:
        """Return the time of the GPU's part in the index of `chunk` tokens."""
        tokens, past = chunk
        return self.settling.kernel_ps(self.settling.amount(past + tokens) - self.settling.amount(past))

    def added_ps(self, batch: int, queries: int, chunks: Sequence[Chunk]) -> float:
        """Return what prompt tokens, and further queries of each of `batch` requests, add to a decode step."""
        tokens = batch * queries + sum(chunk for chunk, _ in chunks)
        own = sum(self.attention_ps(chunk) + self.index_ps(chunk) for chunk in chunks)
        return self.gemm_ps(tokens) - self.gemm_ps(batch) + own

    def alone_ps(self, chunks: Sequence[Chunk]) -> float:
        """Return the time of an iteration without a decode step."""
        head = self._product_ps(1, self.model.vocabulary, self.model.hidden)
        return self.added_ps(0, 1, chunks) + head


class IterationCosts:
    """Durations of iterations: the surface of decode steps, and prefill on top.

    The surface holds the step, the part of added GPU time that hides behind fetches, and the conflict with each way
    of bulk transfers.
    """

    def __init__(
        self, surface: Surface, prefill: Prefill, ways: Sequence[Way], queries: int = 1, draft_ps: int = 0
    ) -> None:
        self.surface, self.prefill, self.ways = surface, prefill, tuple(ways)
        self.queries, self.draft_ps = queries, draft_ps

    def __call__(self, batch: int, contexts: Floats, chunks: Sequence[Chunk]) -> tuple[Ints, Mapping[Way, float]]:
        """Return durations in ps [k] of consecutive iterations at sums of contexts [k], and the conflicts by way."""
        if not batch:
            return np.array([round(self.prefill.alone_ps(chunks))], np.int64), {}
        found = self.surface(batch, contexts / batch)
        added = self.prefill.added_ps(batch, self.queries, chunks) + self.draft_ps
        times = found[:, 0] + np.maximum(0.0, added - found[:, 1])
        return np.rint(times).astype(np.int64), dict(zip(self.ways, found[0, 2:].tolist(), strict=True))
