"""One policy on one head: which positions are read at each step, and what that loses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ghostsim.config.policy import (
    Above,
    AllRule,
    Certify,
    ExactScore,
    IntFormat,
    Margin,
    NoneRule,
    Policy,
    Published,
    PublishedScore,
    TopFrac,
    TopK,
)
from ghostsim.errors import ConfigError
from ghostsim.policy.attended import LossyReader, exact_output, read_output, relative_error
from ghostsim.policy.cold import (
    Cold,
    Oracle,
    Pins,
    certificate,
    certified_read,
    exponentials,
    fitting_rows,
    masked_sum,
    page_sizes,
    pins_of,
)
from ghostsim.policy.costs import index_stages
from ghostsim.policy.exact import Array, Block, blocks, wide_sum
from ghostsim.policy.indexes import BoxIndex, TokenIndex, build, page_scores, token_scores
from ghostsim.policy.keep import Clause, agreed_top, budget, combined, stored_by_any
from ghostsim.policy.rows import HeadRows, empty_rows
from ghostsim.policy.rules import Mask
from ghostsim.trace.compose import Head

ORACLE_EPS = 0.01


@dataclass(eq=False)
class Evaluation:
    """The running evaluation of one policy on one head."""

    policy: Policy
    head: Head
    index: TokenIndex | BoxIndex | None
    rows: HeadRows
    pins: Pins
    clauses: list[Clause]
    norms: Array
    """[positions] ||k||."""
    bounds: Array | None = None
    reads: Mask = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    reader: LossyReader | None = None

    @property
    def scores_needed(self) -> bool:
        """Whether the READ rule looks at scores."""
        return not isinstance(self.policy.read.rule, AllRule | NoneRule)

    def begin(self, block: Block) -> None:
        """Score the units of a block."""
        self.bounds = self._bounds(block) if self.scores_needed else None
        self.reads = np.zeros((block.steps, block.scores.shape[-1]), dtype=bool)

    def step(self, block: Block, i: int, oracle: Oracle) -> None:
        """Evaluate step i of a block."""
        stored = stored_by_any(self.clauses, block, i)
        self.reads[i] = self._step(block, i, self.bounds, stored, oracle)

    def end(self, block: Block, exact: Callable[[], Array]) -> None:
        """Compare the attention output of a block with the exact one."""
        errors, values = self.rows.output_error, self.head.values
        steps = slice(block.first, block.first + block.steps)
        if errors is None or values is None or (self.policy.lossless and not np.any(self.rows.lost_mass[steps])):
            return
        fmt = self.policy.format
        if isinstance(fmt, IntFormat):
            self.reader = self.reader or LossyReader(fmt.int, self.head, values)
            given = self.reader.output(block, self.reads)
        else:
            given = read_output(block, self.reads, values)
        errors[steps] = relative_error(given, exact())

    def _bounds(self, block: Block) -> Array:
        score = self.policy.read.score
        if isinstance(self.index, BoxIndex):
            return page_scores(self.index, block, self.head)
        assert score is not None
        return token_scores(score, self.index, block, self.head)

    def _step(self, block: Block, i: int, bounds: Array | None, stored: Mask | None, oracle: Oracle) -> Mask:
        begin, own, s = int(block.begins[i]), int(block.positions[i]), block.first + i
        c0, c1 = self.pins.cold(begin, own, self.head.context)
        page = self.policy.read.page
        paged = bounds is not None and page > 1
        cold = Cold(block, i, c0, c1, page_sizes(c0, c1, page) if paged else None)
        there = None if stored is None else stored[c0:c1]
        units = None if bounds is None else self._unit_bounds(bounds, cold, page)
        read, unit_mass, unread = self._choose(units, cold, there)
        mask = _full_mask(read, begin, c0, c1, own, block.scores.shape[-1])
        if stored is not None and np.any(mask & ~stored):
            raise ConfigError(
                f"read.pin: found pins that keep evicts (policy {self.policy.name}), expected them stored"
            )
        self._count(s, begin, own, c0, c1, stored, read)
        lost = masked_sum(cold.weights, ~read)
        self.rows.lost_mass[s] = lost / cold.total
        if self.rows.certified_mass is not None and unit_mass is not None:
            self.rows.certified_mass[s] = certificate(unread, unit_mass, lost, cold)
        if units is not None:
            self._check(s, units, cold, there)
        self._compare(s, read, cold, oracle)
        packed = np.packbits(mask, bitorder="little")
        self.rows.sets[s, : len(packed)] = packed
        return mask

    def _unit_bounds(self, bounds: Array, cold: Cold, page: int) -> Array:
        if cold.sizes is None:
            return bounds[cold.step, :, cold.c0 : cold.c1]
        first = cold.c0 // page
        return bounds[cold.step, :, first : first + len(cold.sizes)]

    def _choose(self, units: Array | None, cold: Cold, there: Mask | None) -> tuple[Mask, Array | None, Mask]:
        """Return the cold tokens read, exp(bound - peak) of the units for a certificate, and the units left unread."""
        read = self.policy.read
        mass = None
        if units is None:
            take = np.full(cold.c1 - cold.c0, isinstance(read.rule, AllRule))
        elif isinstance(read.rule, Certify):
            shifted, mass = exponentials(units, cold)
            take = certified_read(read.rule, shifted, mass, cold)
        else:
            take = self._ranked(units if there is None else _hidden(units, cold, there), units.shape[1])
        tokens = cold.tokens(take) if units is not None else take
        return (tokens if there is None else tokens & there), mass, ~take

    def _ranked(self, units: Array, n: int) -> Mask:
        read = self.policy.read
        match read.rule:
            case TopK() | TopFrac():
                pinned = 1 if read.pin.last_page else 0
                return agreed_top(units, budget(read, n) - pinned, read.reduce)
            case Above(above=theta):
                agreed = units.max(axis=0) if read.reduce == "any" else combined(units, read.reduce)
                return np.asarray(agreed >= theta)
            case Margin(margin=margin):
                agreed = units if read.reduce == "any" else combined(units, read.reduce)[None]
                return np.asarray((agreed >= agreed.max(axis=1, keepdims=True, initial=-np.inf) - margin).any(axis=0))
        raise AssertionError(read.rule)

    def _count(self, s: int, begin: int, own: int, c0: int, c1: int, stored: Mask | None, read: Mask) -> None:
        rows = self.rows
        rows.attended[s] = own + 1 - begin
        rows.cold_tokens[s] = c1 - c0
        rows.hot_tokens[s] = own + 1 - begin - (c1 - c0)
        rows.stored_tokens[s] = own + 1 if stored is None else np.count_nonzero(stored)
        rows.read_tokens[s] = np.count_nonzero(read)
        rows.read_runs[s] = np.count_nonzero(read[1:] & ~read[:-1]) + (1 if len(read) and read[0] else 0)
        if self.scores_needed and len(rows.scanned):
            rows.scanned[:, s] = self._scanned(begin, own, c0, c1, stored)

    def _scanned(self, begin: int, own: int, c0: int, c1: int, stored: Mask | None) -> int:
        page = self.policy.read.page
        if page > 1 and not isinstance(self.policy.read.rule, Certify):
            return own // page - begin // page + 1
        if page > 1:
            return (c1 - 1) // page - c0 // page + 1 if c1 > c0 else 0
        return c1 - c0 if stored is None else int(np.count_nonzero(stored[c0:c1]))

    def _check(self, s: int, units: Array, cold: Cold, there: Mask | None) -> None:
        """Compare the claimed bound of every cold stored token with its exact score, in the scale of the claim."""
        rows = self.rows
        if rows.violations is None or rows.violated_mass is None:
            return
        rows.bound_checks[s] = cold.c1 - cold.c0 if there is None else np.count_nonzero(there)
        if isinstance(self.policy.read.score, ExactScore):
            return
        claimed = units if cold.sizes is None else np.repeat(units, cold.sizes, axis=1)
        exact = self._claimed_exact(cold)
        if not np.any(claimed < exact):
            return
        wrong = claimed + self._tolerance(cold) < exact
        if there is not None:
            wrong &= there
        rows.violations[s] = np.count_nonzero(wrong, axis=1)
        rows.violated_mass[s] = wide_sum(cold.weights * wrong) / cold.total

    def _claimed_exact(self, cold: Cold) -> Array:
        """Return the exact score [g, tokens] in the scale of the claim."""
        products = cold.block.products[cold.step, :, cold.c0 : cold.c1]
        match self.policy.read.score:
            case PublishedScore(published=Published(scale="cosine")):
                size = self._sizes(cold) * self.head.scale
                return np.asarray(products / np.maximum(size, np.finfo(np.float32).tiny))
            case PublishedScore(published=Published(dims=m)):
                return np.asarray(products * products.dtype.type(1 / (self.head.scale * np.sqrt(m))))
        return cold.block.scores[cold.step, :, cold.c0 : cold.c1]

    def _tolerance(self, cold: Cold) -> Array:
        """Return d 2^-24 ||q|| ||k|| [g, tokens] in the scale of the claim."""
        sizes = self._sizes(cold) * (self.head.keys.shape[1] * 2.0**-24)
        match self.policy.read.score:
            case PublishedScore(published=Published(scale="cosine")):
                return np.full_like(sizes, self.head.keys.shape[1] * 2.0**-24)
            case PublishedScore(published=Published(dims=m)):
                return np.asarray(sizes / np.sqrt(m))
        return np.asarray(sizes * self.head.scale)

    def _sizes(self, cold: Cold) -> Array:
        """Return ||q|| ||k|| [g, tokens]."""
        queries = np.linalg.norm(cold.block.queries[cold.step], axis=1).astype(self.norms.dtype)
        return np.asarray(queries[:, None] * self.norms[None, cold.c0 : cold.c1])

    def _compare(self, s: int, read: Mask, cold: Cold, oracle: Oracle) -> None:
        """Compare with the exact top 32 and with the oracle's reads."""
        top = cold.block.top[cold.step]
        inside = (top >= cold.c0) & (top < cold.c1)
        eliminated = inside.copy()
        eliminated[inside] = ~read[top[inside] - cold.c0]
        self.rows.top_cold[s] = inside.sum(axis=1)
        self.rows.top_eliminated[s] = eliminated.sum(axis=1)
        rule = self.policy.read.rule
        eps = rule.certify if isinstance(rule, Certify) else ORACLE_EPS
        best = oracle.read(eps, cold.c0, cold.c1)
        self.rows.oracle_reads[s] = np.count_nonzero(best)
        self.rows.needless_reads[s] = np.count_nonzero(read & ~best)


