"""Scores without an index of the keys' content, or with one that only exact scores can stand in for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghostsim.config.scores import Graph, Lsh, Norm, NormScore, Random, RandomScore, Score, Trig, TrigScore
from ghostsim.errors import ConfigError, TraceError
from ghostsim.policy.bases import sampled
from ghostsim.policy.bounded import rotation, unrotated_queries
from ghostsim.policy.exact import Array, Block, Floats
from ghostsim.policy.indexes import Claim
from ghostsim.policy.units import Units, token_units
from ghostsim.seeding import generator
from ghostsim.trace.compose import Head
from ghostsim.trace.rope import rotate


@dataclass(frozen=True, eq=False)
class FixedOrder:
    """A preference [g, positions] that no query changes."""

    order: Array
    claim: Claim | None = None

    def units(self, c0: int, c1: int) -> Units:
        """Return the cold tokens themselves."""
        return token_units(c0, c1)

    def scores(self, block: Block, asked: Array, head: Head) -> Array:  # noqa: ARG002
        """Return the preference for every step, [n, g, P]."""
        part = self.order[:, : block.scores.shape[-1]].astype(block.scores.dtype, copy=False)
        return np.broadcast_to(part, block.scores.shape)


def prior_order(score: Score, head: Head) -> Floats:
    """Return the preference [g, positions] of a score that looks at no query of the decode."""
    match score:
        case NormScore(norm=norm):
            return norm_order(head, norm)
        case TrigScore(trig=trig):
            return trig_order(head, trig)
        case RandomScore(random=random):
            return random_order(head, random)
        case _:
            return age_order(head)


def age_order(head: Head) -> Floats:
    """Return the position: newer is better."""
    return np.broadcast_to(np.arange(len(head.keys), dtype=np.float64), (head.queries.shape[1], len(head.keys)))


def norm_order(head: Head, norm: Norm) -> Floats:
    """Return the norm of keys or values, negated where small ones are preferred."""
    rows = head.keys if norm.of == "key" else head.values
    if rows is None:
        raise TraceError("v: found a trace without values, expected them for the score norm {of: value}")
    size = np.linalg.norm(rows.astype(np.float64), axis=1)
    return np.broadcast_to(-size if norm.order == "smallest" else size, (head.queries.shape[1], len(rows)))


def random_order(head: Head, random: Random) -> Floats:
    """Return a random number per token, the same for all query heads."""
    name = f"policy/random/{head.request}/{head.kept_layer}/{head.kv_head}"
    drawn = generator(random.seed, name).random(len(head.keys))
    return np.broadcast_to(drawn, (head.queries.shape[1], len(drawn)))


def trig_order(head: Head, trig: Trig) -> Floats:
    """Return the mean score of each key for the mean query before rotation, at powers of two up to `trig.offsets`.

    Keys stay at their positions and the query moves on from the end of the prompt; scores are standardised per head.
    """
    rope, inv_freq = rotation(head)
    centre = unrotated_queries(head).mean(axis=0)
    offsets = 1 << np.arange(trig.offsets.bit_length())
    places = head.context + offsets
    asked = np.mean([rotate(centre, np.full(len(centre), p), inv_freq, rope) for p in places], axis=0)
    found = np.asarray(asked @ head.keys.astype(np.float64).T)
    prompt = found[:, : head.context]
    return np.asarray((found - prompt.mean(1, keepdims=True)) / np.maximum(prompt.std(1, keepdims=True), 1e-30))


@dataclass(frozen=True, eq=False)
class ExactOrder:
    """The exact score; with `visited` [positions] only of what a search visits."""

    claim: Claim | None = "score"
    visited: float = 1.0

    def units(self, c0: int, c1: int) -> Units:
        """Return the cold tokens themselves."""
        return token_units(c0, c1)

    def scores(self, block: Block, asked: Array, head: Head) -> Array:
        """Return the exact score [n, g, P] of the queries `asked`."""
        if asked is block.queries or np.array_equal(asked, block.queries):
            return block.scores
        scores = np.einsum("ngd,pd->ngp", asked * asked.dtype.type(head.scale), head.keys[: block.scores.shape[-1]])
        return np.asarray(np.where(np.isfinite(block.scores), scores, -np.inf))


def build_graph(graph: Graph) -> ExactOrder:
    """Return the exact order: the share of keys that a search visits is supplied, not searched for."""
    return ExactOrder(None, graph.visited)


# --- hashing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LshIndex:
    """Hashes [positions, tables] of the keys about their mean; the score counts the tables that match."""

    hashes: Array
    planes: Floats
    """[tables, bits, d]"""
    claim: Claim | None = None

    def units(self, c0: int, c1: int) -> Units:
        """Return the cold tokens themselves."""
        return token_units(c0, c1)

    def scores(self, block: Block, asked: Array, head: Head) -> Array:  # noqa: ARG002
        """Return the number of matching tables [n, g, P]."""
        n, g, d = asked.shape
        mine = hashed(asked.reshape(n * g, d), self.planes)
        theirs = np.ascontiguousarray(self.hashes[: block.scores.shape[-1]].T)
        out = np.zeros((n * g, theirs.shape[1]), dtype=np.int32)
        for table, row in enumerate(theirs):  # counting in integers takes a fifth of the time
            out += mine[:, table, None] == row
        return out.astype(block.scores.dtype).reshape(n, g, -1)


def hashed(rows: Array, planes: Floats) -> Array:
    """Return the hash [n, tables] of each row: the signs of its products with the planes of a table, as bits."""
    tables, bits, d = planes.shape
    signs = rows.astype(np.float64) @ planes.reshape(tables * bits, d).T > 0
    return np.asarray(signs.reshape(len(rows), tables, bits) @ (1 << np.arange(bits)), dtype=np.int32)


def build_lsh(head: Head, fit: slice, lsh: Lsh) -> LshIndex:
    """Hash the keys about the mean of the prompt rows `fit`."""
    d = head.keys.shape[1]
    if lsh.bits * lsh.tables * d > 1 << 28:
        raise ConfigError(f"lsh: found {lsh.tables} tables of {lsh.bits} bits, expected fewer, e.g. 150 of 10")
    planes = generator(0, f"policy/lsh/{lsh.tables}x{lsh.bits}x{d}").standard_normal((lsh.tables, lsh.bits, d))
    mean = sampled(head.keys[fit]).mean(axis=0)
    return LshIndex(hashed(head.keys - mean, planes), planes)


def sampling_probability(cosine: Floats, lsh: Lsh) -> Floats:
    """Return the probability that a key is drawn: at least two of the tables match (MagicPIG)."""
    p = (1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi) ** lsh.bits
    once = lsh.tables * p * (1 - p) ** (lsh.tables - 1)
    return np.asarray(1 - (1 - p) ** lsh.tables - once)
