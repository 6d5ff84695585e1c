"""An index with a record per cluster of similar keys: spherical k-means per segment of the prompt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghostsim.config.scores import Centroid
from ghostsim.policy.exact import Array, Block, Ints, softcapped
from ghostsim.policy.indexes import Claim, ball_radius, unit_roundoff
from ghostsim.policy.units import Units, cluster_units
from ghostsim.seeding import generator
from ghostsim.trace.compose import Head

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class ClusterIndex:
    """Centres [clusters, d] of the prompt's keys, the cluster of each prompt token, and how far its members reach."""

    centres: Array
    labels: Ints
    radii: Array | None
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
        if self.radii is not None:
            out += np.linalg.norm(rows, axis=2, keepdims=True) * (1 + 1e-6) * self.radii
        return softcapped(out.astype(block.scores.dtype), head.softcap)


def build_clusters(keys: Array, centroid: Centroid) -> ClusterIndex:
    """Cluster the prompt's `keys` [n, d]; centres are the means of the members."""
    labels, count = np.empty(len(keys), dtype=np.int64), 0
    for start in range(0, len(keys), centroid.segment):
        part = keys[start : start + centroid.segment]
        k = -(-len(part) // centroid.tokens)
        labels[start : start + len(part)] = count + spherical_kmeans(part, k, centroid.rounds)
        count += k
    order = np.argsort(labels, kind="stable")
    present, starts = np.unique(labels[order], return_index=True)
    centres = np.zeros((count, keys.shape[1]), dtype=keys.dtype)
    sums = np.add.reduceat(keys[order], starts, axis=0)
    centres[present] = sums / np.diff(np.append(starts, len(keys)))[:, None].astype(keys.dtype)
    radii = _radii(keys, labels, centres) if centroid.radius else None
    return ClusterIndex(centres, labels, radii, "score" if centroid.radius else None)


def _radii(keys: Array, labels: Ints, centres: Array) -> Array:
    gamma = unit_roundoff(keys.shape[1] + 1, keys.dtype)
    reach = np.linalg.norm(keys - centres[labels], axis=1)
    radii = np.zeros(len(centres), dtype=keys.dtype)
    np.maximum.at(radii, labels, reach)
    return ball_radius(radii, np.linalg.norm(centres, axis=1), gamma)


def spherical_kmeans(keys: Array, k: int, rounds: int) -> Ints:
    """Return the cluster [n] of each key by the cosine of mean-centred keys; ties to the lower cluster."""
    centred = (keys - keys.mean(axis=0)).astype(np.float32)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), _TINY)
    random = generator(0, f"policy/clusters/{len(keys)}x{k}")
    centres = unit[np.sort(random.permutation(len(unit))[:k])]
    labels = np.zeros(len(keys), dtype=np.int64)
    for _ in range(rounds):
        labels = np.argmax(unit @ centres.T, axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, unit)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(length > _TINY, sums / np.maximum(length, _TINY), centres)
    return labels
