"""Renders one page about a trace: where its attention goes, how long it stays, what its keys look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ghostsim.report.figure import (
    DASHES,
    PALETTE,
    SYMBOLS,
    Figure,
    Table,
    View,
    axis,
    log_axis,
    plot,
    rows_axis,
    short,
    stacked,
)
from ghostsim.report.figures_time import row_height
from ghostsim.report.page import whole_page
from ghostsim.report.words import number, plural, share
from ghostsim.trace.format import Trace
from ghostsim.trace.statistics import (
    CLASSES,
    ENERGY,
    LOCAL,
    RULE,
    SHARES,
    SLACK,
    TOP,
    Comparison,
    Floats,
    TraceStatistics,
    compare,
    range_text,
    statistics,
)


def render_trace(trace: Trace) -> str:
    """Return the page of a trace as HTML that needs nothing but a browser; the same trace gives the same bytes."""
    found = statistics(trace)
    compared = compare(found)
    warnings = [each.warning for each in compared if each.warning]
    sections = [
        ("Beside what is published", [published(compared)]),
        ("Where the mass is", [masses(found), tokens(found), classes(found)]),
        ("How long it stays", [persistence(found)]),
        ("Queries and keys", [spectrum(found), norms(found)]),
    ]
    return whole_page(
        "trace.html.j2",
        "embed",
        sections,
        title=trace.name,
        trace=trace,
        heading=_heading(trace, found),
        answers=_answers(trace, found),
        warnings=warnings,
        method=_method(found),
    )


def _heading(trace: Trace, found: TraceStatistics) -> str:
    half = found.tokens_for[..., 0].mean() / found.attended
    return (
        f"{trace.name}: {share(float(half))} of {number(found.attended)} attended tokens hold half the mass, "
        f"mean over {plural(found.classes.size, 'head')}"
    )


def _answers(trace: Trace, found: TraceStatistics) -> dict[str, str]:
    shares = ", ".join(f"{name} {share(part)}" for name, part in found.class_share().items())
    before, after = found.key_rank.mean(axis=(0, 1))
    text = trace.provenance.text
    kept = share(float(found.persistence[..., 0].mean())) if found.lags else "one step only"
    return {
        "Head classes": shares,
        "Mass of the first 4 tokens": share(float(found.sink_mass.mean())),
        f"Best {TOP} tokens kept from step to step": kept,
        "Dimensions for 90 % of the key energy": f"{before:.0f} before RoPE, {after:.0f} after",
        "Recorded": f"{trace.model.name}, {plural(trace.tokens, 'token')}, {plural(trace.steps, 'step')}; {text}",
    }


def _method(found: TraceStatistics) -> list[str]:
    return [
        f"Means over {plural(len(found.steps), 'evenly spaced step')} of the exact softmax in 64-bit arithmetic.",
        f"Classes by this rule: {RULE}.",
        f"A figure more than {SLACK:g} times outside the published range is a warning.",
        f"Persistence is the share of the best {TOP} tokens that are still among the best {TOP} later.",
        "Key energy is the sum of squared key elements by principal direction; centred: of the keys minus their mean.",
    ]


def _labels(found: TraceStatistics) -> list[str]:
    return [f"layer {layer}, head {head}" for layer in found.layers for head in range(found.sink_mass.shape[1])]


def _heads_height(heads: int) -> int:
    """Return the height in pixels of a figure with one row per head: lower rows where there are many."""
    return 120 + max(16 * heads, min(30 * heads, 960))


def _flat(values: Floats) -> list[float]:
    return [float(value) for value in values.reshape(-1)]


_ALIKE = {"type": "rect", "xref": "x", "yref": "paper", "x0": 1 / SLACK, "x1": SLACK, "y0": 0, "y1": 1}
_ALIKE |= {"fillcolor": PALETTE[0], "opacity": 0.12, "line": {"width": 0}, "layer": "below"}


def published(compared: Sequence[Comparison]) -> Figure:
    """Each statistic as a ratio to the nearer end of the published range."""
    names = [each.published.name for each in compared]
    ratios = [_ratio(each) for each in compared]
    inside = [not each.warning for each in compared]
    drawn = plot(
        [_points(names, ratios, inside, alike=True), _points(names, ratios, inside, alike=False)],
        row_height(len(names)) + 40,
        shapes=[_ALIKE],
        xaxis=log_axis("Here / nearer end of the published range (log)", [*ratios, 1 / SLACK, SLACK]),
        yaxis=rows_axis(names),
    )
    rows = [
        [
            each.published.name,
            number(each.measured),
            range_text(each.published.low, each.published.high),
            "unlike" if each.warning else "alike",
            each.published.source,
        ]
        for each in compared
    ]
    table = Table(["Statistic", "Here", "Published", "Verdict", "Source"], rows)
    caption = (
        f"1 lies inside the published range; the band reaches {SLACK:g} times beyond it. Sources stand in the table; "
        "their models are larger than most traces'."
    )
    return Figure("published", "This trace beside published figures", caption, [View("", drawn)], table)


def _ratio(each: Comparison) -> float:
    if each.measured < each.published.low:
        return max(each.measured / each.published.low, 1e-4)
    return max(each.measured / each.published.high, 1.0)


def _points(names: Sequence[str], ratios: Sequence[float], inside: Sequence[bool], *, alike: bool) -> dict[str, Any]:
    shown = [(name, short(x)) for name, x, fine in zip(names, ratios, inside, strict=True) if fine == alike]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "alike" if alike else "unlike",
        "y": [name for name, _ in shown],
        "x": [x for _, x in shown],
        "marker": {"size": 10, "symbol": SYMBOLS[0 if alike else 3], "color": PALETTE[0 if alike else 5]},
        "hovertemplate": "%{y}: %{x:.3~g} times the published<extra></extra>",
    }


def masses(found: TraceStatistics) -> Figure:
    """Mass of each head on the first tokens, the own one, the other recent ones and the rest."""
    labels = _labels(found)
    parts = {
        "first 4": found.sink_mass,
        "own token": found.quiet_mass - found.sink_mass,
        f"others of the last {LOCAL}": found.held_mass - found.quiet_mass,
        "elsewhere": 1 - found.held_mass,
    }
    clean = {name: _flat(np.clip(values, 0, 1)) for name, values in parts.items()}
    drawn = plot(
        stacked(labels, clean, "%{x:.3f} of the mass"),
        _heads_height(len(labels)),
        barmode="stack",
        xaxis=axis("Share of the attention mass", range=[0, 1]),
        yaxis=rows_axis(labels),
    )
    best = {f"best {count}": _flat(found.top_mass[..., i]) for i, count in enumerate((8, 32, 128))}
    columns = clean | best
    rows = [[label, *(f"{values[i]:.4f}" for values in columns.values())] for i, label in enumerate(labels)]
    caption = "What lies elsewhere is what a window with sinks would lose."
    return Figure("mass", "Mass by place", caption, [View("", drawn)], Table(["Head", *columns], rows))


def tokens(found: TraceStatistics) -> Figure:
    """Tokens that hold a share of each head's mass."""
    labels = _labels(found)
    traces = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"{held:.0%}",
            "y": labels,
            "x": [short(x) for x in _flat(found.tokens_for[..., i])],
            "marker": {"size": 8, "symbol": SYMBOLS[i], "color": PALETTE[i]},
            "hovertemplate": "%{y}: %{x:.4~g} tokens hold %{fullData.name}<extra></extra>",
        }
        for i, held in enumerate(SHARES)
    ]
    across = log_axis("Tokens (log)", _flat(found.tokens_for))
    drawn = plot(traces, _heads_height(len(labels)), xaxis=across, yaxis=rows_axis(labels))
    spread = [found.tokens_for[..., i] for i in range(len(SHARES))]
    columns = [*spread, found.participation, found.entropy, found.above_uniform]
    header = ["Head", *(f"{held:.0%}" for held in SHARES), "1 / sum p²", "Entropy, nats", "Above uniform"]
    rows = [[label, *(number(_flat(values)[i], 4) for values in columns)] for i, label in enumerate(labels)]
    caption = "The fewest tokens that hold 50, 90, 95 and 99 % of the mass, mean over steps."
    return Figure("tokens", "Tokens that hold the mass", caption, [View("", drawn)], Table(header, rows))


