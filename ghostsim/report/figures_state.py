"""Figures of what a run keeps where, and of what its kernels reach: state over the steps, roofline, frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghostsim.export.capacities import bandwidths, plain, platform_of
from ghostsim.export.timeline import Slice
from ghostsim.report.figure import (
    PALETTE,
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
    run_mark,
    short,
    steps_axis,
)
from ghostsim.report.pareto import undominated
from ghostsim.report.store import RunFolder
from ghostsim.report.verdict import Runs, all_bytes
from ghostsim.report.words import byte_unit, listing, number, share, size
from ghostsim.units import FLOP_RATE

STATES = ("hot", "cold", "archived", "evicted")
_FLOOR = 1e-8
_KERNELS = tuple((kind, "gpu") for kind in ("gemm", "attend", "decode"))
Columns = Mapping[str, Sequence[float | None]]


def frontier(run: RunFolder, not_lossless: frozenset[str]) -> Figure:
    """What every run costs at once: bytes, latency and lost mass."""
    runs = run.metrics["runs"]
    best = _undominated({label: each for label, each in runs.items() if label not in not_lossless})
    factor, unit = byte_unit(max(all_bytes(each) for each in runs.values()))
    traces = [
        _frontier_mark(label, each, index, factor, label in best) for index, (label, each) in enumerate(runs.items())
    ]
    across = [all_bytes(each) / factor for each in runs.values()]
    drawn = plot(
        [*traces, loss_bar()],
        480,
        xaxis=log_axis(f"Index and KV bytes per step and request, {unit} (log)", across),
        yaxis=log_axis("Step latency p95, ms (log)", [each["step_ms"]["p95"] for each in runs.values()]),
    )
    header = ["Run", "Bytes per step and request", "Step p95, ms", "Lost mass max", "Batch", "Not dominated"]
    rows = [
        [label, size(all_bytes(each)), number(each["step_ms"]["p95"]), share(each["quality"]["lost_mass"]["max"]),
         str(each["batch"]), "not lossless" if label in not_lossless else "yes" if label in best else "no"]
        for label, each in runs.items()
    ]  # fmt: skip
    caption = (
        "Left is fewer bytes, down is faster, yellow loses nothing. Filled marks are not dominated: no lossless "
        f"run is at least as good in all three ({listing(best)}). Latency is fair between runs of one batch."
    )
    return Figure("frontier", "Bytes, latency and quality at once", caption, [View("", drawn)], Table(header, rows))


def _undominated(runs: Runs) -> list[str]:
    return undominated(
        {
            label: (all_bytes(each), each["step_ms"]["p95"], max(_FLOOR, each["quality"]["lost_mass"]["max"]))
            for label, each in runs.items()
        }
    )


def _frontier_mark(label: str, each: Mapping[str, Any], index: int, factor: float, best: bool) -> Trace:
    lost = each["quality"]["lost_mass"]["max"]
    symbol = SYMBOLS[index % len(SYMBOLS)]
    marker = {
        "symbol": symbol if best else f"{symbol}-open",
        "size": 15,
        "color": loss_colour(lost),
        "line": {"width": 1 if best else 3},
    }
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "meta": {"run": label},
        "x": [short(all_bytes(each) / factor)],
        "y": [short(each["step_ms"]["p95"])],
        "customdata": [f"{size(all_bytes(each))}, {share(lost)} lost at worst"],
        "marker": marker,
        "hovertemplate": "%{fullData.name}: %{y:.4~g} ms, %{customdata}<extra></extra>",
    }


def state(run: RunFolder, chosen: str) -> Figure | None:
    """Tokens by state and bytes by tier over the steps of every run."""
    known = {label: columns for label, columns in run.steps.items() if "tokens_hot" in columns}
    if not known:
        return None
    views = [View(label, _state_plot(columns)) for label, columns in known.items()]
    tiers = list(dict.fromkeys(tier for columns in known.values() for tier in _tiers(columns)))
    header = ["Run", "Step", *(f"{name.capitalize()} tokens" for name in STATES), *(f"In {tier}" for tier in tiers)]
    rows = [row for label, columns in known.items() for row in _state_rows(label, columns, tiers)]
    caption = (
        "Left: tokens per KV head by state, which sum to the context: hot ones are always attended, cold ones judged "
        "at every step, archived ones kept in clusters, evicted ones gone. Right: bytes kept in each tier, weights and "
        "buffers included."
    )
    index = list(known).index(chosen) if chosen in known else 0
    return Figure("state", "State over the steps", caption, views, Table(header, rows), index, "run")


def _tiers(columns: Columns) -> list[str]:
    prefix = "stored_bytes_"
    return [name.removeprefix(prefix) for name, each in columns.items() if name.startswith(prefix) and any(each)]


def _state_plot(columns: Columns) -> dict[str, Any]:
    tiers = _tiers(columns)
    highest = max((value or 0.0 for tier in tiers for value in columns[f"stored_bytes_{tier}"]), default=1.0)
    factor, unit = byte_unit(highest)
    tokens = [_layer(columns[f"tokens_{name}"], 1.0, name, index) for index, name in enumerate(STATES)]
    stored = [
        _layer(columns[f"stored_bytes_{tier}"], factor, tier, len(STATES) + index) | {"xaxis": "x2", "yaxis": "y2"}
        for index, tier in enumerate(tiers)
    ]
    steps = len(columns["tokens_hot"])
    return plot(
        [*(trace for trace in tokens if any(trace["y"])), *(trace | {"stackgroup": "bytes"} for trace in stored)],
        340,
        xaxis=steps_axis(steps) | {"domain": [0, 0.44]},
        xaxis2=steps_axis(steps) | {"domain": [0.56, 1]},
        yaxis=axis("Tokens per KV head", rangemode="tozero"),
        yaxis2=axis(f"Kept, {unit}", anchor="x2", rangemode="tozero"),
    )


def _layer(values: Sequence[float | None], factor: float, name: str, index: int) -> Trace:
    colour = PALETTE[index % len(PALETTE)]
    return {
        "type": "scatter",
        "mode": "lines",
        "stackgroup": "tokens",
        "name": name,
        "x": list(range(len(values))),
        "y": [short((value or 0.0) / factor) for value in values],
        "line": {"color": colour, "width": 1.5},
        "fillpattern": {"shape": ("", "/", "x", ".")[index % 4], "fgcolor": colour, "fillmode": "overlay"},
        "hovertemplate": "%{fullData.name}, step %{x}: %{y:.4~g}<extra></extra>",
    }


def _state_rows(label: str, columns: Columns, tiers: Sequence[str]) -> list[list[str]]:
    last = len(columns["tokens_hot"]) - 1
    return [
        [label, str(step), *(number(columns[f"tokens_{name}"][step], 6) for name in STATES),
         *(size((columns.get(f"stored_bytes_{tier}") or [None] * (last + 1))[step]) for tier in tiers)]
        for step in dict.fromkeys((0, last))
    ]  # fmt: skip


def roofline(run: RunFolder) -> Figure | None:
    """What the GPU's kernels reach of its arithmetic and memory rates, by run."""
    sums = _kernel_sums(run.timeline.slices)
    if not sums:
        return None
    kernels = list(dict.fromkeys(kernel for _, kernel in sums))
    points = {key: (flops / nbytes, flops / seconds) for key, (flops, nbytes, seconds) in sums.items()}
    intensities = [x for x, _ in points.values()]
    low, high = min(intensities) / 2, max(intensities) * 2
    roofs = _roofs(run, low, high)
    labels = dict.fromkeys([*run.metrics["runs"], *(label for label, _ in points)])
    traces = [*roofs, *(_roof_marks(label, index, kernels, points) for index, label in enumerate(labels))]
    ceiling = [y for roof in roofs for y in roof["y"]]
    drawn = plot(
        traces,
        480,
        xaxis=log_axis("Arithmetic intensity, FLOP per byte (log)", [low, high]),
        yaxis=log_axis("TFLOP/s (log)", [y / 1e12 for _, y in points.values()] + ceiling),
    )
    header = ["Run", "Kernel", "FLOP per byte", "TFLOP/s", "Time, us", "Calls covered"]
    calls = _calls(run.timeline.slices)
    rows = [
        [label, kernel, number(points[label, kernel][0]), number(points[label, kernel][1] / 1e12),
         number(seconds * 1e6), str(calls[label, kernel])]
        for (label, kernel), (_, _, seconds) in sums.items()
    ]  # fmt: skip
    caption = (
        "Each mark is one kernel of the decode over the steps that the timeline covers, with the bytes it reads "
        "itself; lines are what the GPU's memory and tensor cores allow. Far below a line, launches set the pace."
    )
    return Figure("roofline", "Roofline of the GPU kernels", caption, [View("", drawn)], Table(header, rows))


