"""Figures and first sentences of searches: the trials, and how far each assumed number moves a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghostsim.report.figure import PALETTE, Figure, Table, Trace, View, axis, fill, plot, rows_axis, short
from ghostsim.report.figures_time import row_height
from ghostsim.report.pareto import undominated
from ghostsim.report.sweep_store import SweepPoint, SweepStore, amount
from ghostsim.report.words import listing, number, plural, times

_MOST_EFFECTS = 20
_STILL = 1.0005
"""A ratio of ratios up to which a number moves nothing."""
_TRIAL = "trial"
_SIDES = ("divided", "ratio", "multiplied")
_LOOKS = {True: ("meets the bounds", "circle", PALETTE[0]), False: ("misses a bound", "x", PALETTE[5])}


# --- a search ----------------------------------------------------------------------------------------------------


def search_heading(store: SweepStore) -> str:
    """Name the best point, or say that none meets the bounds."""
    best = best_points(store)
    fitting = sum(point.meets_bounds for point in store.points)
    counts = f"{fitting} of {plural(len(store.points), 'point')} meet the bounds"
    if not best:
        return f"No point meets the bounds: {counts}."
    first = _asked(store, best[0])
    if len(best) == 1:
        return f"Best of all: {first}. {counts}."
    return f"{plural(len(best), 'point')} are unbeaten, among them {first}. {counts}."


def best_points(store: SweepStore) -> list[SweepPoint]:
    """Return the points within the bounds that no other such point beats, by their first objective."""
    costs = {
        point.name: tuple(_cost(name, value) for name, value in point.objectives.items())
        for point in store.points
        if point.meets_bounds and len(point.objectives) == len(store.objectives)
    }
    kept = set(undominated(costs))
    return sorted((point for point in store.points if point.name in kept), key=lambda point: costs[point.name])


def _cost(objective: str, value: float) -> float:
    return value if objective.startswith("minimise") else -value


def _asked(store: SweepStore, point: SweepPoint) -> str:
    """Write what was judged of a point, then its settings."""
    paths = {name: name.partition(" ")[2] for name in store.objectives}
    judged = [
        f"{path} {number(point.objectives.get(name))}" for name, path in paths.items() if path not in store.fields
    ]
    return ", ".join([*judged, store.describe(point)])


def trials(store: SweepStore) -> Figure | None:
    """Every trial of a search by its first two objectives, or by one over the trials."""
    if not store.objectives:
        return None
    best = {point.name for point in best_points(store)}
    axes = [_axis(store, name) for name in (*([] if len(store.objectives) > 1 else [_TRIAL]), *store.objectives)][:2]
    traces = [trace for meets in _LOOKS if (trace := _marks(store, meets, axes))["x"]]
    drawn = plot(traces, 460, xaxis=axis(axes[0].title), yaxis=axis(axes[1].title))
    rows = [
        [point.trial, "yes" if point.meets_bounds else "no", "yes" if point.name in best else "no",
         _asked(store, point)]
        for point in sorted(store.points, key=lambda point: (point.name not in best, not point.meets_bounds))
    ]  # fmt: skip
    caption = "Each mark is a trial. Only those that meet the bounds can be best; nothing within them beats the best."
    table = Table(["Trial", "Meets the bounds", "Best", "What it is"], rows)
    return Figure("trials", "Trials", caption, [View("", drawn)], table)


@dataclass(frozen=True)
class _Axis:
    title: str
    value: Callable[[SweepPoint], float]


def _axis(store: SweepStore, name: str) -> _Axis:
    """Return an axis of trials: a field in the unit in which it was set, anything else as it was judged."""
    path = name.partition(" ")[2]
    unit = store.unit(path) if path in store.fields else None
    if unit is None:
        return _Axis(name.capitalize(), lambda point: int(point.trial) if name == _TRIAL else point.objectives[name])
    title = name.capitalize() + (f", {unit}" if unit else "")
    return _Axis(title, lambda point: amount(point.settings[path]) or 0.0)


def _marks(store: SweepStore, meets: bool, axes: Sequence[_Axis]) -> Trace:
    name, symbol, colour = _LOOKS[meets]
    points = [
        point
        for point in store.points
        if point.meets_bounds == meets and len(point.objectives) == len(store.objectives)
    ]
    x, y = ([short(each.value(point)) for point in points] for each in axes)
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "meta": {"pages": [point.page for point in points]},
        "x": x,
        "y": y,
        "customdata": [f"trial {point.trial}: {store.describe(point)}" for point in points],
        "marker": {"symbol": symbol, "color": colour, "size": 10, "opacity": 0.8},
        "hovertemplate": "%{customdata}<extra></extra>",
    }


# --- assumed numbers ---------------------------------------------------------------------------------------------


def sensitivity_heading(store: SweepStore) -> str:
    """Say of every verdict which assumed numbers turn it, and which moves it most."""
    verdicts: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for each in store.effects:
        verdicts.setdefault((each["run"], each["baseline"]), []).append(each)
    return " ".join(_turned(run, baseline, effects) for (run, baseline), effects in verdicts.items())


def _turned(run: str, baseline: str, effects: Sequence[Mapping[str, str]]) -> str:
    flips = [_first(each["paths"]) for each in effects if each["flips"] == "true"]
    turned = f"turned by {listing(flips)}" if flips else "turned by no assumed number alone"
    low, high = _span(effects[0])
    most = f"{_first(effects[0]['paths'])} moves it most ({times(low)} to {times(high)})"
    return f"{run} against {baseline}: {times(float(effects[0]['ratio']))}, {turned}; {most}."


def _first(paths: str) -> str:
    return paths.split(",", maxsplit=1)[0]


def _span(effect: Mapping[str, str]) -> tuple[float, float]:
    sides = [float(effect[name]) for name in _SIDES if effect[name]]
    return min(sides), max(sides)


def assumed(store: SweepStore) -> Figure:
    """The assumed numbers that move a verdict most, of a search for sensitivity."""
    groups: dict[str, dict[str, tuple[float, float]]] = {}
    for each in store.effects:
        spans = groups.setdefault(f"{each['run']} against {each['baseline']}", {})
        if len(spans) < _MOST_EFFECTS:
            spans[f"{_first(each['paths'])} = {each['value']}"] = _span(each)
    views = [View(name, tornado(spans, "Ratio; above 1 is better than the baseline")) for name, spans in groups.items()]
    rows = [
        [each["run"], each["baseline"], each["paths"], each["value"], *(each[name] or "-" for name in _SIDES),
         "yes" if each["flips"] == "true" else "no"]
        for each in store.effects
    ]  # fmt: skip
    caption = (
        "Each assumed number divided and multiplied by the factor of the search, one at a time; the line is the ratio "
        "as it is. A bar that crosses 1 is a number on which the verdict hangs. Numbers that move nothing are only in "
        "the table."
    )
    header = ["Run", "Baseline", "Number", "Value", "Divided", "As it is", "Multiplied", "Turns the verdict"]
    return Figure("assumed", "Which assumed number decides", caption, views, Table(header, rows), picker="verdict")


def _effects(effects: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    spans = {f"{_first(each['paths'])} = {each['value']}": _span(each) for each in effects}
    moving = {name: (low, high) for name, (low, high) in spans.items() if high > low * _STILL} or spans
    shown = dict(list(moving.items())[:_MOST_EFFECTS])
    drawn = tornado(shown, "Ratio; above 1 is better than the baseline")
    ratio = float(effects[0]["ratio"])
    line = {"type": "line", "x0": ratio, "x1": ratio, "y0": 0, "y1": 1, "yref": "paper", "line": {"color": "#8c8c8c"}}
    return drawn | {"layout": drawn["layout"] | {"shapes": [line]}}


def tornado(spans: Mapping[str, tuple[float, float]], title: str) -> dict[str, Any]:
    """Return one bar per name, from its lowest to its highest."""
    names = list(spans)
    bars: Trace = {
        "type": "bar",
        "orientation": "h",
        "y": names,
        "base": [short(low) for low, _ in spans.values()],
        "x": [short(high - low) for low, high in spans.values()],
        "customdata": [f"{number(low)} to {number(high)}" for low, high in spans.values()],
        "marker": fill(0),
        "hovertemplate": "%{y}: %{customdata}<extra></extra>",
    }
    return plot([bars], row_height(len(names)), xaxis=axis(title), yaxis=rows_axis(names))
