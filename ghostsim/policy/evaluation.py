"""The running evaluation of one policy on one head: hot and cold, stage by stage, then what was moved and lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from ghostsim.config.policy import Estimate, Pin, Policy
from ghostsim.config.scores import ExactScore, Published, PublishedScore
from ghostsim.errors import ConfigError
from ghostsim.plan.selection import GROUPS, IndexStage
from ghostsim.policy.attended import Notes, Reader, relative_error, served
from ghostsim.policy.clusters import ClusterIndex
from ghostsim.policy.cold import (
    Cold,
    Oracle,
    Pins,
    bound_on,
    certificate,
    exponentials,
    masked_sum,
)
from ghostsim.policy.costs import Part, side_bytes, state_bytes
from ghostsim.policy.exact import Array, Block, Floats, wide_sum
from ghostsim.policy.keep import Clause, stored_by_each, union
from ghostsim.policy.residency import Residency
from ghostsim.policy.rows import HeadRows
from ghostsim.policy.rules import Mask, agreed_top
from ghostsim.policy.stages import Offer, Stage, Taken
from ghostsim.policy.units import Units
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
    archived: Mask | None = None
    """[tokens] cold tokens that are archived; None: none."""
    alive: Mask | None = None
    gone: Floats | None = None
    upper: Floats | None = None
    """[g] what is bounded to be lost by the stages so far."""
    lost: Floats = field(default_factory=lambda: np.zeros(0))
    """[g] softmax sum of the cold tokens that are not read."""
    added: Mask | None = None
    removed: Mask | None = None
    offer: Offer | None = None
    """What the stage now asked may take."""
    worth: Array | None = None
    """[tokens] what a cache that goes by scores keeps cold tokens for."""


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
    group: list[Step] = field(default_factory=list)
    """Steps that are verified together, so far."""

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
        index = self.stages[0].index(block.first)
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
        if self.policy.archive is not None:
            mine = step.served[self.policy.archive]
            step.archived = np.ones(step.cold.size, dtype=bool) if mine is None else mine[c0:c1]
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
        if number and step.archived is not None:
            alive = ~step.archived if alive is None else alive & ~step.archived
        step.offer = stage.offer(step.cold, alive, gone)
        row, s = self.cost_of[number], step.block.first + step.i
        if row is not None:
            records = stage.scanned(step.cold, step.begin, step.own, alive, first=number == 0)
            self._charge(s, row, records + self._own_record(step, number))
        return step.offer

    def _own_record(self, step: Step, number: int) -> int:
        """Without pins the own token's record is looked at with the others."""
        return int(number == 0 and self.pins.pin == Pin() and step.offer is not None and step.offer.units.sizes is None)

    def _charge(self, s: int, row: int, records: int) -> None:
        self.rows.scanned[row, s] = records
        self.rows.scan_bytes[row, s] = self.costs[row].nbytes(records)

    def give(self, step: Step, number: int, taken: Taken) -> None:
        """Leave what stage `number` did not take."""
        if number >= len(self.stages):
            self._combine(step, number - len(self.stages), taken)
            return
        before, tokens, offer = step.alive, taken.tokens, step.offer
        if number and step.archived is not None:
            tokens = tokens | step.archived
        if taken.mass is not None and offer is not None:
            upper = bound_on(~taken.units, taken.mass, offer.units)
            step.upper = upper if step.upper is None else step.upper + upper
        step.alive = tokens if before is None else tokens & before
        if number + 1 < len(self.stages):
            step.gone = masked_sum(step.cold.weights, ~step.alive)
        if number == 0 and step.archived is not None and offer is not None:
            self._resurrect(step, offer.units, step.alive)
        if number == 0 and offer is not None and offer.raw is not None:
            self._check(step, offer)
            self._complete(step, offer, taken)

    def _resurrect(self, step: Step, units: Units, taken: Mask) -> None:
        """Count the archived tokens, and the clusters among them that are read as a whole."""
        assert step.archived is not None
        s, read = step.block.first + step.i, taken & step.archived
        alone = 0 if units.labels is None else int(np.count_nonzero(read & (units.labels < 0)))
        self.rows.archive_tokens[s] = np.count_nonzero(step.archived)
        self.rows.archive_runs[s] = int(np.count_nonzero(units.any(read))) + alone

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
        self._count(s, step)
        step.lost = masked_sum(cold.weights, ~read)
        if self.rows.certified_mass is not None and step.upper is not None:
            self.rows.certified_mass[s] = certificate(step.upper, step.lost, cold)
        self.group.append(step)
        if len(self.group) == self.policy.read.speculate or step.i + 1 == step.block.steps:
            self._settle()

    def _settle(self) -> None:
        """Let the steps that are verified together read the union of what each needs, moved once."""
        group, self.group = self.group, []
        first, last = group[0], group[-1]
        if len(group) > 1:
            self._unite(group)
        for step in group:
            self._lose(step, self.reads[step.i])
        mask, s = self.reads[last.i], first.block.first + first.i
        self._stream(s, last, mask, mask[last.cold.c0 : last.cold.c1])
        for counts in (self.rows.scanned, self.rows.scan_bytes):
            counts[:, s + 1 : s + len(group)] = 0

    def _unite(self, group: Sequence[Step]) -> None:
        together = np.logical_or.reduce([self.reads[step.i] for step in group])
        for step in group:
            self.reads[step.i] = together
            self.reads[step.i, : step.begin] = False
            self.reads[step.i, step.own + 1 :] = False
            step.lost = masked_sum(step.cold.weights, ~self.reads[step.i, step.cold.c0 : step.cold.c1])

    def _lose(self, step: Step, mask: Mask) -> None:
        """Count the cold tokens read and the mass of those that are not, and compare them with the oracle's."""
        s, cold = step.block.first + step.i, step.cold
        read = mask[cold.c0 : cold.c1]
        self.rows.lost_mass[s] = step.lost / cold.total
        self.rows.read_tokens[s] = np.count_nonzero(read)
        fetched = read if step.archived is None else read & ~step.archived
        self.rows.read_runs[s] = _runs(fetched)
        self.rows.read_groups[s] = groups_of(fetched, cold.c0)
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

    def _count(self, s: int, step: Step) -> None:
        rows, size = self.rows, step.cold.size
        rows.attended[s] = step.own + 1 - step.begin
        rows.cold_tokens[s] = size
        rows.hot_tokens[s] = step.own + 1 - step.begin - size
        rows.stored_tokens[s] = step.own + 1 if step.stored is None else np.count_nonzero(step.stored)
        rows.state_bytes[s] = state_bytes(self.policy.keep, int(rows.stored_tokens[s]))
        self._refresh(s, step)

    def _refresh(self, s: int, step: Step) -> None:
        """Count what building indexes again moves: the cold keys once, and a record of every unit."""
        stages = zip((*self.stages, *self.extra), self.cost_of, strict=True)
        due = [(stage, self.costs[row]) for stage, row in stages if row is not None and stage.due(s)]
        if not due:
            return
        tokens = step.cold.size if step.there is None else int(np.count_nonzero(step.there))
        self.rows.refit_bytes[s] = tokens * side_bytes(self.policy.keep[0].format.k, self.head.keys.shape[1])
        self.rows.rewritten_bytes[s] = sum(cost.nbytes(stage.units(step.cold).count) for stage, cost in due)

    def _stream(self, s: int, step: Step, mask: Mask, read: Mask) -> None:
        """Count the tokens that move in each way, and their bytes."""
        d, fetched, row = self.head.keys.shape[1], self._fetched(step, read), 0
        for part in self.parts:
            pinned, selected, cached = self._shares(part, step, mask, fetched)
            attended = pinned + cached + (0 if part.recalled else selected)
            # The newest tokens of an integer format with a residual are still in fp16, and among the selected ones.
            moved = [
                (pinned, part.pinned_bytes(pinned, d)),
                (selected, part.nbytes(selected, attended, d)),
                (cached, part.nbytes(cached, 0, d)),
                (0, part.met_anchor_bytes(selected, step.cold.size, d)),
            ]
            there = (True, True, part.cached, bool(part.anchored))
            for tokens, nbytes in compress(moved, there):
                self.rows.stream_tokens[row, s], self.rows.stream_bytes[row, s] = tokens, nbytes
                row += 1

    def _fetched(self, step: Step, read: Mask) -> Mask:
        """Return the cold tokens that are not in HBM already."""
        if self.resident is not None:
            read = read & ~self.resident[step.cold.c0 : step.cold.c1]
        if self.residency is None:
            return read
        return self.residency.missing(step.cold.c0, read, step.worth)

    def _shares(self, part: Part, step: Step, mask: Mask, fetched: Mask) -> tuple[int, int, int]:
        """Return how many tokens of a part are pinned, come from where it is stored, and are attended in the cache."""
        c0, c1, mine = step.cold.c0, step.cold.c1, step.served[part.clause]
        attended = mask if mine is None else mask & mine
        inside = attended[c0:c1]
        resident = inside if self.resident is None else inside & self.resident[c0:c1]
        pinned = int(np.count_nonzero(attended) - np.count_nonzero(inside))
        pinned += 0 if self.resident is None else int(np.count_nonzero(resident))
        selected, total = int(np.count_nonzero(fetched & inside)), int(np.count_nonzero(attended))
        if part.moves_all:
            pinned, selected = 0, pinned + selected
        return pinned, selected, total - pinned - (0 if part.recalled else selected)

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


def _runs(read: Mask) -> int:
    """Count maximal runs of consecutive positions in `read` [tokens]."""
    return int(np.count_nonzero(read[1:] & ~read[:-1])) + (1 if len(read) and read[0] else 0)


def groups_of(read: Mask, begin: int) -> list[int]:
    """Count the aligned groups of 2, 4, 8, ... positions with one that is read; `read` [tokens] starts at `begin`."""
    largest = 1 << GROUPS
    before = begin % largest
    mask = np.zeros(-(-(before + len(read)) // largest) * largest, dtype=bool)
    mask[before : before + len(read)] = read
    counts = []
    for _ in range(GROUPS):
        mask = mask[::2] | mask[1::2]
        counts.append(int(np.count_nonzero(mask)))
    return counts


def _full_mask(read: Mask, step: Step) -> Mask:
    mask = np.zeros(step.block.scores.shape[-1], dtype=bool)
    mask[step.begin : step.cold.c0] = True
    mask[step.cold.c0 : step.cold.c1] = read
    mask[step.cold.c1 : step.own + 1] = True
    return mask
