"""Renders the store of a sweep or a search as one page: what the fields do, and which points nothing beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ghostsim.report.figure import (
    HEAT,
    SYMBOLS,
    Figure,
    Table,
    Trace,
    View,
    axis,
    log_axis,
    loss_bar,
    loss_colour,
    plot,
    rows_axis,
    run_mark,
    short,
)
from ghostsim.report.page import PlotlyJs, whole_page, write_text
from ghostsim.report.pareto import undominated
from ghostsim.report.search_figures import assumed, search_heading, sensitivity_heading, tornado, trials
from ghostsim.report.sweep_store import SweepPoint, SweepStore, load_sweep
from ghostsim.report.words import listing, loses, number, plural, share, times

PAGE = "sweep.html"
_P95 = "step_ms.p95"
_LOST = "quality.lost_mass.max"
_FLOOR = 1e-8
_MOST_COLUMNS, _MOST_TICKS = 8, 12
_MOST_LINES = 150
_STILL = 1.001
"""A ratio of latencies up to which a run does not move."""


def write_sweep_report(folder: Path) -> Path:
    """Write ``sweep.html`` into the store at `folder` and return its path."""
    page = folder / PAGE
    write_text(page, render_sweep(load_sweep(folder)))
    return page


def render_sweep(store: SweepStore, plotlyjs: PlotlyJs = "embed") -> str:
    """Return the page; the same store gives the same bytes."""
    name = store.path.resolve().name
    return whole_page(
        "sweep.html.j2",
        plotlyjs,
        _sections(store),
        title=f"{'sensitivity' if store.effects else 'search' if store.objectives else 'sweep'} {name}",
        store=store,
        heading=_heading(store),
        sentences=_sentences(store),
        fields=store.fields if len(store.fields) <= _MOST_COLUMNS else [],
        labels=list(store.labels),
        columns=[f"{label} p95, ms" for label in store.labels],
        rows=[(point, [number(point.of(label, _P95)) for label in store.labels]) for point in store.points],
    )


def _sections(store: SweepStore) -> list[tuple[str, list[Figure]]]:
    """Return the figures; numbers that are changed one at a time are no fields to set beside each other."""
    if store.effects:
        return [("Assumed numbers", [assumed(store)])]
    sections = [
        ("Objectives", [trials(store)]),
        ("Fields", [_heat(store), _lines(store), _main_effects(store)]),
        ("Trade-offs", [_pareto(store), _parallel(store)]),
    ]
    drawn = [(name, [figure for figure in some if figure]) for name, some in sections]
    return [(name, some) for name, some in drawn if some]


# --- sentences ---------------------------------------------------------------------------------------------------


def _heading(store: SweepStore) -> str:
    if store.effects:
        return sensitivity_heading(store)
    return search_heading(store) if store.objectives else _sweep_heading(store)


def _sweep_heading(store: SweepStore) -> str:
    """Name the fastest run and point, and the field that moves it most."""
    ranked = [label for label in store.labels if label not in store.not_lossless] or store.labels
    label, point = min(
        ((label, point) for point in store.points for label in ranked if point.of(label, _P95) is not None),
        key=lambda pair: pair[1].of(pair[0], _P95) or math.inf,
    )
    spans = _spans(store, label)
    moving = [field for field in store.varied if field in spans and spans[field][1] > spans[field][0] * _STILL]
    named = ", ".join(f"{field} {point.settings[field]}" for field in moving if point.settings[field])
    where = f"with {named}" if named else "at any setting"
    lost = point.of(label, _LOST)
    quality = "" if lost is None else f", and {loses(lost)}"
    text = f"{label} is fastest {where}: {number(point.of(label, _P95))} ms at p95{quality}"
    moved, by, mover = _largest_mover(store)
    return f"{text}. {mover} moves most: {moved} by {times(by)}." if by > _STILL else f"{text}. No field moves any run."


def _largest_mover(store: SweepStore) -> tuple[str, float, str]:
    """Return the run and the field between whose values its mean p95 differs most, and by which factor."""
    found = [
        (max(means.values()) / min(means.values()), label, field)
        for label in store.labels
        for field in store.varied
        if (means := _means(store, label, field)) and min(means.values()) > 0
    ]
    ratio, label, field = max(found, default=(1.0, "", ""))
    return label, ratio, field


def _moving(store: SweepStore) -> list[str]:
    """Return the runs that some field moves, the most moved first; all if none moves."""
    return _moved(store) or list(store.labels)


def _moved(store: SweepStore) -> list[str]:
    ratios = {
        label: max((high / low for low, high in _spans(store, label).values() if low > 0), default=1.0)
        for label in store.labels
    }
    return sorted((label for label in ratios if ratios[label] > _STILL), key=lambda label: -ratios[label])


def _means(store: SweepStore, label: str, field: str) -> dict[str, float]:
    """Return a run's p95 by level of a field, the mean over all other fields."""
    levels, by_level = store.levels(field), dict[str, list[float]]()
    for point in store.points:
        value = point.of(label, _P95)
        if value is not None:
            by_level.setdefault(levels[point.settings[field]], []).append(value)
    return {level: fmean(some) for level, some in by_level.items()}


