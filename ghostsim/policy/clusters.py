"""An index with a record per cluster of similar keys: spherical k-means per segment of the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostsim.config.scores import Centroid
from ghostsim.policy.exact import Array, Block, Ints, softcapped
from ghostsim.policy.indexes import Claim, ball_radius, fit_codes, unit_roundoff
from ghostsim.policy.units import Units, cluster_units
from ghostsim.seeding import generator
from ghostsim.trace.compose import Head

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class ClusterIndex:
    """Centres [clusters, d] of the prompt's keys, the cluster of each token, and how far its members reach.

    Tokens from `formed` on have joined the nearest centre since; what has joined by a step is `lag` positions old.
    """

    centres: Array
    labels: Ints
    """[tokens] those of the prompt; with joins, of all positions."""
    away: Array
    """[tokens] distance from the centre."""
    formed: int
    lag: int
    claim: Claim | None

    @property
    def sizes(self) -> Ints:
        """Members of each cluster."""
        return np.bincount(self.labels, minlength=len(self.centres))

    def units(self, c0: int, c1: int) -> Units:
        """Return the clusters of the cold tokens."""
        return cluster_units(c0, c1, self.labels, len(self.centres))

    def scores(self, block: Block, asked: Array, head: Head) -> Array:
        """Return the score [n, g, clusters]."""
        rows = asked * asked.dtype.type(head.scale)
        out = rows @ self.centres.T
        if self.claim is not None:
            out += np.linalg.norm(rows, axis=2, keepdims=True) * (1 + 1e-6) * self.radii(block.positions)[:, None]
        return softcapped(out.astype(block.scores.dtype), head.softcap)

    def radii(self, positions: Ints) -> Array:
        """Return the radii [n, clusters] as they are stored at some own positions, ascending."""
        gamma = unit_roundoff(self.centres.shape[1] + 1, self.centres.dtype)
        size = np.linalg.norm(self.centres, axis=1)
        reach, joined = np.zeros(len(self.centres), dtype=self.centres.dtype), 0
        out = np.empty((len(positions), len(reach)), dtype=reach.dtype)
        for i, own in enumerate(positions.tolist()):
            end = min(len(self.labels), max(self.formed, own + 1 - self.lag))
            np.maximum.at(reach, self.labels[joined:end], self.away[joined:end])
            out[i], joined = ball_radius(reach, size, gamma), end
        return out


def build_clusters(keys: Array, formed: int, fit: slice, centroid: Centroid) -> ClusterIndex:
    """Cluster the first `formed` of all `keys` [n, d]; centres are the means of the members.

    `fit` ends where tokens are still hot: so far behind the newest one they join, if they do.
    """
    prompt = keys[:formed]
    labels, count = np.empty(formed, dtype=np.int64), 0
    for start in range(0, formed, centroid.segment):
        part = prompt[start : start + centroid.segment]
        k = -(-len(part) // centroid.tokens)
        labels[start : start + len(part)] = count + spherical_kmeans(part, k, centroid.rounds)
        count += k
    members = np.bincount(labels, minlength=count)
    centres = summed(prompt, labels, count) / np.maximum(members, 1)[:, None].astype(keys.dtype)
    if centroid.bits == 8:
        centres = _in_codes(centres, members > 0)
    if centroid.joins:
        labels = np.concatenate([labels, nearest(keys[formed:], centres, np.flatnonzero(members))])
    away = np.linalg.norm(keys[: len(labels)] - centres[labels], axis=1)
    return ClusterIndex(centres, labels, away, formed, formed - fit.stop, "score" if centroid.radius else None)


def _in_codes(centres: Array, present: NDArray[np.bool_]) -> Array:
    """Return centres as 8-bit codes give them back; the range of each channel is that of the centres `present`."""
    codes = fit_codes(centres[present], 8)
    out = codes.encode(centres).astype(centres.dtype)
    codes.expand(out)
    return out


def nearest(keys: Array, centres: Array, present: Ints) -> Ints:
    """Return the nearest [n] of the centres `present`; ties to the lower one."""
    there = centres[present]
    distance = np.square(there).sum(axis=1) - 2 * (keys @ there.T)
    return np.asarray(present[np.argmin(distance, axis=1)])


def summed(rows: Array, labels: Ints, count: int) -> Array:
    """Return the sums [count, d] of the `rows` [n, d] of each label, added up in their order."""
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    out = np.zeros((count, rows.shape[1]), dtype=rows.dtype)
    out[present] = np.add.reduceat(rows[order], starts, axis=0)
    return out


def spherical_kmeans(keys: Array, k: int, rounds: int) -> Ints:
    """Return the cluster [n] of each key by the cosine of mean-centred keys; ties to the lower cluster."""
    centred = (keys - keys.mean(axis=0)).astype(np.float32)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), _TINY)
    random = generator(0, f"policy/clusters/{len(keys)}x{k}")
    centres = unit[np.sort(random.permutation(len(unit))[:k])]
    labels = np.zeros(len(keys), dtype=np.int64)
    for _ in range(rounds):
        labels = np.argmax(unit @ centres.T, axis=1)
        sums = summed(unit, labels, k)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > _TINY, sums / np.maximum(length, _TINY), centres)
    return labels
