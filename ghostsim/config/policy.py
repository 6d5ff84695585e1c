"""The KEEP / READ algebra as data: a policy is a list of KEEP clauses and one READ clause over selectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ghostsim.config.base import Count, Number, Strict, Text, Whole

Kind = Literal["exact", "upper-bound", "claimed", "estimate", "prior"]
Role = Literal["hot", "warm", "cold"]


def _named(value: Any) -> Any:
    """Let a bare name stand for a mapping without parameters: ``exact`` for ``{exact: {}}``."""
    return {value: {}} if isinstance(value, str) else value


def _first_key(value: Any) -> str | None:
    if isinstance(value, Mapping) and value:
        return str(next(iter(value)))
    names = getattr(type(value), "model_fields", None)
    return next(iter(names)) if names else None


class Empty(Strict):
    """No parameters."""


# --- scores: what orders the units, and what it costs to look at them --------------------------------------


class Hist(Strict):
    """Attention probability received so far, summed over queries."""

    decay: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0


class Obs(Strict):
    """Attention probability from the last `window` prompt queries, pooled over `pool` (odd) neighbouring positions."""

    window: Count = 32
    pool: Annotated[int, Field(strict=True, ge=1, le=1001)] = 5
    kernel: Literal["avg", "max"] = "avg"

    @model_validator(mode="after")
    def _pool_is_centred(self) -> Obs:
        if self.pool % 2 == 0:
            raise ValueError(f"found pool {self.pool}, expected an odd number of positions, e.g. 5")
        return self


class Box(Strict):
    """Per-channel minimum and maximum of the keys of a page."""

    page: Count = 16


class QKeys(Strict):
    """Every key at `bits` per channel with one rounded-up error norm."""

    bits: Annotated[int, Field(strict=True, ge=1, le=8)] = 4


class Sketch(Strict):
    """A projection of the key to `dims` numbers with the norm of what it leaves out.

    `residual: none` drops the norm: an estimate, not a bound. `bits: 16` keeps the projection in fp16.
    """

    dims: Count = 32
    bits: Literal[2, 4, 8, 16] = 8
    basis: Literal["pca", "random"] = "pca"
    residual: Literal["single", "none"] = "single"


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


class AgeScore(Strict):
    """Order by age: the newest first."""

    age: Empty


class Exact(Strict):
    """The exact score. It reads every key; uncharged it is an oracle, the limit of what any index can do."""

    charged: bool = True


class ExactScore(Strict):
    """Order by the exact attention score."""

    exact: Exact


class HistScore(Strict):
    """Order by accumulated attention."""

    hist: Hist


class ObsScore(Strict):
    """Order by the attention of an observation window."""

    obs: Obs


class BoxScore(Strict):
    """Order by the upper bound of a box per page."""

    box: Box


class QKeysScore(Strict):
    """Order by the upper bound from quantised keys."""

    qkeys: QKeys


class SketchScore(Strict):
    """Order by the upper bound from a sketch."""

    sketch: Sketch


class PublishedScore(Strict):
    """Order by the published AttnUB."""

    published: Published


_SCORES = (AgeScore, ExactScore, HistScore, ObsScore, BoxScore, QKeysScore, SketchScore, PublishedScore)
Score = Annotated[
    Annotated[AgeScore, Tag("age")]
    | Annotated[ExactScore, Tag("exact")]
    | Annotated[HistScore, Tag("hist")]
    | Annotated[ObsScore, Tag("obs")]
    | Annotated[BoxScore, Tag("box")]
    | Annotated[QKeysScore, Tag("qkeys")]
    | Annotated[SketchScore, Tag("sketch")]
    | Annotated[PublishedScore, Tag("published")],
    Discriminator(_first_key),
    BeforeValidator(_named),
]


def kind_of(score: Score) -> Kind:
    """Say what the values of a score are worth: only exact scores and upper bounds may certify."""
    match score:
        case ExactScore():
            return "exact"
        case BoxScore() | QKeysScore():
            return "upper-bound"
        case SketchScore():
            return "estimate" if score.sketch.residual == "none" else "upper-bound"
        case PublishedScore():
            return "claimed"
        case AgeScore() | HistScore() | ObsScore():
            return "prior"


# --- rules: how many units are taken ------------------------------------------------------------------------


class AllRule(Strict):
    """Take every unit."""

    all: Empty


class NoneRule(Strict):
    """Take no unit beyond the pins."""

    none: Empty


class TopK(Strict):
    """Take the units that hold the best `topk` tokens (whole units, rounded down)."""

    topk: Count


class TopFrac(Strict):
    """Take the best fraction of the units (rounded down)."""

    topfrac: Annotated[float, Field(strict=True, gt=0, le=1)]


class Above(Strict):
    """Take every unit whose score is at least a constant."""

    above: Number


class Margin(Strict):
    """Take every unit whose score is at least the best score minus a constant."""

    margin: Annotated[float, Field(strict=True, ge=0, le=1e6)]


class Certify(Strict):
    """Take units until the rest provably holds at most a fraction of the attention mass.

    `staged` reads in order of the bound with the normaliser growing, `one_pass` decides on the normaliser of
    the hot tokens alone, `flat` uses one threshold for all.
    """

    certify: Annotated[float, Field(strict=True, gt=0, lt=1)]
    form: Literal["staged", "one_pass", "flat"] = "staged"


Rule = Annotated[
    Annotated[AllRule, Tag("all")]
    | Annotated[NoneRule, Tag("none")]
    | Annotated[TopK, Tag("topk")]
    | Annotated[TopFrac, Tag("topfrac")]
    | Annotated[Above, Tag("above")]
    | Annotated[Margin, Tag("margin")]
    | Annotated[Certify, Tag("certify")],
    Discriminator(_first_key),
    BeforeValidator(_named),
]


# --- formats: how K and V are stored ------------------------------------------------------------------------


class Int(Strict):
    """Asymmetric integers with an fp16 scale and minimum per group of channels."""

    bits: Literal[2, 4, 8] = 4
    group: Count = 128


class Fp16Format(Strict):
    """K and V as the model writes them."""

    fp16: Empty


class IntFormat(Strict):
    """K and V as group-quantised integers."""

    int: Int


Format = Annotated[
    Annotated[Fp16Format, Tag("fp16")] | Annotated[IntFormat, Tag("int")],
    Discriminator(_first_key),
    BeforeValidator(_named),
]


# --- the two verbs -------------------------------------------------------------------------------------------


class Pin(Strict):
    """Positions that are always taken: the first `sinks`, the last `window` (own token included), the last page."""

    sinks: Whole = 0
    window: Whole = 0
    last_page: bool = False


class Layers(Strict):
    """Layers of the target model that are treated apart."""

    dense: tuple[Whole, ...] = ()
    """Layers that read everything."""


def _everything(value: Any) -> Any:
    return {"rule": "all"} if value == "all" else value


class Selector(Strict):
    """The noun of the algebra: pins, and units taken by a rule over a score."""

    rule: Rule
    score: Score | None = None
    unit: Literal["token", "page"] = "token"
    pin: Pin = Pin()
    layers: Layers = Layers()
    reduce: Literal["any", "max", "mean", "sum"] = "any"
    """How the query heads of a KV head agree on one set."""

    @property
    def page(self) -> int:
        """Tokens per unit."""
        return self.score.box.page if isinstance(self.score, BoxScore) else 1

    @model_validator(mode="after")
    def _score_fits_rule(self) -> Selector:
        if self.pin.last_page and not isinstance(self.score, BoxScore):
            raise ValueError("found pin.last_page without pages, expected score: {box: {page: 16}}")
        if isinstance(self.rule, AllRule | NoneRule):
            return self
        name = next(iter(type(self.rule).model_fields))
        if self.score is None:
            raise ValueError(f"found the rule {name} without a score, expected one, e.g. score: exact")
        if isinstance(self.rule, Certify) and kind_of(self.score) not in ("exact", "upper-bound"):
            raise ValueError(
                f"found certify on the score {_first_key(self.score)}, which is only {_article(kind_of(self.score))}; "
                "expected an exact score or an upper bound: exact, qkeys, box, or sketch with a residual norm"
            )
        if isinstance(self.rule, Certify) and self.reduce != "any":
            raise ValueError(
                f"found certify with reduce: {self.reduce}, expected reduce: any: a certificate holds per query head"
            )
        if (self.unit == "page") != isinstance(self.score, BoxScore):
            raise ValueError(
                f"found unit {self.unit} for the score {_first_key(self.score)}, expected page for box only"
            )
        return self


def _article(kind: Kind) -> str:
    return f"an {kind}" if kind == "estimate" else f"a {kind} bound" if kind == "claimed" else f"a {kind}"


class Read(Selector):
    """What is attended at each step, and how the softmax treats what is not."""

    completion: Literal["renormalise"] = "renormalise"

    @model_validator(mode="after")
    def _score_is_known_at_query_time(self) -> Read:
        if isinstance(self.score, HistScore | ObsScore):
            raise ValueError(
                f"found the score {_first_key(self.score)} in read, expected it in keep, or one of age, exact, box, "
                "qkeys, sketch, published"
            )
        return self


class Keep(Strict):
    """What is stored, when that is decided, in which format, in which role."""

    every: Literal["step", "prefill_end"] = "step"
    select: Annotated[Selector, BeforeValidator(_everything)]
    format: Format = Fp16Format(fp16=Empty())
    role: Role = "hot"
    state: Whole = 0
    """Bytes of bookkeeping per kept token and KV head, rewritten at every step (H2O's score sums)."""

    @model_validator(mode="after")
    def _decided_from_the_past(self) -> Keep:
        rule, score = self.select.rule, self.select.score
        if not isinstance(rule, AllRule | NoneRule | TopK | TopFrac):
            raise ValueError(f"found the rule {_first_key(rule)} in keep, expected one of all, none, topk, topfrac")
        expected = {"step": AgeScore | HistScore, "prefill_end": ObsScore}[self.every]
        if score is not None and not isinstance(score, expected):
            wanted = "obs" if self.every == "prefill_end" else "age or hist"
            raise ValueError(f"found the score {_first_key(score)} with every: {self.every}, expected {wanted}")
        return self

    @property
    def everything(self) -> bool:
        """Whether the clause stores every token."""
        return isinstance(self.select.rule, AllRule)


class Policy(Strict):
    """A KV-cache policy."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Text
    paper: Text | None = None
    summary: Text = "KV-cache policy"
    keep: Annotated[tuple[Keep, ...], Field(min_length=1)]
    read: Read

    @model_validator(mode="after")
    def _one_format(self) -> Policy:
        if any(keep.format != self.format for keep in self.keep):
            raise ValueError("found keep clauses with different formats, expected one format for all of them")
        return self

    @property
    def format(self) -> Format:
        """How K and V are stored."""
        return self.keep[0].format

    @model_validator(mode="after")
    def _certificate_sees_all(self) -> Policy:
        if not isinstance(self.read.rule, Certify):
            return self
        if not all(keep.everything for keep in self.keep):
            raise ValueError(
                "found certify over an evicting keep, expected select: all: what is evicted is in no certificate"
            )
        if not self.lossless:
            raise ValueError(
                "found certify over an integer format, expected format: fp16: the softmax sum of dequantised keys "
                "is no lower bound"
            )
        return self

    @property
    def lossless(self) -> bool:
        """Whether what is read equals what was written (a format may change scores even at no lost mass)."""
        return all(isinstance(keep.format, Fp16Format) for keep in self.keep)