def _levels(store: SweepStore, field: str) -> list[str]:
    return list(dict.fromkeys(store.levels(field).values()))


def _sentences(store: SweepStore) -> list[str]:
    missed = sum(bool(point.missed) for point in store.points)
    lines = [f"{plural(len(store.points), 'point')} of {plural(len(store.labels), 'run')} each."]
    if store.not_lossless:
        lines.append(
            f"Not lossless, because the format changes scores, and not ranked: {listing(sorted(store.not_lossless))}."
        )
    if missed:
        lines.append(f"{plural(missed, 'point')} miss a bound of the scenario.")
    if store.failed:
        lines.append(f"{plural(len(store.failed), 'point')} failed or never ran; points.csv says why.")
    if any(len(store.levels(field)) > len(_levels(store, field)) for field in store.varied):
        lines.append("Fields that take many values are shown in ranges.")
    if any(point.page for point in store.points):
        lines.append(
            "A click on a point of a figure opens its report; the last point under the mouse stands as a link below."
        )
    return lines


# --- figures -----------------------------------------------------------------------------------------------------


def _heat(store: SweepStore) -> Figure | None:
    """p95 over the two fields with the most values, run by run."""
    if len(store.varied) < 2:
        return None
    across, up = sorted(store.varied, key=lambda field: -len(_levels(store, field)))[:2]
    views = [View(label, _heat_plot(store, label, across, up)) for label in _moving(store)]
    rows = [
        [label, x, y, number(best.of(label, _P95)) if best else "-"]
        for label in store.labels
        for y in _levels(store, up)
        for x in _levels(store, across)
        for best in [_best(store, label, {across: x, up: y})]
    ]
    others = len(store.varied) > 2
    caption = (
        f"Step latency p95 in ms over {across} and {up}; darker is slower. "
        f"{'Each cell is the best point over the other fields. ' if others else ''}"
        "An empty cell has no point; runs that no field moves are only in the table."
    )
    table = Table(["Run", across, up, "p95, ms"], rows)
    return Figure("heat", "Latency over two fields", caption, views, table, picker="run")


def _best(store: SweepStore, label: str, settings: Mapping[str, str]) -> SweepPoint | None:
    """Return the fastest point of a run at some levels of fields."""
    fitting = [
        point
        for point in store.points
        if all(store.levels(field)[point.settings[field]] == level for field, level in settings.items())
        and point.of(label, _P95) is not None
    ]
    return min(fitting, key=lambda point: point.of(label, _P95) or math.inf, default=None)


def _heat_plot(store: SweepStore, label: str, across: str, up: str) -> dict[str, Any]:
    xs, ys = _levels(store, across), _levels(store, up)
    cells = [[_best(store, label, {across: x, up: y}) for x in xs] for y in ys]
    values = [[point.of(label, _P95) if point else None for point in row] for row in cells]
    heat: Trace = {
        "type": "heatmap",
        "x": xs,
        "y": ys,
        "z": [[None if value is None else short(value) for value in row] for row in values],
        "text": [["" if value is None else number(value) for value in row] for row in values],
        "texttemplate": "%{text}",
        "colorscale": HEAT,
        "colorbar": {"title": {"text": "p95, ms"}, "thickness": 12},
        **_range([value for row in values for value in row if value is not None]),
        "xgap": 2,
        "ygap": 2,
        "meta": {"pages": [[point.page if point else None for point in row] for row in cells]},
        "hovertemplate": "%{x}, %{y}: %{z:.4~g} ms<extra></extra>",
    }
    listed = {"type": "category", "categoryorder": "array", "categoryarray": xs, "showgrid": False}
    rows = rows_axis(ys, showgrid=False, title={"text": up})
    return plot([heat], 200 + 44 * len(ys), xaxis=axis(across, **listed), yaxis=rows)


