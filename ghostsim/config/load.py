"""Loads scenarios, policies, platforms, parts, models and sweeps by file or by bundled name."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, TypeAdapter, ValidationError

from ghostsim.bundled import folder
from ghostsim.config import catalogue, fields
from ghostsim.config.defaults import with_defaults
from ghostsim.config.document import Node, TreePath, make
from ghostsim.config.expand import Library, merge
from ghostsim.config.finding import Finding
from ghostsim.config.hardware import Gpu, Part, Platform
from ghostsim.config.model import Model
from ghostsim.config.outside import Outside
from ghostsim.config.policy import Policy
from ghostsim.config.problems import Problem, describe, first_error
from ghostsim.config.ranges import paths as axis_paths
from ghostsim.config.scenario import Run, Scenario, Workload
from ghostsim.config.search import Search, check_figure, number_at, parse_bound
from ghostsim.config.serving import Serving
from ghostsim.config.settings import SHARED, Setting, apply, parse_setting
from ghostsim.config.sweep import Sweep
from ghostsim.errors import ConfigError, Location

T = TypeVar("T")
_SHARED_MODELS: Mapping[str, type[BaseModel]] = {
    "model": Model,
    "platform": Platform,
    "workload": Workload,
    "serving": Serving,
}


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A valid document: its value, its effective form (a document of the same kind), and where it came from."""

    kind: str
    value: T
    document: dict[str, Any]
    marks: Mapping[TreePath, Location]
    inputs: Mapping[str, str]
    """sha256 of every file that was read, by its path."""

    def at(self, *path: str | int) -> Location:
        """Return the place of a value, or of the nearest one above it that was written."""
        return _place(self.marks, path)


@dataclass(frozen=True)
class LoadedScenario(Loaded[Scenario]):
    """A valid scenario."""

    @property
    def scenario(self) -> Scenario:
        """The scenario."""
        return self.value

    def at(self, *path: str | int) -> Location:
        """Return the place of a value; a run's ``platform`` that is not written there is the scenario's."""
        shared = path[:1] == ("runs",) and len(path) > 2 and path[2] in SHARED
        return _place(self.marks, path[2:]) if shared and path not in self.marks else _place(self.marks, path)


def _place(marks: Mapping[TreePath, Location], path: TreePath) -> Location:
    return next(marks[path[:length]] for length in range(len(path), -1, -1) if path[:length] in marks)


@functools.cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


class _Checker:
    """Validates nodes, each one once, and collects what is wrong."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._known: dict[tuple[int, int], Any] = {}
        self._alive: list[Node] = []

    def value(self, node: Node, annotation: Any, path: TreePath, ready: Mapping[str, Any] | None = None) -> Any:
        """Return the valid value of `node`, else None; `ready` holds fields that are valid already (or None)."""
        key = (id(node), id(annotation))
        if ready is None and key in self._known:
            return self._known[key]
        value = self._validate(node, annotation, path, ready or {})
        if ready is None:
            self._alive.append(node)
            self._known[key] = value
        return value

    def _validate(self, node: Node, annotation: Any, path: TreePath, ready: Mapping[str, Any]) -> Any:
        plain = node.plain()
        data = {**plain, **ready} if isinstance(plain, dict) else plain
        broken = {key for key, value in ready.items() if value is None}
        try:
            return _adapter(annotation).validate_python(data)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                if not detail["loc"] or detail["loc"][0] not in broken:
                    self.problems.append(describe(detail, node, annotation, path))
        return None

    def done(self, main: Location) -> None:
        """Raise the first problem, if there is one."""
        if self.problems:
            raise first_error(self.problems, main)


def _check_scenario(root: Node, check: _Checker) -> Scenario:
    ready: dict[str, Any] = {
        key: check.value(root.map[key], model, (key,)) for key, model in _SHARED_MODELS.items() if key in root.map
    }
    runs = root.map.get("runs")
    if runs is not None and runs.map:
        checked = {label: _check_run(root, label, run, check) for label, run in runs.map.items()}
        ready["runs"] = None if None in checked.values() else checked
    return cast(Scenario, check.value(root, Scenario, (), ready))


def _check_run(root: Node, label: str, run: Node, check: _Checker) -> Any:
    path = ("runs", label)
    whole = effective_run(root, run)
    ready = {key: check.value(whole.map[key], model, (*path, key)) for key, model in _parts(whole)}
    return check.value(whole, Run, path, ready)


def _parts(run: Node) -> list[tuple[str, type[BaseModel]]]:
    models: Mapping[str, type[BaseModel]] = {"policy": Policy, **_SHARED_MODELS}
    return [(key, model) for key, model in models.items() if key in run.map]


def effective_run(root: Node, run: Node) -> Node:
    """Return a run merged over what the scenario's runs share."""
    if not isinstance(run.value, Mapping):
        return run
    shared = {
        key: merge(root.map.get(key), run.map.get(key), model)
        for key, model in _SHARED_MODELS.items()
        if key in root.map or key in run.map
    }
    return run.replace({**run.map, **shared})


