"""Proof of a recording: the format's own arithmetic on the values to be stored, against what the model computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.trace.format import Rope
from ghostsim.trace.rope import rotate

Floats = npt.NDArray[np.floating[Any]]

PROBABILITY = 2e-3  # largest absolute difference of a recomputed probability
OUTPUT = 5e-3  # largest difference of a recomputed output, as a share of the largest value


@dataclass(frozen=True)
class LayerRule:
    """What one layer does to queries and keys before the softmax, as the manifest will say it."""

    scale: float
    softcap: float | None
    window: int | None
    rope: Rope | None
    inv_freq: Floats | None


class Replay:
    """Recomputes a layer's attention in float64 from keys and values stored as `dtype`."""

    def __init__(self, keys: Floats, values: Floats, rule: LayerRule, dtype: type[np.floating[Any]]) -> None:
        with np.errstate(over="ignore"):
            self._raw, self._values = keys.astype(dtype), values.astype(dtype).astype(np.float64)
        self.rule, self.dtype = rule, dtype
        self.holds = bool(np.isfinite(self._raw).all() and np.isfinite(self._values).all())
        self._keys = self._turned(self._raw, np.arange(keys.shape[1])) if self.holds else self._raw

    def _turned(self, x: Floats, positions: npt.NDArray[np.int64]) -> Floats:
        return rotate(x, positions, self.rule.inv_freq, self.rule.rope)

    def errors(self, queries: Floats, start: int, weights: Floats, outputs: Floats) -> tuple[float, float]:
        """Return the largest errors of probabilities and outputs of the queries at positions start, start + 1, ...

        Parameters
        ----------
        queries
            Before rotation, [heads, n, d].
        weights, outputs
            The model's own, [heads, n, tokens] and [heads, n, value dims].
        """
        if not self.holds:
            return np.inf, np.inf
        with np.errstate(over="ignore"):
            stored = queries.astype(self.dtype)
        if not np.isfinite(stored).all():
            return np.inf, np.inf
        positions = np.arange(start, start + queries.shape[1])
        turned, group = self._turned(stored, positions), len(queries) // len(self._keys)
        biggest = max(float(np.abs(self._values).max()), float(np.finfo(np.float32).tiny))
        found = [
            self._head_errors(turned[h], positions, h // group, weights[h], outputs[h]) for h in range(len(queries))
        ]
        return max(p for p, _ in found), max(o for _, o in found) / biggest

    def _head_errors(
        self, queries: Floats, positions: npt.NDArray[np.int64], kv: int, weights: Floats, outputs: Floats
    ) -> tuple[float, float]:
        p = self._probabilities(queries, positions, kv)
        # A NaN of the model must not pass as a small error.
        errors = np.abs(p - weights).max(), np.abs(p @ self._values[kv] - outputs).max()
        return float(np.nan_to_num(errors[0], nan=np.inf)), float(np.nan_to_num(errors[1], nan=np.inf))

    def _probabilities(self, queries: Floats, positions: npt.NDArray[np.int64], kv: int) -> Floats:
        scores = self.rule.scale * (queries @ self._keys[kv].T)
        if self.rule.softcap is not None:
            scores = self.rule.softcap * np.tanh(scores / self.rule.softcap)
        scores[~band(positions, scores.shape[1], self.rule.window)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def band(positions: npt.NDArray[np.int64], tokens: int, window: int | None) -> npt.NDArray[np.bool_]:
    """Return which of `tokens` the queries at `positions` attend: [len(positions), tokens]."""
    distance = positions[:, None] - np.arange(tokens)
    return (distance >= 0) & (distance < (tokens if window is None else window))
