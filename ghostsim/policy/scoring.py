"""Score -> index: the one place that knows which index answers which score of the algebra."""

from __future__ import annotations

from typing import Protocol

from ghostsim.config.scores import (
    AgeScore,
    BallScore,
    BoxScore,
    CentroidScore,
    ChanScore,
    EllipsoidScore,
    ExactScore,
    GraphScore,
    JlScore,
    LightningScore,
    LshScore,
    MeanScore,
    NormScore,
    PublishedScore,
    QKeysScore,
    RandomScore,
    Score,
    SketchScore,
    SubspacesScore,
    TrigScore,
)
from ghostsim.errors import ConfigError
from ghostsim.policy import bounded, clusters, indexes, orders, pages
from ghostsim.policy.exact import Array, Block
from ghostsim.policy.indexes import Claim
from ghostsim.policy.units import Units
from ghostsim.trace.compose import Head


class Index(Protocol):
    """What a READ score looks at.

    `claim` names the scale in which scores are claimed to bound the exact score from above; None: no claim.
    """

    @property
    def claim(self) -> Claim | None:
        """The scale of the claim."""

    def units(self, c0: int, c1: int) -> Units:
        """Return the units that the positions c0 .. c1 fall into."""

    def scores(self, block: Block, asked: Array, head: Head) -> Array:
        """Return the score [n, g, units] of every unit for the queries `asked` [n, g, d]; it must not be changed."""


def build(score: Score, head: Head, fit: slice) -> Index:
    """Build the index of a score on one head; what is fitted is fitted on the cold prompt rows `fit`.

    Raises
    ------
    ConfigError, TraceError
        If the score does not fit the head or needs what the trace does not hold.
    """
    match score:
        case QKeysScore(qkeys=qkeys):
            return indexes.build_qkeys(head.keys, fit, qkeys.bits)
        case SketchScore(sketch=sketch):
            if not sketch.plain:
                return bounded.build_special(head, fit, sketch)
            return indexes.build_sketch(head.keys, fit, sketch, head.prompt_queries)
        case ChanScore(chan=chan):
            return indexes.build_chan(head.keys, head.prompt_queries, chan)
        case PublishedScore(published=published):
            return indexes.build_published(head.keys, published)
        case JlScore(jl=jl):
            return indexes.build_jl(head.keys, head.context, jl)
        case CentroidScore(centroid=centroid):
            return clusters.build_clusters(head.keys, head.context, fit, centroid)
        case LshScore(lsh=lsh):
            return orders.build_lsh(head, fit, lsh)
        case BoxScore() | MeanScore() | BallScore() | SubspacesScore() | EllipsoidScore():
            return _of_pages(score, head)
        case _:
            return _without_records(score, head)


def _of_pages(score: BoxScore | MeanScore | BallScore | SubspacesScore | EllipsoidScore, head: Head) -> Index:
    match score:
        case EllipsoidScore(ellipsoid=ellipsoid):
            return bounded.build_ellipsoid(head.keys, ellipsoid)
        case BoxScore(box=box):
            return pages.build_box(head.keys, box)
        case MeanScore(mean=mean):
            return pages.build_mean(head.keys, mean)
        case BallScore(ball=ball):
            return pages.build_ball(head.keys, ball)
        case SubspacesScore(subspaces=subspaces):
            return pages.build_subspaces(head.keys, subspaces)


def _without_records(score: Score, head: Head) -> Index:
    match score:
        case ExactScore():
            return orders.ExactOrder()
        case LightningScore():
            return orders.ExactOrder(None)
        case GraphScore(graph=graph):
            return orders.build_graph(graph)
        case AgeScore() | NormScore() | TrigScore() | RandomScore():
            return orders.FixedOrder(orders.prior_order(score, head))
        case _:
            raise ConfigError(f"read.score: found {score}, expected a score that is known at query time")
