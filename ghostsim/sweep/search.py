"""Searches the fields of a scenario for the point that serves an objective best, with Optuna."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ghostsim.columns import aligned
from ghostsim.config.load import load_search
from ghostsim.config.ranges import Range, paths
from ghostsim.config.search import Bound, Search, number_at
from ghostsim.config.sweep import as_sets
from ghostsim.errors import ConfigError, Location, StoreError, UsageError
from ghostsim.metrics.require import figure
from ghostsim.sweep import store, worker
from ghostsim.sweep.cluster import WorkerLostError
from ghostsim.sweep.executor import DIED, Crew, Progress, open_store, submit
from ghostsim.sweep.pace import Pace
from ghostsim.sweep.points import Source, family, fixed_fields, resolve
from ghostsim.sweep.worker import Outcome, Task

if TYPE_CHECKING:
    import optuna

STUDY = "study.db"
_STUDY_LOCK = "0"
_STRICT = 1e-12
"""A gap above 0 for a bound that holds only with equality where it must hold strictly."""


@dataclass(frozen=True)
class Trial:
    """One point that was tried."""

    number: int
    point: str
    settings: Mapping[str, Any]
    objectives: Mapping[str, float]
    """By path; empty if the point failed."""
    gaps: Mapping[str, float]
    """By bound: how far the figure is beyond it, as a share of the bound; 0 or less is met."""
    error: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether the point was computed and meets every bound."""
        return self.error is None and all(gap <= 0 for gap in self.gaps.values())


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    search: Search
    trials: Sequence[Trial]
    best: Sequence[Trial]
    """The best point, or the points of the Pareto front by their objectives; none if no point meets the bounds."""
    folder: Path


@dataclass(frozen=True)
class EffectiveSearch:
    """A search with its `--set` changes folded in, as fields with one value."""

    document: dict[str, Any]
    search: Search

    @property
    def source(self) -> Source:
        """What the points are made of."""
        return Source(self.search.scenario, self.search.runs)


def effective_search(spec: str | Path, sets: Iterable[str] = ()) -> EffectiveSearch:
    """Load a search by file or bundled name; `sets` are ``PATH=VALUE`` changes of its scenario.

    Raises
    ------
    ConfigError
        If the search or a set is invalid, or the search itself varies what is set.
    """
    family.cache_clear()
    loaded = load_search(spec)
    fixed = fixed_fields(sets)
    varied = {path for key in loaded.value.fields or {} for path in paths(key)}
    for path in fixed:
        if path in varied:
            raise ConfigError(f"--set {path}: found a field that the search varies, expected another")
    if not fixed:
        return EffectiveSearch(loaded.document, loaded.value)
    family(Source(loaded.value.scenario, loaded.value.runs)).load(as_sets(fixed))
    fields = {path: [value] for path, value in fixed.items()} | dict(loaded.document.get("fields") or {})
    document = loaded.document | {"fields": fields}
    return EffectiveSearch(document, Search.model_validate(document))


def run_search(
    effective: EffectiveSearch, out: Path, crew: Crew, *, resume: bool = False, progress: Progress | None = None
) -> SearchResult:
    """Try points, each chosen by what the ones before it gave.

    With one point at a time the same search tries the same points, whether it was interrupted or not.

    Parameters
    ----------
    effective
        A search with objectives.
    out
        Folder of the store: a new one, or with `resume` one of this search.
    crew
        Who computes the points.
    resume
        Go on after the trials that ended.
    progress
        Called with a line about what is being done.

    Raises
    ------
    UsageError
        If Optuna is not installed, or `out` exists (without `resume`) or is the store of another search.
    StoreError
        If `resume` finds no valid store.
    """
    _optuna()
    crew.check()
    open_store(out, effective.document, store.SEARCH, resume=resume)
    with store.claimed(out, _STUDY_LOCK, wait=False) as mine:
        if not mine:
            raise UsageError(f"--resume: found another search at work in {out}, expected one at a time")
        return _Run(out.resolve(), effective, crew, progress or (lambda _: None)).run(out)