def classes(found: TraceStatistics) -> Figure:
    """Share of each layer's heads by class."""
    layers = [f"layer {layer}" for layer in found.layers]
    parts = {name: _flat((found.classes == i).mean(axis=1)) for i, name in enumerate(CLASSES)}
    drawn = plot(
        stacked(layers, parts, "%{x:.0%} of the heads"),
        row_height(len(layers)) + 30,
        barmode="stack",
        xaxis=axis("Share of the heads", range=[0, 1], tickformat=".0%"),
        yaxis=rows_axis(layers),
    )
    labels = _labels(found)
    columns = [found.quiet_mass, found.held_mass, found.spiky_steps]
    rows = [
        [label, CLASSES[int(found.classes.reshape(-1)[i])], *(f"{_flat(values)[i]:.4f}" for values in columns)]
        for i, label in enumerate(labels)
    ]
    header = ["Head", "Class", "First 4 and own", f"First 4 and last {LOCAL}", "Steps with a spike elsewhere"]
    return Figure("classes", "Head classes", f"Rule: {RULE}.", [View("", drawn)], Table(header, rows))


def persistence(found: TraceStatistics) -> Figure:
    """How much of the best set is left after some steps, by layer."""
    kept = found.persistence.mean(axis=1)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"layer {layer}",
            "x": list(found.lags),
            "y": [short(float(y)) for y in kept[i]],
            "line": {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i % len(DASHES)]},
            "marker": {"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
            "hovertemplate": "%{fullData.name}: %{y:.3f} left after %{x} steps<extra></extra>",
        }
        for i, layer in enumerate(found.layers)
    ]
    drawn = plot(
        traces,
        360,
        xaxis=axis("Steps later (log)", type="log", tickvals=list(found.lags)),
        yaxis=axis(f"Share of the best {TOP} left", range=[0, 1]),
    )
    overlap = [*_flat(found.layer_overlap), None]
    rows = [
        [
            f"layer {layer}",
            *(f"{x:.4f}" for x in kept[i]),
            *(f"{x:.4f}" for x in found.shifted[i].mean(axis=0)),
            *(f"{x:.4f}" for x in found.query_cosine[i].mean(axis=0)),
            number(overlap[i], 4),
        ]
        for i, layer in enumerate(found.layers)
    ]
    later = ["After 1, moved by 1", "Query cosine"] if found.lags else []
    header = ["Layer", *(f"After {lag}" for lag in found.lags), *later, "In common with the next layer"]
    caption = (
        "Mean over the heads of a layer. Moved by one: the set follows the text. The last column compares the best "
        f"{TOP} of the mass over all heads of a layer with those of the next kept layer."
    )
    return Figure("persistence", "Persistence of the best tokens", caption, [View("", drawn)], Table(header, rows))


