"""A search: the point of a scenario that serves an objective best, or the assumed number that decides a verdict."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ghostsim import units
from ghostsim.config.base import Count, MisfitError, Number, Strict, Text, Whole
from ghostsim.config.ranges import Axes, paths
from ghostsim.config.scenario import FIGURES, TABLES, Label
from ghostsim.errors import ConfigError, Location

_PATH = r"[A-Za-z][A-Za-z0-9_.\-]*"
_NUMBER = r"[+-]?[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]{1,2})?"
_BOUND = re.compile(rf"^\s*({_PATH})\s*(<=|>=|<|>)\s*(?:(?:({_NUMBER})\s*\*\s*)?({_PATH})|({_NUMBER}(?: \S+)?))\s*$")
_EXAMPLE = "'a.step_ms.p95 <= 1.1 * b.step_ms.p95' or 'a.quality.lost_mass.max <= 0.01'"


@dataclass(frozen=True)
class Bound:
    """A figure, and a number or a share of another figure that it is held against."""

    text: str
    path: str
    sign: str
    factor: float
    """The number itself if there is no other figure."""
    other: str | None

    @property
    def paths(self) -> tuple[str, ...]:
        """The figures that it is about."""
        return (self.path,) if self.other is None else (self.path, self.other)


def parse_bound(text: str) -> Bound:
    """Read ``PATH OP NUMBER`` or ``PATH OP [NUMBER *] PATH``, OP one of <= >= < >.

    Raises
    ------
    ValueError
        If `text` is neither.
    """
    found = _BOUND.match(text)
    if found is None:
        raise ValueError(f"found {text!r}, expected PATH OP NUMBER or PATH OP [NUMBER *] PATH, e.g. {_EXAMPLE}")
    path, sign, share, other, number = found.groups()
    if other is not None:
        return Bound(text, path, sign, float(share or 1), other)
    value = units.magnitude(number) if " " in number else float(number)
    if value is None:
        raise ValueError(f"found {number!r}, expected a number, or a quantity with its unit, e.g. '2 TMAC/s'")
    return Bound(text, path, sign, value, None)


class Sensitivity(Strict):
    """Changes every assumed number and asks whether a run still beats each baseline."""

    factor: Annotated[Number, Field(gt=1, le=1000)] = 2.0
    """Each number is divided and multiplied by it."""
    figure: Literal["tokens_per_s", "step_p50", "step_p95"] = "tokens_per_s"
    """The ratio to the baseline that is the verdict; above 1 is better than the baseline."""


class Search(Strict):
    """A scenario, what may change in it, and what is wanted of it."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Text | None = None
    summary: Text = "search"
    scenario: Text
    runs: tuple[Label, ...] = ()
    """Runs of the scenario to keep; none keeps all."""
    fields: Axes | None = None
    objectives: dict[Text, Literal["minimise", "maximise"]] = Field(default={})
    """Figures of metrics.json (``LABEL.step_ms.p95``; a table counts as its sum) or numbers of the scenario."""
    subject_to: tuple[Text, ...] = ()
    """Bounds that a point must meet: ``PATH OP NUMBER`` or ``PATH OP [NUMBER *] PATH``."""
    trials: Annotated[Count, Field(le=100_000)] = 100
    seed: Whole = 1
    sampler: Literal["tpe", "nsga2", "random"] | None = None
    """None takes `tpe` for one objective and `nsga2` for several."""
    sensitivity: Sensitivity | None = None

    @model_validator(mode="after")
    def _asks_one_thing(self) -> Search:
        if bool(self.objectives) == (self.sensitivity is not None):
            raise ValueError("found none or both of objectives and sensitivity, expected one of them")
        if self.objectives and self.fields is None:
            raise MisfitError(f"found no fields, expected what may change, e.g. {_FIELDS}")
        if self.sensitivity and any(
            not isinstance(axis, tuple) or len(axis) > 1 for axis in (self.fields or {}).values()
        ):
            raise MisfitError(
                "found a range or several choices beside sensitivity, expected one value a field", "fields"
            )
        for index, text in enumerate(self.subject_to):
            try:
                parse_bound(text)
            except ValueError as error:
                raise MisfitError(str(error), "subject_to", index) from None
        self._check_paths()
        return self

    def _check_paths(self) -> None:
        named = [path for key in self.fields or {} for path in paths(key)]
        twice = next((path for path in named if named.count(path) > 1), None)
        if twice is not None:
            raise MisfitError(f"found {twice!r} twice, expected each field once", "fields")

    @property
    def bounds(self) -> list[Bound]:
        """The bounds, parsed."""
        return [parse_bound(text) for text in self.subject_to]


_FIELDS = "fields: {platform.links.cxl0.width: [4, 8, 16]}"


def check_figure(path: str, labels: tuple[str, ...], at: Location | None) -> None:
    """Refuse a path that begins with the label of a run and is no figure of one.

    Raises
    ------
    ConfigError
        If it is neither a number of metrics.json, nor a table of numbers.
    """
    label, _, figure = path.partition(".")
    if label not in labels or figure in FIGURES or figure.partition(".")[0] in TABLES:
        return
    close = difflib.get_close_matches(figure, FIGURES, 1, 0.5) or ["step_ms.p95"]
    message = f"found {path!r}, which is no number of metrics.json, expected one, e.g. '{label}.{close[0]}'"
    raise ConfigError(message, at)


def number_of(value: Any) -> float | None:
    """Return a value of a document as a number in base units, or none if it is no number."""
    if isinstance(value, dict):
        return number_of(value.get("value"))
    if isinstance(value, str):
        return units.magnitude(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def number_at(document: Any, path: str) -> float | None:
    """Return the number at a dotted path of an effective document, or none if there is none."""
    node = document
    for key in path.split("."):
        if isinstance(node, list):
            node = node[int(key)] if key.isdecimal() and int(key) < len(node) else None
        else:
            node = node.get(key) if isinstance(node, dict) else None
    return number_of(node)
