"""Reads a run folder: everything a report says comes from these files and from nowhere else."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from ghostsim.config import document
from ghostsim.errors import ConfigError, Location, StoreError
from ghostsim.export.timeline import Timeline, read_timeline

Steps = Mapping[str, Mapping[str, Sequence[float | None]]]
"""Label to column to one value per step, none where the cell is empty."""


class _Spread(BaseModel):
    mean: float
    p99: float | None = None
    max: float


class _Latency(_Spread):
    p50: float
    p95: float
    p99: float
    n: int


class _Quality(BaseModel):
    elimination_rate: float
    resurrection_rate: float
    lost_mass: _Spread
    certified_mass: _Spread | None = None
    false_elimination_rate: float
    false_resurrection_rate: float
    violations: int | None = None
    output_error: _Spread | None = None


class _Served(BaseModel):
    mean: float
    p50: float
    p95: float
    p99: float
    n: int


class _Serving(BaseModel):
    requests: int
    completed: int
    rejected: int
    ttft_ms: _Served
    tpot_ms: _Served
    e2e_ms: _Served
    requests_per_s: float
    output_tokens_per_s: float
    goodput_per_s: float
    slo_share: float


class _Run(BaseModel):
    policy: str
    platform: str
    batch: int
    step_ms: _Latency
    tokens_per_s: float
    bytes_per_step: dict[str, dict[str, float]]
    utilisation: dict[str, float]
    critical_path_ms: dict[str, float]
    waits_ms: dict[str, dict[str, float]] = {}
    viability: dict[str, Any] | None = None
    prefetch: dict[str, float] | None = None
    lifecycle: dict[str, float] | None = None
    prefill: dict[str, Any] | None = None
    quality: _Quality
    energy_mj_per_token: dict[str, float]
    capacity_bytes: dict[str, float]
    serving: _Serving | None = None


class _Trace(BaseModel):
    name: str
    kind: str
    context_tokens: int
    steps: int


class _Metrics(BaseModel):
    scenario: str
    seed: int
    trace: _Trace
    runs: dict[str, _Run] = Field(min_length=1)
    compare: dict[str, dict[str, dict[str, float]]] = {}


class _Workload(BaseModel):
    trace: list[str] = []
    kind: str = ""
    context_tokens: float | None = None
    steps: float | None = None
    trained_context: float | None = None
    recorded_tokens: float | None = None
    lossless: dict[str, bool] = {}


class _Stage(BaseModel):
    name: str
    does: str
    tier: str
    engine: str
    rows: int
    nbytes: float
    links: list[str]
    after: list[str]


class _Manifest(BaseModel):
    notes: list[str] = []
    not_modelled: list[str] = []
    assumptions: list[str] = []
    packages: dict[str, str] = {}
    simulator: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    workload: _Workload = _Workload()
    lost_mass_by_context: dict[str, list[dict[str, float]]] = {}
    what_if: dict[str, dict[str, float]] = {}
    programs: dict[str, list[_Stage]] = {}


@dataclass(frozen=True)
class RunFolder:
    """The files of one run folder, checked and parsed."""

    path: Path
    metrics: Mapping[str, Any]
    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    steps: Steps
    timeline: Timeline
    requests: Steps = field(default_factory=dict)
    """Of runs that serve requests: one value per request."""
    serving: Steps = field(default_factory=dict)
    """Of runs that serve requests: queues and memory in equal bins of time."""


def load_run(path: Path) -> RunFolder:
    """Read the run folder at `path`.

    Raises
    ------
    StoreError
        If the folder or one of its files is missing or not what a run writes.
    """
    run = _read(path)
    timeline = path / "timeline.json.gz"
    return replace(run, timeline=read_timeline(timeline)) if timeline.exists() else run


def _read(path: Path) -> RunFolder:
    if not path.is_dir():
        raise StoreError("found no run folder, expected one that `ghostsim run` wrote, e.g. runs/cxl_pim", _at(path))
    metrics = _mapping(path / "metrics.json")
    if metrics.get("schema") != 1:
        raise StoreError(f"schema: found {metrics.get('schema')!r}, expected 1", _at(path / "metrics.json"))
    _check(metrics, _Metrics, path / "metrics.json")
    config, manifest = _config(path / "config.yaml"), _mapping(path / "manifest.json")
    _check(manifest, _Manifest, path / "manifest.json")
    steps = _table(path / "steps.csv", "step_ms")
    if not any("serving" in each for each in metrics["runs"].values()):
        return RunFolder(path, metrics, config, manifest, steps, Timeline())
    requests, serving = _table(path / "requests.csv", "ttft_ms"), _table(path / "serving.csv", "time_s")
    return RunFolder(path, metrics, config, manifest, steps, Timeline(), requests, serving)


def check_run(path: Path) -> None:
    """Refuse a folder that `load_run` would refuse; its timeline is not read."""
    _read(path)


def _at(path: Path, line: int | None = None, column: int | None = None) -> Location:
    return Location(path, line, column)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"found no readable file ({error.strerror}), expected one that a run wrote", _at(path)
        ) from None
    except UnicodeDecodeError:
        raise StoreError("found bytes that are not UTF-8, expected a text file that a run wrote", _at(path)) from None


def _refuse(constant: str) -> float:
    raise ValueError(f"found {constant}, expected a finite number")


def _mapping(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(_text(path), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise StoreError(
            f"found broken JSON ({error.msg}), expected what a run wrote", _at(path, error.lineno, error.colno)
        ) from None
    except RecursionError:
        raise StoreError("found JSON nested without end, expected what a run wrote", _at(path)) from None
    except ValueError as error:
        raise StoreError(f"{error}, expected what a run wrote", _at(path)) from None
    if not isinstance(found, dict):
        raise StoreError(f'found a {type(found).__name__}, expected a JSON object, e.g. {{"schema": 1}}', _at(path))
    return found


def _check(found: Mapping[str, Any], model: type[BaseModel], path: Path) -> None:
    try:
        model.model_validate(found, strict=False)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{where}: found {_brief(first['input'])}, expected another value ({first['msg']})", _at(path)
        ) from None


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _config(path: Path) -> Mapping[str, Any]:
    try:
        found = document.parse(_text(path), path).plain()
    except ConfigError as error:
        raise StoreError(str(error)) from None
    if not isinstance(found, dict):
        raise StoreError(f"found a {type(found).__name__}, expected the effective scenario, e.g. schema: 1", _at(path))
    return found


def _table(path: Path, needed: str) -> Steps:
    rows = csv.reader(_text(path).splitlines())
    header = next(rows, [])
    if "label" not in header or needed not in header:
        raise StoreError(f"found the columns {_brief(header)}, expected label, {needed} and others", _at(path, 1))
    table: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        if len(row) != len(header):
            raise StoreError(f"found {len(row)} cells, expected {len(header)}", _at(path, rows.line_num))
        cells = dict(zip(header, row, strict=True))
        columns = table.setdefault(cells.pop("label"), {name: [] for name in cells})
        for name, cell in cells.items():
            columns[name].append(_cell(cell, _at(path, rows.line_num), name))
    return table


def _cell(cell: str, at: Location, name: str) -> float | None:
    if not cell:
        return None
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise StoreError(f"{name}: found {_brief(cell)}, expected a finite number or nothing", at)
    return value
