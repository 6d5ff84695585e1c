"""One selector of READ on one head: which units of the cold tokens it takes at a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ghostsim.config.policy import Selector, Steps
from ghostsim.config.rules import Above, AllRule, Certify, Margin, NoneRule, Presume, Sample, TopFrac, TopK
from ghostsim.config.scores import CentroidScore, MeanScore
from ghostsim.policy.cold import Cold, certified_read, exponentials
from ghostsim.policy.exact import Array, Block, Floats
from ghostsim.policy.keep import budget, chosen_together
from ghostsim.policy.rules import Mask, agreed_top, combined, take_top
from ghostsim.policy.scoring import Index
from ghostsim.policy.units import Units, token_units
from ghostsim.trace.compose import Head


@dataclass(frozen=True, eq=False)
class Offer:
    """The units of one head at one step and their scores [g, units]; -inf for a unit that cannot be taken."""

    cold: Cold
    units: Units
    raw: Array | None
    """[g, units] scores, of units that cannot be taken too."""
    scores: Array | None
    alive: Mask | None
    """[tokens] what earlier stages and KEEP have left; None: all of them."""
    gone: Floats
    """[g] exact softmax sum of what earlier stages have left out."""


@dataclass(frozen=True, eq=False)
class Taken:
    """What a stage took: a mask of units, of tokens, and exp(bound - peak) of the units where it certifies."""

    units: Mask
    tokens: Mask
    mass: Array | None = None


class Stage:
    """A selector with its index on one head; `built` makes the index of the decode step at which it is built."""

    def __init__(self, selector: Selector, head: Head, built: Callable[[int], Index] | None) -> None:
        self.selector, self.head = selector, head
        self._built = built
        self._every = selector.refresh.steps if isinstance(selector.refresh, Steps) else None
        self._scores: list[Array] = []

    def begin(self, block: Block, asked: Array) -> None:
        """Score the units of a block for the queries `asked` [n, g, d], each step by the index that it finds."""
        if self._built is None:
            return
        self._scores = []
        for start, steps in self._runs(block):
            index, part = self._built(start), asked[steps]
            key = (index, part.tobytes())
            if key not in block.memo:
                block.memo[key] = index.scores(block.part(steps), part, self.head)
            self._scores += list(block.memo[key])

    def _since(self, step: int) -> int:
        """Return the step at which the index of a step was built."""
        return 0 if self._every is None else step - step % self._every

    def due(self, step: int) -> bool:
        """Whether the index is built again at a step."""
        return self._every is not None and step > 0 and step % self._every == 0

    def _runs(self, block: Block) -> Iterator[tuple[int, slice]]:
        """Yield the steps of a block that share an index, and the step at which that was built."""
        numbers = range(block.first, block.first + block.steps)
        for start, steps in groupby(numbers, key=self._since):
            together = list(steps)
            yield start, slice(together[0] - block.first, together[-1] + 1 - block.first)

    def index(self, step: int) -> Index | None:
        """Return the index that a step finds."""
        return None if self._built is None else self._built(self._since(step))

    def units(self, cold: Cold) -> Units:
        """Return the units of the cold tokens of a step."""
        index = self.index(cold.block.first + cold.step)
        return token_units(cold.c0, cold.c1) if index is None else index.units(cold.c0, cold.c1)

    def offer(self, cold: Cold, alive: Mask | None, gone: Floats) -> Offer:
        """Return the units of the cold tokens; those without a token `alive` [tokens] cannot be taken."""
        units = self.units(cold)
        if self._built is None:
            return Offer(cold, units, None, None, alive, gone)
        raw = self._scores[cold.step][:, units.columns]
        there = None if alive is None else units.any(alive)
        if units.labels is not None and units.sizes is not None:
            there = units.sizes > 0 if there is None else there & (units.sizes > 0)
        return Offer(cold, units, raw, raw if there is None else np.where(there, raw, -np.inf), alive, gone)

    def scanned(self, cold: Cold, begin: int, own: int, alive: Mask | None, first: bool) -> int:
        """Return how many records are looked at."""
        if self._built is None:
            return 0
        page, score = self.selector.page, self.selector.score
        if first and isinstance(score, CentroidScore):
            return self.units(cold).count
        certified = isinstance(self.selector.rule, Certify)
        if first and page > 1 and not certified and not isinstance(score, MeanScore):
            return own // page - begin // page + 1
        if alive is None:
            return self.units(cold).count
        return int(np.count_nonzero(self.units(cold).any(alive)))


def take(stage: Stage, offer: Offer) -> Taken:
    """Take units by the selector's rule, each head for itself."""
    selector, units = stage.selector, offer.units
    if offer.scores is None or offer.raw is None:
        every = np.full(offer.cold.size, isinstance(selector.rule, AllRule))
        return Taken(every, every)
    if isinstance(selector.rule, Certify | Presume):
        shifted, mass = exponentials(offer.scores, offer.cold)
        taken = certified_read(selector.rule, shifted, mass, offer.cold, units, offer.alive, offer.gone)
        return Taken(taken, units.spread(taken), mass)
    taken = ranked(selector, _reducible(selector, offer.scores), _most(selector, offer))
    return Taken(taken, units.spread(taken))