def _hidden(units: Array, cold: Cold, there: Mask) -> Array:
    """Give units without a stored token the score -inf."""
    if cold.sizes is not None and len(cold.sizes):
        there = np.logical_or.reduceat(there, np.cumsum(cold.sizes) - cold.sizes)
    return np.where(there, units, -np.inf)


def _full_mask(read: Mask, begin: int, c0: int, c1: int, own: int, size: int) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[begin:c0] = True
    mask[c0:c1] = read
    mask[c1 : own + 1] = True
    return mask


def key_norms(head: Head) -> Array:
    """Return ||k|| [positions]."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", head.keys, head.keys)))


def evaluate_heads(policies: Sequence[Policy], head: Head) -> list[HeadRows]:
    """Evaluate policies on one head; keys, scores, softmax sums, indexes and oracles are shared between them."""
    runs = _start(policies, head)
    for block in blocks(head):
        for run in runs:
            run.begin(block)
        for i in range(block.steps):
            oracle = Oracle(block, i)
            for run in runs:
                run.step(block, i, oracle)
        exact = functools.cache(functools.partial(_exact_output, block, head))
        for run in runs:
            run.end(block, exact)
    return [run.rows for run in runs]


def _exact_output(block: Block, head: Head) -> Array:
    assert head.values is not None
    return exact_output(block, head.values)


def evaluate_head(policy: Policy, head: Head) -> HeadRows:
    """Evaluate one policy on one head.

    Scores are computed in the dtype of the head's keys (float64 for recorded workloads), sums of exp in float64.
    """
    return evaluate_heads([policy], head)[0]


def _start(policies: Sequence[Policy], head: Head) -> list[Evaluation]:
    built: dict[tuple[str, int, int], TokenIndex | BoxIndex | None] = {}
    norms, runs = key_norms(head), []
    for policy in policies:
        pins = pins_of(policy)
        fit = fitting_rows(pins, head.context)
        score = policy.read.score
        index = None
        if score is not None and not isinstance(policy.read.rule, AllRule | NoneRule):
            key = (score.model_dump_json(), fit.start, fit.stop)
            if key not in built:
                built[key] = build(score, head, fit)
            index = built[key]
        stages = index_stages(policy, head.keys.shape[1])
        shape = (head.queries.shape[0], head.queries.shape[1])
        rows = empty_rows(policy, stages, shape, len(head.keys), head.values is not None)
        runs.append(Evaluation(policy, head, index, rows, pins, [Clause(keep, head) for keep in policy.keep], norms))
    return runs
