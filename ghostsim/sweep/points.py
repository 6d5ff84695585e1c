"""The points of a sweep: settings of one scenario, each named by the hash of everything its figures depend on."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ghostsim
from ghostsim import cache
from ghostsim.config.load import LoadedScenario, ScenarioFamily, load_sweep
from ghostsim.config.scenario import Run, Scenario
from ghostsim.config.settings import parse_setting
from ghostsim.config.sweep import Sweep, as_sets
from ghostsim.errors import ConfigError, GhostsimError
from ghostsim.serving import request_files
from ghostsim.trace.format import MANIFEST, file_sha256, find_trace

_POINT_DIGITS = 16


@dataclass(frozen=True)
class Source:
    """A scenario by file or bundled name, and the labels of the runs to keep; none keeps all."""

    scenario: str
    runs: tuple[str, ...] = ()

    @property
    def base(self) -> Path | None:
        """The folder that names in the scenario start from; None for a bundled scenario."""
        path = Path(self.scenario)
        return path.resolve().parent if path.is_file() else None


@lru_cache(maxsize=4)
def family(source: Source) -> ScenarioFamily:
    """Return the scenario of all points of a source, read once in a process."""
    return ScenarioFamily(source.scenario, source.runs)


@dataclass(frozen=True)
class EffectiveSweep:
    """A sweep with its `--set` changes folded in, as values of its grid that do not vary."""

    document: dict[str, Any]
    sweep: Sweep

    @property
    def fields(self) -> tuple[str, ...]:
        """The dotted paths of everything that is set, in the order of the sweep."""
        return tuple(path for paths in self.sweep.axes().values() for path in paths)

    @property
    def source(self) -> Source:
        """What the points are made of."""
        return Source(self.sweep.scenario, self.sweep.runs)

    def settings(self) -> list[dict[str, Any]]:
        """Return what each point sets, in the order of the sweep."""
        return self.sweep.expand()


@dataclass(frozen=True)
class Point:
    """A point that was resolved: its name, the keys of the Selections it needs and its bounds; or why it is none."""

    name: str
    selections: frozenset[str] = frozenset()
    require: tuple[str, ...] = ()
    error: str | None = None
    packed: bytes | None = None
    """The loaded scenario, as `packed` makes it, for the process that computes the point."""


def effective_sweep(sweep: str | Path, sets: Iterable[str] = ()) -> EffectiveSweep:
    """Load a sweep by file or bundled name; `sets` are ``PATH=VALUE`` changes of its scenario.

    Raises
    ------
    ConfigError
        If the sweep, its first point or a set is invalid, or the sweep itself varies what is set.
    """
    family.cache_clear()
    loaded = load_sweep(sweep)
    fixed = fixed_fields(sets)
    varied = EffectiveSweep(loaded.document, loaded.value).fields
    for path in fixed:
        if path in varied:
            raise ConfigError(f"--set {path}: found a field that the sweep varies, expected another, or another sweep")
    if not fixed:
        return EffectiveSweep(loaded.document, loaded.value)
    grid = {path: [value] for path, value in fixed.items()} | dict(loaded.document.get("grid") or {})
    document = loaded.document | {"grid": grid}
    effective = EffectiveSweep(document, Sweep.model_validate(document))
    family(effective.source).load(as_sets(effective.settings()[0]))
    return effective


def fixed_fields(sets: Iterable[str]) -> dict[str, Any]:
    """Return ``PATH=VALUE`` changes as values by dotted path."""
    settings = [parse_setting(text) for text in sets]
    return {".".join(setting.path): setting.value.plain() for setting in settings}


def resolve(source: Source, settings: Mapping[str, Any], pack: bool = False) -> Point:
    """Name the point of a scenario under `settings`; what is wrong with it becomes its error."""
    try:
        loaded = family(source).load(as_sets(settings))
        traces = _traces(loaded.scenario, source.base)
    except GhostsimError as error:
        key = {"scenario": source.scenario, "runs": list(source.runs), "settings": dict(settings)}
        return Point(cache.digest(key)[:_POINT_DIGITS], error=str(error))
    return Point(
        name=point_name(loaded, traces),
        selections=frozenset(_selection_keys(loaded.scenario, traces)),
        require=loaded.scenario.require,
        packed=packed(loaded) if pack else None,
    )


def packed(loaded: LoadedScenario) -> bytes:
    """Return a scenario as bytes for another process of this sweep: a twentieth of the time of loading it again."""
    return zlib.compress(pickle.dumps(loaded), 1)


def unpacked(data: bytes) -> LoadedScenario:
    """Return the scenario that `packed` packed."""
    loaded: LoadedScenario = pickle.loads(zlib.decompress(data))  # noqa: S301  (made by this program)
    return loaded


def named(loaded: LoadedScenario, base: Path | None) -> str:
    """Return the name of the point that a loaded scenario is."""
    return point_name(loaded, _traces(loaded.scenario, base))


def point_name(loaded: LoadedScenario, traces: Mapping[str, str]) -> str:
    """Hash the effective scenario (its seed is part of it), the version of ghostsim and the content of the traces."""
    key = {"scenario": loaded.document, "ghostsim": ghostsim.__version__, "traces": dict(traces)}
    return cache.digest(key)[:_POINT_DIGITS]


def _traces(scenario: Scenario, base: Path | None) -> dict[str, str]:
    """Return the hash of each trace; its manifest holds the hashes of its arrays."""
    names = dict.fromkeys(name for run in scenario.runs.values() for name in run.workload.trace)
    return {name: file_sha256(find_trace(name, base) / MANIFEST) for name in names} | request_files(scenario)


def _selection_keys(scenario: Scenario, traces: Mapping[str, str]) -> set[str]:
    """Say which Selections a scenario needs, so that two processes do not compute the same one.

    The keys may tell apart what is the same (a batch that fits depends on the platform), which costs only time.
    """
    workloads = {label: _workload_key(run, scenario.seed, traces) for label, run in scenario.runs.items()}
    batches: dict[str, set[str]] = {}
    for label, run in scenario.runs.items():
        batches.setdefault(workloads[label], set()).add(str(run.workload.batch))
    keys = set()
    for label, run in scenario.runs.items():
        policy = cache.digest(run.policy.model_dump(mode="json", by_alias=True, exclude={"name", "summary", "paper"}))
        keys.add(f"{policy} {workloads[label]} {sorted(batches[workloads[label]])}")
        if run.workload.context is not None:  # is evaluated at the recorded length too
            keys.add(f"{policy} {' '.join(traces[name] for name in run.workload.trace)}")
    return keys


def _workload_key(run: Run, seed: int, traces: Mapping[str, str]) -> str:
    parts = run.workload.model_dump(mode="json", exclude={"batch", "trace"})
    shape = (run.model.layers, run.model.kv_heads, run.model.q_heads, run.model.head_dim)
    content = [traces[name] for name in run.workload.trace]
    return cache.digest({"workload": parts, "shape": shape, "seed": seed, "traces": content})
