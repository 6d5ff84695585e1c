"""KEEP: what is still stored at each step. An evicted token never returns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import Keep, Overflow, Recover, Selector, Steps
from ghostsim.config.rules import AllRule, NoneRule, TopFrac, TopK
from ghostsim.config.scores import Hist, HistScore, Obs, ObsScore, Score
from ghostsim.errors import TraceError
from ghostsim.policy.exact import Array, Block, Floats, scaled_products, softcapped
from ghostsim.policy.orders import prior_order
from ghostsim.policy.rules import Mask, agreed_top, combined, pooled
from ghostsim.trace.compose import Head

_QUERY_ELEMENTS = 8_000_000


def budget(selector: Selector, units: int) -> int:
    """Return how many of `units` a topk or topfrac rule takes; tokens become whole pages, at least 3."""
    match selector.rule:
        case TopK() as rule:
            return rule.tokens if selector.page == 1 else max(3, rule.tokens // selector.page)
        case TopFrac(topfrac=share, most=most):
            taken = int(share * units)
            return taken if most is None else min(taken, most // selector.page)
        case _:
            return 0


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
    if obs.values:
        total *= np.linalg.norm(values_of(head)[: head.context].astype(np.float64), axis=1)
    return pooled(total[:, :end], obs.pool, obs.kernel)


def values_of(head: Head) -> Array:
    """Return the values of a head, or refuse a trace without."""
    if head.values is None:
        raise TraceError("v: found a trace without values, expected one with v, which this policy looks at")
    return head.values


# --- the state of one clause --------------------------------------------------------------------------------


class Clause:
    """What one KEEP clause stores of one head, step by step."""

    def __init__(self, keep: Keep, head: Head, *, of_longest: bool = False) -> None:
        self.keep, self.head = keep, head
        self._of_longest = of_longest or keep.first is not None
        self.select = keep.select if keep.first is None else recovering(keep.first, keep.select, head)
        self.score = self.select.score
        self.everything = isinstance(self.select.rule, AllRule)
        self._kept: Mask | None = None
        self._past: Past | None = None
        self._order: Array | None = None

    def stored(self, block: Block, i: int) -> Mask | None:
        """Return the mask [P] of positions stored while step i of the block is attended; None: all of them."""
        if self.everything:
            return None
        own, size = int(block.positions[i]), block.scores.shape[-1]
        if self.keep.every in ("prefill_end", "offline"):
            return self._after_prefill(own, size)
        return self._at_step(own, size)

    def attended(self, block: Block, i: int, mask: Mask) -> None:
        """Learn what step i attends, `mask` [P]: what any clause stores; only that may be stored at the next step."""
        if self.everything or self.keep.every in ("prefill_end", "offline"):
            return
        if isinstance(self.score, HistScore):
            self._history().observe(block, i, mask)
        self._kept = np.concatenate([mask, np.zeros(len(self.head.keys) - len(mask), dtype=bool)])

    def _budget(self, there: int) -> int:
        """Return the budget of a sequence of `there` tokens."""
        return budget(self.select, len(self.head.keys) if self._of_longest else there)

    @property
    def _window(self) -> int:
        pin = self.select.pin
        return max(pin.window, int((pin.window_share or 0) * len(self.head.keys)))

    def _pinned(self, end: int, size: int) -> Mask:
        """Return the pins of a sequence of `end` tokens, in a mask of `size` positions."""
        pin, mask = self.select.pin, np.zeros(size, dtype=bool)
        mask[: min(pin.sinks, end)] = True
        mask[max(0, end - self._window) : end] = True
        if pin.classes:
            mask[:end] |= np.isin(classes_of(self.head)[:end], pin.classes)
        return mask

    # --- at every step ---

    def _at_step(self, own: int, size: int) -> Mask:
        mask = self._pinned(own + 1, size)
        mask[own] = True
        if isinstance(self.select.rule, NoneRule):
            return mask
        k, kept = self._budget(own + 1), self._kept
        free = ~mask
        free[own:] = False
        if kept is not None:
            free &= kept[:size]
        candidates = np.flatnonzero(free)
        k = self._room(own, k, len(candidates))
        if k >= len(candidates):
            mask[candidates] = True
            return mask
        mask[candidates[agreed_top(self._scores(candidates), k, self.select.reduce)]] = True
        return mask

    def _room(self, own: int, k: int, there: int) -> int:
        """Return how many tokens beyond the pins may stay at this step, by the clause's clock."""
        step = own - self.head.context
        match self.keep.every:
            case Steps(steps=n):
                return k if step % n == 0 else there
            case Overflow(overflow=dropped):
                return there if there <= k else int((1 - dropped) * k)
            case _:
                return k

    def _scores(self, candidates: npt.NDArray[np.intp]) -> Array:
        if isinstance(self.score, HistScore):
            return self._history().scores()[:, candidates]
        return self._fixed()[:, candidates]

    def _fixed(self) -> Array:
        """Return the preference [g, positions] of a score that no later query changes."""
        if self._order is None:
            assert self.score is not None
            self._order = prefill_scores(self.score, self.head, len(self.head.keys))
        return self._order

    def _history(self) -> Past:
        if self._past is None:
            assert isinstance(self.score, HistScore)
            self._past = Past(self.score.hist, self.head)
        return self._past

    # --- once, when prefill ends ---

    def of_prompt(self) -> Mask:
        """Return the tokens [prompt] of the prompt that stay."""
        if self._kept is None:
            self.accept(self.choose_alone())
        assert self._kept is not None
        return self._kept

    def _after_prefill(self, own: int, size: int) -> Mask:
        mask = np.zeros(size, dtype=bool)
        mask[: self.head.context] = self.of_prompt()
        mask[self.head.context : own + 1] = self.keep.generated
        mask[own] = True
        return mask

    def offer(self) -> tuple[Array, int] | None:
        """Return the scores [g, end] of the prompt before the window and the budget; None: everything stays."""
        prompt = self.head.context
        k, end = self._budget(prompt), max(0, prompt - self._window)
        if end <= k or self.score is None:
            return None
        scores = np.array(prefill_scores(self.score, self.head, end)[:, :end])
        scores[:, self._pinned(prompt, prompt)[:end]] = -np.inf
        return scores, k

    def choose_alone(self) -> Mask:
        """Return the tokens [prompt] of the prompt that this head keeps by itself, pins apart."""
        prompt = self.head.context
        if isinstance(self.select.rule, NoneRule):
            return np.zeros(prompt, dtype=bool)
        offered = self.offer()
        if offered is None:
            return np.ones(prompt, dtype=bool)
        scores, k = offered
        return agreed_top(scores, k, self.select.reduce)

    def accept(self, chosen: Mask) -> None:
        """Keep the pins and the tokens chosen from the front of the prompt."""
        mask = self._pinned(self.head.context, self.head.context)
        mask[: len(chosen)] |= chosen
        self._kept = mask


