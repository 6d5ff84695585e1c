"""Sets run folders side by side: their outcomes, and what differs in their configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ghostsim.report.figure import Figure, Table, View, dots, log_axis, plot, rows_axis
from ghostsim.report.figures_time import row_height
from ghostsim.report.store import RunFolder
from ghostsim.report.verdict import Verdict, limit
from ghostsim.report.words import listing, loses, number, share, times

_MOST_DIFFERENCES = 200
_UNSAID = ("source", "confidence", "summary")


@dataclass(frozen=True)
class Comparison:
    """What the compare page shows."""

    heading: str
    names: Sequence[str]
    verdicts: Sequence[Verdict]
    differences: Table
    omitted: int
    figures: list[Figure]


def comparison(runs: Sequence[RunFolder], verdicts: Sequence[Verdict]) -> Comparison:
    """Return the comparison of run folders, named by their folders."""
    names = _names(runs)
    rows = [[path, *map(said, values)] for path, values in differences(runs).items()]
    figures = [_figure(runs, names, "tokens_per_s"), _figure(runs, names, "p95")]
    return Comparison(
        _heading(runs, names, verdicts[0].label),
        names,
        verdicts,
        Table(["Setting", *names], rows[:_MOST_DIFFERENCES]),
        max(0, len(rows) - _MOST_DIFFERENCES),
        figures,
    )


def _heading(runs: Sequence[RunFolder], names: Sequence[str], label: str) -> str:
    """Say how the run that the first folder is about fares in the others."""
    found = {
        name: run.metrics["runs"][label] for name, run in zip(names, runs, strict=True) if label in run.metrics["runs"]
    }
    base = found[names[0]]
    clauses = [_clause(name, each, names[0], base) for name, each in found.items() if name != names[0]]
    if not clauses:
        return f"{label} of {names[0]} has no counterpart in {listing(list(names[1:])) or 'another folder'}."
    best = min(found, key=lambda name: found[name]["step_ms"]["p95"])
    lost, busiest = loses(found[best]["quality"]["lost_mass"]["max"]), limit(found[best])
    bound = f"; the limit there is {busiest[0]} ({share(busiest[1])} busy)" if busiest else ""
    return f"{label} {listing(clauses)}. In {best} it {lost}{bound}."


def _clause(name: str, each: Mapping[str, Any], base_name: str, base: Mapping[str, Any]) -> str:
    mine, theirs = each["step_ms"]["p95"], base["step_ms"]["p95"]
    batches = "" if each["batch"] == base["batch"] else f", batch {each['batch']} against {base['batch']}"
    word = "faster" if mine < theirs else "slower"
    ratio = f"{times(max(mine, theirs) / min(mine, theirs))} {word} than" if mine != theirs else "as fast as"
    return f"in {name} is {ratio} in {base_name} at p95 ({number(mine)} ms against {number(theirs)} ms{batches})"


def _names(runs: Sequence[RunFolder]) -> list[str]:
    """Name each folder by its last part, numbered where two are called the same."""
    plain = [run.path.resolve().name for run in runs]
    return [name if plain.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(plain, start=1)]


def labels(runs: Sequence[RunFolder]) -> list[str]:
    """Return the labels of the runs in any of the folders, in the order in which they first occur."""
    return list(dict.fromkeys(label for run in runs for label in run.metrics["runs"]))


def differences(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """Return the settings that differ by dotted path, with their value in each folder, None where it is not set."""
    flat = [dict(_leaves(run.config)) for run in runs]
    paths = dict.fromkeys(path for leaves in flat for path in leaves)
    columns = {path: [leaves.get(path) for leaves in flat] for path in paths}
    return {path: values for path, values in columns.items() if any(value != values[0] for value in values)}


def said(value: object) -> str:
    """Return the value of a setting as tables show it."""
    return "-" if value is None else str(value)


def _leaves(node: object, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every setting by its dotted path; a sourced number counts as its value."""
    if isinstance(node, Mapping) and "value" not in node:
        for key, value in node.items():
            if key not in _UNSAID:
                yield from _leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{path}.{index}")
    else:
        yield path, node["value"] if isinstance(node, Mapping) else node


_MEASURES = {
    "tokens_per_s": (
        "compare-throughput",
        "Tokens per second",
        "Tokens per second of the whole batch",
        "Further right is better.",
    ),
    "p95": ("compare-latency", "Step latency, p95", "Step latency p95, ms", "Further left is better."),
}


def _value(run: Mapping[str, Any], measure: str) -> float:
    return float(run["tokens_per_s"] if measure == "tokens_per_s" else run["step_ms"][measure])


def _figure(runs: Sequence[RunFolder], names: Sequence[str], measure: str) -> Figure:
    key, title, across, caption = _MEASURES[measure]
    shown = labels(runs)
    found = [run.metrics["runs"] for run in runs]
    parts = {
        name: [_value(each[label], measure) if label in each else None for label in shown]
        for name, each in zip(names, found, strict=True)
    }
    values = [_value(each, measure) for run in runs for each in run.metrics["runs"].values()]
    across_axis = log_axis(f"{across} (log)", values)
    drawn = plot(dots(shown, parts, "%{x:.4~g}"), row_height(len(shown)), xaxis=across_axis, yaxis=rows_axis(shown))
    rows = [
        _row(name, label, each)
        for name, run in zip(names, runs, strict=True)
        for label, each in run.metrics["runs"].items()
    ]
    header = ["Folder", "Run", "Batch", "Tokens/s", "p50, ms", "p95, ms", "Lost mass max", "Limit"]
    return Figure(key, title, caption, [View("", drawn)], Table(header, rows))


def _row(name: str, label: str, each: Mapping[str, Any]) -> list[str]:
    busiest = limit(each)
    figures = [number(each["tokens_per_s"]), number(each["step_ms"]["p50"]), number(each["step_ms"]["p95"])]
    lost = share(each["quality"]["lost_mass"]["max"])
    return [name, label, str(each["batch"]), *figures, lost, f"{busiest[0]} {share(busiest[1])}" if busiest else "-"]
