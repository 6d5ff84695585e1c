"""Figures of waiting: what each run's steps waited for, what a faster part would give, and whether fetching hides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghostsim.report.figure import Figure, Table, Trace, View, axis, dots, plot, rows_axis, short, stacked
from ghostsim.report.figures_time import row_height
from ghostsim.report.store import RunFolder
from ghostsim.report.words import number

_KINDS = {"service": "service", "queue": "queueing", "latency": "latency"}
_MOST_ROWS = 10
_LEAST_SHARE = 0.001


def waits(run: RunFolder, chosen: str) -> Figure | None:
    """What the steps of each run waited for, by resource; service, queueing and latency apart."""
    runs = {label: each["waits_ms"] for label, each in run.metrics["runs"].items() if each.get("waits_ms")}
    if not runs:
        return None
    labels = list(runs)
    views = [View(label, _waits_plot(spent)) for label, spent in runs.items()]
    header = ["Run", "Waited for", *(f"{kind.capitalize()}, ms" for kind in _KINDS.values()), "Share of the step, %"]
    rows = [row for label, spent in runs.items() for row in _wait_rows(label, spent)]
    caption = (
        "The critical path again, by what it waited for; the parts sum to the mean step. Service is what a transfer or "
        "kernel takes alone at its slowest resource; queueing is what it lost there to others, or in line; latency is "
        "launches, hops and first bytes, under the lane that had them."
    )
    index = labels.index(chosen) if chosen in labels else 0
    return Figure("waits", "What the step waits for", caption, views, Table(header, rows), index, "run")


def _waits_plot(spent: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    names = _largest(spent)
    parts = {words: [spent[name].get(kind, 0.0) for name in names] for kind, words in _KINDS.items()}
    traces = stacked(names, parts, "%{x:.4~g} ms")
    drawn = axis("Of the mean step, ms")
    return plot(traces, row_height(len(names)), barmode="stack", xaxis=drawn, yaxis=rows_axis(names))


def _largest(spent: Mapping[str, Mapping[str, float]]) -> list[str]:
    whole = sum(sum(kinds.values()) for kinds in spent.values())
    ranked = sorted(spent, key=lambda name: -sum(spent[name].values()))
    return [name for name in ranked if sum(spent[name].values()) >= _LEAST_SHARE * whole][:_MOST_ROWS]


def _wait_rows(label: str, spent: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    whole = sum(sum(kinds.values()) for kinds in spent.values())
    return [
        [label, name, *(number(spent[name].get(kind, 0.0)) for kind in _KINDS),
         number(100 * sum(spent[name].values()) / whole)]
        for name in _largest(spent)
    ]  # fmt: skip


def what_if(run: RunFolder) -> Figure | None:
    """How much shorter the step would be with one resource twice as fast."""
    asked: Mapping[str, Mapping[str, float]] = run.manifest.get("what_if", {})
    pairs = [(label, name, change) for label, changes in asked.items() for name, change in changes.items()]
    if not pairs:
        return None
    names = dict.fromkeys(name for _, name, _ in pairs)
    parts = {name: [100 * changes[name] if name in changes else None for changes in asked.values()] for name in names}
    rows = [[label, name, f"{100 * change:+.1f}"] for label, name, change in pairs]
    drawn = axis("Change of the mean step, %")
    caption = (
        "Each resource that the steps of a run waited for, twice as fast and all else equal: some steps of the run are "
        "replayed, with the same bytes in the same order. Further left helps more; what is left of a step shows how "
        "soon something else takes over."
    )
    traces = dots(list(asked), parts, "twice as fast %{x:.3~g} %")
    figure = plot(traces, row_height(len(asked)), xaxis=drawn, yaxis=rows_axis(list(asked)))
    table = Table(["Run", "Twice as fast", "Mean step, %"], rows)
    return Figure("what-if", "What would help", caption, [View("", figure)], table)


def viability(run: RunFolder) -> Figure | None:
    """The viability condition of every run that filters before it fetches."""
    found = {label: each["viability"] for label, each in run.metrics["runs"].items() if each.get("viability")}
    if not found:
        return None
    parts = {
        "scan and ids": [each["corrected"]["scan_us"] for each in found.values()],
        "latency": [each["corrected"]["latency_us"] for each in found.values()],
        "fetch": [each["corrected"]["fetch_us"] for each in found.values()],
    }
    overlap: Trace = {
        "type": "scatter",
        "mode": "markers",
        "name": "what it may hide behind",
        "y": list(found),
        "x": [short(each["corrected"]["right_us"]) for each in found.values()],
        "marker": {"symbol": "line-ns-open", "size": 22, "line": {"width": 3}},
        "hovertemplate": "%{y}: %{x:.4~g} us of overlap<extra></extra>",
    }
    drawn = plot(
        [*stacked(list(found), parts, "%{x:.4~g} us"), overlap],
        row_height(len(found)),
        barmode="stack",
        xaxis=axis("Of the mean layer, us"),
        yaxis=rows_axis(list(found)),
    )
    header = ["Run", "Published", "Corrected", "Needed, us", "Overlap, us", "Simulated", "Exposed, us"]
    rows = [_viability_row(label, each) for label, each in found.items()]
    caption = (
        "Filtering and fetching cost nothing if they hide behind what does not wait for survivors. The published "
        "condition counts one fetch (its chance x its latency); the corrected one counts the scan, the ids and the "
        "bytes of all survivors at the rate of the slowest resource; the simulation has the last word."
    )
    return Figure("viability", "Does fetching hide?", caption, [View("", drawn)], Table(header, rows))


def prefetch(run: RunFolder) -> Figure | None:
    """What every run that fetches ahead brought: in time, for nothing, and what it missed."""
    found = {label: each["prefetch"] for label, each in run.metrics["runs"].items() if each.get("prefetch")}
    if not found:
        return None
    parts = {
        "hits": [each["hits"] for each in found.values()],
        "misses, fetched on demand": [each["misses"] for each in found.values()],
        "waste, fetched and not read": [each["waste"] for each in found.values()],
    }
    across = axis("Tokens per step, all heads and layers")
    traces = stacked(list(found), parts, "%{x:.4~g} tokens a step")
    drawn = plot(traces, row_height(len(found)), barmode="stack", xaxis=across, yaxis=rows_axis(list(found)))
    header = ["Run", "Hit rate, %", "Waste, %", "Late, % of layers", "Late, ms a step", "Mean step, ms"]
    rows = [
        [label, *(number(100 * each[name]) for name in ("hit_rate", "waste_rate", "late_rate")),
         number(each["late_ms"]), number(run.metrics["runs"][label]["step_ms"]["mean"])]
        for label, each in found.items()
    ]  # fmt: skip
    caption = (
        "Survivors that a foretold query would choose are fetched before the real query asks for them. Late is what "
        "survivors still waited for; an oracle shows what any predictor could give."
    )
    return Figure("prefetch", "What was fetched ahead", caption, [View("", drawn)], Table(header, rows))


def _viability_row(label: str, each: Mapping[str, Any]) -> list[str]:
    published, corrected, simulated = each["published"], each["corrected"], each["simulated"]
    return [
        label, "no figure" if published is None else _holds(published), _holds(corrected), number(corrected["left_us"]),
        number(corrected["right_us"]), _holds(simulated), number(simulated["exposed_us"]),
    ]  # fmt: skip


def _holds(condition: Mapping[str, Any]) -> str:
    return "holds" if condition["holds"] else "fails"


def prefill(run: RunFolder) -> Figure | None:
    """What the prompts of each run cost once, and after how many steps a run has made up for it."""
    runs = {label: each["prefill"] for label, each in run.metrics["runs"].items() if each.get("prefill")}
    if not any(each["settle_ms"] for each in runs.values()):
        return None
    labels = list(runs)
    made = [each["index_ms"] for each in runs.values()]
    moved = [each["settle_ms"] - each["index_ms"] for each in runs.values()]
    traces = stacked(labels, {"making the index": made, "moving index and KV": moved}, "%{x:.4~g} ms")
    drawn = plot(traces, row_height(len(labels)), barmode="stack", xaxis=axis("Once, ms"), yaxis=rows_axis(labels))
    baselines = list(dict.fromkeys(base for each in runs.values() for base in each.get("payback_steps") or {}))
    header = ["Run", "Making the index, ms", "Moving index and KV, ms", *(f"Steps to make up, {b}" for b in baselines)]
    rows = [
        [
            label,
            number(a),
            number(b),
            *(_steps((runs[label].get("payback_steps") or {}).get(base)) for base in baselines),
        ]
        for label, a, b in zip(labels, made, moved, strict=True)
    ]
    caption = (
        "What the prompts leave to be done before their first step, on an idle machine: their index is made and their "
        "cold KV goes to its tier. The table says after how many steps a run has made up for what this costs more than "
        "a baseline's; never where its steps are no shorter."
    )
    return Figure("prefill", "What prompts cost once", caption, [View("", drawn)], Table(header, rows))


def _steps(count: int | None) -> str:
    return "never" if count is None else f"{count:,}"
