"""Gathers evidence: each piece is computed once, kept in the cache under all that it depends on, and has a page."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostsim import cache, units
from ghostsim.bundled import folder
from ghostsim.config.catalogue import exists, files
from ghostsim.config.expressions import Columns
from ghostsim.config.finding import Evidence
from ghostsim.config.load import load_policy, load_scenario, load_search
from ghostsim.errors import ConfigError, Location, StoreError
from ghostsim.export.run_folder import what_if_table, write_run
from ghostsim.report.audit_page import render_audit
from ghostsim.report.frontier_page import render_frontier
from ghostsim.report.page import render
from ghostsim.report.sweep_page import render_sweep
from ghostsim.report.sweep_store import load_sweep, read_table
from ghostsim.simulation import simulate
from ghostsim.study.audit import audit
from ghostsim.study.audit_output import as_json
from ghostsim.study.drift import drift
from ghostsim.study.frontier import frontier, write_csv
from ghostsim.study.tree import tree
from ghostsim.sweep import search as trials
from ghostsim.sweep import sensitivity
from ghostsim.sweep.executor import Crew, Progress, run_sweep
from ghostsim.sweep.points import Source, effective_sweep, named, resolve
from ghostsim.sweep.worker import code
from ghostsim.trace.format import MANIFEST, file_sha256, find_trace, open_trace

_KIND = "evidence"
_MAX_BYTES = 1 << 30
DATA, PAGE = "data.json", "page.html"


@dataclass(frozen=True)
class Gathered:
    """A piece of evidence."""

    name: str
    command: str
    """What computes it alone."""
    data: Any
    """What expressions see: a document or `Columns`."""
    points: int
    """Points of hardware, workload or policy that were simulated or evaluated."""
    failed: int
    """Points that failed, which no table holds."""
    page: Path | None
    recorded: bool = False
    """Whether it was recorded elsewhere, because this machine cannot compute it."""


@dataclass(frozen=True)
class _Way:
    """How to compute a kind of evidence into a folder, and what it depends on."""

    command: str
    depends: Mapping[str, Any]
    build: Callable[[Path], dict[str, Any]]


def gather(name: str, asked: Evidence, beside: Path, jobs: int, say: Progress) -> Gathered:
    """Compute a piece of evidence, or take it from the cache.

    Parameters
    ----------
    name
        What the finding calls it.
    beside
        Folder of the finding, where relative names start.
    jobs
        Processes for points and for policy evaluation.

    Raises
    ------
    GhostsimError
        What the command that computes it alone would raise.
    """
    if asked.kind == "perplexity" and importlib.util.find_spec("torch") is None:
        return _recorded(name, asked, beside)
    way = WAYS[asked.kind](asked, beside, jobs, lambda text: say(f"{asked.kind} {asked.subject}: {text}"))
    key = {"kind": asked.kind, "depends": dict(way.depends), "code": code(pages=True)}
    known = cache.entry(_KIND, key)
    if known is None or not (known / DATA).is_file():
        cache.discard(_KIND, key)
        known = cache.publish(_KIND, key, lambda folder: _write(folder, way.build(folder)))
        cache.trim(_KIND, _MAX_BYTES)
    found = json.loads((known / DATA).read_text(encoding="utf-8"))
    page = known / PAGE
    data = _as_columns(found["data"])
    return Gathered(name, way.command, data, found["points"], found["failed"], page if page.is_file() else None)


def _write(folder: Path, found: Mapping[str, Any]) -> None:
    (folder / DATA).write_text(json.dumps(found, allow_nan=False), encoding="utf-8")


def _found(data: Any, points: int = 1, failed: int = 0) -> dict[str, Any]:  # noqa: ANN401
    return {"data": data, "points": points, "failed": failed}


def _as_columns(data: Any) -> Any:  # noqa: ANN401
    """Turn what `_columns` made into tables again."""
    if isinstance(data, dict) and set(data) == {"columns"}:
        return Columns(data["columns"])
    return {key: _as_columns(value) for key, value in data.items()} if isinstance(data, dict) else data


def _columns(header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Return a table by column, numbers and quantities (in base units) as numbers."""
    return {"columns": {name: _cells([row[name] for row in rows]) for name in header}}