def _own_numbers(root: Node) -> Node:
    """Return a scenario whose runs name the source of the numbers they override (themselves)."""
    runs = root.map.get("runs")
    if runs is None or not isinstance(runs.value, Mapping):
        return root
    sourced_runs = {label: _with_own_numbers(root, run) for label, run in runs.map.items()}
    return root.replace({**root.map, "runs": runs.replace(sourced_runs)})


def _with_own_numbers(root: Node, run: Node) -> Node:
    if not isinstance(run.value, Mapping):
        return run
    whole = effective_run(root, run)
    return run.replace({key: _written_part(value, whole.map[key]) for key, value in run.map.items()})


def _written_part(over: Node, merged: Node) -> Node:
    """Return of a merged mapping what was written in the override."""
    if not isinstance(over.value, Mapping) or not isinstance(merged.value, Mapping) or "value" in merged.map:
        return merged
    return over.replace({key: _written_part(value, merged.map[key]) for key, value in over.map.items()})


def _with_whole_traces(root: Node) -> Node:
    """Return a scenario in which traces and requests that lie beside the file that names them are absolute paths."""
    runs = root.map.get("runs")
    if runs is not None and isinstance(runs.value, Mapping):
        root = root.replace({**root.map, "runs": runs.replace({k: _with_whole_trace(v) for k, v in runs.map.items()})})
    return _with_whole_trace(root)


def _with_whole_trace(node: Node) -> Node:
    return _with_whole_name(_with_whole_name(node, "workload", "trace"), "serving", "requests")


def _with_whole_name(node: Node, block: str, key: str) -> Node:
    inner = node.map.get(block) if isinstance(node.value, Mapping) else None
    name = inner.map.get(key) if inner and isinstance(inner.value, Mapping) else None
    if inner is None or name is None or isinstance(name.value, Mapping):
        return node
    many = isinstance(name.value, tuple)
    whole = Node(tuple(map(_whole, name.value)), name.at) if many else _whole(name)  # type: ignore[arg-type]
    return node.replace({**node.map, block: inner.replace({**inner.map, key: whole})})


def _whole(name: Node) -> Node:
    if not isinstance(name.value, str):
        return name
    beside = Path(name.at.file).parent / name.value
    requests = beside.suffix in (".csv", ".jsonl") and catalogue.exists(beside)
    found = requests or catalogue.exists(beside / "manifest.yaml")
    return Node(str(beside.resolve()), name.at) if found else name


def _checked(kind: str, root: Node) -> Any:
    check = _Checker()
    value = _check_scenario(root, check) if kind == "scenario" else check.value(root, fields.ROOTS[kind], ())
    check.done(root.at)
    return value