def classes_of(head: Head) -> Array:
    """Return the token classes of a head, or refuse a trace without."""
    if head.token_class is None:
        raise TraceError("token_class: found a trace without it, expected one with token classes for this policy")
    return head.token_class


def prefill_scores(score: Score, head: Head, end: int) -> Array:
    """Return what is known of the first `end` positions when prefill ends, [g, end]."""
    match score:
        case ObsScore(obs=obs):
            return observed(head, obs, min(end, head.context))
        case HistScore(hist=hist):
            return accumulated(head, hist)[:, :end]
        case _:
            return prior_order(score, head)[:, :end]


# --- attention received so far -------------------------------------------------------------------------------


class Past:
    """The attention that every position received: a decayed sum, or counts in a window of the last queries."""

    def __init__(self, hist: Hist, head: Head) -> None:
        self.hist, self.head = hist, head
        if hist.window is None:
            self._sum = accumulated(head, hist)
        else:
            self._low = self._counted(hist.window)
            self._sum = -self._low.sum(axis=0, dtype=np.float64)

    def _counted(self, window: int) -> npt.NDArray[np.bool_]:
        """Return where each of the last `window` prompt queries gave less than its average, [window, g, positions]."""
        found = len(self.head.prompt_queries)
        if found < window:
            raise TraceError(f"q_prompt: found {found} prompt queries, expected at least hist.window {window}")
        low = np.zeros((window, self.head.queries.shape[1], len(self.head.keys)), dtype=bool)
        for age, probabilities in prompt_probabilities(self.head, window):
            count = self.head.context - age + 1
            low[window - age, :, :count] = probabilities[:, :count] < 1 / count
        return low

    def scores(self) -> Floats:
        """Return what tokens are kept by, [g, positions]: more is better."""
        return self._sum

    def observe(self, block: Block, i: int, mask: Mask) -> None:
        """Add the step's attention, renormalised over what is kept."""
        weights = block.weights[i][:, mask].astype(np.float64)
        given = weights / weights.sum(axis=1, keepdims=True)
        if self.hist.window is None:
            if self.hist.decay != 1.0:
                self._sum *= self.hist.decay
            self._sum[:, : len(mask)][:, mask] += given
            return
        newest = np.zeros_like(self._low[0])
        newest[:, : len(mask)][:, mask] = given < 1 / given.shape[1]
        at = (int(block.positions[i]) - self.head.context) % self.hist.window
        self._sum += self._low[at]
        self._low[at] = newest
        self._sum -= newest