def _cells(cells: Sequence[str]) -> list[float | None] | list[str]:
    numbers = [_number(cell) for cell in cells]
    return numbers if all(n is not None or not cell for n, cell in zip(numbers, cells, strict=True)) else list(cells)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return units.magnitude(cell)


def _recorded(name: str, asked: Evidence, beside: Path) -> Gathered:
    path = beside / (asked.recorded or "")
    if asked.recorded is None:
        raise ConfigError(f"{name}: found no torch and no recorded result, expected one of them", Location(beside))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"found no readable result ({error}), expected what perplexity prints", Location(path)
        ) from None
    return Gathered(name, _perplexity_command(asked), data, len(asked.policies), 0, None, recorded=True)


# --- simulated ---------------------------------------------------------------------------------------------------


def _sweep(asked: Evidence, beside: Path, jobs: int, say: Progress) -> _Way:
    name = _named("sweep", asked.subject, beside)
    effective = effective_sweep(name)
    points = sorted({resolve(effective.source, each).name for each in effective.settings()})

    def build(folder: Path) -> dict[str, Any]:
        store = folder / Path(name).stem
        done = run_sweep(name, out=store, jobs=jobs, progress=say)
        header, rows = read_table(store / "points.csv")
        kept = [row for row in rows if row["status"] == "done"]
        if not kept:
            raise StoreError(f"found that every point failed ({rows[0]['error']}), expected some", Location(Path(name)))
        (folder / PAGE).write_text(render_sweep(load_sweep(store), "directory"), encoding="utf-8")
        return _without(store, _found(_columns(header, kept), done.done, done.failed))

    return _Way(f"ghostsim sweep {asked.subject}", {"points": points}, build)