def take_together(selector: Selector, offers: Sequence[Offer]) -> list[Taken]:
    """Take units with one mind for the heads of a scope."""
    scores = [_reducible(selector, offer.scores) for offer in offers if offer.scores is not None]
    if len(scores) < len(offers):
        every = [np.full(offer.cold.size, isinstance(selector.rule, AllRule)) for offer in offers]
        return [Taken(mask, mask) for mask in every]
    if selector.together == "count":
        masks = _counted(selector, scores, _most(selector, offers[0]))
    elif selector.together == "set":
        masks = [ranked(selector, np.concatenate(scores), _most(selector, offers[0]))] * len(scores)
    else:
        masks = chosen_together(selector, scores, _budget(selector, scores[0].shape[1]))
    return [Taken(mask, offer.units.spread(mask)) for mask, offer in zip(masks, offers, strict=True)]


def agreed_scores(selector: Selector, offers: Sequence[Offer]) -> list[Array]:
    """Return the score [tokens] of the unit of each cold token, as the query heads of each head, or of all, agree."""
    scores = [_reducible(selector, offer.scores) for offer in offers]
    if selector.scope != "head" and selector.together == "set":
        scores = [np.concatenate(scores)] * len(offers)
    how = "max" if selector.reduce == "any" else selector.reduce
    return [offer.units.repeat(combined(each, how)[None])[0] for offer, each in zip(offers, scores, strict=True)]


def _counted(selector: Selector, scores: Sequence[Array], most: int) -> list[Mask]:
    """Let every query head take as many as all would take on average, at most `most` (InfiniGen)."""
    alone = [np.count_nonzero(_near(selector, row)) for part in scores for row in part]
    k = min(int(np.mean(alone)), most)
    return [np.asarray(np.stack([take_top(row, k) for row in part]).any(axis=0)) for part in scores]


def _near(selector: Selector, row: Array) -> Mask:
    """Return the units of one query within the margin of its best."""
    assert isinstance(selector.rule, Margin)
    return np.asarray((row >= row.max(initial=-np.inf) - selector.rule.margin) & np.isfinite(row))


def _most(selector: Selector, offer: Offer) -> int:
    """Return how many units a margin may take: a share of the attended tokens less the pinned ones."""
    if not isinstance(selector.rule, Margin):
        return offer.units.count
    if offer.units.sizes is not None:
        return int(selector.rule.most * offer.units.count)
    cold = offer.cold
    attended = int(cold.block.positions[cold.step] + 1 - cold.block.begins[cold.step])
    return max(0, int(selector.rule.most * attended) - (attended - cold.size))


def _reducible(selector: Selector, scores: Array | None) -> Array:
    """Return scores as they are reduced: as probabilities over the units where the selector says so."""
    assert scores is not None
    if not selector.softmax or not scores.shape[1]:
        return scores
    wide = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares = wide / wide.sum(axis=1, keepdims=True)
    return np.asarray(np.where(np.isfinite(scores), shares, -np.inf))


def _budget(selector: Selector, n: int) -> int:
    return budget(selector, n) - (1 if selector.pin.last_page else 0)


def ranked(selector: Selector, scores: Array, most: int) -> Mask:
    """Return the units [n] that a rule takes by `scores` [g, n]; a margin takes at most `most` per query."""
    match selector.rule:
        case TopK() | TopFrac():
            return agreed_top(scores, _budget(selector, scores.shape[1]), selector.reduce)
        case Above(above=theta) | Sample(sample=theta):
            agreed = scores.max(axis=0) if selector.reduce == "any" else combined(scores, selector.reduce)
            return np.asarray(agreed >= theta)
        case Margin():
            agreed = scores if selector.reduce == "any" else combined(scores, selector.reduce)[None]
            nearest = [take_top(np.where(_near(selector, row), row, -np.inf), most) for row in agreed]
            return np.asarray(np.stack(nearest).any(axis=0))
        case NoneRule():
            return np.zeros(scores.shape[1], dtype=bool)
    raise AssertionError(selector.rule)
