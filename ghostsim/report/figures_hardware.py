"""Figures of the hardware: utilisation, its course over time, energy, cost and capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from pydantic import ValidationError

from ghostsim.config.cost import cost_text, platform_cost
from ghostsim.config.hardware import Platform
from ghostsim.export.capacities import bandwidths, platform_of
from ghostsim.export.timeline import Counter
from ghostsim.metrics.energy import STATIC, without_energy
from ghostsim.report.figure import HEAT, PALETTE, Figure, Table, Trace, View, axis, plot, rows_axis, short, stacked
from ghostsim.report.figures_time import row_height
from ghostsim.report.store import RunFolder
from ghostsim.report.verdict import Runs
from ghostsim.report.words import byte_unit, number, share, size

_IDLE = 0.01
_MOST_PANELS = 8
_MOST_POINTS = 300
_MOST_PARTS = 8


def utilisation(run: RunFolder) -> Figure:
    """How busy every resource was, run by run."""
    runs = run.metrics["runs"]
    names = list(dict.fromkeys(name for each in runs.values() for name in each["utilisation"]))
    used = [name for name in names if max(_busy(each, name) for each in runs.values()) >= _IDLE] or names[:1]
    values = [[short(_busy(each, name) * 100) for each in runs.values()] for name in used]
    heat: Trace = {
        "type": "heatmap",
        "x": list(runs),
        "y": used,
        "z": values,
        "text": [[f"{value:.0f}" if value >= 1 else "" for value in row] for row in values],
        "texttemplate": "%{text}",
        "zmin": 0,
        "zmax": 100,
        "colorscale": HEAT,
        "colorbar": {"title": {"text": "busy, %"}, "thickness": 12},
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "%{x}, %{y}: %{z:.3~g} %<extra></extra>",
    }
    across = {
        "type": "category",
        "categoryarray": list(runs),
        "side": "top",
        "showgrid": False,
        "automargin": True,
        "title": {"text": ""},
        "tickangle": -35,
    }
    drawn = plot([heat], 170 + 26 * len(used), xaxis=across, yaxis=rows_axis(used, showgrid=False))
    rows = [[name, *(share(_busy(each, name)) for each in runs.values())] for name in names]
    caption = (
        "Mean over the run, in percent. The highest number of a column is the limit of that run; where none is near "
        "100, the step waits for latencies or for one thing after another. A name says device or link, then its part; "
        "links end in .down towards the device. Resources under 1 % everywhere are only in the table."
    )
    return Figure(
        "utilisation", "How busy each resource is", caption, [View("", drawn)], Table(["Resource", *runs], rows)
    )


def _busy(each: Mapping[str, Any], name: str) -> float:
    return float(each["utilisation"].get(name, 0.0))


def over_time(run: RunFolder, chosen: str) -> Figure | None:
    """Utilisation of the busiest resources of a run over time."""
    by_label: dict[str, list[Counter]] = {}
    for each in run.timeline.counters:
        if each.unit != "utilisation":
            continue
        by_label.setdefault(each.label, []).append(each)
    if not by_label:
        return None
    views, rows = [], []
    for label, counters in by_label.items():
        known = bandwidths(platform_of(run.config, label))
        busiest = sorted(counters, key=lambda one: -float(np.mean(one.values or [0.0])))[:_MOST_PANELS]
        shown = [each for each in busiest if max(each.values, default=0.0) >= _IDLE] or busiest[:1]
        views.append(View(label, _panels(shown, known)))
        rows += [_counter_row(each, _capacity(each, known)) for each in shown]
    labels = list(by_label)
    table = Table(
        ["Run", "Resource", "Mean", "Lowest bin", "Highest bin", "100 % is", "Mean bandwidth with overhead"], rows
    )
    caption = (
        "Each panel is one resource from 0 to 100 % busy; the right-hand note says what 100 % is, so a panel reads as "
        "bandwidth too, headers and other overhead of the transfer included. Flat and full is a bottleneck; teeth are "
        "phases that do not overlap."
    )
    chosen_index = labels.index(chosen) if chosen in labels else 0
    return Figure("over-time", "Bandwidth and utilisation over time", caption, views, table, chosen_index, "run")


def _capacity(counter: Counter, known: Mapping[str, float]) -> float | None:
    stated = counter.args.get("capacity_bytes_per_s")
    return float(stated) if isinstance(stated, int | float) else known.get(counter.resource)


def _panels(counters: Sequence[Counter], known: Mapping[str, float]) -> dict[str, Any]:
    """Small multiples on one time axis, the busiest on top."""
    layout: dict[str, Any] = {"showlegend": False, "annotations": []}
    traces: list[Trace] = []
    height = 1 / len(counters)
    for row, counter in enumerate(counters):
        suffix = "" if row == 0 else str(row + 1)
        top = 1 - row * height
        domain = [max(0.0, top - height * 0.72), top - height * 0.08]
        layout[f"yaxis{suffix}"] = axis("%", domain=domain, range=[0, 104], tickvals=[0, 50, 100])
        layout["annotations"] += _notes(counter, _capacity(counter, known), domain[1])
        traces.append(_area(counter, f"y{suffix}"))
    layout["xaxis"] = axis("Time since the run began, ms", anchor="free", position=0)
    return plot(traces, 90 + 88 * len(counters), margin={"l": 8, "r": 12, "t": 24, "b": 8}, **layout)


def _notes(counter: Counter, capacity: float | None, y: float) -> list[dict[str, Any]]:
    common = {"xref": "paper", "yref": "paper", "y": y, "yanchor": "bottom", "showarrow": False, "font": {"size": 12}}
    notes = [common | {"text": counter.resource, "x": 0, "xanchor": "left"}]
    if capacity:
        notes.append(common | {"text": f"100 % is {size(capacity)}/s", "x": 1, "xanchor": "right"})
    return notes


def _area(counter: Counter, yaxis: str) -> Trace:
    per_point = max(1, -(-len(counter.values) // _MOST_POINTS))
    values = np.asarray(counter.values, dtype=np.float64)
    padded = np.pad(values, (0, -len(values) % per_point), mode="edge").reshape(-1, per_point).mean(axis=1)
    step_ms = counter.bin_ps * per_point / 1e9
    return {
        "type": "scatter",
        "mode": "lines",
        "name": counter.resource,
        "yaxis": yaxis,
        "x0": 0,
        "dx": short(step_ms),
        "y": [round(float(value) * 100, 1) for value in padded],
        "line": {"color": PALETTE[0], "width": 1.2, "shape": "hv"},
        "fill": "tozeroy",
        "fillcolor": "rgba(0,114,178,0.25)",
        "hovertemplate": "%{fullData.name}, %{x:.4~g} ms: %{y:.3~g} %<extra></extra>",
    }


def _counter_row(counter: Counter, capacity: float | None) -> list[str]:
    values = counter.values or [0.0]
    mean = float(np.mean(values))
    full = f"{size(capacity)}/s" if capacity else "-"
    bandwidth = f"{size(capacity * mean)}/s" if capacity else "-"
    return [counter.label, counter.resource, share(mean), share(min(values)), share(max(values)), full, bandwidth]


def energy(run: RunFolder) -> Figure:
    """Energy per token by component."""
    runs = run.metrics["runs"]
    names = list(dict.fromkeys(name for each in runs.values() for name in each["energy_mj_per_token"]))
    moving = [name for name in names if not name.endswith(STATIC)]
    views = [View("all", _energy_plot(runs, names))]
    if len(moving) < len(names):
        views.append(View("without static power", _energy_plot(runs, moving)))
    rows = [[label, *_energies(each, names)] for label, each in runs.items()]
    caption = (
        "Every device of the platform draws its static power, used or not, for as long as a token takes, so a slow "
        "run pays it longest; the other view shows what moving and computing cost. What no part states an "
        f"energy for counts as zero{_unpriced(run)}."
    )
    header = ["Run", *(f"{name}, mJ" for name in names), "Sum, J/token", "Mean power, W"]
    return Figure("energy", "Energy per token", caption, views, Table(header, rows), picker="energy")


def _unpriced(run: RunFolder) -> str:
    """Name the components whose energy nobody states; a configuration of another version is left alone."""
    found: dict[str, None] = {}
    for label in run.metrics["runs"]:
        with suppress(ValidationError):
            found |= dict.fromkeys(without_energy(Platform.model_validate(platform_of(run.config, label))))
    return f" ({', '.join(found)})" if found else ""


def _energies(each: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    spent = each["energy_mj_per_token"]
    joules = sum(spent.values()) / 1000
    return [number(value) for value in (*(spent.get(name, 0) for name in names), joules, joules * each["tokens_per_s"])]


def cost(run: RunFolder) -> Figure | None:
    """Tokens per second and dollar, where parts state a cost."""
    runs = run.metrics["runs"]
    costs = {label: platform_cost(platform_of(run.config, label)) for label in runs}
    if not any(costs.values()):
        return None
    values = {
        label: 1000 * ratio if found and (ratio := found.per_usd(runs[label]["tokens_per_s"])) else None
        for label, found in costs.items()
    }
    rows = [
        [label, cost_text(found) if (found := costs[label]) else "not stated", number(value)]
        for label, value in values.items()
    ]
    across = axis("Tokens per second and 1,000 USD")
    bars: Trace = {"type": "bar", "orientation": "h", "y": list(values), "x": list(values.values())}
    drawn = plot([bars], row_height(len(runs)), xaxis=across, yaxis=rows_axis(list(runs)))
    caption = "Costs are those that the parts state. A platform with a device that states none has no ratio."
    table = Table(["Run", "Cost", "Tokens/s per 1,000 USD"], rows)
    return Figure("cost", "Cost", caption, [View("", drawn)], table)


def _energy_plot(runs: Runs, names: Sequence[str]) -> dict[str, Any]:
    parts = _largest({name: [each["energy_mj_per_token"].get(name, 0) for each in runs.values()] for name in names})
    traces = stacked(list(runs), parts, "%{x:.4~g} mJ")
    return plot(
        traces,
        row_height(len(runs)) + 40,
        barmode="stack",
        xaxis=axis("Energy per token, mJ"),
        yaxis=rows_axis(list(runs)),
    )


def _largest(parts: Mapping[str, Sequence[float]]) -> dict[str, Sequence[float]]:
    """Keep the parts that are large anywhere; the rest is one part, `others`."""
    ranked = sorted(parts, key=lambda name: -max(parts[name]))
    if len(ranked) <= _MOST_PARTS:
        return dict(parts)
    kept = {name: parts[name] for name in parts if name in ranked[: _MOST_PARTS - 1]}
    rest = [parts[name] for name in ranked[_MOST_PARTS - 1 :]]
    return kept | {"others": [sum(values) for values in zip(*rest, strict=True)]}


def capacity(run: RunFolder) -> Figure:
    """Bytes that a run keeps in each tier."""
    runs = run.metrics["runs"]
    tiers = list(dict.fromkeys(tier for each in runs.values() for tier in each["capacity_bytes"]))
    factor, unit = byte_unit(max(sum(each["capacity_bytes"].values()) for each in runs.values()))
    parts = {tier: [each["capacity_bytes"].get(tier, 0) / factor for each in runs.values()] for tier in tiers}
    across = axis(f"Capacity in use, {unit}")
    drawn = plot(
        stacked(list(runs), parts, f"%{{x:.4~g}} {unit}"),
        row_height(len(runs)),
        barmode="stack",
        xaxis=across,
        yaxis=rows_axis(list(runs)),
    )
    rows = [
        [label, str(each["batch"]), *(size(each["capacity_bytes"].get(tier, 0)) for tier in tiers)]
        for label, each in runs.items()
    ]
    caption = (
        "Weights, KV, index and buffers at the largest length of the run. What does not fit fails before it starts."
    )
    return Figure("capacity", "Capacity in use", caption, [View("", drawn)], Table(["Run", "Batch", *tiers], rows))
