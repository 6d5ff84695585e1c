"""Figures of bytes and of what not moving them costs in quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghostsim.report.figure import (
    DASHES,
    PALETTE,
    SYMBOLS,
    Figure,
    Table,
    Trace,
    View,
    axis,
    dots,
    fill,
    log_axis,
    plot,
    rows_axis,
    run_mark,
    short,
    steps_axis,
)
from ghostsim.report.figures_time import row_height
from ghostsim.report.store import RunFolder
from ghostsim.report.verdict import TIERS, BoundCheck, Runs, all_bytes, claims_bound, is_sound, kv_bytes, sound_twin
from ghostsim.report.words import byte_unit, number, share, size

CAUSES = ("index", "kv", "weights", "write", "migrate")
_FLOOR = 1e-8


def bytes_moved(run: RunFolder) -> Figure:
    """Bytes per step by tier or link and by cause."""
    runs = run.metrics["runs"]
    places = list(dict.fromkeys(place for each in runs.values() for place in each["bytes_per_step"]))
    tiers = [tier for tier in TIERS if tier in places]
    links = [place for place in places if place not in TIERS]
    views = [View(name, _facets(runs, some)) for name, some in (("tiers", tiers), ("links", links)) if some]
    header = ["Run", "Batch", "Where", *CAUSES, "All"]
    rows = [
        [
            label,
            str(each["batch"]),
            place,
            *(size(causes.get(cause, 0)) for cause in CAUSES),
            size(sum(causes.values())),
        ]
        for label, each in runs.items()
        for place, causes in each["bytes_per_step"].items()
        if any(causes.values())
    ]
    caption = (
        "Mean per decode step of the whole batch; each column has its own scale. KV that is copied to the GPU counts "
        "in its own tier and again in hbm where it is attended; a link carries what its tier gives."
    )
    return Figure("bytes", "Bytes by tier and cause", caption, views, Table(header, rows), picker="places")


def _facets(runs: Runs, places: Sequence[str]) -> dict[str, Any]:
    """One column of stacked bars per place, all with the same rows."""
    traces: list[Trace] = []
    layout: dict[str, Any] = {"yaxis": rows_axis(list(runs)), "barmode": "stack", "annotations": []}
    width, gap = 1 / len(places), 0.2 / len(places)
    for column, place in enumerate(places):
        factor, unit = byte_unit(max(sum(each["bytes_per_step"].get(place, {}).values()) for each in runs.values()))
        suffix = "" if column == 0 else str(column + 1)
        domain = [column * width, (column + 1) * width - (gap if column + 1 < len(places) else 0)]
        layout[f"xaxis{suffix}"] = axis(f"{place}, {unit}", domain=domain, nticks=4, rangemode="tozero")
        traces += _column(runs, place, f"x{suffix}", factor, legend=column == 0)
    return plot(traces, row_height(len(runs)) + 30, **layout)


def _column(runs: Runs, place: str, xaxis: str, factor: float, *, legend: bool) -> list[Trace]:
    moved = [each["bytes_per_step"].get(place, {}) for each in runs.values()]
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": cause,
            "legendgroup": cause,
            "showlegend": legend,
            "xaxis": xaxis,
            "y": list(runs),
            "x": [short(each.get(cause, 0) / factor) for each in moved],
            "marker": fill(index),
            "customdata": [size(each.get(cause, 0)) for each in moved],
            "hovertemplate": "%{y}, %{fullData.name}: %{customdata}<extra></extra>",
        }
        for index, cause in enumerate(CAUSES)
    ]


def quality(run: RunFolder, not_lossless: frozenset[str]) -> Figure:
    """Lost attention mass against the bytes that attention takes in."""
    runs = run.metrics["runs"]
    traces = [_quality_trace(label, each, index) for index, (label, each) in enumerate(runs.items())]
    factor, unit = byte_unit(max(all_bytes(each) for each in runs.values()))
    across = log_axis(
        f"Index and KV bytes per step and request, {unit} (log)", [all_bytes(each) / factor for each in runs.values()]
    )
    for trace in traces:
        trace["x"] = [short(value / factor) for value in trace["x"]]
    drawn = plot(
        traces,
        460,
        xaxis=across,
        yaxis=_loss_axis("Lost attention mass (log)"),
    )
    header = [
        "Run",
        "Index and KV bytes per request",
        "KV bytes",
        "Lost mass mean",
        "p99",
        "Max",
        "Certified max",
        "Lossless",
    ]
    rows = [_quality_row(label, each, label in not_lossless) for label, each in runs.items()]
    caption = (
        "Lower and further left is better. A line goes from the mean of a run (open) to its worst query head and step "
        "(filled). Runs on the bottom line lose at most 1e-8. A format such as int4 changes scores, which lost mass "
        "does not show."
    )
    return Figure("quality", "Quality against bytes", caption, [View("", drawn)], Table(header, rows))


def _loss_axis(title: str) -> dict[str, Any]:
    return axis(title, type="log", tickformat=".0e", range=[-8.4, 0.3])


def _quality_trace(label: str, each: Mapping[str, Any], index: int) -> Trace:
    lost = each["quality"]["lost_mass"]
    symbol, colour = SYMBOLS[index % len(SYMBOLS)], PALETTE[index % len(PALETTE)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label,
        "meta": {"run": label},
        "x": [all_bytes(each)] * 2,
        "y": [max(lost["mean"], _FLOOR), max(lost["max"], _FLOOR)],
        "customdata": [f"{size(all_bytes(each))}, {share(lost[name])} {name}" for name in ("mean", "max")],
        "marker": {
            "symbol": [f"{symbol}-open", symbol],
            "size": 12,
            "color": colour,
            "line": {"width": 2, "color": colour},
        },
        "line": {"color": colour, "dash": DASHES[index % len(DASHES)]},
        "hovertemplate": "%{fullData.name}: %{customdata}<extra></extra>",
    }


def _quality_row(label: str, each: Mapping[str, Any], lossy: bool) -> list[str]:
    found, certified = each["quality"], each["quality"].get("certified_mass")
    lost = [share(found["lost_mass"].get(name)) for name in ("mean", "p99", "max")]
    proof = share(certified["max"]) if certified else "none"
    return [label, size(all_bytes(each)), size(kv_bytes(each)), *lost, proof, "no" if lossy else "yes"]


_RATES = {
    "elimination_rate": "eliminated",
    "resurrection_rate": "resurrected",
    "false_elimination_rate": "top 32 eliminated",
    "false_resurrection_rate": "read without need",
}


def elimination(run: RunFolder) -> Figure:
    """Elimination against resurrection, and how much of each was wrong."""
    runs = run.metrics["runs"]
    parts = {name: [each["quality"][key] * 100 for each in runs.values()] for key, name in _RATES.items()}
    drawn = plot(
        dots(list(runs), parts, "%{x:.3~g} %"),
        row_height(len(runs)),
        xaxis=axis("Share, %", range=[-2, 102]),
        yaxis=rows_axis(list(runs)),
    )
    rows = [[label, *(share(each["quality"][key]) for key in _RATES)] for label, each in runs.items()]
    caption = (
        "Of the cold tokens, how many were left where they are and how many were brought back. Top 32 eliminated: cold "
        "tokens among the 32 best scores that were lost; read without need: read although an oracle at the same "
        "tolerance would not."
    )
    return Figure(
        "elimination",
        "Elimination and resurrection",
        caption,
        [View("", drawn)],
        Table(["Run", *_RATES.values()], rows),
    )


def bounds(run: RunFolder, checks: Mapping[str, BoundCheck]) -> Figure | None:
    """How often claimed bounds lie below the true score, beside sound ones."""
    runs = {label: each for label, each in run.metrics["runs"].items() if claims_bound(each)}
    if not runs:
        return None
    below = [checks[label].below * 100 if label in checks else 0.0 for label in runs]
    lost = [each["quality"]["lost_mass"]["max"] * 100 for each in runs.values()]
    traces = [
        _bound_bars(runs, below, 0, "bound below the true score", "x"),
        _bound_bars(runs, lost, 1, "worst lost mass", "x2"),
    ]
    left = axis("Bounds below the true score, %", domain=[0, 0.46], range=[0, max([*below, 1.0]) * 1.25])
    right = axis("Worst lost attention mass, %", domain=[0.54, 1], range=[0, max([*lost, 1.0]) * 1.25])
    drawn = plot(traces, row_height(len(runs)), xaxis=left, xaxis2=right, yaxis=rows_axis(list(runs)))
    header = [
        "Run",
        "Claims",
        "Below the true score",
        "Times",
        "Mass of those tokens, mean",
        "Lost mass mean",
        "Lost mass max",
    ]
    header += ["Index and KV bytes per request", "Sound run beside it"]
    rows = [_bound_row(run.metrics["runs"], label, checks.get(label)) for label in runs]
    caption = (
        "An upper bound must never lie below the true score. Where it does, the policy may eliminate tokens that "
        "matter, and nothing warns. A sound bound shows nothing on the left; compare it with an unsound one at equal "
        "bytes."
    )
    return Figure("bounds", "Are the bounds bounds?", caption, [View("", drawn)], Table(header, rows))


def _bound_bars(runs: Runs, values: Sequence[float], index: int, name: str, xaxis: str) -> Trace:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": list(runs),
        "x": [short(value) for value in values],
        "xaxis": xaxis,
        "text": [share(value / 100) for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": fill(index),
        "hovertemplate": "%{y}: %{x:.3~g} %<extra></extra>",
    }


def _bound_row(runs: Runs, label: str, check: BoundCheck | None) -> list[str]:
    each = runs[label]
    found, sound = each["quality"], is_sound(each)
    claim = "sound certificate" if sound else "bound on scores" if found["violations"] == 0 else "broken bound"
    twin = None if sound else sound_twin(runs, label)
    beside = (
        f"{twin}: {share(runs[twin]['quality']['lost_mass']['max'])} lost, {size(all_bytes(runs[twin]))}"
        if twin
        else "-"
    )
    mass = [
        share(check.below if check else None),
        f"{found['violations']:,}",
        share(check.violated_mass if check else None),
    ]
    lost = [share(found["lost_mass"][name]) for name in ("mean", "max")]
    return [label, claim, *mass, *lost, size(all_bytes(each)), beside]


def lost_by_step(run: RunFolder) -> Figure | None:
    """The worst lost mass of every step."""
    series = {
        label: columns.get("lost_mass_max", ()) for label, columns in run.steps.items() if label in run.metrics["runs"]
    }
    losing = {label: values for label, values in series.items() if any(values)}
    if not losing:
        return None
    names = list(run.metrics["runs"])
    traces = [
        _line(label, [None if v is None else max(v, _FLOOR) for v in values], names.index(label))
        for label, values in losing.items()
    ]
    up = _loss_axis("Worst lost attention mass (log)")
    across = steps_axis(max(map(len, losing.values())))
    drawn = plot(traces, 380, xaxis=across, yaxis=up)
    rows = [[label, *_step_spread([v for v in values if v is not None])] for label, values in losing.items()]
    caption = (
        "The worst query head of each step. A line that climbs is a policy that forgets; a sound policy stays below "
        "its tolerance."
    )
    return Figure(
        "lost-by-step",
        "Lost mass, step by step",
        caption,
        [View("", drawn)],
        Table(["Run", "Lowest", "Median", "Highest"], rows),
    )


def _line(label: str, values: Sequence[float | None], index: int) -> Trace:
    return run_mark(
        label,
        index,
        mode="lines+markers",
        x=list(range(len(values))),
        y=[None if value is None else short(value) for value in values],
        hovertemplate="%{fullData.name}, step %{x}: %{y:.2~e}<extra></extra>",
    )


def _step_spread(values: Sequence[float]) -> list[str]:
    ordered = sorted(values)
    return [share(ordered[0]), share(ordered[len(ordered) // 2]), share(ordered[-1])]


def lost_by_context(run: RunFolder) -> Figure | None:
    """How lost mass moves from the recorded length to the simulated one, where the run says so."""
    found = run.manifest.get("lost_mass_by_context")
    if not isinstance(found, Mapping) or not any(point["max"] for points in found.values() for point in points):
        return None
    names = list(run.metrics["runs"])
    traces, rows = [], []
    for label, points in found.items():
        line = _line(
            label, [max(point["max"], _FLOOR) for point in points], names.index(label) if label in names else 0
        )
        traces.append(
            line
            | {
                "x": [point["context_tokens"] for point in points],
                "hovertemplate": "%{x} tokens: %{y:.2~e}<extra></extra>",
            }
        )
        rows += [
            [label, number(point["context_tokens"], 9), share(point["mean"]), share(point["max"])] for point in points
        ]
    up = _loss_axis("Worst lost attention mass (log)")
    drawn = plot(
        traces, 380, xaxis=log_axis("Context, tokens (log)", [x for trace in traces for x in trace["x"]]), yaxis=up
    )
    caption = "The left end is the recorded length, the right end the length that was simulated from it."
    return Figure(
        "lost-by-context",
        "Lost mass and context length",
        caption,
        [View("", drawn)],
        Table(["Run", "Context", "Mean", "Max"], rows),
    )
