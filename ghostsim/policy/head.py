"""Policies on heads: which positions are read at each step, what that moves, and what it loses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ghostsim.config.policy import Estimate, Policy
from ghostsim.config.scores import ExactScore, MeanScore, Published, PublishedScore
from ghostsim.errors import ConfigError, TraceError
from ghostsim.plan.selection import IndexStage
from ghostsim.policy import scoring
from ghostsim.policy.attended import Notes, Reader, exact_output, relative_error, served
from ghostsim.policy.clusters import ClusterIndex
from ghostsim.policy.cold import (
    Cold,
    Oracle,
    Pins,
    bound_on,
    certificate,
    exponentials,
    fitting_rows,
    masked_sum,
    pins_of,
)
from ghostsim.policy.costs import Part, index_stage, index_stages, parts_of, state_bytes, streams_of
from ghostsim.policy.exact import BLOCK_ELEMENTS, Array, Block, Floats, blocks, wide_sum
from ghostsim.policy.keep import Clause, keep_together, stored_by_each, union
from ghostsim.policy.pages import outlier_pages
from ghostsim.policy.residency import Residency
from ghostsim.policy.rows import HeadRows, Sizes, empty_rows
from ghostsim.policy.rules import Mask, agreed_top
from ghostsim.policy.stages import Offer, Stage, Taken, take, take_together
from ghostsim.trace.compose import Head

ORACLE_EPS = 0.01


@dataclass(eq=False)
class Step:
    """One step of a policy on a head while its stages take turns."""

    block: Block
    i: int
    begin: int
    own: int
    cold: Cold
    stored: Mask | None
    """[P] what some KEEP clause stores; None: everything."""
    served: list[Mask | None]
    """[P] what each clause serves; None: everything."""
    there: Mask | None
    """[tokens] cold tokens that are stored; None: all of them."""
    oracle: Oracle
    alive: Mask | None = None
    gone: Floats | None = None
    upper: Floats | None = None
    """[g] what is bounded to be lost by the stages so far."""
    added: Mask | None = None
    removed: Mask | None = None
    offer: Offer | None = None


@dataclass(eq=False)
class Evaluation:
    """The running evaluation of one policy on one head."""

    policy: Policy
    head: Head
    stages: list[Stage]
    extra: list[Stage]
    """Selectors whose choice is added (`also`), then those whose choice is taken away (`less`)."""
    costs: tuple[IndexStage, ...]
    cost_of: tuple[int | None, ...]
    """Row of `costs` of each stage; None where it is not charged."""
    parts: tuple[Part, ...]
    rows: HeadRows
    pins: Pins
    clauses: list[Clause]
    norms: Array
    """[positions] ||k||."""
    asked: Array
    """[steps, g, d] the queries that scores are computed for."""
    resident: Mask | None = None
    """[positions] tokens that are always read, beside the pins."""
    residency: Residency | None = None
    reader: Reader | None = None
    reads: Mask = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    notes: Notes = field(default_factory=Notes)

    # --- a block ---

    def begin(self, block: Block) -> None:
        """Score the units of a block."""
        queries = self.asked[block.first : block.first + block.steps]
        for stage in (*self.stages, *self.extra):
            stage.begin(block, queries)
        self.reads = np.zeros((block.steps, block.scores.shape[-1]), dtype=bool)
        self.notes = Notes()

    def end(self, block: Block, exact: Callable[[], Array]) -> None:
        """Compare the attention output of a block with the exact one."""
        errors = self.rows.output_error
        steps = slice(block.first, block.first + block.steps)
        plain = self.policy.lossless and self.policy.read.completion in ("renormalise", "track")
        if errors is None or (plain and not np.any(self.rows.lost_mass[steps])):
            return
        self.reader = self.reader or Reader(self.policy, self.head)
        index = self.stages[0].index
        clusters = index if isinstance(index, ClusterIndex) else None
        given = self.reader.output(block, self.reads, self.notes, clusters)
        errors[steps] = relative_error(given, exact())

    # --- a step: stage by stage, so that heads may choose together ---

    def open(self, block: Block, i: int, oracle: Oracle) -> Step:
        """Divide the positions of step i of a block into hot and cold."""
        begin, own = int(block.begins[i]), int(block.positions[i])
        c0, c1 = self.pins.cold(begin, own, self.head.context)
        each = stored_by_each(self.clauses, block, i)
        stored = union(each)
        there = None if stored is None else stored[c0:c1]
        step = Step(
            block, i, begin, own, Cold(block, i, c0, c1), stored, served(each, block.scores.shape[-1]), there, oracle
        )
        step.alive = there
        if self.resident is not None:
            free = ~self.resident[c0:c1]
            step.alive = free if there is None else there & free
        return step

    def ask(self, step: Step, number: int) -> Offer:
        """Return what stage `number` may take of what is left."""
        gone = np.zeros(len(step.cold.total)) if step.gone is None else step.gone
        stage = (*self.stages, *self.extra)[number]
        alive = step.alive if number < len(self.stages) else step.there
        step.offer = stage.offer(step.cold, alive, gone)
        row, s = self.cost_of[number], step.block.first + step.i
        if row is not None:
            records = stage.scanned(step.cold, step.begin, step.own, alive, first=number == 0)
            self._charge(s, row, records)
        return step.offer

    def _charge(self, s: int, row: int, records: int) -> None:
        self.rows.scanned[row, s] = records
        self.rows.scan_bytes[row, s] = self.costs[row].nbytes(records)

    def give(self, step: Step, number: int, taken: Taken) -> None:
        """Leave what stage `number` did not take."""
        if number >= len(self.stages):
            self._combine(step, number - len(self.stages), taken)
            return
        before, tokens, offer = step.alive, taken.tokens, step.offer
        if taken.mass is not None and offer is not None:
            upper = bound_on(~taken.units, taken.mass, offer.units)
            step.upper = upper if step.upper is None else step.upper + upper
        step.alive = tokens if before is None else tokens & before
        if number + 1 < len(self.stages):
            step.gone = masked_sum(step.cold.weights, ~step.alive)
        if number == 0 and offer is not None and offer.raw is not None:
            self._check(step, offer)
            self._complete(step, offer, taken)

    def _combine(self, step: Step, place: int, taken: Taken) -> None:
        if place < len(self.policy.read.also):
            step.added = taken.tokens if step.added is None else step.added | taken.tokens
        else:
            step.removed = taken.tokens if step.removed is None else step.removed | taken.tokens

    def _complete(self, step: Step, offer: Offer, taken: Taken) -> None:
        """Note what the softmax sum is completed with."""
        zone = self.policy.read.completion
        if zone == "add_bound" and offer.raw is not None:
            _, mass = exponentials(offer.raw, step.cold)
            self.notes.upper.append(bound_on(~taken.units, mass, offer.units))
        if isinstance(zone, Estimate) and offer.scores is not None:
            left = np.where(taken.units, -np.inf, offer.scores)
            count = int(zone.estimate * offer.units.count)
            self.notes.zones.append(agreed_top(left, count, "mean" if len(left) > 1 else "any"))
            self._charge(step.block.first + step.i, len(self.costs) - 1, count)

    def close(self, step: Step) -> None:
        """Count what is read and lost."""
        cold, s = step.cold, step.block.first + step.i
        read = self._final(step)
        mask = _full_mask(read, step)
        if step.stored is not None and np.any(mask & ~step.stored):
            raise ConfigError(
                f"read.pin: found pins that keep evicts (policy {self.policy.name}), expected them stored"
            )
        self.reads[step.i] = mask
        self.notes.served.append(step.served)
        self._count(s, step, read)
        self._stream(s, step, mask, read)
        lost = masked_sum(cold.weights, ~read)
        self.rows.lost_mass[s] = lost / cold.total
        if self.rows.certified_mass is not None and step.upper is not None:
            self.rows.certified_mass[s] = certificate(step.upper, lost, cold)
        self._compare(s, read, cold, step.oracle)
        packed = np.packbits(mask, bitorder="little")
        self.rows.sets[s, : len(packed)] = packed

    def _final(self, step: Step) -> Mask:
        cold = step.cold
        read = np.ones(cold.size, dtype=bool) if step.alive is None else step.alive
        if step.added is not None:
            read = read | step.added
        if step.removed is not None:
            read = read & ~step.removed
        if self.resident is not None:
            read = read | self.resident[cold.c0 : cold.c1]
        return read if step.there is None else read & step.there

    # --- counting ---

    def _count(self, s: int, step: Step, read: Mask) -> None:
        rows, size = self.rows, step.cold.size
        rows.attended[s] = step.own + 1 - step.begin
        rows.cold_tokens[s] = size
        rows.hot_tokens[s] = step.own + 1 - step.begin - size
        rows.stored_tokens[s] = step.own + 1 if step.stored is None else np.count_nonzero(step.stored)
        rows.read_tokens[s] = np.count_nonzero(read)
        rows.read_runs[s] = np.count_nonzero(read[1:] & ~read[:-1]) + (1 if len(read) and read[0] else 0)
        rows.state_bytes[s] = state_bytes(self.policy.keep, int(rows.stored_tokens[s]))

    def _stream(self, s: int, step: Step, mask: Mask, read: Mask) -> None:
        """Count the tokens that move in each way, and their bytes."""
        d, fetched = self.head.keys.shape[1], self._fetched(step, read)
        for p, part in enumerate(self.parts):
            mine = step.served[part.clause]
            pinned, selected, stored = self._shares(s, step, mask, fetched, mine)
            # The newest tokens of an integer format with a residual are still in fp16, and among the selected ones.
            sizes = (part.nbytes(pinned, 0, d), part.nbytes(selected, stored, d))
            for row, (tokens, nbytes) in enumerate(zip((pinned, selected), sizes, strict=True), 2 * p):
                self.rows.stream_tokens[row, s] = tokens
                self.rows.stream_bytes[row, s] = nbytes

    def _fetched(self, step: Step, read: Mask) -> Mask:
        """Return the cold tokens that are not in HBM already."""
        if self.resident is not None:
            read = read & ~self.resident[step.cold.c0 : step.cold.c1]
        if self.residency is None:
            return read
        return self.residency.missing(step.cold.c0, read, step.offer)

    def _shares(self, s: int, step: Step, mask: Mask, fetched: Mask, mine: Mask | None) -> tuple[int, int, int]:
        """Return how many tokens of a part are pinned, selected (and not in HBM yet), and attended in all."""
        c0, c1 = step.cold.c0, step.cold.c1
        if mine is None:
            selected = int(np.count_nonzero(fetched))
            resident = 0 if self.resident is None else int(np.count_nonzero(self.resident[c0:c1] & mask[c0:c1]))
            pinned = int(self.rows.hot_tokens[s]) + resident
            return pinned, selected, int(self.rows.hot_tokens[s] + self.rows.read_tokens[s])
        attended = mask & mine
        selected = int(np.count_nonzero(fetched & mine[c0:c1]))
        stored = int(np.count_nonzero(attended))
        inside = int(np.count_nonzero(attended[c0:c1]))
        return stored - inside, selected, stored

    # --- comparing ---

    def _check(self, step: Step, offer: Offer) -> None:
        """Compare the claimed bound of every cold stored token with its exact score, in the scale of the claim."""
        rows, cold, s = self.rows, step.cold, step.block.first + step.i
        if rows.violations is None or rows.violated_mass is None or offer.raw is None:
            return
        rows.bound_checks[s] = cold.size if step.there is None else np.count_nonzero(step.there)
        if isinstance(self.policy.read.score, ExactScore):
            return
        claimed = offer.units.repeat(offer.raw)
        exact = self._claimed_exact(cold)
        if not np.any(claimed < exact):
            return
        wrong = claimed + self._tolerance(cold) < exact
        if step.there is not None:
            wrong &= step.there
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
        best = oracle.read(self.policy.read.eps or ORACLE_EPS, cold.c0, cold.c1)
        self.rows.oracle_reads[s] = np.count_nonzero(best)
        self.rows.needless_reads[s] = np.count_nonzero(read & ~best)


def _full_mask(read: Mask, step: Step) -> Mask:
    mask = np.zeros(step.block.scores.shape[-1], dtype=bool)
    mask[step.begin : step.cold.c0] = True
    mask[step.cold.c0 : step.cold.c1] = read
    mask[step.cold.c1 : step.own + 1] = True
    return mask


def key_norms(head: Head) -> Array:
    """Return ||k|| [positions]."""
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", head.keys, head.keys)))


# --- setting up -------------------------------------------------------------------------------------------------


def _asked(policy: Policy, head: Head) -> Array:
    """Return the queries that scores are computed for, [steps, g, d]."""
    match policy.read.lag:
        case "none":
            return head.queries
        case "step":
            return np.concatenate([head.prompt_queries[-1:], head.queries[:-1]])
        case _:
            if head.q_ahead is None:
                raise TraceError("q_ahead: found a trace without it, expected one with q_ahead for lag: layer")
            return head.q_ahead


class _Indexes:
    """The indexes of a head, each built once for all policies."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._built: dict[tuple[str, int, int], scoring.Index] = {}

    def stage(self, policy: Policy, number: int, fit: slice) -> Stage:
        """Return stage `number` of a policy's READ."""
        read = policy.read
        selector = (*read.cascade, *read.also, *read.less)[number]
        if not selector.scored or selector.score is None:
            return Stage(selector, self.head, None)
        key = (selector.score.model_dump_json(), fit.start, fit.stop)
        if key not in self._built:
            self._built[key] = scoring.build(selector.score, self.head, fit)
        return Stage(selector, self.head, self._built[key])