def _range(values: Sequence[float]) -> dict[str, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return {"zmin": short(low), "zmax": short(high)} if high > low else {"zmin": 0, "zmax": short(2 * high)}


def _lines(store: SweepStore) -> Figure | None:
    """p95 of every run along each field."""
    if not store.varied:
        return None
    views = [View(field, _lines_plot(store, field)) for field in store.varied]
    rows = [
        [field, value, label, number(mean)]
        for field in store.varied
        for label in store.labels
        for value, mean in _means(store, label, field).items()
    ]
    caption = "Each line is one run; where several fields change, the mean over the others."
    return Figure(
        "along", "Along each field", caption, views, Table(["Field", "Value", "Run", "p95, ms"], rows), picker="field"
    )


def _lines_plot(store: SweepStore, field: str) -> dict[str, Any]:
    values = _levels(store, field)
    hover = "%{fullData.name}, %{x}: %{y:.4~g} ms<extra></extra>"
    by_label = {label: _means(store, label, field) for label in store.labels}
    traces = [
        run_mark(label, index, mode="lines+markers", hovertemplate=hover)
        | {"x": values, "y": [short(means[value]) if value in means else None for value in values]}
        for index, (label, means) in enumerate(by_label.items())
    ]
    listed = {"type": "category", "categoryorder": "array", "categoryarray": values}
    up = log_axis("Step latency p95, ms (log)", [mean for means in by_label.values() for mean in means.values()])
    return plot(traces, 440, xaxis=axis(field, **listed), yaxis=up)


def _main_effects(store: SweepStore) -> Figure | None:
    """How far each field moves each run: from its best to its worst value."""
    if len(store.varied) < 2:
        return None
    views = [View(label, tornado(_spans(store, label), "Mean step latency p95, ms")) for label in _moving(store)]
    rows = [
        [label, field, number(low), number(high), times(high / low) if low > 0 else "-"]
        for label in store.labels
        for field, (low, high) in _spans(store, label).items()
    ]
    caption = (
        "A bar goes from the mean latency at a field's best value to that at its worst, over all other settings. The "
        "longest bar is the field that matters most to the run."
    )
    table = Table(["Run", "Field", "Lowest, ms", "Highest, ms", "Ratio"], rows)
    return Figure("effects", "Which field matters", caption, views, table, picker="run")


def _spans(store: SweepStore, label: str) -> dict[str, tuple[float, float]]:
    means = {field: _means(store, label, field) for field in store.varied}
    spans = {field: (min(each.values()), max(each.values())) for field, each in means.items() if each}
    return dict(sorted(spans.items(), key=lambda item: item[1][0] - item[1][1]))


Costs = Mapping[tuple[str, str], tuple[float, float, float]]
"""Latency in ms, lost mass and energy in mJ by run and point."""


def _costs(store: SweepStore) -> Costs:
    costs = {}
    for point in store.points:
        for label in store.labels:
            latency, lost, energy = point.of(label, _P95), point.of(label, _LOST), point.energy(label)
            if latency is not None and lost is not None and energy is not None:
                costs[label, point.name] = (latency, max(_FLOOR, lost), energy)
    return costs


def _pareto(store: SweepStore) -> Figure | None:
    """Latency, energy and quality of every run at every point."""
    costs = _costs(store)
    if not costs:
        return None
    best = set(undominated({key: cost for key, cost in costs.items() if key[0] not in store.not_lossless}))
    points = {point.name: point for point in store.points}
    traces = [_pareto_marks(store, label, index, costs, best) for index, label in enumerate(store.labels)]
    drawn = plot(
        [*traces, loss_bar()],
        520,
        xaxis=log_axis("Step latency p95, ms (log)", [latency for latency, _, _ in costs.values()]),
        yaxis=log_axis("Energy per token, mJ (log)", [energy for *_, energy in costs.values()]),
    )
    rows = [
        [label, store.describe(points[name]), number(latency), share(lost if lost > _FLOOR else 0.0), number(energy)]
        for (label, name), (latency, lost, energy) in sorted(costs.items(), key=lambda item: item[1])
        if (label, name) in best
    ]
    caption = (
        "Down and left is better, yellow loses nothing. Filled marks are on the Pareto front of latency, lost "
        "attention mass and energy: nothing is at least as good in all three. The table lists them. "
        "Formats that change scores take no part."
    )
    table = Table(["Run", "Point", "p95, ms", "Lost mass max", "Energy, mJ/token"], rows)
    return Figure("pareto", "Pareto front", caption, [View("", drawn)], table)


def _pareto_marks(store: SweepStore, label: str, index: int, all_costs: Costs, best: set[tuple[str, str]]) -> Trace:
    points = {point.name: point for point in store.points}
    costs = {point: cost for (name, point), cost in all_costs.items() if name == label}
    symbol = SYMBOLS[index % len(SYMBOLS)]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "meta": {"run": label, "pages": [points[name].page for name in costs]},
        "x": [short(latency) for latency, _, _ in costs.values()],
        "y": [short(energy) for *_, energy in costs.values()],
        "customdata": [f"{store.describe(points[name])}; {share(cost[1])} lost" for name, cost in costs.items()],
        "marker": {
            "symbol": [symbol if (label, name) in best else f"{symbol}-open" for name in costs],
            "size": 11,
            "color": [loss_colour(lost) for _, lost, _ in costs.values()],
            "line": {"width": 1.5},
        },
        "hovertemplate": "%{fullData.name}: %{x:.4~g} ms, %{y:.4~g} mJ; %{customdata}<extra></extra>",
    }


