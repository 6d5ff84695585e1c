"""What orders the units of a policy, and what it costs to look: the SCORE and INDEX tables of the algebra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ghostsim.config.base import Count, Number, Strict, Whole

Kind = Literal["exact", "upper-bound", "claimed", "estimate", "prior"]
Share = Annotated[float, Field(strict=True, gt=0, le=1)]
Bits = Annotated[int, Field(strict=True, ge=1, le=8)]


def named(value: Any) -> Any:
    """Let a bare name stand for a mapping without parameters: ``exact`` for ``{exact: {}}``."""
    return {value: {}} if isinstance(value, str) else value


def first_key(value: Any) -> str | None:
    """Return the key that says which alternative a mapping or a model is."""
    if isinstance(value, Mapping) and value:
        return str(next(iter(value)))
    names = getattr(type(value), "model_fields", None)
    return next(iter(names)) if names else None


class Empty(Strict):
    """No parameters."""


# --- what the past says -------------------------------------------------------------------------------------


class Hist(Strict):
    """Attention probability received so far, summed over queries.

    With `below_mean` it counts instead how often a token got less than the step's average among the last `window`
    queries; the fewer the better.
    """

    decay: Share = 1.0
    window: Count | None = None
    below_mean: bool = False

    @model_validator(mode="after")
    def _counts_in_a_window(self) -> Hist:
        if self.below_mean != (self.window is not None):
            raise ValueError("found below_mean or window alone, expected both, e.g. {window: 400, below_mean: true}")
        return self


class Obs(Strict):
    """Attention probability from the last `window` prompt queries, pooled over `pool` (odd) neighbouring positions.

    With `values` the probability is weighted by the norm of the token's value.
    """

    window: Count = 32
    pool: Annotated[int, Field(strict=True, ge=1, le=1001)] = 5
    kernel: Literal["avg", "max"] = "avg"
    values: bool = False

    @model_validator(mode="after")
    def _pool_is_centred(self) -> Obs:
        if self.pool % 2 == 0:
            raise ValueError(f"found pool {self.pool}, expected an odd number of positions, e.g. 5")
        return self


class Norm(Strict):
    """The norm of a token's key or value; `order: smallest` prefers small ones."""

    of: Literal["key", "value"] = "key"
    order: Literal["largest", "smallest"] = "smallest"


class Trig(Strict):
    """What the mean query before rotation asks at distances up to `offsets`: a preference of RoPE alone."""

    offsets: Count = 65536


class Random(Strict):
    """A fixed random order."""

    seed: Whole = 0


# --- indexes --------------------------------------------------------------------------------------------------


class Exact(Strict):
    """The exact score. It reads every key; uncharged it is an oracle, the limit of what any index can do."""

    charged: bool = True


class Box(Strict):
    """Per-channel minimum and maximum of the keys of a page.

    `spread: mean` stores the centre and the mean absolute deviation instead: an estimate, not a bound.
    """

    page: Count = 16
    spread: Literal["extremes", "mean"] = "extremes"


class Mean(Strict):
    """The mean key of a page: an estimate. `outliers` pages with the least similar keys are read always."""

    page: Count = 8
    outliers: Whole = 0


class Ball(Strict):
    """Centre and radius of the keys of a page."""

    page: Count = 16


class Subspaces(Strict):
    """Centre and radius of the keys of a page in each of `parts` equal slices of the channels."""

    page: Count = 4
    parts: Count = 8


class Ellipsoid(Strict):
    """Centre and reach of the keys of a page in the shape that all pages of a head share."""

    page: Count = 16


class Centroid(Strict):
    """Centres of spherical k-means clusters of about `tokens` keys, formed per `segment` of the prompt.

    `radius` stores how far the members reach: an upper bound; without, an estimate. With `joins` a token that turns
    cold after the clusters were formed joins the nearest centre, and its radius grows; without, it is read always.
    Centres are kept in fp16 or at 8 `bits` per channel; radii reach from what is kept.
    """

    tokens: Count = 16
    segment: Count = 8192
    rounds: Count = 10
    radius: bool = False
    joins: bool = False
    bits: Literal[8, 16] = 16


class QKeys(Strict):
    """Every key at `bits` per channel with one rounded-up error norm."""

    bits: Bits = 4


