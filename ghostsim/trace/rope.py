"""Rotary position embedding: R(p) turns pair j of a vector by p * inv_freq[j] (Su et al., arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.trace.format import Rope

Floats = npt.NDArray[np.floating[Any]]

BLOCK = 512


def angles(
    positions: npt.ArrayLike, inv_freq: npt.ArrayLike, dtype: npt.DTypeLike = np.float64
) -> tuple[Floats, Floats]:
    """Return cos and sin of positions * inv_freq, evaluated in float64 and stored as `dtype`.

    Parameters
    ----------
    positions
        Token positions, any shape P.
    inv_freq
        Angles per position in radians, [dims/2].

    Returns
    -------
    cos, sin
        Each P + [dims/2].
    """
    turn = np.asarray(positions, dtype=np.float64)[..., None] * np.asarray(inv_freq, dtype=np.float64)
    return np.cos(turn).astype(dtype, copy=False), np.sin(turn).astype(dtype, copy=False)


def rotate(
    x: npt.NDArray[Any],
    positions: npt.ArrayLike,
    inv_freq: npt.ArrayLike | None,
    rope: Rope | None,
    dtype: npt.DTypeLike = np.float64,
) -> Floats:
    """Return R(positions) x as a new array of `dtype`; without rope, x itself in that type.

    Parameters
    ----------
    x
        Vectors before rotation, [..., d].
    positions
        Their positions; must broadcast to x.shape[:-1].
    inv_freq
        [dims/2], of the layer of `x`.
    """
    out = np.array(x, dtype=dtype)
    if rope is not None and inv_freq is not None:
        turn(out, *angles(positions, inv_freq, dtype), rope)
    return out


def turn(x: Floats, cos: Floats, sin: Floats, rope: Rope) -> None:
    """Rotate `x` [..., d] in place by angles whose cosine and sine broadcast to [..., dims/2]."""
    if rope.attention_factor != 1.0:
        x[..., : rope.dims] *= rope.attention_factor
    first, second = _pairs(x, rope)
    turned = first * cos - second * sin
    # (a, b) -> (a cos - b sin, b cos + a sin); a is still needed after its own new value is known.
    second *= cos
    second += first * sin
    first[...] = turned


def _pairs(x: Floats, rope: Rope) -> tuple[Floats, Floats]:
    if rope.pairing == "half":
        return x[..., : rope.dims // 2], x[..., rope.dims // 2 : rope.dims]
    return x[..., 0 : rope.dims : 2], x[..., 1 : rope.dims : 2]


class Turner:
    """Rotates runs of consecutive positions without a table as long as the context.

    The angles of position base + j are those of base plus those of j < `BLOCK`, so one small table per layer serves
    any context; cosines and sines are added in float64.
    """

    def __init__(self, inv_freq: npt.ArrayLike, rope: Rope) -> None:
        self.rope = rope
        self.inv_freq = np.asarray(inv_freq, dtype=np.float64)
        self._cos, self._sin = angles(np.arange(BLOCK), self.inv_freq)

    def turn_run(self, x: Floats, base: int) -> None:
        """Rotate rows j of `x` [n, d] in place to positions base + j."""
        for start in range(0, len(x), BLOCK):
            rows = x[start : start + BLOCK]
            turn(rows, *self._angles(base + start, len(rows), rows.dtype), self.rope)

    def _angles(self, base: int, n: int, dtype: npt.DTypeLike) -> tuple[Floats, Floats]:
        fine_cos, fine_sin = self._cos[:n], self._sin[:n]
        cos, sin = angles(base, self.inv_freq)
        return (
            np.subtract(fine_cos * cos, fine_sin * sin, dtype=np.float64).astype(dtype, copy=False),
            np.add(fine_sin * cos, fine_cos * sin, dtype=np.float64).astype(dtype, copy=False),
        )