def _parallel(store: SweepStore) -> Figure | None:
    """All fields and outcomes of a run side by side."""
    costs = _costs(store)
    shown = [label for label in _moving(store) if any((label, point.name) in costs for point in store.points)]
    if not store.varied or len(store.points) < 3 or not shown:
        return None
    rows = [
        [label, store.describe(point), number(point.of(label, _P95)), number(point.energy(label))]
        for label in store.labels
        for point in store.points
    ]
    caption = (
        "Each line is one point: its settings on the left, what came of it on the right, from its lowest to its "
        "highest; blue is fast, orange slow."
    )
    views = [View(label, _parallel_plot(store, label, costs)) for label in shown]
    table = Table(["Run", "Point", "p95, ms", "Energy, mJ/token"], rows)
    return Figure("parallel", "All points side by side", caption, views, table, picker="run")


@dataclass(frozen=True)
class _Dimension:
    """One axis of parallel coordinates: where each point passes, from 0 to 1, and what stands beside it."""

    name: str
    places: Sequence[float]
    ticks: Mapping[str, float]


def _parallel_plot(store: SweepStore, label: str, costs: Costs) -> dict[str, Any]:
    points = [point for point in store.points if (label, point.name) in costs][:_MOST_LINES]
    outcomes = list(zip(*(costs[label, point.name] for point in points), strict=True))
    fields = [_setting(field, store.values(field), points) for field in store.varied]
    names = ("p95, ms", "lost mass", "mJ/token")
    latency, *others = (_outcome(name, values) for name, values in zip(names, outcomes, strict=True))
    others = [each for each in others if len(each.ticks) > 1]
    dimensions = [*fields, latency, *others]
    traces: list[Trace] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": point.name,
            "x": list(range(len(dimensions))),
            "y": [short(each.places[row]) for each in dimensions],
            "line": {"color": _between(latency.places[row]), "width": 2, "shape": "spline", "smoothing": 0.5},
            "opacity": 0.8,
            "meta": {"pages": [point.page] * len(dimensions)},
            "text": f"{store.describe(point)}: {number(point.of(label, _P95))} ms",
            "hovertemplate": "%{text}<extra></extra>",
        }
        for row, point in enumerate(points)
    ]
    notes = [note for column, each in enumerate(dimensions) for note in _ticks(column, each)]
    across = {"tickvals": list(range(len(dimensions))), "ticktext": [each.name for each in dimensions]}
    bare = {"range": [-0.08, 1.08], "showticklabels": False, "showgrid": False}
    return plot(
        traces,
        440,
        showlegend=False,
        annotations=notes,
        xaxis=axis("Fields, then outcomes", range=[-0.3, len(dimensions) - 0.6], side="top", **across),
        yaxis=axis("", **bare),
    )


def _between(place: float) -> str:
    """Return the colour from blue (0) to orange (1)."""
    pairs = zip((0, 114, 178), (213, 94, 0), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * place):02x}" for a, b in pairs)


def _setting(field: str, values: Sequence[str], points: Sequence[SweepPoint]) -> _Dimension:
    ticks = {value: index / max(1, len(values) - 1) for index, value in enumerate(values)}
    named = ticks if len(ticks) <= _MOST_TICKS else {values[0]: 0.0, values[-1]: 1.0}
    return _Dimension(field.rpartition(".")[2], [ticks[point.settings[field]] for point in points], named)


def _outcome(name: str, values: Sequence[float]) -> _Dimension:
    low, high = min(values), max(values)
    places = [(value - low) / (high - low) if high > low else 0.5 for value in values]
    return _Dimension(name, places, {number(low): 0.0, number(high): 1.0} if high > low else {number(low): 0.5})


def _ticks(column: int, dimension: _Dimension) -> list[dict[str, Any]]:
    common = {"x": column, "xanchor": "right", "xshift": -6, "showarrow": False, "font": {"size": 12}}
    return [common | {"y": place, "text": text} for text, place in dimension.ticks.items()]
