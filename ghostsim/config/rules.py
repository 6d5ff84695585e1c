"""How many units are taken: the RULE table of the algebra, with budgets as functions of the layer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from ghostsim.config.base import Count, Number, Strict, Whole
from ghostsim.config.scores import Empty, Share, first_key, named


class AllRule(Strict):
    """Take every unit."""

    all: Empty


class NoneRule(Strict):
    """Take no unit beyond the pins."""

    none: Empty


class Pyramid(Strict):
    """A budget that falls linearly with the layer, `tokens` on average; the last layer has 1 / `beta` of it.

    PyramidKV's rule: min = tokens // beta, max = 2 tokens - min, step = (max - min) // (layers - 1). On a short prompt
    max is what the prompt has outside the window, and below 2 tokens every layer has the same.
    """

    tokens: Count
    beta: Count = 20

    def at(self, layer: int, layers: int, prompt: int | None = None, window: int = 0) -> int:
        """Return the budget of a layer, for a prompt of so many tokens of which the last `window` are pinned."""
        if prompt is not None and prompt < 2 * self.tokens:
            return self.tokens
        most = 2 * self.tokens - self.tokens // self.beta
        if prompt is not None:
            most = min(most, prompt - window)
        least = 2 * self.tokens - most
        return most - layer * ((most - least) // max(1, layers - 1))


class Profile(Strict):
    """A budget per layer; the last entry serves all further layers."""

    profile: Annotated[tuple[Whole, ...], Field(min_length=1)]

    def at(self, layer: int, layers: int, prompt: int | None = None, window: int = 0) -> int:  # noqa: ARG002
        """Return the budget of a layer."""
        return self.profile[min(layer, len(self.profile) - 1)]


class TopK(Strict):
    """Take the units that hold the best `topk` tokens: whole units, rounded down, of pages at least three."""

    topk: Count | Annotated[Pyramid | Profile, Field(union_mode="smart")]

    @property
    def tokens(self) -> int:
        """The budget; of one that depends on the layer, the largest."""
        if isinstance(self.topk, int):
            return self.topk
        return max(self.topk.profile) if isinstance(self.topk, Profile) else self.topk.at(0, 2)


class TopFrac(Strict):
    """Take the best fraction of the units (rounded down), at most `most` tokens."""

    topfrac: Share
    most: Count | None = None


class Above(Strict):
    """Take every unit whose score is at least a constant."""

    above: Number


class Margin(Strict):
    """Take every unit whose score is at least the best score minus a constant.

    `most` limits what is read in all, pins included, to a fraction of the attended tokens.
    """

    margin: Annotated[float, Field(strict=True, ge=0, le=1e6)]
    most: Share = 1.0


class Sample(Strict):
    """Take each token with the probability that a hash table sampler draws it: at least `hits` matches."""

    sample: Count
    """Least number of hash tables in which a token must match."""


class Certify(Strict):
    """Take units until the rest provably holds at most a fraction of the attention mass.

    `staged` reads in order of the bound with the normaliser growing, `one_pass` decides on the normaliser of
    the hot tokens alone, `flat` uses one threshold for all.
    """

    certify: Annotated[float, Field(strict=True, gt=0, lt=1)]
    form: Literal["staged", "one_pass", "flat"] = "staged"

    @property
    def eps(self) -> float:
        """The lost mass that is promised."""
        return self.certify


class Presume(Strict):
    """Take units as `certify` does, on the word of a statistical bound: a heuristic, which proves nothing."""

    presume: Annotated[float, Field(strict=True, gt=0, lt=1)]
    form: Literal["staged", "one_pass", "flat"] = "staged"

    @property
    def eps(self) -> float:
        """The lost mass that is aimed at."""
        return self.presume


Rule = Annotated[
    Annotated[AllRule, Tag("all")]
    | Annotated[NoneRule, Tag("none")]
    | Annotated[TopK, Tag("topk")]
    | Annotated[TopFrac, Tag("topfrac")]
    | Annotated[Above, Tag("above")]
    | Annotated[Margin, Tag("margin")]
    | Annotated[Sample, Tag("sample")]
    | Annotated[Certify, Tag("certify")]
    | Annotated[Presume, Tag("presume")],
    Discriminator(first_key),
    BeforeValidator(named),
]