class Sketch(Strict):
    """A projection of the key to `dims` numbers with the norm of what it leaves out.

    `residual: none` drops the norm: an estimate, not a bound. `bits: 16` keeps the projection in fp16. `gaussian` is a
    Johnson-Lindenstrauss matrix made sound by its QR form; `planes` keeps the rotation planes with the most energy and
    a norm in each other one. `centred` takes the mean key off first. `frame` is the number of tokens of a page whose
    keys are turned back to the page's first position before they are projected, `anchor` that of a page about whose
    mean key they are projected; none keeps them as they are attended.
    """

    dims: Count = 32
    bits: Literal[2, 4, 8, 16] = 8
    basis: Literal["pca", "random", "query", "symmetric", "summed", "gaussian", "planes"] = "pca"
    residual: Literal["single", "none"] = "single"
    blocks: Count = 1
    """Residual norms of an fp16 sketch: one per slice of the channels."""
    form: Literal["one", "two", "box"] = "one"
    """How codes account for their error: one norm for all, one inside and one outside, or half a step per channel."""
    integer: bool = False
    """Whether scores are made of integers only, as a core without floating point does."""
    centred: bool = False
    frame: Count | None = None
    anchor: Count | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Sketch:
        fp16 = self.bits == 16
        if (self.blocks > 1 or self.anchor or self.basis in ("gaussian", "planes")) and not fp16:
            raise ValueError(f"found bits {self.bits} with blocks, anchor, gaussian or planes, expected bits: 16")
        if (self.form != "one" or self.integer) and fp16:
            raise ValueError("found form or integer for an fp16 sketch, expected bits: 2, 4 or 8")
        if self.integer and (self.form != "one" or self.frame):
            raise ValueError("found integer with form or frame, expected it with form: one alone")
        if self.residual == "none" and not self.plain and self.frame is None:
            raise ValueError("found residual: none with a form of the residual, expected a plain sketch or a frame")
        return self

    @property
    def plain(self) -> bool:
        """Whether it is an estimate, or codes with one error norm that meets the whole query."""
        special = self.blocks > 1 or self.form != "one" or self.integer or self.frame or self.anchor
        outside = self.bits == 16 and self.residual == "single"
        return not special and not outside and self.basis not in ("gaussian", "planes")

    def record_bytes(self, d: int) -> float:
        """Return the bytes of a token's record at `d` channels."""
        numbers = self.dims * self.bits / 8
        if self.residual == "none":
            return numbers
        if self.basis == "planes":
            return numbers + 2 * (d - self.dims) / 2
        extra = 2 * (self.form == "two") + 2 * self.integer
        return numbers + 2 * self.blocks + extra + (2 + 2 * d / self.anchor if self.anchor else 0)


class Chan(Strict):
    """The share of the channels on which queries are largest, in fp16 or `bits`: an estimate."""

    share: Share = 0.2
    bits: Literal[2, 4, 8, 16] = 16


class Lsh(Strict):
    """Random-hyperplane hashes of the centred key, `tables` of `bits`: the score is the number of tables that match."""

    bits: Annotated[int, Field(strict=True, ge=1, le=30)] = 10
    tables: Count = 150


class Graph(Strict):
    """A graph over the keys that visits a share of them (supplied) and finds the exact order among what it visits."""

    visited: Share = 0.02
    record: Count = 256
    """Bytes of a key that is visited."""


class Lightning(Strict):
    """A learned indexer with its own small keys; exact scores stand in for those it has learned."""

    heads: Count = 64
    dims: Count = 128
    record: Count = 132
    """Bytes of an index key and its scale, shared by the heads of a layer."""


class Published(Strict):
    """The score of the published GhostKV note: a Gaussian sketch plus two constants, with no residual.

    `scale: logits` divides the sketch product by sqrt(dims), as the laboratory does; `scale: cosine` compares
    directions, as the note's example does. `record` bytes hold sketch, anchor id and fingerprint.
    """

    dims: Count = 16
    epsilon: Number = 0.05
    sigma: Number = 0.05
    scale: Literal["logits", "cosine"] = "logits"
    record: Count = 48


class Jl(Strict):
    """A Gaussian sketch with a Johnson-Lindenstrauss margin: its product plus sqrt(`c` ln N / m) ||q|| ||k||.

    N are the tokens when the prompt ends, m the `dims`; the norm of the key is stored. 8 is the constant of the lemma
    (Dasgupta and Gupta, 2003), 2 that of a union over N pairs of Gaussian tails exp(-m e^2 / 2). The margin holds with
    some probability for a matrix drawn apart from keys and queries, and queries of a decode depend on what earlier
    ones were let to see: a heuristic, which claims a bound and is none.
    """

    dims: Count = 64
    c: Annotated[float, Field(strict=True, gt=0, le=1e3)] = 8.0


class AgeScore(Strict):
    """Order by age: the newest first."""

    age: Empty


class HistScore(Strict):
    """Order by accumulated attention."""

    hist: Hist


class ObsScore(Strict):
    """Order by the attention of an observation window."""

    obs: Obs


class NormScore(Strict):
    """Order by norm."""

    norm: Norm