def _kernels(slices: Sequence[Slice]) -> list[Slice]:
    return [
        each
        for each in slices
        if (each.category, each.lane.split(" #")[0]) in _KERNELS and each.args.get("flops") and each.args.get("nbytes")
    ]


def _kernel_sums(slices: Sequence[Slice]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Return floating-point operations, bytes and seconds by run and kernel."""
    sums: dict[tuple[str, str], tuple[float, float, float]] = {}
    for each in _kernels(slices):
        flops, nbytes, seconds = sums.get((each.label, each.name), (0.0, 0.0, 0.0))
        took = (each.finish_ps - each.start_ps) / 1e12
        sums[each.label, each.name] = (flops + each.args["flops"], nbytes + each.args["nbytes"], seconds + took)
    return sums


def _calls(slices: Sequence[Slice]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for each in _kernels(slices):
        found[each.label, each.name] = found.get((each.label, each.name), 0) + 1
    return found


def _roof_marks(
    label: str, index: int, kernels: Sequence[str], points: Mapping[tuple[str, str], tuple[float, float]]
) -> Trace:
    ours = [kernel for kernel in kernels if (label, kernel) in points]
    hover = "%{fullData.name}, %{customdata}: %{y:.3~g} TFLOP/s<extra></extra>"
    trace = run_mark(label, index, mode="markers", hovertemplate=hover)
    trace["marker"] |= {"size": 11, "opacity": 0.85}
    return trace | {
        "x": [short(points[label, kernel][0]) for kernel in ours],
        "y": [short(points[label, kernel][1] / 1e12) for kernel in ours],
        "customdata": ours,
    }


def _roofs(run: RunFolder, low: float, high: float) -> list[Trace]:
    """Return one line per GPU that a run names: memory on the left of its ridge, arithmetic on the right."""
    found: dict[str, tuple[float, float]] = {}
    for label in run.metrics["runs"]:
        platform = platform_of(run.config, label)
        for name, device in (platform.get("devices") or {}).items():
            rates = _rates(name, device, bandwidths(platform))
            if rates is not None:
                found.setdefault(str(device.get("name", name)), rates)
    return [_roof(name, *rates, low, high) for name, rates in found.items()]


def _rates(name: str, device: Mapping[str, Any], known: Mapping[str, float]) -> tuple[float, float] | None:
    try:
        return known[f"{name}.hbm.bus"], FLOP_RATE.parse(plain(device["tensor"]))
    except (KeyError, TypeError, ValueError):
        return None


def _roof(name: str, bytes_per_s: float, flops_per_s: float, low: float, high: float) -> Trace:
    ridge = flops_per_s / bytes_per_s
    xs = sorted({low, *([ridge] if low < ridge < high else []), high})
    return {
        "type": "scatter",
        "mode": "lines",
        "name": f"{name}: {size(bytes_per_s)}/s, {number(flops_per_s / 1e12)} TFLOP/s",
        "x": [short(x) for x in xs],
        "y": [short(min(x * bytes_per_s, flops_per_s) / 1e12) for x in xs],
        "line": {"color": "#8c8c8c", "width": 2},
        "hovertemplate": "%{fullData.name}<extra></extra>",
    }