def _load(kind: str, name: str | Path, settings: Iterable[Setting]) -> Any:
    library = Library()
    path = catalogue.find(kind, str(name)) if not isinstance(name, Path) else name
    return _finish(kind, library.document(path, kind), settings, library)


def _finish(kind: str, document: Node, settings: Iterable[Setting], library: Library) -> Any:
    root = apply(document, settings, kind, library)
    root = _with_whole_traces(_own_numbers(root)) if kind == "scenario" else root
    value = _checked(kind, root)
    full = with_defaults(root, fields.ROOTS[kind])
    made = LoadedScenario if kind == "scenario" else Loaded
    return made(kind, value, full.plain(), dict(full.marks()), dict(sorted(library.inputs.items())))


def _settings(sets: Iterable[str]) -> list[Setting]:
    return [parse_setting(text) for text in sets]


def load_scenario(name: str | Path, sets: Iterable[str] = (), seed: int | None = None) -> LoadedScenario:
    """Load a scenario.

    Parameters
    ----------
    name
        A file or a bundled name.
    sets
        ``PATH=VALUE`` changes, as `--set` takes them.
    seed
        Replaces the scenario's seed.

    Raises
    ------
    ConfigError
        With one line that says where and what.
    """
    seeds = [] if seed is None else [f"seed={seed}"]
    return cast(LoadedScenario, _load("scenario", name, _settings([*sets, *seeds])))


class ScenarioFamily:
    """A scenario that is read once and loaded under many changes, each as `load_scenario` would.

    Parameters
    ----------
    name
        A file or a bundled name.
    runs
        Labels of the runs to keep, with the baselines and bounds about them; none keeps all.

    Raises
    ------
    ConfigError
        If there is no such scenario or run.
    """

    def __init__(self, name: str | Path, runs: Sequence[str] = ()) -> None:
        self._library = Library()
        path = catalogue.find("scenario", str(name)) if not isinstance(name, Path) else name
        self._document = _with_runs(self._library.document(path, "scenario"), make(list(runs), Location(path)))

    def load(self, sets: Iterable[str] = ()) -> LoadedScenario:
        """Load the scenario under ``PATH=VALUE`` changes."""
        return cast(LoadedScenario, _finish("scenario", self._document, _settings(sets), self._library.copy()))


def load_policy(name: str | Path, sets: Iterable[str] = ()) -> Loaded[Policy]:
    """Load a policy by file or bundled name."""
    return cast(Loaded[Policy], _load("policy", name, _settings(sets)))


def load_platform(name: str | Path, sets: Iterable[str] = ()) -> Loaded[Platform]:
    """Load a platform by file or bundled name."""
    return cast(Loaded[Platform], _load("platform", name, _settings(sets)))


def load_part(name: str | Path, sets: Iterable[str] = ()) -> Loaded[Part]:
    """Load a part by file or bundled name."""
    return cast(Loaded[Part], _load("part", name, _settings(sets)))


def load_gpu(name: str | Path) -> Gpu:
    """Load a GPU by file or bundled name."""
    part = load_part(name).value
    if not isinstance(part, Gpu):
        raise ConfigError(f"{name}: found a part that is no GPU, expected kind: gpu, e.g. h100_sxm")
    return part


def load_model(name: str | Path, sets: Iterable[str] = ()) -> Loaded[Model]:
    """Load a language model's shape by file or bundled name."""
    return cast(Loaded[Model], _load("model", name, _settings(sets)))


def load_outside() -> Loaded[Outside]:
    """Load the systems of the literature that no policy file can express."""
    return cast(Loaded[Outside], _load("outside", folder("scenarios") / "outside" / "policies.yaml", ()))


def load_sweep(name: str | Path) -> Loaded[Sweep]:
    """Load a sweep by file or bundled name, and see that its first point is a valid scenario.

    Files that a sweep names beside itself are absolute paths in the result.
    """
    return cast(Loaded[Sweep], _load_over_scenario("sweep", name))


