"""Figures of an audit's further parts: drift over a long decode, and nodes visited in trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ghostsim.policy.rules import Mask
from ghostsim.report.figure import DASHES, PALETTE, SYMBOLS, Figure, Table, View, axis, log_axis, plot, short
from ghostsim.study.drift import INDEXES, REFRESH, Drift, clock_name
from ghostsim.study.drift import sentence as drift_sentence
from ghostsim.study.tree import BRANCHINGS, ORDERS, Tree, Walk
from ghostsim.study.tree import sentence as tree_sentence


def aged(drift: Drift) -> Figure:
    """Elimination and slack by window of steps, for every index and refit clock."""
    views = [View(f"ruled out, {part}", _drawn(drift, "group", heads)) for part, heads in drift.parts().items()]
    views += [View(f"slack, {part}", _drawn(drift, "slack", heads)) for part, heads in drift.parts().items()]
    header = ["Heads", "Index", "Refit", "Bytes a step", "Steps", "Ruled out, query head", "Ruled out, GQA group",
              "Slack, late", "Slack, prompt"]  # fmt: skip
    caption = (
        f"{drift_sentence(drift)} Slack is what a bound adds per unit of the query: the radius of a token's ball, or "
        "the error norm of its record. Bytes a step: of refits, as a share of all cold K and V. "
        f"{drift.violations} bounds lie below the exact score."
    )
    return Figure("drift", "Drift over the decode", caption, views, Table(header, _rows(drift)), picker="view")


def _rows(drift: Drift) -> list[list[str]]:
    rows = []
    for part, heads in drift.parts().items():
        for i, name in enumerate(INDEXES):
            for r, every in enumerate(REFRESH):
                measured = [drift.mean(i, r, measure, heads) for measure in ("head", "group", "late", "fitted")]
                for w, (first, end) in enumerate(drift.windows):
                    named = [part, name, clock_name(every), f"{drift.cost(i, r):.4f}", f"{first}-{end - 1}"]
                    rows.append([*named, *(f"{values[w]:.4f}" for values in measured)])
    return rows


def _drawn(drift: Drift, what: str, heads: Mask) -> dict[str, Any]:
    middle = [(first + end - 1) / 2 for first, end in drift.windows]
    traces = []
    for i, name in enumerate(INDEXES):
        for r, every in enumerate(REFRESH):
            values = drift.ratio(i, r, heads) if what == "slack" else drift.mean(i, r, what, heads)
            label = f"{name}, {clock_name(every)}"
            traces.append(_line(label, middle, [short(float(v)) for v in values], (i, r), "step %{x}: %{y:.4f}"))
    title = "Slack of late tokens over the prompt's" if what == "slack" else "Share of the cold tokens ruled out"
    return plot(traces, 460, xaxis=axis("Decode step"), yaxis=axis(title, rangemode="tozero"))


def _line(label: str, x: Sequence[float], y: Sequence[float], style: tuple[int, int], hover: str) -> dict[str, Any]:
    colour, dash = style
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "x": list(x),
        "y": list(y),
        "line": {"color": PALETTE[colour], "dash": DASHES[dash]},
        "marker": {"symbol": SYMBOLS[colour], "size": 7},
        "hovertemplate": f"%{{fullData.name}}, {hover}<extra></extra>",
    }


def visited(tree: Tree) -> Figure:
    """Nodes visited against the context, beside a linear and a logarithmic walk."""
    kinds = [(order, branching) for order in ORDERS for branching in BRANCHINGS]
    curves = {kind: tree.curve(*kind) for kind in kinds}
    traces = [
        _line(_kind(tree, kind), [walk.context for walk in curve], [short(walk.visited) for walk in curve],
              (i, 0), "%{x:,} tokens: %{y:,.0f} nodes")
        for i, (kind, curve) in enumerate(curves.items())
    ]  # fmt: skip
    contexts = [walk.context for walk in curves[kinds[0]]]
    logarithmic = [short(float(BRANCHINGS[-1] * np.log(n) / np.log(BRANCHINGS[-1]))) for n in contexts]
    traces.append(_line("logarithmic, as published", contexts, logarithmic, (8, 2), "%{x:,} tokens: %{y:,.0f} nodes"))
    nodes = [y for trace in traces for y in trace["y"]]
    drawing = plot(traces, 460, xaxis=log_axis("Context (log)", contexts), yaxis=log_axis("Nodes visited (log)", nodes))
    header = ["Order", "Children", "N", "Depth", "Nodes", "Visited", "Share of N", "By GQA group", "Least",
              "Tokens left", "Exponent"]  # fmt: skip
    rows = [_row(tree, walk) for curve in curves.values() for walk in curve]
    caption = (
        f"{tree_sentence(tree)} A recorded token stands {tree.repeats:.1f} times in the longest context. Least: nodes "
        "visited if each knew its largest exact score."
    )
    return Figure("tree", "Nodes visited in trees", caption, [View("all", drawing)], Table(header, rows))


def _kind(tree: Tree, kind: tuple[Any, int]) -> str:
    exponent = tree.exponent(*kind)
    return f"by {kind[0]}, {kind[1]} children" + ("" if exponent is None else f": N^{exponent:.2f}")


def _row(tree: Tree, walk: Walk) -> list[str]:
    exponent = tree.exponent(walk.order, walk.branching)
    counts = [f"{value:,.0f}" for value in (walk.nodes, walk.visited)]
    share = f"{walk.visited / walk.context:.4f}"
    further = [f"{walk.group:,.0f}", f"{walk.least:,.0f}", f"{walk.tokens:.4f}"]
    named = [walk.order, str(walk.branching), f"{walk.context:,}", str(walk.depth)]
    return [*named, *counts, share, *further, "-" if exponent is None else f"{exponent:.2f}"]
