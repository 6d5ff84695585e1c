"""How K and V are stored: the FORMAT table of the algebra."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ghostsim.config.base import Count, Strict, Whole
from ghostsim.config.scores import Empty, Share, first_key, named


class Int(Strict):
    """Asymmetric integers with an fp16 scale and minimum per group.

    `axis: token` groups the channels of a token, `axis: channel` groups tokens of a channel. The last `residual` tokens
    stay in fp16: all of them along tokens; along channels whole groups are flushed, so that 1 to `residual` remain.
    """

    bits: Literal[1, 2, 3, 4, 8] = 4
    group: Count = 128
    axis: Literal["token", "channel"] = "token"
    residual: Whole = 0

    @model_validator(mode="after")
    def _groups_are_flushed_whole(self) -> Int:
        if self.axis == "channel" and self.residual % self.group:
            raise ValueError(
                f"found residual {self.residual}, expected a multiple of group {self.group} along channels"
            )
        return self


class Vq(Strict):
    """Codes of a vector quantiser at `bits` per number; the codec is not modelled."""

    bits: Annotated[float, Field(strict=True, gt=0, le=16)]


class LowRank(Strict):
    """`rank` coefficients in fp16 of a basis per head, and what they miss at `bits` per channel (0: nothing)."""

    rank: Count
    bits: Literal[0, 1, 2, 4, 8] = 0


class Channels(Strict):
    """The share of the channels with the most energy, in fp16; the others are zero."""

    share: Share


class Sparse(Strict):
    """`n` of every `m` channels, the largest, in fp16 with their places."""

    n: Count = 2
    m: Count = 4


class Residual(Strict):
    """What a row differs by from its anchor, the mean of about `tokens` similar rows, at `bits` per channel.

    The anchors are in HBM, in fp16; a row names its own in 2 bytes and carries an fp16 scale and minimum.
    """

    tokens: Annotated[Count, Field(le=4096)] = 16
    bits: Literal[1, 2, 4, 8] = 4
    rounds: Annotated[Count, Field(le=100)] = 4
    """Rounds of the clustering that finds the anchors."""


class Fp16Format(Strict):
    """As the model writes it."""

    fp16: Empty


class IntFormat(Strict):
    """Group-quantised integers."""

    int: Int


class VqFormat(Strict):
    """A vector quantiser."""

    vq: Vq


class LowRankFormat(Strict):
    """A low-rank form."""

    lowrank: LowRank


class ChannelsFormat(Strict):
    """A part of the channels."""

    channels: Channels


class SparseFormat(Strict):
    """N:M sparsity."""

    nm: Sparse


class ResidualFormat(Strict):
    """An anchor and what is left."""

    residual: Residual


Side = Annotated[
    Annotated[Fp16Format, Tag("fp16")]
    | Annotated[IntFormat, Tag("int")]
    | Annotated[VqFormat, Tag("vq")]
    | Annotated[LowRankFormat, Tag("lowrank")]
    | Annotated[ChannelsFormat, Tag("channels")]
    | Annotated[SparseFormat, Tag("nm")]
    | Annotated[ResidualFormat, Tag("residual")],
    Discriminator(first_key),
    BeforeValidator(named),
]
"""How keys alone, or values alone, are stored."""


class Format(Strict):
    """How K and V are stored; a single format stands for both."""

    k: Side
    v: Side

    @property
    def fp16(self) -> bool:
        """Whether a reader gets back what was written."""
        return isinstance(self.k, Fp16Format) and isinstance(self.v, Fp16Format)

    @property
    def anchored(self) -> tuple[Residual, ...]:
        """The sides of which a reader needs anchors beside what is stored."""
        return tuple(side.residual for side in (self.k, self.v) if isinstance(side, ResidualFormat))


def both_sides(value: Any) -> Any:
    """Let one format stand for keys and values."""
    value = named(value)
    return {"k": value, "v": value} if isinstance(value, dict) and not {"k", "v"} & set(value) else value


FP16 = Format.model_validate({"k": {"fp16": {}}, "v": {"fp16": {}}})
KeptFormat = Annotated[Format, BeforeValidator(both_sides)]