def load_search(name: str | Path) -> Loaded[Search]:
    """Load a search by file or bundled name, and see that the ends of its fields are valid scenarios.

    Files that a search names beside itself are absolute paths in the result.
    """
    return cast(Loaded[Search], _load_over_scenario("search", name))


def load_finding(name: str | Path) -> Loaded[Finding]:
    """Load a finding by file or bundled name."""
    return cast(Loaded[Finding], _load("finding", name, ()))


def _load_over_scenario(kind: str, name: str | Path) -> Loaded[Any]:
    path = catalogue.find(kind, str(name)) if not isinstance(name, Path) else name
    library = Library()
    root = _with_whole_paths(library.document(path, kind), path.parent)
    check = _Checker()
    value = check.value(root, fields.ROOTS[kind], ())
    check.done(root.at)
    if kind == "sweep":
        _check_points(root, library)
    else:
        _check_search(root, library)
    return Loaded(kind, value, root.plain(), dict(root.marks()), dict(sorted(library.inputs.items())))


def _check_search(root: Node, library: Library) -> None:
    """Check a search at both ends of its fields, and that its figures are about its runs and platform."""
    scenario = _named_scenario(root, library)
    axes = root.map.get("fields", make({}, root.at))
    for end in (0, -1):
        whole = apply(scenario, _at_end(axes, end), "scenario", library)
        value = _checked("scenario", whole)
    _check_figures(root, whole, value)


def _check_figures(root: Node, whole: Node, scenario: Scenario) -> None:
    plain = whole.plain()
    objectives, bounds = root.map.get("objectives"), root.map.get("subject_to")
    asked = [(path, objectives.keys[path]) for path in objectives.map] if objectives else []
    for bound in bounds.value if bounds and isinstance(bounds.value, tuple) else ():
        asked += [(path, bound.at) for path in parse_bound(str(bound.value)).paths]
    for path, at in asked:
        if path.partition(".")[0] not in scenario.runs and number_at(plain, path) is None:
            labels = ", ".join(scenario.runs)
            raise ConfigError(
                f"found {path!r}, expected a figure of a run ({labels}), e.g. {next(iter(scenario.runs))}.step_ms.p95, "
                "or a number of the scenario, e.g. platform.links.NAME.width",
                at,
            )
        check_figure(path, tuple(scenario.runs), at)


def _with_whole_paths(node: Node, folder: Path) -> Node:
    """Return `node` with the names of files in `folder` made absolute."""
    if isinstance(node.value, Mapping):
        return node.replace({key: _with_whole_paths(value, folder) for key, value in node.map.items()})
    if isinstance(node.value, tuple):
        return Node(tuple(_with_whole_paths(item, folder) for item in node.value), node.at)
    is_file = isinstance(node.value, str) and node.value.endswith(catalogue.SUFFIXES)
    return Node(str((folder / str(node.value)).resolve()), node.at) if is_file else node


def _check_points(root: Node, library: Library) -> None:
    """Check the paths of every point, and the whole first point; of what is drawn, both ends."""
    scenario = _named_scenario(root, library)
    crossed = [
        Setting(tuple(dotted.split(".")), values.value[0])
        for axis in ("grid", "zip")
        for dotted, values in _entries(root.map.get(axis))
        if isinstance(values.value, tuple)
    ]
    points = root.map.get("list")
    listed = points.value if points and isinstance(points.value, tuple) and points.value else (Node({}, root.at),)
    drawn = [sample.map["fields"] for name in ("random", "latin_hypercube") if (sample := root.map.get(name))]
    first, last = ([setting for axes in drawn for setting in _at_end(axes, end)] for end in (0, -1))
    wholes = [apply(scenario, [*crossed, *_settings_of(point), *first], "scenario", library) for point in listed]
    _checked("scenario", wholes[0])
    if last:
        _checked("scenario", apply(scenario, [*crossed, *_settings_of(listed[0]), *last], "scenario", library))


