"""What an audit says about the published criteria: who meets them, by which count of false elimination."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ghostsim.study.audit import EPS, RULES, Audit, Point, Rule, Scope

BY = {"frontier": "top 32, all", "simulator": "top 32, cold", "needed": "needed by the oracle"}
"""The definitions that count tokens, in few words."""
SCOPE_NAMES: dict[Scope, str] = {"head": "query head", "group": "GQA group"}
MEANING = {
    "frontier": "of the exact best 32 of all tokens, the share that is ruled out",
    "simulator": "the same of those of the best 32 that are cold",
    "modern": "of the queries for which every cold token is ruled out, the share that had one above the threshold "
    "(without a threshold: one that the oracle reads)",
    "needed": "of the cold tokens that the oracle reads at the same eps (thresholds and shares: 1 %), the share that "
    "is ruled out",
}


@dataclass(frozen=True)
class Criterion:
    """A published criterion: false elimination at most, and elimination at least, or strictly so."""

    name: str
    false_elimination: float
    elimination: float
    strict: bool

    def met(self, point: Point, definition: str) -> bool:
        """Say whether a point meets the criterion by one definition of false elimination."""
        false = point.false_elimination[definition]
        if self.strict:
            return false < self.false_elimination and point.elimination > self.elimination
        return false <= self.false_elimination and point.elimination >= self.elimination

    @property
    def text(self) -> str:
        """The criterion in words."""
        under, over = ("under", "over") if self.strict else ("at most", "at least")
        false = f"false elimination {under} {100 * self.false_elimination:g} %"
        return f"{false} at elimination {over} {percent(self.elimination, 0)}"


CONCEPT = Criterion("concept", 0.005, 0.70, strict=True)
LABORATORY = Criterion("laboratory", 0.05, 0.30, strict=False)
CRITERIA = (CONCEPT, LABORATORY)


@dataclass(frozen=True)
class Finding:
    """Who meets a criterion in one scope by one definition: the smallest estimate and the smallest certified sketch."""

    criterion: Criterion
    scope: Scope
    definition: str
    estimate: Point | None
    certified: Point | None
    oracle: bool
    """Whether exact scores under the staged certificate at the larger eps meet it."""


def findings(audit: Audit) -> list[Finding]:
    """Judge every criterion in both scopes by the definitions that count tokens."""
    points = list(audit.points())
    return [_finding(points, c, scope, by) for c in CRITERIA for scope in SCOPE_NAMES for by in BY]


def _finding(points: Sequence[Point], criterion: Criterion, scope: Scope, definition: str) -> Finding:
    met = [each for each in points if each.scope == scope and criterion.met(each, definition)]
    sketches = [each for each in met if each.sketch.kind != "exact"]
    return Finding(
        criterion,
        scope,
        definition,
        _smallest(each for each in sketches if not each.certified),
        _smallest(each for each in sketches if each.certified),
        any(each.sketch.kind == "exact" and each.rule == Rule("staged", EPS[0]) for each in met),
    )


def _smallest(points: Iterable[Point]) -> Point | None:
    """Return the point of fewest bytes, of those the one that rules out most."""
    return min(points, key=lambda each: (each.sketch.nbytes, -each.elimination), default=None)


def best_certified(audit: Audit, scope: Scope) -> tuple[Point, Point]:
    """Return what the best sketch and exact scores rule out under the staged certificate at the larger eps."""
    rule = RULES.index(Rule("staged", EPS[0]))
    points = [audit.point(i, rule, scope) for i in range(len(audit.sketches))]
    return max(points[:-1], key=lambda each: each.elimination), points[-1]


def sentences(audit: Audit) -> list[str]:
    """Return the verdict: first what is certified, then what an estimate is worth, by GQA group."""
    return [_certified_sentence(audit, found) if certified else _estimate_sentence(found)
            for certified in (True, False) for found in _leading(audit, certified=certified)]  # fmt: skip


def _leading(audit: Audit, *, certified: bool) -> list[Finding]:
    """Return the findings by group: of certified sketches by need, of estimates by the laboratory's count."""
    by = "needed" if certified else "simulator"
    return [each for each in findings(audit) if each.scope == "group" and each.definition == by]


def verdict(audit: Audit) -> str:
    """Return the verdict in one sentence."""
    best, oracle = best_certified(audit, "group")
    certified = {each.criterion: each.certified for each in _leading(audit, certified=True)}
    judged = [f"the {c.name}'s criterion is {'met' if certified[c] else 'missed'}" for c in CRITERIA]
    return (
        f"{audit.trace.name}: certified to {percent(EPS[0], 0)} of lost mass, {best.sketch.label} rule out "
        f"{percent(best.elimination)} of the cold tokens by GQA group, exact scores {percent(oracle.elimination)}: "
        f"{', '.join(judged)}"
    )


def percent(value: float, digits: int = 1) -> str:
    """Write a fraction as a percentage."""
    return f"{100 * value:.{digits}f} %"


def _certified_sentence(audit: Audit, found: Finding) -> str:
    criterion, point = found.criterion, found.certified
    if point:
        return (
            f"The {criterion.name}'s criterion ({criterion.text}) is met with a certificate by {point.name}: "
            f"{percent(point.elimination)} ruled out, at most {percent(point.lost_max, 2)} of a head's mass lost in a "
            "step looked at."
        )
    _, oracle = best_certified(audit, "group")
    limit = "though by exact scores" if found.oracle else "nor by exact scores"
    return (
        f"The {criterion.name}'s criterion ({criterion.text}) is met by no certified sketch, {limit}, which rule out "
        f"{percent(oracle.elimination)} at eps {percent(EPS[0], 0)}."
    )


def _estimate_sentence(found: Finding) -> str:
    criterion, point = found.criterion, found.estimate
    if point is None:
        return f"No estimate meets the {criterion.name}'s criterion as the laboratory counts."
    false = percent(point.false_elimination["simulator"], 2)
    return (
        f"As the laboratory counts ({BY['simulator']}), the {criterion.name}'s criterion is met without a certificate "
        f"by {point.name}: {percent(point.elimination)} ruled out at {false} false elimination, yet "
        f"{percent(point.false_elimination['needed'])} of the tokens needed for "
        f"{percent(1 - EPS[0], 0)} of the mass are gone, and up to {percent(point.lost_max)} of a head's mass in one "
        "step."
    )