def _resident(policy: Policy, head: Head) -> Mask | None:
    """Return the pages [positions] that are read whatever the query: those whose keys are least alike."""
    score = policy.read.score
    if not isinstance(score, MeanScore) or not score.mean.outliers:
        return None
    mask, page = np.zeros(len(head.keys), dtype=bool), score.mean.page
    for first in outlier_pages(head.keys[: head.context], page, score.mean.outliers).tolist():
        mask[first * page : (first + 1) * page] = True
    return mask


def _start(policy: Policy, head: Head, indexes: _Indexes, norms: Array, kv_heads: int) -> Evaluation:
    pins, read, d = pins_of(policy), policy.read, head.keys.shape[1]
    fit = fitting_rows(pins, head.context)
    stages = [indexes.stage(policy, n, fit) for n in range(len(read.cascade))]
    further = range(len(read.cascade), len(read.cascade) + len(read.also) + len(read.less))
    costs = index_stages(policy, d, kv_heads)
    steps, g, _ = head.queries.shape
    sizes = Sizes(steps, g, len(costs), len(streams_of(policy, d)), len(head.keys))
    return Evaluation(
        policy=policy,
        head=head,
        stages=stages,
        extra=[indexes.stage(policy, n, fit) for n in further],
        costs=costs,
        cost_of=_cost_rows(policy, d),
        parts=parts_of(policy),
        rows=empty_rows(policy, sizes, values=head.values is not None),
        pins=pins,
        clauses=[Clause(keep, head) for keep in policy.keep],
        norms=norms,
        asked=_asked(policy, head),
        resident=_resident(policy, head),
        residency=None if read.cache is None else Residency(read.cache, len(head.keys)),
    )


