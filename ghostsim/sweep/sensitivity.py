"""Which assumed number decides a verdict: each is divided and multiplied by a factor, on the same Selections."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghostsim import units
from ghostsim.columns import aligned
from ghostsim.config.catalogue import Provenance, assumed_numbers
from ghostsim.config.load import LoadedScenario
from ghostsim.config.search import Search
from ghostsim.config.sweep import Sweep, as_sets
from ghostsim.errors import ConfigError, GhostsimError
from ghostsim.report.store import load_run
from ghostsim.sweep import store
from ghostsim.sweep.executor import Crew, Progress, open_store, run_points
from ghostsim.sweep.points import EffectiveSweep, family, resolve
from ghostsim.sweep.search import EffectiveSearch

TABLE = "sensitivity.csv"
_MOST_SHOWN = 20
_DIGITS = 6
Ratios = Mapping[str, Mapping[str, float]]
"""Baseline to label to ratio; above 1 is better than the baseline."""


@dataclass(frozen=True)
class Assumption:
    """A number that nobody measured or published, and every path that it stands at."""

    paths: tuple[str, ...]
    value: Any
    source: str

    def times(self, factor: float) -> dict[str, Any]:
        """Return settings that multiply it; none if it would stay what it is."""
        changed = _times(self.value, factor)
        return dict.fromkeys(self.paths, changed) if changed != self.value else {}


@dataclass(frozen=True)
class Effect:
    """What an assumption does to one run against one baseline."""

    assumption: Assumption
    baseline: str
    run: str
    ratio: float
    divided: float | None
    """The ratio with the number divided by the factor; none if that is no valid platform."""
    multiplied: float | None

    @property
    def size(self) -> float:
        """The largest change of the ratio, as the logarithm of a factor."""
        return max((abs(math.log(each / self.ratio)) for each in self._changed), default=0.0)

    @property
    def flips(self) -> bool:
        """Whether a change makes a run that beats its baseline lose to it, or the other way about."""
        return any((each > 1) != (self.ratio > 1) for each in self._changed)

    @property
    def _changed(self) -> list[float]:
        return [each for each in (self.divided, self.multiplied) if each is not None]


@dataclass(frozen=True)
class SensitivityResult:
    """The effects of all assumptions, the largest first."""

    search: Search
    ratios: Ratios
    effects: Sequence[Effect]
    folder: Path


def run_sensitivity(
    effective: EffectiveSearch, out: Path, crew: Crew, *, resume: bool = False, progress: Progress | None = None
) -> SensitivityResult:
    """Run a scenario as it is, and with each assumed number of its platforms divided and multiplied.

    Parameters are those of `run_search`.

    Raises
    ------
    ConfigError
        If the scenario has no baseline, or nothing in it is assumed.
    GhostsimError
        If the scenario cannot be run as it is.
    """
    search = effective.search
    assert search.sensitivity is not None
    fixed = {path: axis[0] for path, axis in (search.fields or {}).items() if isinstance(axis, tuple)}
    assumptions = _assumptions(family(effective.source).load(as_sets(fixed)))
    factor = search.sensitivity.factor
    changes = [each.times(by) for each in assumptions for by in (1 / factor, factor)]
    sweep = Sweep(scenario=search.scenario, runs=search.runs, list_=tuple(fixed | change for change in [{}, *changes]))
    crew.check()
    open_store(out, effective.document, store.SEARCH, resume=resume)
    run_points(out, EffectiveSweep(effective.document, sweep), crew, progress)
    base, *changed = (_ratios(out, effective, settings, search.sensitivity.figure) for settings in sweep.list_)
    if base is None:
        raise GhostsimError(f"found that the scenario fails as it is, expected ratios; see {out / store.TABLE}")
    found = SensitivityResult(search, base, sorted(_effects(assumptions, base, changed), key=_order), out)
    _write(found, out / TABLE)
    return found


def _order(effect: Effect) -> tuple[float, str, str, str]:
    return -effect.size, effect.assumption.paths[0], effect.baseline, effect.run


# --- what is assumed -------------------------------------------------------------------------------------------


def _assumptions(loaded: LoadedScenario) -> list[Assumption]:
    """Return the assumed numbers of the platforms; one that several devices take from one place is one."""
    if not loaded.scenario.baseline:
        raise ConfigError("sensitivity: found a scenario without baseline, expected one, e.g. baseline: [full]")
    groups: dict[tuple[object, ...], list[Provenance]] = {}
    for fact in assumed_numbers(loaded.document):
        keys = fact.path.split(".")
        if keys[0] == "platform" or keys[2:3] == ["platform"]:
            place = loaded.at(*(int(key) if key.isdecimal() else key for key in keys))
            groups.setdefault((place, keys[-1], str(fact.value)), []).append(fact)
    if not groups:
        raise ConfigError("sensitivity: found no assumed number in the platform, expected one or more")
    return [
        Assumption(tuple(fact.path for fact in facts), facts[0].value, facts[0].source) for facts in groups.values()
    ]


def _times(value: Any, factor: float) -> Any:  # noqa: ANN401  (a number or a quantity as a document has it)
    if not isinstance(value, str):
        return max(1, round(value * factor)) if isinstance(value, int) else value * factor
    number, _, unit = value.partition(" ")
    text = f"{float(number) * factor:.{_DIGITS}g}"
    return f"{text if units.dimension_of(unit) else max(1, round(float(text)))} {unit}"


# --- what it does ----------------------------------------------------------------------------------------------


def _ratios(out: Path, effective: EffectiveSearch, settings: Mapping[str, Any], figure: str) -> Ratios | None:
    """Return the ratios of a point, or none if it failed."""
    point = resolve(effective.source, settings)
    if point.error is not None or not store.is_done(out, point.name):
        return None
    compare = load_run(out / store.POINTS / point.name).metrics["compare"]
    return {
        baseline: {label: ratios[figure] for label, ratios in labels.items() if label not in compare}
        for baseline, labels in compare.items()
    }


def _effects(assumptions: Sequence[Assumption], base: Ratios, changed: Sequence[Ratios | None]) -> Iterator[Effect]:
    pairs = zip(changed[::2], changed[1::2], strict=True)
    for assumption, (divided, multiplied) in zip(assumptions, pairs, strict=True):
        for baseline, labels in base.items():
            for label, ratio in labels.items():
                sides = (each[baseline][label] if each else None for each in (divided, multiplied))
                yield Effect(assumption, baseline, label, ratio, *sides)


# --- what comes out --------------------------------------------------------------------------------------------


def as_data(found: SensitivityResult) -> dict[str, Any]:
    """Return a finished sensitivity for `--json`."""
    assert found.search.sensitivity is not None
    return {
        "schema": 1,
        **found.search.sensitivity.model_dump(),
        "ratios": found.ratios,
        "flips": sum(effect.flips for effect in found.effects),
        "effects": [_row(effect) for effect in found.effects],
        "folder": str(found.folder),
    }


def _row(effect: Effect) -> dict[str, Any]:
    row = {key: value for key, value in asdict(effect).items() if key != "assumption"}
    return {**asdict(effect.assumption), **row, "flips": effect.flips}


def _write(found: SensitivityResult, path: Path) -> None:
    """Write one row per assumption, run and baseline; several paths are separated by commas."""
    rows = [_row(effect) | {"paths": ", ".join(effect.assumption.paths)} for effect in found.effects]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: json.dumps(value) if isinstance(value, bool) else value for key, value in row.items()} for row in rows
        )


def sensitivity_text(found: SensitivityResult) -> str:
    """Return the largest effects as a table, the ones that flip a verdict first said."""
    assert found.search.sensitivity is not None
    factor, figure = found.search.sensitivity.factor, found.search.sensitivity.figure
    flips = [effect for effect in found.effects if effect.flips]
    head = [
        f"{run} against {baseline}: {figure} ratio {ratio:.4g}, {_flip_text(flips, run, baseline)}"
        for baseline, labels in found.ratios.items()
        for run, ratio in labels.items()
    ]
    rows = [["assumed number", "value", "run", "baseline", f"/ {factor:g}", "ratio", f"x {factor:g}", "flips"]]
    rows += [_cells(effect) for effect in found.effects[:_MOST_SHOWN]]
    return "\n".join([*head, "", *aligned(rows)])


def _flip_text(flips: Sequence[Effect], run: str, baseline: str) -> str:
    names = [effect.assumption.paths[0] for effect in flips if (effect.run, effect.baseline) == (run, baseline)]
    return f"flipped by {', '.join(names)}" if names else "flipped by no assumed number alone"


def _cells(effect: Effect) -> list[str]:
    sides = ("-" if each is None else f"{each:.4g}" for each in (effect.divided, effect.ratio, effect.multiplied))
    more = len(effect.assumption.paths) - 1
    name = effect.assumption.paths[0] + (f" (+{more})" if more else "")
    return [name, str(effect.assumption.value), effect.run, effect.baseline, *sides, "yes" if effect.flips else ""]