class TrigScore(Strict):
    """Order by a distance preference."""

    trig: Trig


class RandomScore(Strict):
    """Order at random."""

    random: Random


class ExactScore(Strict):
    """Order by the exact attention score."""

    exact: Exact


class BoxScore(Strict):
    """Order by a box per page."""

    box: Box


class MeanScore(Strict):
    """Order by a mean key per page."""

    mean: Mean


class BallScore(Strict):
    """Order by a ball per page."""

    ball: Ball


class SubspacesScore(Strict):
    """Order by balls in slices of the channels."""

    subspaces: Subspaces


class EllipsoidScore(Strict):
    """Order by ellipsoids per page."""

    ellipsoid: Ellipsoid


class CentroidScore(Strict):
    """Order by the centres of clusters."""

    centroid: Centroid


class QKeysScore(Strict):
    """Order by the upper bound from quantised keys."""

    qkeys: QKeys


class SketchScore(Strict):
    """Order by a sketch."""

    sketch: Sketch


class ChanScore(Strict):
    """Order by a few channels."""

    chan: Chan


class LshScore(Strict):
    """Order by matching hashes."""

    lsh: Lsh


class GraphScore(Strict):
    """Order by a graph search."""

    graph: Graph


class LightningScore(Strict):
    """Order by a learned indexer."""

    lightning: Lightning


class PublishedScore(Strict):
    """Order by the published AttnUB."""

    published: Published


class JlScore(Strict):
    """Order by a Gaussian sketch with a statistical margin."""

    jl: Jl


PastScore = AgeScore | HistScore | ObsScore | NormScore | TrigScore | RandomScore
Score = Annotated[
    Annotated[AgeScore, Tag("age")]
    | Annotated[HistScore, Tag("hist")]
    | Annotated[ObsScore, Tag("obs")]
    | Annotated[NormScore, Tag("norm")]
    | Annotated[TrigScore, Tag("trig")]
    | Annotated[RandomScore, Tag("random")]
    | Annotated[ExactScore, Tag("exact")]
    | Annotated[BoxScore, Tag("box")]
    | Annotated[MeanScore, Tag("mean")]
    | Annotated[BallScore, Tag("ball")]
    | Annotated[SubspacesScore, Tag("subspaces")]
    | Annotated[EllipsoidScore, Tag("ellipsoid")]
    | Annotated[CentroidScore, Tag("centroid")]
    | Annotated[QKeysScore, Tag("qkeys")]
    | Annotated[SketchScore, Tag("sketch")]
    | Annotated[ChanScore, Tag("chan")]
    | Annotated[LshScore, Tag("lsh")]
    | Annotated[GraphScore, Tag("graph")]
    | Annotated[LightningScore, Tag("lightning")]
    | Annotated[PublishedScore, Tag("published")]
    | Annotated[JlScore, Tag("jl")],
    Discriminator(first_key),
    BeforeValidator(named),
]
Unit = Literal["token", "page", "cluster"]


def kind_of(score: Score) -> Kind:
    """Say what the values of a score are worth: only exact scores and upper bounds may certify."""
    match score:
        case ExactScore():
            return "exact"
        case QKeysScore() | BallScore() | SubspacesScore() | EllipsoidScore():
            return "upper-bound"
        case BoxScore(box=box):
            return "upper-bound" if box.spread == "extremes" else "estimate"
        case CentroidScore(centroid=centroid):
            return "upper-bound" if centroid.radius else "estimate"
        case SketchScore(sketch=sketch):
            return "estimate" if sketch.residual == "none" else "upper-bound"
        case MeanScore() | ChanScore() | LshScore() | GraphScore() | LightningScore():
            return "estimate"
        case PublishedScore() | JlScore():
            return "claimed"
        case _:
            return "prior"


def fitted(score: Score | None) -> bool:
    """Whether something of a score's index is fitted on the keys that stand when it is built, so that it may age."""
    return isinstance(score, QKeysScore | SketchScore | ChanScore | CentroidScore | LshScore)


def page_of(score: Score | None) -> int:
    """Return the tokens of a page of a score's index; 1 where its units are tokens or clusters."""
    match score:
        case BoxScore(box=index) | MeanScore(mean=index) | BallScore(ball=index) | SubspacesScore(subspaces=index):
            return index.page
        case EllipsoidScore(ellipsoid=ellipsoid):
            return ellipsoid.page
        case _:
            return 1


def unit_of(score: Score | None) -> Unit:
    """Return what a score orders."""
    if isinstance(score, CentroidScore):
        return "cluster"
    return "page" if page_of(score) > 1 or isinstance(score, BoxScore | MeanScore | BallScore) else "token"
