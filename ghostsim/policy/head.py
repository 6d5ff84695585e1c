"""Policies on heads: which positions are read at each step, what that moves, and what it loses."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ghostsim.config.policy import Policy
from ghostsim.config.scores import MeanScore, Score
from ghostsim.errors import TraceError
from ghostsim.policy import scoring
from ghostsim.policy.attended import exact_output
from ghostsim.policy.cold import (
    Oracle,
    fitting_rows,
    pins_of,
)
from ghostsim.policy.costs import index_stage, index_stages, parts_of, streams_of
from ghostsim.policy.evaluation import Evaluation
from ghostsim.policy.exact import BLOCK_ELEMENTS, Array, Block, blocks
from ghostsim.policy.indexes import row_norms
from ghostsim.policy.keep import Clause, keep_together
from ghostsim.policy.pages import outlier_pages
from ghostsim.policy.residency import Residency
from ghostsim.policy.rows import HeadRows, Sizes, empty_rows
from ghostsim.policy.rules import Mask
from ghostsim.policy.stages import Offer, Stage, Taken, agreed_scores, take, take_together
from ghostsim.trace.compose import Head

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


class Indexes:
    """The indexes of a head, each built once for all policies."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self._built: dict[tuple[str, int, int, int], scoring.Index] = {}

    def stage(self, policy: Policy, number: int, fit: slice) -> Stage:
        """Return stage `number` of a policy's READ."""
        read = policy.read
        selector = (*read.cascade, *read.also, *read.less)[number]
        if not selector.scored or selector.score is None:
            return Stage(selector, self.head, None)
        return Stage(selector, self.head, functools.partial(self._index, selector.score, fit))

    def _index(self, score: Score, fit: slice, step: int) -> scoring.Index:
        """Return the index of a score as it is built at a decode step: as if the prompt had ended there."""
        key = (score.model_dump_json(), fit.start, fit.stop, step)
        if key not in self._built:
            moved = slice(fit.start, fit.stop + step)
            self._built[key] = scoring.build(score, after(self.head, step), moved)
        return self._built[key]


def after(head: Head, steps: int) -> Head:
    """Return a head whose prompt has grown by some decode steps."""
    if not steps:
        return head
    prompt = np.concatenate([head.prompt_queries, head.queries[:steps]])[steps:]
    return replace(head, context=head.context + steps, queries=head.queries[steps:], prompt_queries=prompt)


def _resident(policy: Policy, head: Head) -> Mask | None:
    """Return the pages [positions] that are read whatever the query: those outside the window with keys least alike."""
    score = policy.read.score
    if not isinstance(score, MeanScore) or not score.mean.outliers:
        return None
    mask, page = np.zeros(len(head.keys), dtype=bool), score.mean.page
    pages = max(0, head.context // page - policy.read.pin.window_pages)
    for first in outlier_pages(head.keys[: pages * page], page, score.mean.outliers).tolist():
        mask[first * page : (first + 1) * page] = True
    return mask


def _start(policy: Policy, head: Head, indexes: Indexes, norms: Array, kv_heads: int) -> Evaluation:
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
    table = [Indexes(head) for head in heads]
    norms = [row_norms(head.keys) for head in heads]
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
    first, cache = together[0], together[0].policy.read.cache
    for number, stage in enumerate((*first.stages, *first.extra)):
        offers = [run.ask(step, number) for run, step in zip(together, steps, strict=True)]
        if number == 0 and cache is not None and cache.by == "score":
            for step, worth in zip(steps, agreed_scores(stage.selector, offers), strict=True):
                step.worth = worth
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
