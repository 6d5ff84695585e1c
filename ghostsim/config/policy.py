"""The KEEP / READ algebra as data: a policy is a list of KEEP clauses and one READ clause over selectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ghostsim.config.base import Count, Number, Strict, Text, Whole
from ghostsim.config.formats import FP16, KeptFormat
from ghostsim.config.rules import AllRule, Certify, NoneRule, Presume, Rule, Sample, TopFrac, TopK
from ghostsim.config.scores import (
    AgeScore,
    CentroidScore,
    HistScore,
    JlScore,
    Kind,
    LshScore,
    ObsScore,
    PastScore,
    Score,
    Share,
    Unit,
    first_key,
    fitted,
    kind_of,
    page_of,
    unit_of,
)

Role = Literal["hot", "warm", "cold", "archive"]
HeadClass = Literal["local", "retrieval", "dormant", "semantic memory"]


# --- the noun -----------------------------------------------------------------------------------------------


class Pin(Strict):
    """Positions that are always taken: the first `sinks`, the last `window` (own token included), the last page.

    `sink_pages` and `window_pages` count pages of the score's index; `classes` names token classes of the trace;
    `window_share` makes the window a share of the longest sequence, prompt and decode, of a KEEP clause.
    """

    sinks: Whole = 0
    window: Whole = 0
    window_share: Share | None = None
    last_page: bool = False
    sink_pages: Whole = 0
    window_pages: Whole = 0
    classes: tuple[Whole, ...] = ()

    @property
    def paged(self) -> bool:
        """Whether some pins are pages."""
        return bool(self.last_page or self.sink_pages or self.window_pages)


class Layers(Strict):
    """Layers of the target model that are treated apart."""

    dense: tuple[Whole, ...] = ()
    """Layers that read everything."""
    below: Share | None = None
    """The share of the layers, from the first, that reads everything."""

    def exempt(self, layer: int, layers: int) -> bool:
        """Whether a layer reads everything."""
        return layer in self.dense or (self.below is not None and layer < int(self.below * layers))


class Heads(Strict):
    """KV heads that are treated apart, by what their attention was in the prompt."""

    full: Share | None = None
    """The share of all (layer, KV head) that takes everything: those with the most mass beyond the pins."""
    classes: dict[HeadClass, dict[str, Any]] = Field(default={})
    """Fields of the selector that differ for heads of a class."""


class Steps(Strict):
    """Every so many steps."""

    steps: Count


def _everything(value: Any) -> Any:
    return {"rule": "all"} if value == "all" else value


class Selector(Strict):
    """The noun of the algebra: pins, and units taken by a rule over a score.

    `then` are further selectors that choose among what this one took, `also` selectors whose choice is added, `less`
    selectors whose choice is taken away.
    """

    rule: Rule
    score: Score | None = None
    unit: Unit | None = None
    refresh: Literal["never"] | Steps = "never"
    """When the index is built again on the tokens that are there by then; records are written as tokens turn cold."""
    pin: Pin = Pin()
    layers: Layers = Layers()
    heads: Heads = Heads()
    reduce: Literal["any", "max", "mean", "sum"] = "any"
    """How the query heads of a KV head agree on one set."""
    softmax: bool = False
    """Whether scores become probabilities over the units before they are reduced."""
    scope: Literal["head", "layer", "model"] = "head"
    """Heads that choose together: the KV heads of a layer, or of all layers."""
    together: Literal["set", "budget", "count"] = "set"
    """What they share: one set of units, one budget over all their units, or the mean of how many each would take."""
    then: tuple[Selector, ...] = ()
    also: tuple[Selector, ...] = ()
    less: tuple[Selector, ...] = ()

    @property
    def page(self) -> int:
        """Tokens per page; 1 where units are not pages."""
        return page_of(self.score)

    @property
    def scored(self) -> bool:
        """Whether the rule looks at scores."""
        return not isinstance(self.rule, AllRule | NoneRule)

    @property
    def cascade(self) -> tuple[Selector, ...]:
        """The selector and those that choose among what it took, in order."""
        return (self, *self.then)

    @model_validator(mode="after")
    def _score_fits_rule(self) -> Selector:
        if self.pin.paged and self.page == 1:
            raise ValueError("found pin.last_page without pages, expected score: {box: {page: 16}}")
        if not self.scored:
            return self
        name = first_key(self.rule)
        if self.score is None:
            raise ValueError(f"found the rule {name} without a score, expected one, e.g. score: exact")
        if isinstance(self.rule, Certify):
            self._check_certificate(kind_of(self.score))
        if isinstance(self.rule, Presume) and not isinstance(self.score, JlScore):
            raise ValueError(f"found presume on the score {first_key(self.score)}, expected jl, a statistical bound")
        if isinstance(self.rule, Sample) and not isinstance(self.score, LshScore):
            raise ValueError(f"found sample on the score {first_key(self.score)}, expected lsh")
        if self.refresh != "never" and not fitted(self.score):
            raise ValueError(
                f"found refresh for the score {first_key(self.score)}, of which nothing is fitted, "
                "expected one of qkeys, sketch, chan, centroid, lsh"
            )
        unit = unit_of(self.score)
        if self.unit is not None and self.unit != unit:
            raise ValueError(f"found unit {self.unit} for the score {first_key(self.score)}, expected {unit}")
        return self

    def _check_certificate(self, kind: Kind) -> None:
        assert self.score is not None
        if kind not in ("exact", "upper-bound"):
            raise ValueError(
                f"found certify on the score {first_key(self.score)}, which is only {_article(kind)}; "
                "expected an exact score or an upper bound: exact, qkeys, box, ball, or sketch with a residual norm"
            )
        if self.reduce != "any" or self.scope != "head":
            found = f"reduce: {self.reduce}" if self.reduce != "any" else f"scope: {self.scope}"
            raise ValueError(
                f"found certify with {found}, expected reduce: any and scope: head: a certificate holds per query head"
            )

    @model_validator(mode="after")
    def _terms_are_plain(self) -> Selector:
        for each in (*self.then, *self.also, *self.less):
            if each.then or each.also or each.less:
                raise ValueError(
                    "found then, also or less inside one another, expected them at the outer selector only"
                )
            if each.pin != Pin() or each.layers != Layers() or each.heads != Heads():
                raise ValueError("found pin, layers or heads inside then, also or less, expected them at the outer one")
        return self


def _article(kind: Kind) -> str:
    return f"an {kind}" if kind == "estimate" else f"a {kind} bound" if kind == "claimed" else f"a {kind}"


# --- READ ---------------------------------------------------------------------------------------------------


class Add(Strict):
    """Add a constant per eliminated token to the softmax sum."""

    add: Number


class Estimate(Strict):
    """Stand in for the next best share of the clusters by their centre and the sum of their values."""

    estimate: Share


Completion = Annotated[
    Literal["renormalise", "add_bound", "track", "importance", "state"]
    | Annotated[Annotated[Add, Tag("add")] | Annotated[Estimate, Tag("estimate")], Discriminator(first_key)],
    Field(union_mode="smart"),
]


class Cache(Strict):
    """Units that were read stay in HBM, up to `tokens`.

    `by` says which leaves first when room is needed: the least recently used, or the lowest by the score that the first
    stage of the cascade gives every unit, agreed among the query heads as the selector agrees (ArkVale's page scores).
    `misses` says what becomes of a token that the cache lacks: it is read for the step and copied beside (RetroInfer),
    or it moves into the cache first and is attended from there (ArkVale's recalls: their cause is migrate).
    """

    tokens: Count
    by: Literal["lru", "score"] = "lru"
    misses: Literal["read", "migrate"] = "read"


class Read(Selector):
    """What is attended at each step, and how the softmax treats what is not."""

    completion: Completion = "renormalise"
    lag: Literal["none", "layer", "step"] = "none"
    """Scores come from the query itself, from the query predicted a layer ahead, or from the last step's query."""
    speculate: Count = 1
    """Queries of consecutive steps that share one read set, their union, moved once; the index is scanned once, each
    record scored by all of them. A run counts every step as a token of every request (all drafts accepted) and a pass
    over the weights; `serving.speculation` has drafts, acceptance, and one pass for all tokens that are verified."""
    cache: Cache | None = None

    @model_validator(mode="after")
    def _score_is_known_at_query_time(self) -> Read:
        for each in (*self.cascade, *self.also, *self.less):
            if isinstance(each.score, HistScore | ObsScore):
                raise ValueError(
                    f"found the score {first_key(each.score)} in read, expected it in keep, or one of age, exact, "
                    "box, qkeys, sketch, published"
                )
        return self

    @model_validator(mode="after")
    def _pins_are_of_tokens_that_stand(self) -> Read:
        if self.pin.window_share is not None:
            raise ValueError(
                "found pin.window_share in read, expected it in keep, or a number of tokens, e.g. window: 64"
            )
        return self

    @model_validator(mode="after")
    def _certificate_is_of_this_query(self) -> Read:
        if self.certified and (self.lag != "none" or self.also or self.less):
            raise ValueError("found certify with lag, also or less, expected it alone: the proof is of this query")
        if isinstance(self.completion, Estimate) and unit_of(self.score) != "cluster":
            raise ValueError("found completion estimate without clusters, expected score: {centroid: {}}")
        ageing = self.refresh != "never" or (isinstance(self.score, CentroidScore) and self.score.centroid.joins)
        if ageing and (isinstance(self.completion, Estimate) or self.completion == "importance"):
            raise ValueError("found refresh or joins with a completion from the index, expected renormalise or track")
        if self.completion == "importance" and not isinstance(self.rule, Sample):
            raise ValueError("found completion importance without sampling, expected rule: {sample: 2}")
        return self

    @model_validator(mode="after")
    def _cache_has_scores_to_go_by(self) -> Read:
        if self.cache is not None and self.cache.by == "score" and not self.scored:
            raise ValueError(f"found cache.by score with the rule {first_key(self.rule)}, expected cache.by: lru")
        return self

    @property
    def certified(self) -> bool:
        """Whether some stage promises a limit on the lost mass."""
        return any(isinstance(each.rule, Certify) for each in self.cascade)

    @property
    def eps(self) -> float | None:
        """The promised limit: what all certifying stages may lose together; None without a promise."""
        spent = [each.rule.certify for each in self.cascade if isinstance(each.rule, Certify)]
        return sum(spent) if spent and len(spent) == len(self.cascade) else None


# --- KEEP ---------------------------------------------------------------------------------------------------


class Overflow(Strict):
    """When the budget is exceeded; the fraction that is dropped then."""

    overflow: Share


Clock = Annotated[
    Literal["step", "prefill_end", "offline"]
    | Annotated[Annotated[Steps, Tag("steps")] | Annotated[Overflow, Tag("overflow")], Discriminator(first_key)],
    Field(union_mode="smart"),
]


class Recover(Strict):
    """Per head the first of several selectors that recovers a share of the prompt's attention.

    Fractions in them are of the longest sequence, prompt and decode.
    """

    recover: Share
    of: Annotated[tuple[Selector, ...], Field(min_length=1)]


class Keep(Strict):
    """What is stored, when that is decided, in which format, in which role.

    A token that several clauses select is served by the first of them. One in the `archive` has no record of its own:
    the first stage of READ, balls of clusters, decides on it alone, and a cluster is read as a whole.
    """

    every: Clock = "step"
    select: Annotated[Selector, BeforeValidator(_everything)]
    first: Recover | None = None
    """Replaces `select` per head; `select` holds where none of them recovers enough."""
    format: KeptFormat = FP16
    role: Role = "hot"
    generated: bool = True
    """Whether tokens that are decoded after a clause that decides at the end of prefill stay."""
    v_role: Role | None = None
    """The role of the values, where it differs from that of the keys."""
    state: Whole = 0
    """Bytes of bookkeeping per kept token and KV head, rewritten at every step (H2O's score sums)."""

    @model_validator(mode="after")
    def _decided_from_the_past(self) -> Keep:
        for select in (self.select, *(self.first.of if self.first else ())):
            if not isinstance(select.rule, AllRule | NoneRule | TopK | TopFrac):
                name = first_key(select.rule)
                raise ValueError(f"found the rule {name} in keep, expected one of all, none, topk, topfrac")
            self._check_score(select)
        return self

    def _check_score(self, select: Selector) -> None:
        score = select.score
        if score is None:
            return
        if not isinstance(score, PastScore):
            raise ValueError(f"found the score {first_key(score)} in keep, expected age, hist, obs, norm, trig, random")
        if isinstance(score, AgeScore | HistScore) and self.every == "prefill_end" and self.first is None:
            raise ValueError(f"found the score {first_key(score)} with every: prefill_end, expected obs or norm")
        if isinstance(score, ObsScore) and self.every not in ("prefill_end", "offline"):
            raise ValueError("found the score obs with a clock of the decode, expected every: prefill_end, age or hist")
        if select.scope != "head" and self.every != "prefill_end":
            raise ValueError(f"found scope: {select.scope} with a clock of the decode, expected every: prefill_end")

    @property
    def everything(self) -> bool:
        """Whether the clause stores every token."""
        return isinstance(self.select.rule, AllRule) and self.first is None


# --- policy -------------------------------------------------------------------------------------------------


class Policy(Strict):
    """A KV-cache policy."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Text
    paper: Text | None = None
    summary: Text = "KV-cache policy"
    family: Literal["baseline", "quantise", "evict", "offload", "retrieve", "share", "ghostkv"] = "baseline"
    fidelity: Literal["exact", "parameterised", "sketch"] = "exact"
    """How close to the published system: as its code does it, with supplied parts, or from its abstract alone."""
    note: Text | None = None
    """What is exact and what is supplied."""
    claim: Text | None = None
    """The figure that its authors state."""
    layer_groups: Count = 1
    """Consecutive layers that store one copy of K and V between them."""
    keep: Annotated[tuple[Keep, ...], Field(min_length=1)]
    read: Read

    @property
    def lossless(self) -> bool:
        """Whether what is read equals what was written (a format may change scores even at no lost mass)."""
        return all(keep.format.fp16 for keep in self.keep)

    @model_validator(mode="after")
    def _certificate_sees_all(self) -> Policy:
        if not self.read.certified:
            return self
        if not any(keep.everything for keep in self.keep):
            raise ValueError(
                "found certify over an evicting keep, expected select: all: what is evicted is in no certificate"
            )
        hot_decides = all(s.rule.form == "one_pass" for s in self.read.cascade if isinstance(s.rule, Certify))
        cold_alone = all(keep.format.fp16 or keep.role == "cold" for keep in self.keep)
        if not (self.lossless or (hot_decides and cold_alone)):
            raise ValueError(
                "found certify over a lossy format, expected format: fp16, or role: cold and form: one_pass, which "
                "decides on hot tokens alone: the softmax sum of decoded keys is no lower bound"
            )
        return self

    @model_validator(mode="after")
    def _archive_is_bounded_by_balls(self) -> Policy:
        if self.archive is None:
            return self
        score = self.read.score
        if not (isinstance(score, CentroidScore) and score.centroid.radius) or self.read.also or self.read.less:
            raise ValueError(
                "found a keep with role: archive, expected read to begin with score: {centroid: {radius: true}} and to "
                "have no also or less: all that is known of an archived token is the ball of its cluster"
            )
        if self.read.speculate > 1 or self.read.cache is not None:
            raise ValueError("found a keep with role: archive, expected read without speculate and cache")
        return self

    @property
    def archive(self) -> int | None:
        """The KEEP clause whose tokens are archived; None without one."""
        return next((i for i, keep in enumerate(self.keep) if keep.role == "archive"), None)

    def selectors(self) -> Iterator[Selector]:
        """Yield every selector of the policy."""
        for clause in self.keep:
            yield clause.select
            yield from clause.first.of if clause.first else ()
        yield from (*self.read.cascade, *self.read.also, *self.read.less)