def _without(store: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Drop a store: its points stay in the cache of points."""
    shutil.rmtree(store, ignore_errors=True)
    return found


def _run(asked: Evidence, beside: Path, jobs: int, say: Progress) -> _Way:
    name = _named("scenario", asked.subject, beside)
    loaded, base = load_scenario(name), Source(name).base

    def build(folder: Path) -> dict[str, Any]:
        result = simulate(loaded.scenario, base, jobs, say, loaded.at, ask_what_if=True)
        store = folder / "store"
        store.mkdir()
        write_run(store, result, loaded, ["ghostsim", "run", asked.subject])
        (folder / PAGE).write_text(render(store, "directory"), encoding="utf-8")
        data = result.metrics | {"what_if": what_if_table(result)}
        return _without(store, _found(data, len(result.metrics["runs"])))

    return _Way(f"ghostsim run {asked.subject}", {"scenario": named(loaded, base)}, build)


def _search(asked: Evidence, beside: Path, jobs: int, say: Progress) -> _Way:
    name = _named("search", asked.subject, beside)
    loaded = load_search(name)
    effective = trials.EffectiveSearch(loaded.document, loaded.value)

    def build(folder: Path) -> dict[str, Any]:
        store = folder / "store"
        if effective.search.sensitivity is not None:
            data = sensitivity.as_data(sensitivity.run_sensitivity(effective, store, Crew(jobs), progress=say))
        else:  # one at a time: else trials follow from those that happened to end first
            data = trials.as_data(trials.run_search(effective, store, Crew(1), progress=say))
        header, rows = read_table(store / "points.csv")
        kept = [row for row in rows if row["status"] == "done"]
        table = {key: value for key, value in data.items() if key != "folder"} | {"table": _columns(header, kept)}
        return _without(store, _found(table, len(kept), len(rows) - len(kept)))

    return _Way(f"ghostsim search {asked.subject}", {"document": loaded.document, "inputs": dict(loaded.inputs)}, build)


def _named(kind: str, name: str, beside: Path) -> str:
    """Return a bundled name as it is, a file beside the finding as its path."""
    return name if name in files(kind) or not exists(beside / name) else str((beside / name).resolve())


# --- evaluated ---------------------------------------------------------------------------------------------------


def _audit(asked: Evidence, beside: Path, _jobs: int, say: Progress) -> _Way:
    def build(folder: Path) -> dict[str, Any]:
        recorded = open_trace(asked.subject, beside)
        aged = drift(recorded, _counted(say)) if asked.drift else None
        trees = tree(recorded, progress=_counted(say)) if asked.tree else None
        found = audit(recorded, asked.steps, _counted(say))
        (folder / PAGE).write_text(render_audit(found, aged, trees, "directory"), encoding="utf-8")
        return _found(as_json(found, aged, trees))

    flags = f" --steps {asked.steps}" + " --drift" * asked.drift + " --tree" * asked.tree
    depends = {"trace": _trace_hash(asked.subject, beside), "flags": flags}
    return _Way(f"ghostsim audit {asked.subject}{flags}", depends, build)


def _frontier(asked: Evidence, beside: Path, jobs: int, say: Progress) -> _Way:
    loaded = [load_policy(_named("policy", name, beside)) for name in asked.policies or files("policy")]

    def build(folder: Path) -> dict[str, Any]:
        policies = [each.value for each in loaded]
        recorded = open_trace(asked.subject, beside)
        found = frontier(recorded, policies, steps=asked.steps, jobs=jobs, progress=_counted(say))
        (folder / PAGE).write_text(render_frontier(found, "directory"), encoding="utf-8")
        write_csv(found, folder / "frontier.csv")
        header, rows = read_table(folder / "frontier.csv")
        return _found(_columns(header, rows), len(rows))

    named = "".join(f" --policy {name}" for name in asked.policies)
    depends = {"trace": _trace_hash(asked.subject, beside), "steps": asked.steps}
    policies = {"policies": [each.document for each in loaded]}
    return _Way(f"ghostsim frontier {asked.subject} --steps {asked.steps}{named}", depends | policies, build)


def _perplexity(asked: Evidence, beside: Path, _jobs: int, say: Progress) -> _Way:
    model, text = _there(asked.subject, beside), _there(str(asked.text), beside)
    loaded = [load_policy(_named("policy", name, beside)) for name in asked.policies]

    def build(_: Path) -> dict[str, Any]:
        from ghostsim.study.perplexity import Decode, figures, perplexity  # noqa: PLC0415

        policies = tuple(each.value for each in loaded)
        decode = Decode(
            model=str(model), text=text, policies=policies, prompt_len=asked.prompt, steps=asked.steps,
            facts=asked.facts, q_prompt=None, seed=1, device="cpu",
        )  # fmt: skip
        return _found(figures(perplexity(decode, say)), len(policies))

    sizes = {"prompt": asked.prompt, "steps": asked.steps, "facts": asked.facts}
    content = {"model": _model_hashes(model), "text": file_sha256(text)}
    return _Way(_perplexity_command(asked), sizes | content | {"policies": [each.document for each in loaded]}, build)


def _model_hashes(model: Path) -> dict[str, str]:
    """Return the hash of every file of a model, by name."""
    return {path.name: file_sha256(path) for path in sorted(model.iterdir()) if path.is_file()}


def _perplexity_command(asked: Evidence) -> str:
    named = "".join(f" --policy {name}" for name in asked.policies)
    sizes = f" --prompt {asked.prompt} --steps {asked.steps} --facts {asked.facts}"
    return f"ghostsim perplexity {asked.subject} {asked.text}{named}{sizes}"


def _there(name: str, beside: Path) -> Path:
    """Return a file or folder beside the finding, or among what is bundled as traces."""
    found = next((path for path in (beside / name, folder("traces") / name) if exists(path)), None)
    if found is None:
        raise ConfigError(f"found no file or folder {name!r} beside the finding or in traces, expected one")
    return found


def _trace_hash(name: str, beside: Path) -> str:
    return file_sha256(find_trace(name, beside) / MANIFEST)


def _counted(say: Progress) -> Callable[[int, int], None]:
    return lambda done, of: say(f"{done} of {of}")


WAYS: Mapping[str, Callable[[Evidence, Path, int, Progress], _Way]] = {
    "sweep": _sweep, "run": _run, "search": _search, "audit": _audit, "frontier": _frontier, "perplexity": _perplexity,
}  # fmt: skip
