"""The attention output over what is read, compared with the output over everything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ghostsim.config.formats import Fp16Format, Side
from ghostsim.config.policy import Add, Policy
from ghostsim.config.scores import LshScore
from ghostsim.policy.bases import sampled
from ghostsim.policy.clusters import ClusterIndex
from ghostsim.policy.cold import fitting_rows, pins_of
from ghostsim.policy.costs import residual_tokens
from ghostsim.policy.exact import Array, Block, Floats, scaled_products, softcapped, wide_sum
from ghostsim.policy.formats import decoded
from ghostsim.policy.orders import sampling_probability
from ghostsim.policy.rules import Mask
from ghostsim.trace.compose import Head

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(eq=False)
class Notes:
    """What the output of a block needs to know of its steps, in order."""

    served: list[list[Mask | None]] = field(default_factory=list)
    """Per step and KEEP clause the positions it serves; None: all of them."""
    upper: list[Floats] = field(default_factory=list)
    """Per step [g] the sum of exp(bound - peak) over what is eliminated."""
    zones: list[Mask] = field(default_factory=list)
    """Per step the clusters that an estimate stands in for."""


def weighted_values(weights: Array, values: Array) -> Array:
    """Return the sums [n, g, d] of `values` [positions, d] weighted by `weights` [n, g, P]."""
    n, g, size = weights.shape
    return (weights.reshape(n * g, size) @ values[:size]).reshape(n, g, -1)


def exact_output(block: Block, values: Array) -> Array:
    """Return the attention output [n, g, d] over all attended positions."""
    return np.asarray(weighted_values(block.weights, values) / block.total[..., None])


def relative_error(given: Array, exact: Array) -> Floats:
    """Return ||given - exact|| / ||exact|| over the last axis."""
    size = np.maximum(np.linalg.norm(exact, axis=-1), _TINY)
    return np.asarray(np.linalg.norm(given - exact, axis=-1) / size, dtype=np.float64)


class Reader:
    """Attention of one policy on one head, over what it reads and in the forms it stores."""

    def __init__(self, policy: Policy, head: Head) -> None:
        assert head.values is not None
        self.policy, self.head, self.values = policy, head, head.values
        self._keys = [self._decoded(head.keys, keep.format.k) for keep in policy.keep]
        self._values = [self._decoded(head.values, keep.format.v) for keep in policy.keep]

    def _decoded(self, rows: Array, side: Side) -> Array | None:
        return None if isinstance(side, Fp16Format) else decoded(rows, side)

    def output(self, block: Block, reads: Mask, notes: Notes, clusters: ClusterIndex | None) -> Array:
        """Return the output [n, g, d] over the positions read, `reads` [n, P], with the softmax sum completed."""
        weights = self._weights(block, reads, notes)
        sums = self._weighted(weights, block, notes)
        total = wide_sum(weights)
        match self.policy.read.completion:
            case Add(add=constant):
                gone = (block.positions - block.begins + 1 - reads.sum(axis=1))[:, None]
                total = total + constant * gone * np.exp(-block.peak.astype(np.float64))
            case "add_bound":
                total = total + np.stack(notes.upper)
            case "importance" | "renormalise" | "track" | "state":
                pass
            case _:
                extra, mass = self._estimated(block, reads, notes, clusters)
                sums, total = sums + extra, total + mass
        return np.asarray(sums / np.maximum(total, _TINY)[..., None])

    # --- weights ---

    def _weights(self, block: Block, reads: Mask, notes: Notes) -> Array:
        """Return exp(score - peak) [n, g, P] of what is read, 0 elsewhere."""
        if all(keys is None for keys in self._keys):
            weights = block.weights * reads[:, None, :]
        else:
            scores = np.where(reads[:, None, :], self._scores(block, notes), -np.inf)
            weights = np.exp(scores - block.peak[..., None])
        if self.policy.read.completion == "importance":
            weights = weights / np.maximum(self._drawn(block, reads), 1e-6)
        return np.asarray(weights)

    def _scores(self, block: Block, notes: Notes) -> Array:
        """Return the scores [n, g, P] from keys as they are stored."""
        size = block.scores.shape[-1]
        out = np.array(block.scores)
        for c, keys in enumerate(self._keys):
            if keys is None:
                continue
            products = scaled_products(block.queries, keys[:size], self.head.scale)
            lossy = self._lossy(block, notes, c, "k")
            np.copyto(out, softcapped(products, self.head.softcap), where=lossy[:, None, :])
        return out

    def _lossy(self, block: Block, notes: Notes, clause: int, side: str) -> Mask:
        """Return [n, P] where a clause serves a token in its lossy form: not the residual that is still in fp16."""
        size = block.scores.shape[-1]
        out = np.zeros((block.steps, size), dtype=bool)
        form = getattr(self.policy.keep[clause].format, side)
        for i, own in enumerate(block.positions.tolist()):
            mine = notes.served[i][clause]
            out[i, : own + 1 - residual_tokens(form, own + 1)] = True
            if mine is not None:
                out[i] &= mine
        return out

    def _weighted(self, weights: Array, block: Block, notes: Notes) -> Array:
        """Return the sums of the values as they are stored."""
        sums = weighted_values(weights, self.values)
        for c, values in enumerate(self._values):
            if values is None:
                continue
            lossy = weights * self._lossy(block, notes, c, "v")[:, None, :]
            sums = sums + weighted_values(lossy, values - self.values)
        return sums

    # --- completions ---

    def _drawn(self, block: Block, reads: Mask) -> Floats:
        """Return the probability [n, g, P] that sampling draws a token; pinned ones are read for certain."""
        score = self.policy.read.score
        assert isinstance(score, LshScore)
        size, pin = block.scores.shape[-1], self.policy.read.pin
        fit = fitting_rows(pins_of(self.policy), self.head.context)
        keys = self.head.keys[:size] - sampled(self.head.keys[fit]).mean(axis=0)
        lengths = np.linalg.norm(block.queries, axis=2)[..., None] * np.linalg.norm(keys, axis=1)
        cosine = np.einsum("ngd,pd->ngp", block.queries, keys) / np.maximum(lengths, _TINY)
        drawn = sampling_probability(cosine.astype(np.float64), score.lsh)
        drawn[..., : pin.sinks] = 1
        for i, own in enumerate(block.positions.tolist()):
            drawn[i, :, max(0, own + 1 - max(pin.window, 1)) :] = 1
        return np.where(reads[:, None, :], drawn, 1.0)

    def _estimated(
        self, block: Block, reads: Mask, notes: Notes, clusters: ClusterIndex | None
    ) -> tuple[Floats, Floats]:
        """Return the sums [n, g, d] and masses [n, g] of clusters that stand for their members, but for those read."""
        assert clusters is not None
        members = np.zeros((len(clusters.centres), self.values.shape[1]))
        np.add.at(members, clusters.labels, self.values[: len(clusters.labels)].astype(np.float64))
        scores = scaled_products(block.queries, clusters.centres, self.head.scale).astype(np.float64)
        weights = np.exp(softcapped(scores, self.head.softcap) - block.peak[..., None])
        weights = weights * np.stack(notes.zones)[:, None, :]
        sums, mass = weights @ members, weights @ clusters.sizes.astype(np.float64)
        for i, zone in enumerate(notes.zones):
            pinned = np.flatnonzero(reads[i, : len(clusters.labels)] & zone[clusters.labels])
            twice = weights[i][:, clusters.labels[pinned]]
            sums[i] -= twice @ self.values[pinned].astype(np.float64)
            mass[i] -= twice.sum(axis=1)
        return sums, mass


def served(stored: Sequence[Mask | None], size: int) -> list[Mask | None]:
    """Return the positions [size] that each clause serves: what it stores and no clause before it does."""
    if len(stored) == 1:
        return [None]
    out: list[Mask | None] = []
    free = np.ones(size, dtype=bool)
    for mine in stored:
        mask = free.copy() if mine is None else free & mine
        free &= ~mask
        out.append(mask)
    return out
