"""What a policy's formats and indexes cost in bytes and arithmetic, per token or record and KV head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ghostsim.config.formats import (
    ChannelsFormat,
    Format,
    Fp16Format,
    Int,
    IntFormat,
    LowRankFormat,
    Residual,
    ResidualFormat,
    Side,
    SparseFormat,
    VqFormat,
)
from ghostsim.config.policy import Estimate, Keep, Pin, Policy, Role, Selector
from ghostsim.config.scores import (
    BallScore,
    BoxScore,
    CentroidScore,
    ChanScore,
    EllipsoidScore,
    Exact,
    ExactScore,
    GraphScore,
    JlScore,
    LightningScore,
    LshScore,
    MeanScore,
    PublishedScore,
    QKeysScore,
    Score,
    SketchScore,
    SubspacesScore,
)
from ghostsim.errors import ConfigError
from ghostsim.plan.selection import IndexStage, Stream
from ghostsim.policy.cold import pins_of

FP16_BYTES = 2
FAR: tuple[Role, ...] = ("cold", "archive")
"""Roles whose tokens are read from their tier before they are attended."""
_NORM_BYTES = 2
_ANCHOR_ID_BYTES = 2


# --- formats --------------------------------------------------------------------------------------------------


def format_bytes(fmt: Format, head_dim: int) -> int:
    """Return the bytes of K and V of one token and KV head, without a residual in fp16."""
    return side_bytes(fmt.k, head_dim) + side_bytes(fmt.v, head_dim)


def side_bytes(side: Side, d: int) -> int:
    """Return the bytes of the key, or of the value, of one token and KV head of `d` channels."""
    match side:
        case Fp16Format():
            return d * FP16_BYTES
        case IntFormat(int=fmt):
            return _int_bytes(fmt, d)
        case _:
            return -(-int(_other_bits(side, d)) // 8)


def _int_bytes(fmt: Int, d: int) -> int:
    """Integers carry an fp16 scale and an fp16 minimum per group."""
    if d % fmt.group:
        raise ConfigError(f"format.int.group: found {fmt.group}, expected a divisor of head_dim {d}, e.g. 32")
    return d * fmt.bits // 8 + d // fmt.group * 2 * FP16_BYTES


def _other_bits(side: Side, d: int) -> float:
    match side:
        case VqFormat(vq=vq):
            return float(vq.bits * d)
        case LowRankFormat(lowrank=form):
            return 8 * FP16_BYTES * form.rank + form.bits * d
        case ChannelsFormat(channels=kept):
            return 8 * FP16_BYTES * int(kept.share * d)
        case ResidualFormat(residual=left):
            return left.bits * d + 8 * (2 * FP16_BYTES + _ANCHOR_ID_BYTES)
        case SparseFormat(nm=sparse):
            return d * sparse.n // sparse.m * (8 * FP16_BYTES + (sparse.m - 1).bit_length())
    raise AssertionError(side)


def anchor_bytes(fmt: Format, head_dim: int) -> float:
    """Return the bytes of the anchors in HBM per token and KV head, K and V together."""
    return sum(head_dim * FP16_BYTES / side.tokens for side in fmt.anchored)


def rebuild_flops(fmt: Format, head_dim: int) -> int:
    """Return the operations that give back K and V of one token and KV head, inside the attention kernel."""
    return _side_flops(fmt.k, head_dim) + _side_flops(fmt.v, head_dim)


def _side_flops(side: Side, d: int) -> int:
    """Scale and offset per channel, the anchor added, coefficients times the basis."""
    match side:
        case IntFormat() | VqFormat():
            return 2 * d
        case ResidualFormat():
            return 3 * d
        case LowRankFormat(lowrank=form):
            return 2 * form.rank * d + (3 * d if form.bits else 0)
        case _:
            return 0


def residual_tokens(side: Side, stored: int) -> int:
    """Return how many of `stored` tokens an integer format still holds in fp16."""
    if not isinstance(side, IntFormat) or not side.int.residual or not stored:
        return 0
    if side.int.axis == "token":
        return min(side.int.residual, stored)
    return (stored - 1) % side.int.residual + 1


# --- streams --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """K, V or both of one KEEP clause, moving together: a stream of pinned tokens and one of selected ones."""

    clause: int
    sides: tuple[Side, ...]
    role: Role
    exact_pins: bool
    """Whether pinned tokens have a copy in fp16: where the clause keeps anything outside HBM."""
    cached: bool = False
    """Whether tokens that were read stay in HBM."""
    recalled: bool = False
    """Whether tokens that are not in HBM move there first, to be attended from there with the others."""

    @property
    def moves_all(self) -> bool:
        """Whether the own token comes from outside with the others, for want of pins."""
        return self.role in FAR and not self.exact_pins

    @property
    def anchored(self) -> tuple[Residual, ...]:
        """The sides that are kept as what they differ by from an anchor."""
        return tuple(side.residual for side in self.sides if isinstance(side, ResidualFormat))

    def met_anchor_bytes(self, tokens: int, cold: int, d: int) -> int:
        """Return the bytes of the anchors that `tokens` of `cold` ones meet at most: a kernel reads each once."""
        return sum(min(tokens, -(-cold // side.tokens)) for side in self.anchored) * d * FP16_BYTES

    def pinned_bytes(self, tokens: int, d: int) -> int:
        """Return the bytes of `tokens` pinned ones."""
        return tokens * len(self.sides) * d * FP16_BYTES if self.exact_pins else self.nbytes(tokens, 0, d)

    def nbytes(self, tokens: int, stored: int, d: int) -> int:
        """Return the bytes of `tokens`; of a format with a residual the newest of all `stored` are in fp16."""
        total = 0
        for side in self.sides:
            quantised = side_bytes(side, d)
            newest = min(residual_tokens(side, stored), tokens)
            total += tokens * quantised + newest * (d * FP16_BYTES - quantised)
        return total


def parts_of(policy: Policy) -> tuple[Part, ...]:
    """Return what moves separately: keys and values together where they have one role and one kind of form."""
    parts: list[Part] = []
    pinned, cache = pins_of(policy).pin != Pin(), policy.read.cache
    for i, keep in enumerate(policy.keep):
        k, v, roles = keep.format.k, keep.format.v, (keep.role, keep.v_role or keep.role)
        together = roles[0] == roles[1] and isinstance(k, Fp16Format) == isinstance(v, Fp16Format)
        copies = pinned and bool({*roles} & {*FAR})
        for sides, role in [((k, v), roles[0])] if together else [((k,), roles[0]), ((v,), roles[1])]:
            cached = cache is not None and role in FAR
            recalled = cached and cache is not None and cache.misses == "migrate"
            parts.append(Part(i, sides, role, copies, cached, recalled))
    return tuple(parts)


def streams_of(policy: Policy, d: int) -> tuple[Stream, ...]:
    """Return the streams of a policy.

    For each part its pinned tokens, its selected ones, those that were in HBM before, and the anchors of the selected.
    """
    streams: list[Stream] = []
    for part in parts_of(policy):
        plain = all(isinstance(side, Fp16Format) for side in part.sides)
        size = sum(side_bytes(side, d) for side in part.sides)
        op: Literal["attend", "decode"] = "attend" if plain else "decode"
        here = Stream(op, "hot" if plain else "warm", part.clause, selected=True, record_bytes=size)
        kind: Literal["cold", "archive"] = "archive" if part.role == "archive" else "cold"
        far = Stream("migrate" if part.recalled else "read", kind, part.clause, selected=True, record_bytes=size)
        copy = Stream("attend", "hot", part.clause, selected=False, record_bytes=part.pinned_bytes(1, d))
        streams += [copy if part.exact_pins else replace(here, selected=False), far if part.role in FAR else here]
        streams += [here] * part.cached
        size = len(part.anchored) * d * FP16_BYTES
        streams += [Stream("attend", "hot", part.clause, selected=True, record_bytes=size)] * bool(size)
    return tuple(streams)


# --- indexes --------------------------------------------------------------------------------------------------


def index_stages(policy: Policy, head_dim: int, kv_heads: int = 1) -> tuple[IndexStage, ...]:
    """Return the index stages of a policy's READ; an uncharged exact score (an oracle) has none.

    An index that the heads of a layer share costs each of `kv_heads` its part.
    """
    found = [index_stage(each, head_dim, kv_heads) for each in staged_selectors(policy)]
    stages = [stage for stage in found if stage is not None]
    if isinstance(policy.read.completion, Estimate):
        stages.append(IndexStage("sum_v", head_dim * FP16_BYTES, 1, head_dim, 16))
    return tuple(stages)


def staged_selectors(policy: Policy) -> Sequence[Selector]:
    """Return the selectors of READ that look at an index, in the order of their stages."""
    read = policy.read
    return [each for each in (*read.cascade, *read.also, *read.less) if each.scored]


def index_stage(selector: Selector, d: int, kv_heads: int = 1) -> IndexStage | None:
    """Return the stage of one selector; None if it looks at no index."""
    score = selector.score
    match score:
        case BoxScore():
            return IndexStage("box", 2 * d * FP16_BYTES, selector.page, 2 * d, 16)
        case MeanScore():
            return IndexStage("mean", d * FP16_BYTES, selector.page, d, 16)
        case BallScore():
            return IndexStage("ball", d * FP16_BYTES + _NORM_BYTES, selector.page, d, 16)
        case EllipsoidScore():
            return IndexStage("ellipsoid", d * FP16_BYTES + _NORM_BYTES, selector.page, d, 16)
        case SubspacesScore(subspaces=subspaces):
            size = d * FP16_BYTES + subspaces.parts * _NORM_BYTES
            return IndexStage("subspaces", size, selector.page, d + subspaces.parts, 16)
        case CentroidScore(centroid=centroid):
            size = _code_bytes(d, centroid.bits) + _NORM_BYTES * centroid.radius
            return IndexStage("centroid", size, centroid.tokens, d, centroid.bits)
        case JlScore(jl=jl):
            return IndexStage("jl", jl.dims * FP16_BYTES + _NORM_BYTES, 1, jl.dims, 16)
        case None:
            return None
    return _token_stage(score, d, kv_heads)


def _token_stage(score: Score, d: int, kv_heads: int) -> IndexStage | None:
    match score:
        case QKeysScore(qkeys=qkeys):
            return IndexStage("qkeys", _code_bytes(d, qkeys.bits) + _NORM_BYTES, 1, d, qkeys.bits)
        case SketchScore(sketch=sketch):
            if sketch.dims > d:
                raise ConfigError(f"sketch.dims: found {sketch.dims}, expected at most head_dim {d}, e.g. 32")
            return IndexStage("sketch", sketch.record_bytes(d), 1, sketch.dims, sketch.bits)
        case ChanScore(chan=chan):
            return IndexStage("chan", chan.share * d * chan.bits / 8, 1, max(1, int(chan.share * d)), chan.bits)
        case LshScore(lsh=lsh):
            return IndexStage("lsh", lsh.tables * FP16_BYTES, 1, max(1, lsh.tables * lsh.bits // 8), 16)
        case GraphScore(graph=graph):
            return IndexStage("graph", graph.visited * graph.record, 1, d, 16)
        case LightningScore(lightning=index):
            return IndexStage("lightning", index.record / kv_heads, 1, index.heads * index.dims // kv_heads, 8)
        case PublishedScore(published=published):
            return IndexStage("published", published.record, 1, published.dims, 16)
        case ExactScore(exact=Exact(charged=True)):
            return IndexStage("exact", d * FP16_BYTES, 1, d, 16)
    return None


def _code_bytes(dims: int, bits: int) -> int:
    return (dims * bits + 7) // 8


def state_bytes(keeps: Sequence[Keep], stored: int) -> int:
    """Return the bookkeeping of `stored` tokens that is rewritten at a step."""
    return sum(keep.state for keep in keeps) * stored
