"""Finds out how a layer rotates its queries and keys, from what goes in and what comes out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ghostsim.errors import InvariantError
from ghostsim.trace.format import Rope
from ghostsim.trace.rope import angles, turn

Floats = npt.NDArray[np.floating[Any]]

SAME = 1e-5  # of the largest element: float32 rounding of one rotation stays below
LINEAR = 2e-2  # radians; float32 angles of position 131072 are off by 0.008


@dataclass(frozen=True)
class Layout:
    """Which dimensions a model turns, and which columns of its cosine table hold one angle per pair."""

    dims: int
    pairing: Literal["half", "interleaved"]
    first: int
    stride: int

    def pick(self, table: Floats) -> Floats:
        """Return [positions, dims/2] of a table [positions, width]."""
        return table[:, self.first :: self.stride][:, : self.dims // 2]


def _layouts(width: int, head_dim: int) -> Iterator[Layout]:
    pairings: tuple[Literal["half", "interleaved"], ...] = ("half", "interleaved")
    for pairing in pairings:
        if width % 2 == 0:
            yield Layout(width, pairing, 0, 1)  # angles, then the same angles again
            yield Layout(width, pairing, 0, 2)  # every angle twice in a row
        if 2 * width <= head_dim:
            yield Layout(2 * width, pairing, 0, 1)  # every angle once


def same(a: Floats, b: Floats) -> bool:
    """Whether two arrays are equal up to float32 rounding."""
    return bool(np.abs(a - b).max() <= SAME * max(np.abs(b).max(), np.finfo(np.float32).tiny))


def identify(before: Floats, after: Floats, cos: Floats, sin: Floats) -> Layout | None:
    """Return the layout that turns `before` into `after`; None if there is none.

    Parameters
    ----------
    before, after
        Queries or keys without and with rotation, [heads, positions, d].
    cos, sin
        The model's own tables, [positions, width].
    """
    for layout in _layouts(cos.shape[1], before.shape[2]):
        if layout.dims > before.shape[2]:
            continue
        turned = before.astype(np.float64)
        turn(turned, layout.pick(cos), layout.pick(sin), Rope(layout.dims, layout.pairing, 1.0))
        if same(turned, after):
            return layout
    return None


def frequencies(cos: Floats, sin: Floats) -> tuple[npt.NDArray[np.float64], float]:
    """Return inv_freq [dims/2] in radians per position, and the factor that both tables were multiplied by.

    The slope is fitted over all positions, so that float32 rounding of single angles averages out.

    Raises
    ------
    InvariantError
        If the angles do not grow linearly with the position.
    """
    wide_cos, wide_sin = cos.astype(np.float64), sin.astype(np.float64)
    length = np.hypot(wide_cos, wide_sin)
    phase = np.unwrap(np.arctan2(wide_sin, wide_cos), axis=0)
    position = np.arange(len(phase), dtype=np.float64)
    slope = position @ phase / max(float(position @ position), 1.0)
    off = float(np.abs(phase - position[:, None] * slope).max())
    if off > LINEAR or np.ptp(length) > SAME * length.max():
        raise InvariantError(f"rope: found angles {off:.3g} rad off a constant rate per position, expected none")
    return np.maximum(slope, 0.0), _round_factor(float(length.mean()))


def undo(x: Floats, inv_freq: Floats, rope: Rope) -> npt.NDArray[np.float32]:
    """Return the vectors [heads, positions, d] that exact rotation turns into `x`.

    A model rounds its angles to float32, by 2^-24 of the angle; taken back with exact angles, that rounding is inside
    the vectors, and a replay with exact angles meets the model at any length.
    """
    out, back = x.astype(np.float32), Rope(rope.dims, rope.pairing, 1.0)
    cos, sin = angles(np.arange(x.shape[1]), inv_freq)
    for head in out:
        wide = head.astype(np.float64)
        wide[:, : rope.dims] /= rope.attention_factor
        turn(wide, cos, -sin, back)
        head[...] = wide
    return out


def _round_factor(factor: float) -> float:
    return 1.0 if abs(factor - 1.0) < 1e-6 else factor
