"""What a policy's formats and indexes cost in bytes and arithmetic, per token or record and KV head."""

from __future__ import annotations

from ghostsim.config.policy import (
    BoxScore,
    Exact,
    ExactScore,
    Format,
    Fp16Format,
    Int,
    Policy,
    Published,
    PublishedScore,
    QKeysScore,
    Sketch,
    SketchScore,
)
from ghostsim.errors import ConfigError
from ghostsim.plan.selection import IndexStage

FP16_BYTES = 2
_RESIDUAL_BYTES = 2


def format_bytes(fmt: Format, head_dim: int) -> int:
    """Return the bytes of K and V of one token and KV head.

    Integers carry an fp16 scale and an fp16 minimum per group of channels, for K and for V.
    """
    if isinstance(fmt, Fp16Format):
        return 2 * head_dim * FP16_BYTES
    return 2 * _int_bytes(fmt.int, head_dim)


def _int_bytes(fmt: Int, head_dim: int) -> int:
    if head_dim % fmt.group:
        raise ConfigError(f"format.int.group: found {fmt.group}, expected a divisor of head_dim {head_dim}, e.g. 32")
    return head_dim * fmt.bits // 8 + head_dim // fmt.group * 2 * FP16_BYTES


def index_stages(policy: Policy, head_dim: int) -> tuple[IndexStage, ...]:
    """Return the index stages of a policy's READ; an uncharged exact score (an oracle) has none."""
    match policy.read.score:
        case BoxScore(box=box):
            return (IndexStage("box", 2 * head_dim * FP16_BYTES, box.page, 2 * head_dim, 16),)
        case QKeysScore(qkeys=qkeys):
            record = _code_bytes(head_dim, qkeys.bits) + _RESIDUAL_BYTES
            return (IndexStage("qkeys", record, 1, head_dim, qkeys.bits),)
        case SketchScore(sketch=sketch):
            _check_dims(sketch, head_dim)
            norm = _RESIDUAL_BYTES if sketch.residual == "single" else 0
            return (IndexStage("sketch", _code_bytes(sketch.dims, sketch.bits) + norm, 1, sketch.dims, sketch.bits),)
        case PublishedScore(published=published):
            return (IndexStage("published", published.record, 1, published.dims, 16),)
        case ExactScore(exact=Exact(charged=True)):
            return (IndexStage("exact", head_dim * FP16_BYTES, 1, head_dim, 16),)
    return ()


def _code_bytes(dims: int, bits: int) -> int:
    return (dims * bits + 7) // 8


def _check_dims(sketch: Sketch | Published, head_dim: int) -> None:
    if sketch.dims > head_dim:
        raise ConfigError(f"sketch.dims: found {sketch.dims}, expected at most head_dim {head_dim}, e.g. 32")
