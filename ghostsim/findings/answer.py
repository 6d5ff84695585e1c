"""Holds the claims of a finding against its evidence; the verdict is the first that they carry."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghostsim.config.expressions import evaluate, parse
from ghostsim.config.finding import Chart, Claim, Finding
from ghostsim.config.load import Loaded
from ghostsim.errors import ConfigError, Location
from ghostsim.findings.evidence import Gathered
from ghostsim.metrics.require import OPERATORS
from ghostsim.report.words import number, times

_LEAST_DIGITS = 3


@dataclass(frozen=True)
class Held:
    """A claim and what became of it."""

    claim: Claim
    value: float
    holds: bool | None
    """None for a claim that is a figure only."""

    @property
    def text(self) -> str:
        """The value with its unit."""
        return written(self.value, self.claim.unit)

    @property
    def bar(self) -> str:
        """What the value must meet, with its unit."""
        bar = self.claim.bar
        return f"{bar[0]} {written(bar[1], self.claim.unit)}" if bar else ""


@dataclass(frozen=True)
class Curve:
    """One curve of a chart: the points that both coordinates are known of."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]


@dataclass(frozen=True)
class Drawn:
    """A chart with its curves."""

    chart: Chart
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Answer:
    """A finding with everything filled in."""

    name: str
    finding: Finding
    evidence: Sequence[Gathered]
    claims: Sequence[Held]
    verdict: str
    charts: Sequence[Drawn]
    tables: Sequence[tuple[str, Mapping[str, Sequence[Any]]]]

    @property
    def headline(self) -> str:
        """The first sentence of the verdict."""
        first, dot, _ = self.verdict.partition(". ")
        return first + dot.strip()

    @property
    def reasons(self) -> str:
        """The rest of the verdict."""
        return self.verdict[len(self.headline) :].strip()

    @property
    def points(self) -> int:
        """Points that were simulated or evaluated for it."""
        return sum(each.points for each in self.evidence)


def answer(name: str, loaded: Loaded[Finding], evidence: Sequence[Gathered]) -> Answer:
    """Hold the claims of a finding against its evidence.

    Raises
    ------
    ConfigError
        With the place of an expression that does not fit the evidence.
    """
    finding = loaded.value
    scope: dict[str, Any] = {each.name: each.data for each in evidence}
    for key, text in finding.values.items():
        scope[key] = _evaluated(text, scope, loaded.at("values", key))
    claims = [_held(each, scope, loaded.at("claims", i, "value")) for i, each in enumerate(finding.claims)]
    return Answer(
        name=name,
        finding=finding,
        evidence=evidence,
        claims=claims,
        verdict=_verdict(finding, claims),
        charts=[_drawn(each, scope, loaded.at("charts", i)) for i, each in enumerate(finding.charts)],
        tables=[
            (each.title, {head: _list(_evaluated(text, scope, loaded.at("tables", i, "columns", head)))
                          for head, text in each.columns.items()})
            for i, each in enumerate(finding.tables)
        ],
    )  # fmt: skip


def written(value: float, unit: str) -> str:
    """Write a number with its unit; ``%`` takes a fraction, ``x`` a ratio."""
    if unit == "x":
        return times(value)
    if unit == "%":
        return f"{number(value * 100, _LEAST_DIGITS)} %"
    return f"{number(value, _LEAST_DIGITS)} {unit}".rstrip()


def _evaluated(text: str, scope: Mapping[str, Any], at: Location) -> Any:  # noqa: ANN401
    try:
        return evaluate(parse(text), scope)
    except ValueError as error:
        raise ConfigError(str(error), at) from None


def _held(claim: Claim, scope: Mapping[str, Any], at: Location) -> Held:
    value = _evaluated(claim.value, scope, at)
    if np.ndim(value) or not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise ConfigError(f"found {value!r} as the value of claim {claim.name!r}, expected one finite number", at)
    bar = claim.bar
    return Held(claim, float(value), OPERATORS[bar[0]](float(value), bar[1]) if bar else None)


def _verdict(finding: Finding, claims: Sequence[Held]) -> str:
    truths = {each.claim.name: bool(each.holds) for each in claims}
    says = next(b.says for b in finding.verdict if b.when is None or bool(evaluate(parse(b.when), truths)))
    return says.format_map({each.claim.name: each.text for each in claims})


def _drawn(chart: Chart, scope: Mapping[str, Any], at: Location) -> Drawn:
    def get(text: str) -> list[Any]:
        return _list(_evaluated(text, scope, at))

    x, groups = get(chart.x), get(chart.by) if chart.by else []
    curves = []
    for label, text in chart.y.items():
        y = get(text)
        if len(y) != len(x) or (groups and len(groups) != len(x)):
            raise ConfigError(f"found {len(x)} values of x and {len(y)} of {label!r}, expected as many", at)
        curves += [_curve(label, x, y, range(len(x)))] if not groups else _grouped(label, x, y, groups)
    return Drawn(chart, curves)


def _grouped(label: str, x: Sequence[Any], y: Sequence[Any], groups: Sequence[Any]) -> list[Curve]:
    def told(group: object) -> str:
        return f"{label}, {number(group, 6) if isinstance(group, float) else group}"

    members = {group: [i for i, each in enumerate(groups) if each == group] for group in dict.fromkeys(groups)}
    return [_curve(told(group), x, y, rows) for group, rows in members.items()]


def _curve(name: str, x: Sequence[Any], y: Sequence[Any], rows: Sequence[int]) -> Curve:
    kept = [i for i in rows if _known(x[i]) and _known(y[i])]
    if all(isinstance(x[i], int | float) for i in kept):
        kept.sort(key=lambda i: float(x[i]))
    return Curve(name, [x[i] for i in kept], [y[i] for i in kept])


def _known(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _list(value: Any) -> list[Any]:  # noqa: ANN401
    return value.tolist() if isinstance(value, np.ndarray) else list(value) if isinstance(value, list) else [value]
