"""What it takes to make an index of a whole prompt: arithmetic per KV head, by what the index is."""

from __future__ import annotations

from dataclasses import dataclass

from ghostsim.config.formats import Format
from ghostsim.config.policy import Estimate, Policy
from ghostsim.config.scores import (
    BallScore,
    BoxScore,
    Centroid,
    CentroidScore,
    ChanScore,
    EllipsoidScore,
    GraphScore,
    JlScore,
    LightningScore,
    LshScore,
    MeanScore,
    PublishedScore,
    QKeysScore,
    Score,
    Sketch,
    SketchScore,
    SubspacesScore,
)
from ghostsim.policy.costs import staged_selectors

_ANCHORED_ROWS = 4096
"""Rows whose anchors are found together."""
_BLIND = ("random", "gaussian")
"""Bases that are drawn, not fitted."""


@dataclass(frozen=True)
class Arithmetic:
    """Operations in matrix products, and others: minima, rounding, norms."""

    products: int = 0
    others: int = 0

    def __add__(self, more: Arithmetic) -> Arithmetic:
        return Arithmetic(self.products + more.products, self.others + more.others)

    def __sub__(self, less: Arithmetic) -> Arithmetic:
        return Arithmetic(self.products - less.products, self.others - less.others)

    def __mul__(self, times: int) -> Arithmetic:
        return Arithmetic(self.products * times, self.others * times)

    @property
    def flops(self) -> int:
        """All of them."""
        return self.products + self.others


def index_arithmetic(policy: Policy, d: int, kv_heads: int, tokens: int) -> Arithmetic:
    """Return the operations that make the index of `tokens` keys of `d` channels in one KV head, nothing without one.

    Leading terms, derived from what each index stores: a projection to m numbers is 2 d m per key, the covariance that
    a basis is fitted to 2 d^2 (its eigenvectors, 9 d^3 once, are left out), a round of clustering 2 d per key and
    centre.
    """
    found = [_of_score(selector.score, d, kv_heads, tokens) for selector in staged_selectors(policy)]
    if isinstance(policy.read.completion, Estimate):
        found.append(Arithmetic(0, d * tokens))
    return sum(found, Arithmetic())


def anchor_arithmetic(fmt: Format, d: int, tokens: int) -> Arithmetic:
    """Return the operations that find the anchors of `tokens` keys and values of one KV head, nothing without them."""
    found = [_clustering(d, tokens, _ANCHORED_ROWS, side.tokens, side.rounds) for side in fmt.anchored]
    return sum(found, Arithmetic())


def _of_score(score: Score | None, d: int, kv_heads: int, tokens: int) -> Arithmetic:
    match score:
        case CentroidScore(centroid=centroid):
            return _of_clusters(centroid, d, tokens)
        case GraphScore(graph=graph):  # every key is looked for among those before it
            return Arithmetic(int(graph.visited * tokens * tokens * d))
        case LightningScore(lightning=index):
            return Arithmetic(2 * d * index.dims * tokens // kv_heads)
        case _:
            products, others = _per_token(score, d)
            return Arithmetic(products * tokens, others * tokens)


def _per_token(score: Score | None, d: int) -> tuple[int, int]:
    """Return products and other operations per key."""
    match score:
        case MeanScore() | ChanScore():
            return 0, d
        case BoxScore():
            return 0, 2 * d
        case BallScore() | SubspacesScore():
            return 0, 4 * d
        case EllipsoidScore():
            return 2 * d * d, 4 * d
        case QKeysScore():
            return 0, 6 * d
        case SketchScore(sketch=sketch):
            return _of_sketch(sketch, d)
        case LshScore(lsh=lsh):
            return 2 * d * lsh.tables * lsh.bits, d
        case JlScore(jl=jl):
            return 2 * d * jl.dims, 2 * d
        case PublishedScore(published=published):
            return 2 * d * published.dims, 0
        case _:
            return 0, 0


def _of_sketch(sketch: Sketch, d: int) -> tuple[int, int]:
    fit = 0 if sketch.basis in _BLIND else 2 * d * d
    return 2 * d * sketch.dims + fit, 4 * sketch.dims + (2 * d if sketch.residual == "single" else 0)


def _of_clusters(centroid: Centroid, d: int, tokens: int) -> Arithmetic:
    found = _clustering(d, tokens, centroid.segment, centroid.tokens, centroid.rounds)
    return found + Arithmetic(0, 3 * d * tokens if centroid.radius else 0)


def _clustering(d: int, tokens: int, segment: int, members: int, rounds: int) -> Arithmetic:
    """Compare every key of a segment with every centre, and add it to its own, so many times."""
    centres = -(-min(segment, tokens) // members)
    return Arithmetic(2 * d * centres * rounds * tokens, d * rounds * tokens)