def _named_scenario(root: Node, library: Library) -> Node:
    """Return the scenario that a document names, unfolded, with the runs that the document wants."""
    named = root.map["scenario"]
    path = catalogue.find("scenario", str(named.value), None, named.at)
    return _with_runs(library.document(path, "scenario", named.at), root.map.get("runs"))


def _with_runs(scenario: Node, wanted: Node | None) -> Node:
    """Return a scenario with some of its runs, and with the baselines and bounds that are about these."""
    runs = scenario.map.get("runs")
    labels = [str(label.value) for label in wanted.value] if wanted and isinstance(wanted.value, tuple) else []
    if not labels or runs is None:
        return scenario
    for label, node in zip(labels, wanted.value, strict=True):  # type: ignore[union-attr, arg-type]
        if label not in runs.map:
            raise ConfigError(f"runs: found {label!r}, expected runs of the scenario: {', '.join(runs.map)}", node.at)
    kept = runs.replace({label: run for label, run in runs.map.items() if label in labels})
    about = {key: _about(scenario.map[key], labels) for key in ("baseline", "require") if key in scenario.map}
    return scenario.replace({**scenario.map, "runs": kept, **about})


def _about(texts: Node, labels: Sequence[str]) -> Node:
    """Return the texts of a list that begin with one of some labels."""
    items = texts.value if isinstance(texts.value, tuple) else ()
    return Node(tuple(item for item in items if str(item.value).strip().partition(".")[0] in labels), texts.at)


def _at_end(axes: Node, end: int) -> list[Setting]:
    """Return the settings at the first or the last value of axes."""
    return [
        Setting(tuple(path.split(".")), axis.value[end] if isinstance(axis.value, tuple) else axis.map[_END[end]])
        for key, axis in axes.map.items()
        for path in axis_paths(key)
    ]


_END = {0: "from", -1: "to"}


def _entries(node: Node | None) -> Iterable[tuple[str, Node]]:
    return node.map.items() if node else ()


def _settings_of(point: Node) -> list[Setting]:
    return [Setting(tuple(dotted.split(".")), value) for dotted, value in point.map.items()]


def load_any(name: str | Path, sets: Iterable[str] = ()) -> Loaded[Any]:
    """Load a document of any kind; its content says which."""
    path = catalogue.find(None, str(name)) if not isinstance(name, Path) else name
    kind = discover(path)
    if kind in ("sweep", "search"):
        return _load_over_scenario(kind, path)
    return cast(Loaded[Any], _load(kind, path, _settings(sets)))


def discover(path: Path, at: Location | None = None, depth: int = 0) -> str:
    """Say which kind of document a file holds.

    Raises
    ------
    ConfigError
        If its keys fit none.
    """
    root = Library().raw(path, at)
    kind = _kind_of_keys(root)
    if kind:
        return kind
    named = root.map.get("extends")
    first = named.value[0] if named and isinstance(named.value, tuple) and named.value else named
    if first is not None and isinstance(first.value, str) and depth < 32:
        return discover(catalogue.find(None, first.value, path.parent, first.at), first.at, depth + 1)
    raise ConfigError(
        "found keys of no known kind of document, expected kind (part, platform, model), keep and read (policy), "
        "runs (scenario), scenario with grid, zip, list, random or latin_hypercube (sweep), scenario with objectives "
        "or sensitivity (search), claims (finding), or systems (outside)",
        root.at,
    )


def _kind_of_keys(root: Node) -> str | None:
    keys = root.map
    if "kind" in keys:
        return {"platform": "platform", "model": "model"}.get(str(keys["kind"].value), "part")
    for kind, marker in (
        ("policy", "keep"),
        ("policy", "read"),
        ("search", "objectives"),
        ("search", "sensitivity"),
        ("sweep", "scenario"),
        ("scenario", "runs"),
        ("finding", "claims"),
        ("outside", "systems"),
    ):
        if marker in keys:
            return kind
    return None
