"""KEEP: what is still stored at each step. An evicted token never returns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import AgeScore, Hist, HistScore, Keep, NoneRule, Obs, ObsScore, Selector, TopFrac, TopK
from ghostsim.errors import TraceError
from ghostsim.policy.exact import Array, Block, Floats, scaled_products, softcapped
from ghostsim.policy.rules import Mask, pooled, take_top
from ghostsim.trace.compose import Head

_QUERY_ELEMENTS = 8_000_000


def budget(selector: Selector, units: int) -> int:
    """Return how many of `units` a topk or topfrac rule takes; tokens become whole pages, at least 3."""
    if isinstance(selector.rule, TopK):
        return selector.rule.topk if selector.page == 1 else max(3, selector.rule.topk // selector.page)
    if isinstance(selector.rule, TopFrac):
        return int(selector.rule.topfrac * units)
    return 0


def agreed_top(scores: Array, k: int, reduce: str) -> Mask:
    """Take the k best units for a KV head from the scores [g, n] of its query heads."""
    if reduce == "any":
        return np.asarray(np.stack([take_top(row, k) for row in scores]).any(axis=0))
    return take_top(combined(scores, reduce), k)


def combined(scores: Array, reduce: str) -> Array:
    """Return one score [n] for the group from `scores` [g, n]."""
    if reduce == "max":
        return np.asarray(scores.max(axis=0))
    return np.asarray(scores.mean(axis=0) if reduce == "mean" else scores.sum(axis=0))


# --- attention of the prompt --------------------------------------------------------------------------------


def prompt_probabilities(head: Head, last: int | None) -> Iterator[tuple[int, Floats]]:
    """Yield (age, probabilities [g, context]) of the last prompt queries, oldest first, over their causal rows.

    `age` counts decode steps back from the first one: the last prompt query has age 1.
    """
    queries = head.prompt_queries if last is None else head.prompt_queries[len(head.prompt_queries) - last :]
    size = max(1, _QUERY_ELEMENTS // (queries.shape[1] * head.context))
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        scores = softcapped(scaled_products(part, head.keys[: head.context], head.scale), head.softcap)
        for i, row in enumerate(scores):
            age = len(queries) - start - i
            yield age, _causal_softmax(row, head.context - age, head.window)


def _causal_softmax(scores: Array, own: int, window: int | None) -> Floats:
    begin = max(0, own - window + 1) if window else 0
    attended = scores[:, begin : own + 1].astype(np.float64)
    attended = np.exp(attended - attended.max(axis=1, keepdims=True))
    out = np.zeros(scores.shape)
    out[:, begin : own + 1] = attended / attended.sum(axis=1, keepdims=True)
    return out


def accumulated(head: Head, hist: Hist) -> Floats:
    """Return the attention [g, context + steps] that each position received from the stored prompt queries."""
    out = np.zeros((head.queries.shape[1], len(head.keys)))
    for age, probabilities in prompt_probabilities(head, None):
        out[:, : head.context] += hist.decay ** (age - 1) * probabilities
    return out


def observed(head: Head, obs: Obs, end: int) -> Floats:
    """Return the pooled attention [g, end] of the observation window on the positions before `end`."""
    found = len(head.prompt_queries)
    if found < obs.window:
        raise TraceError(f"q_prompt: found {found} prompt queries, expected at least obs.window {obs.window}")
    total = np.zeros((head.queries.shape[1], head.context))
    for _, probabilities in prompt_probabilities(head, obs.window):
        total += probabilities
    return pooled(total[:, :end], obs.pool, obs.kernel)


# --- the state of one clause --------------------------------------------------------------------------------


class Clause:
    """What one KEEP clause stores of one head, step by step."""

    def __init__(self, keep: Keep, head: Head) -> None:
        self.keep, self.head, self.select = keep, head, keep.select
        self.score = keep.select.score
        self._kept: Mask | None = None
        self._history: Floats | None = None

    def stored(self, block: Block, i: int) -> Mask | None:
        """Return the mask [P] of positions stored while step i of the block is attended; None: all of them."""
        if self.keep.everything:
            return None
        own, size = int(block.positions[i]), block.scores.shape[-1]
        if self.keep.every == "prefill_end":
            return self._after_prefill(own, size)
        mask = self._at_step(own, size)
        if isinstance(self.score, HistScore):
            self._observe(block, i, mask, self.score.hist.decay)
            self._kept = np.concatenate([mask, np.zeros(len(self.head.keys) - size, dtype=bool)])
        return mask

    def _pinned(self, end: int, size: int) -> Mask:
        """Return the pins of a sequence of `end` tokens, in a mask of `size` positions."""
        mask = np.zeros(size, dtype=bool)
        mask[: min(self.select.pin.sinks, end)] = True
        mask[max(0, end - self.select.pin.window) : end] = True
        return mask

    def _at_step(self, own: int, size: int) -> Mask:
        mask = self._pinned(own + 1, size)
        mask[own] = True
        if isinstance(self.select.rule, NoneRule):
            return mask
        free = ~mask
        free[own:] = False
        candidates = np.flatnonzero(free if self._kept is None else free & self._kept[:size])
        scores = self._scores(candidates)
        k = budget(self.select, own + 1)
        mask[candidates[agreed_top(scores, k, self.select.reduce)]] = True
        return mask

    def _scores(self, candidates: npt.NDArray[np.intp]) -> Array:
        if isinstance(self.score, AgeScore):
            return candidates[None].astype(np.float64)
        return self._past()[:, candidates]

    def _past(self) -> Floats:
        if self._history is None:
            assert isinstance(self.score, HistScore)
            self._history = accumulated(self.head, self.score.hist)
        return self._history

    def _observe(self, block: Block, i: int, mask: Mask, decay: float) -> None:
        """Add the step's attention, renormalised over what is kept."""
        weights = block.weights[i][:, mask].astype(np.float64)
        history = self._past()
        if decay != 1.0:
            history *= decay
        history[:, : len(mask)][:, mask] += weights / weights.sum(axis=1, keepdims=True)

    def _after_prefill(self, own: int, size: int) -> Mask:
        if self._kept is None:
            self._kept = self._compressed(self.head.context)
        mask = np.zeros(size, dtype=bool)
        mask[: self.head.context] = self._kept
        mask[self.head.context : own + 1] = True
        return mask

    def _compressed(self, prompt: int) -> Mask:
        mask = self._pinned(prompt, prompt)
        k = budget(self.select, prompt)
        if isinstance(self.select.rule, NoneRule) or not isinstance(self.score, ObsScore):
            return mask
        end = prompt - self.select.pin.window
        if end <= k:
            return np.ones(prompt, dtype=bool)
        scores = observed(self.head, self.score.obs, end)
        scores[:, : min(self.select.pin.sinks, end)] = -np.inf
        mask[:end] |= agreed_top(scores, k, self.select.reduce)
        return mask


def stored_by_any(clauses: list[Clause], block: Block, i: int) -> Mask | None:
    """Return the mask [P] of what some clause stores at a step; None: every position."""
    masks = [clause.stored(block, i) for clause in clauses]
    some = [mask for mask in masks if mask is not None]
    return None if len(some) < len(masks) else np.asarray(np.stack(some).any(axis=0))
