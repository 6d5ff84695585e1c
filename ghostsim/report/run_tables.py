"""A run folder as tables: its steps, every figure of metrics.json, waits and what-if."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ghostsim.export.tables import Columns
from ghostsim.report.store import RunFolder

_SHARES = ("lost_mass", "certified_mass", "violated_mass", "output_error")
_UNIT_OF_BLOCK = {
    "step_ms": "ms",
    "critical_path_ms": "ms",
    "waits_ms": "ms",
    "tokens_per_s": "tokens/s",
    "bytes_per_step": "bytes",
    "capacity_bytes": "bytes",
    "utilisation": "share",
    "energy_mj_per_token": "mJ/token",
}
_UNIT_OF_ENDING = {
    "_ms": "ms",
    "_us": "us",
    "_per_s": "1/s",
    "_s": "s",
    "_rate": "share",
    "_share": "share",
    "_bytes": "bytes",
    "migrate": "bytes",
    "_bytes_mean": "bytes",
    "_tokens": "tokens",
}


def run_tables(run: RunFolder) -> dict[str, Columns]:
    """Return the tables `steps`, `metrics`, `waits` and `what_if` of a run folder; empty ones are left out."""
    tables = {"steps": _steps(run), "metrics": _metrics(run), "waits": _waits(run), "what_if": _what_if(run)}
    return {name: columns for name, columns in tables.items() if columns["run"]}


def _steps(run: RunFolder) -> Columns:
    names = dict.fromkeys(name for columns in run.steps.values() for name in columns)
    labels = [label for label, columns in run.steps.items() for _ in columns["step_ms"]]
    return {"run": labels} | {
        _with_unit(name): [value for columns in run.steps.values() for value in columns[name]] for name in names
    }


def _with_unit(name: str) -> str:
    """Name the unit of a column of steps.csv whose name does not."""
    return f"{name}_share" if name.startswith(_SHARES) else name


def _metrics(run: RunFolder) -> Columns:
    rows = [
        (label, name, value, _unit(name.split(".")))
        for label, each in run.metrics["runs"].items()
        for name, value in _numbers(each, "")
    ]
    return _columns(("run", "metric", "value", "unit"), rows)


def _numbers(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            yield f"{prefix}{key}", float(value)


def _unit(path: list[str]) -> str:
    """Return the unit of a figure of metrics.json; what counts something has the unit 1."""
    if path[-1] == "n":
        return "1"
    if path[0] in _UNIT_OF_BLOCK:
        return _UNIT_OF_BLOCK[path[0]]
    if path[0] == "quality":
        return "1" if path[-1] == "violations" else "share"
    endings = (unit for key in reversed(path) for ending, unit in _UNIT_OF_ENDING.items() if key.endswith(ending))
    return next(endings, "1")


def _waits(run: RunFolder) -> Columns:
    rows = [
        (label, name, *(kinds.get(kind, 0.0) for kind in ("service", "queue", "latency")))
        for label, each in run.metrics["runs"].items()
        for name, kinds in each.get("waits_ms", {}).items()
    ]
    return _columns(("run", "waited_for", "service_ms", "queue_ms", "latency_ms"), rows)


def _what_if(run: RunFolder) -> Columns:
    asked: Mapping[str, Mapping[str, float]] = run.manifest.get("what_if", {})
    rows = [(label, name, change) for label, changes in asked.items() for name, change in changes.items()]
    return _columns(("run", "twice_as_fast", "step_change_share"), rows)


def _columns(names: tuple[str, ...], rows: list[Any]) -> Columns:
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}
