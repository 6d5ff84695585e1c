"""Figures of time: step latency, tokens/s, the critical path, and one layer as it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghostsim.export.timeline import Slice
from ghostsim.report.figure import (
    PALETTE,
    Figure,
    Table,
    Trace,
    View,
    axis,
    fill,
    log_axis,
    plot,
    rows_axis,
    short,
    stacked,
)
from ghostsim.report.store import RunFolder
from ghostsim.report.verdict import CAUSES, Runs
from ghostsim.report.words import number, plural

_MOST_BARS = 1500
_QUANTILES = (("p50", "line-ns-open"), ("p95", "diamond-open"), ("p99", "triangle-right-open"))


def row_height(count: int) -> int:
    """Return the height in pixels of a figure with one row per run."""
    return 120 + 30 * count


def latency(run: RunFolder) -> Figure:
    """Every step of every run, with its quantiles."""
    runs = run.metrics["runs"]
    traces = [_steps(run, list(runs))] + [_quantile(runs, name, symbol) for name, symbol in _QUANTILES]
    header = ["Run", "Batch", "Mean, ms", "p50, ms", "p95, ms", "p99, ms", "Max, ms", "Steps"]
    rows = [
        [label, str(each["batch"]), *(number(each["step_ms"][q]) for q in ("mean", "p50", "p95", "p99", "max", "n"))]
        for label, each in runs.items()
    ]
    drawn = plot(
        traces,
        row_height(len(runs)),
        xaxis=log_axis("Step latency, ms (log)", _all_steps(run, runs)),
        yaxis=rows_axis(list(runs)),
    )
    caption = (
        "Further left is better. A dot is one decode step of the whole batch; read the batch beside it in the table."
    )
    return Figure("latency", "Step latency", caption, [View("", drawn)], Table(header, rows))


def _all_steps(run: RunFolder, runs: Runs) -> list[float | None]:
    steps = [ms for columns in run.steps.values() for ms in columns.get("step_ms", ())]
    return [*steps, *(each["step_ms"][name] for each in runs.values() for name, _ in _QUANTILES)]


def _steps(run: RunFolder, labels: Sequence[str]) -> Trace:
    pairs = [(label, ms) for label in labels for ms in run.steps.get(label, {}).get("step_ms", ()) if ms is not None]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "one step",
        "x": [short(ms) for _, ms in pairs],
        "y": [label for label, _ in pairs],
        "marker": {"color": PALETTE[0], "size": 6, "opacity": 0.35},
        "hovertemplate": "%{y}: %{x:.4~g} ms<extra></extra>",
    }


def _quantile(runs: Runs, name: str, symbol: str) -> Trace:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [short(each["step_ms"][name]) for each in runs.values()],
        "y": list(runs),
        "marker": {"symbol": symbol, "size": 15, "color": PALETTE[5], "line": {"width": 2}},
        "hovertemplate": "%{y}, %{fullData.name}: %{x:.4~g} ms<extra></extra>",
    }


def throughput(run: RunFolder) -> Figure:
    """Tokens per second of every run."""
    runs = run.metrics["runs"]
    bars: Trace = {
        "type": "bar",
        "orientation": "h",
        "y": list(runs),
        "x": [short(each["tokens_per_s"]) for each in runs.values()],
        "text": [f"{number(each['tokens_per_s'])} (batch {each['batch']})" for each in runs.values()],
        "textposition": "outside",
        "cliponaxis": False,
        "marker": fill(0),
        "hovertemplate": "%{y}: %{x:.4~g} tokens/s<extra></extra>",
    }
    ratios = run.metrics.get("compare", {})
    header = ["Run", "Batch", "Tokens/s", *(f"Against {base}" for base in ratios)]
    rows = [
        [label, str(each["batch"]), number(each["tokens_per_s"])]
        + [f"{number(ratios[base][label]['tokens_per_s'])}x" if label in ratios[base] else "1x" for base in ratios]
        for label, each in runs.items()
    ]
    longest = max(each["tokens_per_s"] for each in runs.values())
    across = axis("Tokens per second of the whole batch", range=[0, longest * 1.25])
    drawn = plot([bars], row_height(len(runs)), xaxis=across, yaxis=rows_axis(list(runs)))
    caption = (
        "Longer is better, and the fair measure where batches differ: memory that holds more requests earns them here."
    )
    return Figure("throughput", "Tokens per second", caption, [View("", drawn)], Table(header, rows))


def critical_path(run: RunFolder) -> Figure:
    """What each run waits for; the parts sum to its mean step."""
    runs = run.metrics["runs"]
    causes = list(CAUSES) + [c for each in runs.values() for c in each["critical_path_ms"] if c not in CAUSES]
    causes = list(dict.fromkeys(causes))
    views = [
        View("share of the step", _path_plot(runs, causes, relative=True)),
        View("ms", _path_plot(runs, causes, relative=False)),
    ]
    header = ["Run", *(f"{cause}, ms" for cause in causes), "Sum, ms", "Mean step, ms"]
    rows = [_path_row(label, each, causes) for label, each in runs.items()]
    caption = (
        "Of all that happens in a step, only what the step waits for is counted, so the parts sum to it. "
        "fetch_queue is time a fetch lost to other traffic, fetch_service what it takes alone."
    )
    return Figure("critical-path", "Where the step time goes", caption, views, Table(header, rows), picker="scale")


def _path_row(label: str, each: Mapping[str, Any], causes: Sequence[str]) -> list[str]:
    parts = [number(each["critical_path_ms"].get(cause, 0)) for cause in causes]
    return [label, *parts, number(sum(each["critical_path_ms"].values()), 5), number(each["step_ms"]["mean"], 5)]


def _path_plot(runs: Runs, causes: Sequence[str], *, relative: bool) -> dict[str, object]:
    scale = {
        label: 100 / max(sum(each["critical_path_ms"].values()), 1e-12) if relative else 1
        for label, each in runs.items()
    }
    parts = {c: [runs[label]["critical_path_ms"].get(c, 0) * scale[label] for label in runs] for c in causes}
    unit = "%" if relative else "ms"
    title = "Share of the mean step, %" if relative else "Mean step, ms"
    traces = stacked(list(runs), parts, f"%{{x:.3~g}} {unit}")
    return plot(traces, row_height(len(runs)) + 40, barmode="stack", xaxis=axis(title), yaxis=rows_axis(list(runs)))


def layer(run: RunFolder, chosen: str) -> Figure | None:
    """One layer of one step of every run, as it was simulated."""
    by_label: dict[str, list[Slice]] = {}
    for each in run.timeline.slices:
        by_label.setdefault(each.label, []).append(each)
    picked = {label: _one_layer(slices) for label, slices in by_label.items()}
    if not picked:
        return None
    labels = list(picked)
    views = [View(label, _gantt(slices)) for label, slices in picked.items()]
    rows = [row for label, slices in picked.items() for row in _busy(label, slices)]
    table = Table(["Run", "Lane", "Pieces", "First start, us", "Last finish, us", "Sum, us"], rows)
    caption = (
        "Time runs to the right from the start of the layer. Lanes that overlap hide each other's time; a gap before "
        "attend is time the GPU waits. The whole timeline is in timeline.json.gz, for ui.perfetto.dev."
    )
    index = labels.index(chosen) if chosen in labels else 0
    return Figure("layer", "One layer as it ran", caption, views, table, index, "run")


def _one_layer(slices: Sequence[Slice]) -> list[Slice]:
    """Pick the second layer of the first step (the first has nothing before it to overlap with), else the beginning."""
    known = [each for each in slices if "layer" in each.args and "step" in each.args]
    if not known:
        return list(slices[:_MOST_BARS])
    step = min(each.args["step"] for each in known)
    layers = sorted({each.args["layer"] for each in known if each.args["step"] == step})
    wanted = layers[min(1, len(layers) - 1)]
    return [each for each in known if (each.args["step"], each.args["layer"]) == (step, wanted)][:_MOST_BARS]


def _gantt(slices: Sequence[Slice]) -> dict[str, object]:
    start = min(each.start_ps for each in slices)
    lanes = list(dict.fromkeys(each.lane for each in sorted(slices, key=lambda one: one.start_ps)))
    kinds = list(dict.fromkeys(each.category for each in slices))
    traces: list[Trace] = []
    for kind in kinds:
        ours = [each for each in slices if each.category == kind]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "y": [each.lane for each in ours],
                "x": [short((each.finish_ps - each.start_ps) / 1e6) for each in ours],
                "base": [short((each.start_ps - start) / 1e6) for each in ours],
                "customdata": [each.name for each in ours],
                "marker": fill(_KINDS.index(kind) if kind in _KINDS else len(_KINDS)),
                "hovertemplate": "%{customdata}: %{base:.4~g} us, for %{x:.4~g} us<extra></extra>",
            }
        )
    end = max(each.finish_ps for each in slices)
    time = axis("Time since the layer began, us", range=[0, short((end - start) / 1e6)])
    return plot(traces, 130 + 24 * len(lanes), barmode="overlay", bargap=0.15, xaxis=time, yaxis=rows_axis(lanes))


_KINDS = ("gemm", "scan", "attend", "read", "filter", "decode", "write", "migrate", "ghostify")


def _busy(label: str, slices: Sequence[Slice]) -> list[list[str]]:
    start = min(each.start_ps for each in slices)
    rows = []
    for lane in dict.fromkeys(each.lane for each in slices):
        ours = [each for each in slices if each.lane == lane]
        first = (min(each.start_ps for each in ours) - start) / 1e6
        last = (max(each.finish_ps for each in ours) - start) / 1e6
        total = sum(each.finish_ps - each.start_ps for each in ours) / 1e6
        rows.append([label, lane, plural(len(ours), "piece"), number(first), number(last), number(total)])
    return rows