def spectrum(found: TraceStatistics) -> Figure:
    """Cumulative key energy by principal direction, before and after rotation."""
    kinds = {"as they are": found.key_energy, "centred": found.key_energy_centred}
    views = [View(name, _spectrum(found, values)) for name, values in kinds.items()]
    ranks = [found.key_rank, found.key_rank_centred]
    rows = [
        [f"layer {layer}, KV head {head}", *(str(int(x)) for rank in ranks for x in rank[i, head])]
        for i, layer in enumerate(found.layers)
        for head in range(found.key_norm.shape[1])
    ]
    header = ["Head", "Before RoPE", "After RoPE", "Before, centred", "After, centred"]
    caption = (
        "Share of the energy in the first directions before RoPE (full lines) and after (broken ones), mean over KV "
        f"heads; the table counts directions for {share(ENERGY)}. RoPE spreads what was one direction over circles: a "
        "sketch of rotated keys needs more of them."
    )
    return Figure("spectrum", "Key spectrum before and after RoPE", caption, views, Table(header, rows), picker="keys")


def _spectrum(found: TraceStatistics, energy: Floats) -> dict[str, Any]:
    reached = np.cumsum(energy, axis=-1).mean(axis=1)
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"layer {layer}",
            "legendgroup": f"layer {layer}",
            "showlegend": rotated == 0,
            "x": list(range(1, reached.shape[-1] + 1)),
            "y": [short(float(y)) for y in reached[i, rotated]],
            "line": {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[rotated]},
            "hovertemplate": f"layer {layer}, {when} RoPE: %{{y:.3f}} in %{{x}}<extra></extra>",
        }
        for i, layer in enumerate(found.layers)
        for rotated, when in enumerate(("before", "after"))
    ]
    return plot(traces, 420, xaxis=axis("Directions"), yaxis=axis("Share of the key energy", range=[0, 1.02]))


def norms(found: TraceStatistics) -> Figure:
    """Mean norms of queries and keys by layer."""
    layers = [f"layer {layer}" for layer in found.layers]
    columns = {
        "query": found.query_norm,
        "key": found.key_norm,
        "first key": found.first_key_norm,
        "largest key": found.key_norm_max,
    }
    means = {name: _flat(values.mean(axis=1)) for name, values in columns.items()}
    drawn = plot(
        [
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "y": layers,
                "x": [short(x) for x in values],
                "marker": {"size": 10, "symbol": SYMBOLS[i], "color": PALETTE[i]},
                "hovertemplate": "%{y}, %{fullData.name}: %{x:.4~g}<extra></extra>",
            }
            for i, (name, values) in enumerate(means.items())
        ],
        row_height(len(layers)) + 40,
        xaxis=axis("Norm, mean over heads", rangemode="tozero"),
        yaxis=rows_axis(layers),
    )
    more = {
        "key, sd / mean": found.key_norm_cv,
        "scale · query · key": found.norm_product,
        "score sd": found.score_sd,
    }
    shown = means | {name: _flat(values.mean(axis=1)) for name, values in more.items()}
    rows = [[layer, *(number(values[i], 4) for values in shown.values())] for i, layer in enumerate(layers)]
    caption = "scale · query · key is the widest that scores could be; score sd is how wide they are."
    return Figure("norms", "Norms", caption, [View("", drawn)], Table(["Layer", *shown], rows))