# --- several clauses -----------------------------------------------------------------------------------------


def stored_by_each(clauses: Sequence[Clause], block: Block, i: int) -> list[Mask | None]:
    """Return the mask [P] of what each clause stores at a step; None: every position."""
    masks = [clause.stored(block, i) for clause in clauses]
    if any(mask is not None for mask in masks):
        together = union(masks)
        everything = np.arange(block.scores.shape[-1]) <= block.positions[i]
        for clause in clauses:
            clause.attended(block, i, everything if together is None else together)
    return masks


def union(masks: Sequence[Mask | None]) -> Mask | None:
    """Return what some clause stores; None: every position."""
    some = [mask for mask in masks if mask is not None]
    return None if len(some) < len(masks) else np.asarray(np.stack(some).any(axis=0))


def keep_together(clauses: Sequence[Clause]) -> None:
    """Let the same clause of several heads choose together when prefill ends."""
    select = clauses[0].select
    offers = [clause.offer() for clause in clauses]
    some = [offer for offer in offers if offer is not None]
    if not some:
        return
    masks = iter(chosen_together(select, [scores for scores, _ in some], some[0][1]))
    for clause, offer in zip(clauses, offers, strict=True):
        clause.accept(np.ones(clause.head.context, dtype=bool) if offer is None else next(masks))


def chosen_together(select: Selector, scores: Sequence[Array], k: int) -> list[Mask]:
    """Return what each head takes, `scores` [g, n] each: one set, one budget over all, or an equal count."""
    if select.together == "set":
        return [agreed_top(np.concatenate(scores), k, select.reduce)] * len(scores)
    agreed = [combined(each, "max" if select.reduce == "any" else select.reduce) for each in scores]
    ends = np.cumsum([len(each) for each in agreed])
    taken = agreed_top(np.concatenate(agreed)[None], k * len(scores), "any")
    return list(np.split(taken, ends[:-1]))


# --- the first that recovers enough ----------------------------------------------------------------------------


def recovering(first: Recover, otherwise: Selector, head: Head) -> Selector:
    """Return the first selector whose tokens hold a share of the prompt's attention, mean over its last queries."""
    received = accumulated(head, Hist()).mean(axis=0)[: head.context]
    received /= received.sum()
    for select in first.of:
        plain = Keep.model_construct(every="prefill_end", select=select, first=None)
        if received[Clause(plain, head, of_longest=True).of_prompt()].sum() >= first.recover:
            return select
    return otherwise
