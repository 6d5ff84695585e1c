"""Trees of balls above the cold tokens: how many nodes a query visits as the context grows from 32K to 1M tokens.

Leaves are balls of 16 tokens, and a node's ball encloses those of its children. A walk opens the node with the largest
bound until what it has not opened provably holds at most `EPS` of the mass: the staged certificate, spent where it does
most. Tokens stand in the tree by position, or by content: halved again and again at the median of their main direction
within segments of 8,192, so that a leaf holds like keys. Contexts are composed of recorded tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ghostsim.config.scores import Ball
from ghostsim.errors import TraceError
from ghostsim.policy.exact import Array, Block, Ints, block_of, softcapped, wide_sum
from ghostsim.policy.indexes import ball_radius, row_norms, unit_roundoff
from ghostsim.policy.pages import build_ball
from ghostsim.policy.rules import Mask
from ghostsim.trace.compose import SINKS, Head, compose, same_model
from ghostsim.trace.format import Trace, bundled_names, open_trace
from ghostsim.trace.statistics import LOCAL

Floats = npt.NDArray[np.float64]
Order = Literal["position", "content"]

EPS = 0.01
LEAF = 16
BRANCHINGS = (4, 16)
ORDERS: tuple[Order, ...] = ("position", "content")
CONTEXTS = (2**15, 2**16, 2**17, 2**18, 2**20)
HEADS = 2
SEGMENT = 8192
"""Tokens that are put in order of content together, as clusters are formed at the end of a prefill."""
_SAMPLE = 64
_ROUNDS = 2
_HALVINGS = 36
_FAR = 80.0


@dataclass(frozen=True)
class Walk:
    """What a query visits in a tree, mean over the heads looked at."""

    order: Order
    branching: int
    context: int
    depth: int
    """Levels of nodes, leaves included."""
    nodes: float
    """Nodes of the tree."""
    visited: float
    """Nodes that a query head visits for itself."""
    group: float
    """Nodes that some query head of a KV head visits."""
    least: float
    """Nodes that a query head would visit if every node knew its largest exact score."""
    tokens: float
    """Share of the cold tokens in leaves that a query head does not rule out."""


@dataclass(frozen=True)
class Tree:
    """Walks by order, branching and context."""

    trace: Trace
    repeats: float
    """How often a recorded token stands in the longest context."""
    heads: tuple[tuple[int, int], ...]
    """(kept layer, KV head) looked at."""
    walks: tuple[Walk, ...]

    def curve(self, order: Order, branching: int) -> list[Walk]:
        """Return the walks of one kind of tree by growing context."""
        return [walk for walk in self.walks if (walk.order, walk.branching) == (order, branching)]

    def exponent(self, order: Order, branching: int) -> float | None:
        """Return the b of visited ~ N^b by least squares of logarithms: 1 is linear, towards 0 logarithmic."""
        curve = self.curve(order, branching)
        if len(curve) < 2:
            return None
        x, y = np.log([walk.context for walk in curve]), np.log([walk.visited for walk in curve])
        return float(np.polyfit(x, y, 1)[0])


def tree(trace: Trace, contexts: Sequence[int] = CONTEXTS, progress: Callable[[int, int], None] | None = None) -> Tree:
    """Walk trees above contexts composed of a trace and the bundled ones of the same model.

    Raises
    ------
    TraceError
        If the trace cannot be composed.
    """
    if trace.rope is None:
        raise TraceError(f"{trace.name}: found positions inside the keys (rope: null), expected a trace to compose")
    others = [open_trace(name) for name in bundled_names() if name != trace.name]
    sources = [replace(each, v=None) for each in (trace, *(o for o in others if same_model(trace, o)))]
    found: list[Walk] = []
    for number, context in enumerate(contexts):
        workload = compose(sources, None, requests=1, steps=1, context=context, seed=0)
        count = len(workload.heads)
        units = np.unique(np.linspace(count // 4, count - 1, HEADS).astype(int)).tolist()
        found += _means([walk for unit in units for walk in _of_head(workload.head(unit))])
        if progress:
            progress(number + 1, len(contexts))
    return Tree(trace, workload.token_repeats(), tuple(workload.heads[unit][1:] for unit in units), tuple(found))


def _means(walks: Sequence[Walk]) -> Iterator[Walk]:
    for kind in dict.fromkeys((walk.order, walk.branching) for walk in walks):
        own = [walk for walk in walks if (walk.order, walk.branching) == kind]
        table = np.mean([(w.nodes, w.visited, w.group, w.least, w.tokens) for w in own], axis=0).tolist()
        yield Walk(*kind, own[0].context, own[0].depth, *table)


def _of_head(head: Head) -> Iterator[Walk]:
    yield from _walks(head, "position")
    yield from _walks(by_content(head), "content")


def _walks(head: Head, order: Order) -> Iterator[Walk]:
    """Walk every tree over the whole leaves between the sinks and the window of the step."""
    cold = slice(-(-SINKS // LEAF) * LEAF, (head.context - LOCAL) // LEAF * LEAF)
    block = block_of(head, 0, 1)
    leaves, (mass, peaks) = balls_of_leaves(head.keys[cold]), _of_leaves(block, cold)
    hot, shift = np.maximum(block.total[0] - mass.sum(axis=-1), 0.0), block.peak[0][:, None]
    for branching in BRANCHINGS:
        levels, exact = grown(leaves, branching), [peaks]
        for _ in levels[1:]:
            exact.append(_highest(exact[-1], branching))
        bounds = [softcapped(each.upper(block.queries[0] * head.scale), head.softcap) - shift for each in levels]
        found, least = (walked(each[::-1], mass, hot, branching, EPS) for each in (bounds, exact))
        yield Walk(
            order,
            branching,
            head.context,
            len(levels),
            found.visited.shape[1],
            float(found.visited.sum(axis=1).mean()),
            int(np.count_nonzero(found.visited.any(axis=0))),
            float(least.visited.sum(axis=1).mean()),
            float(found.leaves.mean()),
        )


def _of_leaves(block: Block, cold: slice) -> tuple[Floats, Array]:
    """Return the softmax sum [g, leaves] of each leaf, and its largest score less the peak."""
    g = block.queries.shape[1]
    weights, scores = (each[0, :, cold].reshape(g, -1, LEAF) for each in (block.weights, block.scores))
    return wide_sum(weights), scores.max(axis=-1) - block.peak[0][:, None]


# --- the tree -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Balls:
    """The balls of one level: centres [n, d], radii [n], and how many leaves each holds."""

    centres: Array
    radii: Array
    sizes: Ints

    def upper(self, queries: Array) -> Array:
        """Return the bound [g, n] of q.k for scaled `queries` [g, d]."""
        rows = queries.astype(self.centres.dtype)
        return np.asarray(rows @ self.centres.T + row_norms(rows)[:, None] * (1 + 1e-6) * self.radii)


def balls_of_leaves(keys: Array) -> Balls:
    """Return the balls of runs of 16 `keys` [n, d], n a multiple of 16."""
    table = build_ball(keys, Ball(page=LEAF)).table
    return Balls(table[:, :-1], table[:, -1], np.ones(len(table), dtype=np.int64))


def grown(leaves: Balls, branching: int) -> list[Balls]:
    """Return the levels of a tree, leaves first, up to one of no more nodes than a node has children."""
    levels = [leaves]
    while len(levels[-1].radii) > branching:
        levels.append(_parents(levels[-1], branching))
    return levels


def _parents(below: Balls, branching: int) -> Balls:
    """Return the balls that enclose each `branching` consecutive ones; the last may enclose fewer."""
    starts = np.arange(0, len(below.radii), branching)
    sizes = np.add.reduceat(below.sizes, starts)
    sums = np.add.reduceat(below.centres * below.sizes[:, None].astype(below.centres.dtype), starts, axis=0)
    centres = (sums / sizes[:, None]).astype(below.centres.dtype)
    away = row_norms(below.centres - np.repeat(centres, branching, axis=0)[: len(below.radii)]) + below.radii
    gamma = unit_roundoff(centres.shape[1] + 1, centres.dtype)
    return Balls(centres, ball_radius(np.maximum.reduceat(away, starts), row_norms(centres), gamma), sizes)


def _highest(below: Array, branching: int) -> Array:
    return np.asarray(np.maximum.reduceat(below, np.arange(0, below.shape[1], branching), axis=1))


@dataclass(frozen=True, eq=False)
class Walked:
    """Which nodes [g, nodes], level by level from the top, a walk visits, and which leaves [g, n] it has to read."""

    visited: Mask
    leaves: Mask


def walked(bounds: Sequence[Array], mass: Floats, hot: Floats, branching: int, eps: float) -> Walked:
    """Walk a tree for the query heads of a group, each by its own certificate.

    Parameters
    ----------
    bounds
        Per level from the top the bound [g, n] of a token's score, less the peak.
    mass, hot
        Softmax sums [g, leaves] of the tokens of each leaf, and [g] of what is read anyway.

    Notes
    -----
    Opening nodes by falling bound until U <= eps / (1 - eps) Z is opening all above the largest threshold at which
    that holds: U falls and Z grows as the threshold falls. A child's bound is no larger than its parent's.
    """
    own, above = [bounds[0].astype(np.float64)], [np.full(bounds[0].shape, np.inf)]
    for level in bounds[1:]:
        above.append(np.repeat(own[-1], branching, axis=1)[:, : level.shape[1]])
        own.append(np.minimum(level, above[-1]))
    of, over, sizes = np.concatenate(own, axis=1), np.concatenate(above, axis=1), _tokens(bounds, branching)
    weights, leaves = np.exp(np.minimum(of, _FAR)) * sizes, own[-1]
    low, high = of.min(axis=1) - 1, np.maximum(of.max(axis=1) + 1, -_FAR)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        rest = np.where((over > middle[:, None]) & (of <= middle[:, None]), weights, 0).sum(axis=1)
        read = hot + np.where(leaves > middle[:, None], mass, 0).sum(axis=1)
        fits = rest <= eps / (1 - eps) * read
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return Walked(over > low[:, None], leaves > low[:, None])


def _tokens(bounds: Sequence[Array], branching: int) -> Ints:
    """Return the tokens below each node, level by level from the top."""
    sizes = [np.full(bounds[-1].shape[1], LEAF, dtype=np.int64)]
    for _ in bounds[1:]:
        sizes.append(np.add.reduceat(sizes[-1], np.arange(0, len(sizes[-1]), branching)))
    return np.concatenate(sizes[::-1])


# --- an order by content ------------------------------------------------------------------------------------------


def by_content(head: Head) -> Head:
    """Put the cold keys of a head, in place, into an order in which leaves are alike, segment by segment."""
    start, end = -(-SINKS // LEAF) * LEAF, (head.context - LOCAL) // LEAF * LEAF
    while end - start > LEAF:
        size = min(SEGMENT, 1 << ((end - start).bit_length() - 1))
        part = head.keys[start : start + size]
        part[...] = part[halved(part)]
        start += size
    return head


def halved(keys: Array) -> Ints:
    """Return an order of `keys` [n, d], n a power of 2: halved at the median of the main direction, down to leaves."""
    order, size = np.arange(len(keys))[None], len(keys)
    while size > LEAF:
        order = order.reshape(-1, size)
        rows = keys[order]
        direction = main_direction(rows[:, :: max(1, size // _SAMPLE)])
        along = np.matmul(rows, direction[:, :, None])[:, :, 0]
        order = np.take_along_axis(order, np.argsort(along, axis=1, kind="stable"), axis=1)
        size //= 2
    return order.ravel()


def main_direction(groups: Array) -> Array:
    """Return about the direction [g, d] in which the rows of each of `groups` [g, s, d] spread most."""
    centred = groups - groups.mean(axis=1, keepdims=True)
    direction = centred[np.arange(len(groups)), np.square(centred).sum(axis=2).argmax(axis=1)]
    for _ in range(_ROUNDS):
        along = np.einsum("gsd,gd->gs", centred, direction)
        direction = np.einsum("gs,gsd->gd", along, centred)
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return np.asarray(direction)


# --- as data and as text ----------------------------------------------------------------------------------------


def as_json(found: Tree) -> dict[str, Any]:
    """Return the walks and the exponents as plain data."""
    return {
        "eps": EPS,
        "leaf": LEAF,
        "heads": [list(head) for head in found.heads],
        "token_repeats": found.repeats,
        "sentence": sentence(found),
        "walks": [
            {
                "order": walk.order,
                "branching": walk.branching,
                "context": walk.context,
                "depth": walk.depth,
                "nodes": walk.nodes,
                "visited": walk.visited,
                "visited_per_token": walk.visited / walk.context,
                "visited_by_group": walk.group,
                "least_visited": walk.least,
                "tokens_left": walk.tokens,
            }
            for walk in found.walks
        ],
        "exponents": [
            {"order": order, "branching": branching, "exponent": found.exponent(order, branching)}
            for order in ORDERS
            for branching in BRANCHINGS
        ],
    }


def sentence(found: Tree) -> str:
    """Say in one sentence how the best tree grows."""
    last = [found.curve(order, branching)[-1] for order in ORDERS for branching in BRANCHINGS]
    best = min(last, key=lambda walk: walk.visited)
    exponent = found.exponent(best.order, best.branching)
    grows = "" if exponent is None else f", growing as N^{exponent:.2f}"
    return (
        f"Of the trees of balls, the one by {best.order} with {best.branching} children visits fewest nodes at "
        f"{best.context:,} tokens: {best.visited:,.0f} of {best.nodes:,.0f}{grows}; {100 * best.tokens:.1f} % of the "
        f"cold tokens are left to judge. With exact scores in every node {best.least:,.0f} would do."
    )


def _further(walk: Walk) -> tuple[str, str, str]:
    return f"{walk.group:,.0f}", f"{walk.least:,.0f}", f"{100 * walk.tokens:.1f}%"


def tree_text(found: Tree) -> str:
    """Lay out nodes visited against N."""
    columns = ("N", "depth", "nodes", "visited", "of N", "by group", "least", "tokens left")
    lines = [f"trees of balls over leaves of {LEAF} tokens, certified to {EPS:g}: nodes visited by a query head", ""]
    for order in ORDERS:
        for branching in BRANCHINGS:
            exponent = found.exponent(order, branching)
            fitted = "" if exponent is None else f", visited ~ N^{exponent:.2f}"
            lines += [f"by {order}, {branching} children{fitted}", "".join(f"{name:>12}" for name in columns)]
            for walk in found.curve(order, branching):
                share = f"{100 * walk.visited / walk.context:.2f}%"
                cells = (f"{walk.context:,}", walk.depth, f"{walk.nodes:,.0f}", f"{walk.visited:,.0f}", share)
                lines.append("".join(f"{c:>12}" for c in (*cells, *_further(walk))))
            lines.append("")
    return "\n".join([*lines, sentence(found)])