def _cost_rows(policy: Policy, d: int) -> tuple[int | None, ...]:
    """Return which of the index stages each selector of READ is charged to."""
    read, rows, count = policy.read, list[int | None](), 0
    for each in (*read.cascade, *read.also, *read.less):
        charged = each.scored and index_stage(each, d) is not None
        rows.append(count if charged else None)
        count += charged
    return tuple(rows)


# --- running ------------------------------------------------------------------------------------------------------


def evaluate_heads(policies: Sequence[Policy], head: Head) -> list[HeadRows]:
    """Evaluate policies on one head; keys, scores, softmax sums, indexes and oracles are shared between them."""
    return [rows[0] for rows in evaluate_group(policies, [head])]


def evaluate_group(policies: Sequence[Policy], heads: Sequence[Head]) -> list[list[HeadRows]]:
    """Evaluate policies on heads that may choose together, all of one request; return rows by policy and head."""
    table = [_Indexes(head) for head in heads]
    norms = [key_norms(head) for head in heads]
    runs = [
        [_start(policy, head, table[h], norms[h], len(heads)) for h, head in enumerate(heads)] for policy in policies
    ]
    for together in runs:
        _keep_together(together)
    for parts in zip(*(blocks(head, BLOCK_ELEMENTS // len(heads)) for head in heads), strict=True):
        _run_block(runs, parts, heads)
    return [[run.rows for run in together] for together in runs]


def _keep_together(runs: Sequence[Evaluation]) -> None:
    for number, keep in enumerate(runs[0].policy.keep):
        if keep.select.scope != "head":
            keep_together([run.clauses[number] for run in runs])


def _run_block(runs: Sequence[Sequence[Evaluation]], parts: Sequence[Block], heads: Sequence[Head]) -> None:
    for together in runs:
        for run, block in zip(together, parts, strict=True):
            run.begin(block)
    for i in range(parts[0].steps):
        oracles = [Oracle(block, i) for block in parts]
        for together in runs:
            _run_step(together, parts, i, oracles)
    for h, (block, head) in enumerate(zip(parts, heads, strict=True)):
        exact = functools.cache(functools.partial(_exact_output, block, head))
        for together in runs:
            together[h].end(block, exact)


def _run_step(together: Sequence[Evaluation], parts: Sequence[Block], i: int, oracles: Sequence[Oracle]) -> None:
    steps = [run.open(block, i, oracle) for run, block, oracle in zip(together, parts, oracles, strict=True)]
    first = together[0]
    for number, stage in enumerate((*first.stages, *first.extra)):
        offers = [run.ask(step, number) for run, step in zip(together, steps, strict=True)]
        for run, step, taken in zip(together, steps, _take(together, number, stage, offers), strict=True):
            run.give(step, number, taken)
    for run, step in zip(together, steps, strict=True):
        run.close(step)


def _take(together: Sequence[Evaluation], number: int, stage: Stage, offers: Sequence[Offer]) -> list[Taken]:
    if stage.selector.scope != "head":
        return take_together(stage.selector, offers)
    stages = [(*run.stages, *run.extra)[number] for run in together]
    return [take(each, offer) for each, offer in zip(stages, offers, strict=True)]


def _exact_output(block: Block, head: Head) -> Array:
    assert head.values is not None
    return exact_output(block, head.values)


def evaluate_head(policy: Policy, head: Head) -> HeadRows:
    """Evaluate one policy on one head.

    Scores are computed in the dtype of the head's keys (float64 for recorded workloads), sums of exp in float64.
    """
    return evaluate_heads([policy], head)[0]