def _optuna() -> Any:  # noqa: ANN401  (a module without types: an extra)
    try:
        import optuna  # noqa: PLC0415  (an extra)
    except ImportError:
        raise UsageError("search: found no optuna, expected it: pip install 'ghostsim[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


# --- the study -------------------------------------------------------------------------------------------------


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial: seeded by its number, so that a search that goes on draws the same."""
    samplers = _optuna().samplers
    seed = int(np.random.SeedSequence([search.seed, number]).generate_state(1)[0])
    match search.sampler or ("tpe" if len(search.objectives) == 1 else "nsga2"):
        case "tpe":
            return samplers.TPESampler(seed=seed)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, search.trials // 4)))
        case _:
            return samplers.RandomSampler(seed=seed)


def _suggested(trial: optuna.Trial, search: Search) -> dict[str, Any]:
    """Return the settings of a trial by dotted path."""
    settings: dict[str, Any] = {}
    for key, axis in (search.fields or {}).items():
        if isinstance(axis, Range):
            low, high = axis.ends
            suggest = trial.suggest_int if axis.whole else trial.suggest_float
            ends = (int(low), int(high)) if axis.whole else (low, high)
            value = axis.said(suggest(key, *ends, log=axis.scale == "log"))
        else:
            value = json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in axis]))
        settings |= dict.fromkeys(paths(key), value)
    return settings


class _Study:
    """The trials that ended in SQLite, and an Optuna study in memory that goes on from them."""

    def __init__(self, file: Path, search: Search) -> None:
        library = _optuna()
        directions = [direction.replace("mise", "mize") for direction in search.objectives.values()]
        self._states = library.trial.TrialState
        self._search = search
        self._file = file
        self._study = library.create_study(directions=directions)
        with self._storage():
            self._kept = library.create_study(
                storage=f"sqlite:///{file}", study_name="search", directions=directions, load_if_exists=True
            )
            self._study.add_trials(self._kept.trials)
        self._told: dict[int, optuna.trial.FrozenTrial] = {}
        self._written = self.asked = len(self._study.trials)

    @contextmanager
    def _storage(self) -> Iterator[None]:
        """Say in one line what is wrong with the file."""
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  (comes with Optuna)

        try:
            yield
        except (SQLAlchemyError, _optuna().exceptions.OptunaError) as error:
            reason = getattr(error.__cause__ or error, "orig", error)
            raise StoreError(f"found a study that cannot be used ({reason})", Location(self._file)) from None

    def ask(self) -> tuple[optuna.Trial, dict[str, Any]]:
        """Return a new trial and its settings."""
        self._study.sampler = _sampler(self._search, self.asked)
        self.asked += 1
        trial = self._study.ask()
        return trial, _suggested(trial, self._search)

    def tell(self, trial: optuna.Trial, found: Trial) -> None:
        """Note how a trial ended; it is kept once all before it are."""
        trial.set_user_attr("trial", json.dumps(vars(found)))
        self._study.sampler = _sampler(self._search, trial.number)
        for text, gap in found.gaps.items():
            trial.set_constraint(text, gap)
        if found.error is None:
            self._study.tell(trial, [found.objectives[path] for path in self._search.objectives])
        else:
            self._study.tell(trial, state=self._states.FAIL)
        self._told[trial.number] = self._study.get_trials(deepcopy=False)[trial.number]
        with self._storage():
            while self._written in self._told:
                self._kept.add_trial(self._told.pop(self._written))
                self._written += 1

    def trials(self) -> list[Trial]:
        """Return the trials that ended."""
        return [_trial(each) for each in self._study.get_trials(deepcopy=False) if "trial" in each.user_attrs]

    def best(self) -> list[Trial]:
        """Return the best trials that meet the bounds, each point once, by their objectives."""
        if len(self._search.objectives) == 1:
            fitting = [trial for trial in self.trials() if trial.feasible]
            sign = 1 if "minimise" in self._search.objectives.values() else -1
            return sorted(fitting, key=lambda trial: (sign * next(iter(trial.objectives.values())), trial.number))[:1]
        front = {trial.point: trial for trial in map(_trial, reversed(self._study.best_trials)) if trial.feasible}
        return sorted(front.values(), key=lambda trial: (*trial.objectives.values(), trial.number))


def _trial(frozen: optuna.trial.FrozenTrial) -> Trial:
    return Trial(**json.loads(frozen.user_attrs["trial"]))


# --- figures ---------------------------------------------------------------------------------------------------


def _value(path: str, metrics: Mapping[str, Any], document: Mapping[str, Any]) -> float:
    """Return a figure of a run, or else a number of the scenario in base units."""
    if path.partition(".")[0] in metrics["runs"]:
        return figure(path, metrics["runs"], total=True)
    found = number_at(document, path)
    if found is None:
        raise ConfigError(f"{path}: found no number in this point's scenario, expected one")
    return found


def _gap(bound: Bound, value: Callable[[str], float]) -> float:
    """Return how far a figure is beyond its bound, as a share of the bound."""
    left, right = value(bound.path), bound.factor * (value(bound.other) if bound.other else 1.0)
    beyond = (left - right if bound.sign in ("<=", "<") else right - left) / (abs(right) or 1.0)
    return _STRICT if bound.sign in ("<", ">") and beyond == 0 else beyond


# --- the search ------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    """A trial whose point is being computed."""

    trial: optuna.Trial
    settings: dict[str, Any]
    task: Task


class _Run:
    """The state of one search while it runs."""

    def __init__(self, folder: Path, effective: EffectiveSearch, crew: Crew, say: Progress) -> None:
        self._folder, self._effective, self._crew, self._say = folder, effective, crew, say
        self._search = effective.search
        self._study = _Study(folder / STUDY, self._search)
        self._pace = Pace(self._search.trials - self._study.asked)
        self._running: dict[Future[Outcome], _Running] = {}

    def run(self, out: Path) -> SearchResult:
        """Try what is still to be tried; whatever ends it, the table says what is there."""
        try:
            while self._running or self._study.asked < self._search.trials:
                self._run_until_a_process_dies()
        finally:
            trials = sorted(self._study.trials(), key=lambda trial: trial.number)
            _write_table(self._folder, self._search, trials)
        worker.trim()
        return SearchResult(self._search, trials, self._study.best(), out)

    def _run_until_a_process_dies(self) -> None:
        with self._crew.executor() as pool:
            alive = True
            while alive and (self._fill(pool) or self._running):
                ended = wait(self._running, return_when=FIRST_COMPLETED).done
                alive = not [each for each in ended if not self._end(pool, each, self._running.pop(each))]
        for future in list(self._running):  # what ran beside a process that died broke with it
            self._note(self._running.pop(future), Outcome(error=DIED))

    def _fill(self, pool: Executor) -> bool:
        """Start trials until every process has one; the first one alone, for it computes what the others share."""
        room = getattr(pool, "room", self._crew.jobs) if self._study.trials() else 1
        begun = False
        while len(self._running) < room and self._study.asked < self._search.trials:
            self._begin(pool)
            begun = True
        return begun

    def _begin(self, pool: Executor) -> None:
        trial, settings = self._study.ask()
        point = resolve(self._effective.source, settings)
        alone = not self._running and self._crew.scheduler is None and trial.number == 0
        inner = self._crew.jobs if alone else 1
        task = Task(self._folder, self._effective.source, settings, point.name, inner, reports=False)
        if point.error is not None:
            self._note(_Running(trial, settings, task), Outcome(error=point.error))
        else:
            self._running[submit(pool, task)] = _Running(trial, settings, task)

    def _end(self, pool: Executor, future: Future[Outcome], running: _Running) -> bool:
        """Take note of how a trial ended; tell whether its process lives."""
        try:
            outcome = future.result()
        except BrokenProcessPool:
            self._note(running, Outcome(error=DIED))
            return False
        except WorkerLostError:
            outcome = Outcome(error=DIED)
        if outcome.busy:
            task = replace(running.task, wait=True)
            self._running[submit(pool, task)] = replace(running, task=task)
        else:
            self._note(running, outcome)
        return True

    def _note(self, running: _Running, outcome: Outcome) -> None:
        if outcome.unwritable:
            raise store.unwritable(outcome.error)
        found = self._judged(running, outcome)
        self._study.tell(running.trial, found)
        met = "meets the bounds" if found.feasible else "failed" if found.error else "misses a bound"
        self._say(f"trial {found.number + 1} of {self._search.trials} {met}{self._pace.after_one()}")

    def _judged(self, running: _Running, outcome: Outcome) -> Trial:
        number, point, settings = running.trial.number, running.task.point, running.settings
        if outcome.error is None:
            try:
                value = self._values(point, settings)
                gaps = {bound.text: _gap(bound, value) for bound in self._search.bounds}
                return Trial(number, point, settings, {path: value(path) for path in self._search.objectives}, gaps)
            except ConfigError as error:
                outcome = Outcome(error=str(error))
        return Trial(number, point, settings, {}, {}, outcome.error)

    def _values(self, point: str, settings: Mapping[str, Any]) -> Callable[[str], float]:
        """Return a function from the path of a figure or number of a finished point to its value."""
        metrics = json.loads((self._folder / store.POINTS / point / "metrics.json").read_text(encoding="utf-8"))
        document = family(self._effective.source).load(as_sets(settings)).document
        return lambda path: _value(path, metrics, document)


# --- what comes out --------------------------------------------------------------------------------------------


def _write_table(folder: Path, search: Search, trials: Sequence[Trial]) -> None:
    """Write points.csv: one row per trial."""
    own = ["trial", "meets_bounds", *(f"{direction} {path}" for path, direction in search.objectives.items())]
    fields = [path for key in search.fields or {} for path in paths(key)]
    settings = [
        {"trial": trial.number, "meets_bounds": trial.feasible, **trial.settings}
        | {f"{search.objectives[path]} {path}": value for path, value in trial.objectives.items()}
        for trial in trials
    ]
    table = store.Table(folder, [trial.point for trial in trials], [*own, *fields], settings)
    for trial in trials:
        table.put(trial.point, trial.error)
    table.write(last=True)


def as_data(found: SearchResult) -> dict[str, Any]:
    """Return a finished search for `--json`."""
    return {
        "schema": 1,
        "trials": len(found.trials),
        "failed": sum(trial.error is not None for trial in found.trials),
        "feasible": sum(trial.feasible for trial in found.trials),
        "objectives": dict(found.search.objectives),
        "best": [vars(trial) | {"feasible": True} for trial in found.best],
        "folder": str(found.folder),
    }


def _closest(trials: Sequence[Trial]) -> list[str]:
    """Say by how much the trial that comes closest misses its worst bound."""
    near = min((trial for trial in trials if trial.gaps), key=lambda trial: max(trial.gaps.values()), default=None)
    if near is None:
        return []
    bound, gap = max(near.gaps.items(), key=lambda item: item[1])
    return [f"closest: trial {near.number}, {gap:.3g} of the bound beyond {bound}"]


def search_text(found: SearchResult) -> str:
    """Return the best points as a table."""
    data = as_data(found)
    head = f"{data['trials']} trials, {data['failed']} failed, {data['feasible']} meet the bounds"
    if not found.best:
        return "\n".join([head, *_closest(found.trials)])
    objectives = list(found.search.objectives.items())
    fields = [path for key in found.search.fields or {} for path in paths(key)[:1]]
    rows = [["trial", "point", *(f"{direction} {path}" for path, direction in objectives), *fields]]
    rows += [
        [str(trial.number), trial.point, *(f"{trial.objectives[path]:.6g}" for path, _ in objectives)]
        + [str(trial.settings[path]) for path in fields]
        for trial in found.best
    ]
    kind = "best point" if len(found.search.objectives) == 1 else "Pareto front"
    return "\n".join([head, f"{kind}:", *aligned(rows)])
