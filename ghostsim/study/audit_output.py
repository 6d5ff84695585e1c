"""Lays out an audit as JSON, as CSV and as text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ghostsim.errors import Location, StoreError
from ghostsim.policy.rules import Mask
from ghostsim.study.audit import DEFINITIONS, EPS, RULES, SCOPES, Audit, Point, Rule
from ghostsim.study.audit_verdict import MEANING, Finding, findings, percent, sentences, verdict
from ghostsim.study.drift import Drift, drift_text
from ghostsim.study.drift import as_json as drift_json
from ghostsim.study.tree import Tree, tree_text
from ghostsim.study.tree import as_json as tree_json
from ghostsim.trace.statistics import CLASSES

HEADER = (
    "part", "sketch", "size", "bytes_per_token", "rule", "value", "scope", "elimination", "of_oracle",
    *(f"false_elimination_{name}" for name in DEFINITIONS), "lost_mass_mean", "lost_mass_max", "moved",
)  # fmt: skip


def as_json(audit: Audit, drift: Drift | None = None, tree: Tree | None = None) -> dict[str, Any]:
    """Return the audit as plain data: verdict, criteria, ranks, every point over all heads and by part, and more."""
    more = {} if drift is None else {"drift": drift_json(drift)}
    more |= {} if tree is None else {"tree": tree_json(tree)}
    return more | {
        "schema": 1,
        "trace": audit.trace.name,
        "steps": list(audit.steps),
        "cold_tokens": audit.cold_tokens,
        "violations": audit.violations,
        "verdict": verdict(audit),
        "sentences": sentences(audit),
        "definitions": MEANING,
        "criteria": [_criterion(found) for found in findings(audit)],
        "classes": [[CLASSES[i] for i in row] for row in audit.classes],
        "ranks": _ranks(audit),
        "points": [_point(point) for point in audit.points()],
        "parts": {name: [_point(point) for point in audit.points(heads)] for name, heads in audit.parts().items()},
    }


def _criterion(found: Finding) -> dict[str, Any]:
    return {
        "criterion": found.criterion.name,
        "text": found.criterion.text,
        "scope": found.scope,
        "definition": found.definition,
        "estimate": found.estimate and _point(found.estimate),
        "certified": found.certified and _point(found.certified),
        "oracle": found.oracle,
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "sketch": point.sketch.kind,
        "size": point.sketch.size,
        "bytes_per_token": point.sketch.nbytes,
        "rule": point.rule.form,
        "value": point.rule.value,
        "scope": point.scope,
        "elimination": point.elimination,
        "of_oracle": point.of_oracle,
        "false_elimination": point.false_elimination,
        "lost_mass": {"mean": point.lost_mean, "max": point.lost_max},
        "moved": point.moved,
    }


def _ranks(audit: Audit) -> list[dict[str, Any]]:
    parts = audit.parts()
    return [
        {
            "sketch": sketch.kind,
            "size": sketch.size,
            "bytes_per_token": sketch.nbytes,
            "spearman": float(audit.spearman[i].mean()),
            "top32_overlap": float(audit.overlap[i].mean()),
            "parts": {
                name: {
                    "spearman": float(audit.spearman[i][heads].mean()),
                    "top32_overlap": float(audit.overlap[i][heads].mean()),
                }
                for name, heads in parts.items()
            },
        }
        for i, sketch in enumerate(audit.sketches)
    ]


def write_csv(audit: Audit, path: Path) -> None:
    """Write every point over all heads, by layer, by class and by query head; numbers in full.

    Raises
    ------
    StoreError
        If the file cannot be written.
    """
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEADER)
            for name, heads in _all_parts(audit):
                writer.writerows(_row(name, point) for point in audit.points(heads))
    except OSError as error:
        reason = f"found a path that cannot be written ({error.strerror}), expected a new file, e.g. audit.csv"
        raise StoreError(reason, Location(path)) from None


def _all_parts(audit: Audit) -> Iterator[tuple[str, Mask | None]]:
    yield "all", None
    yield from audit.parts().items()
    for i, j in np.ndindex(audit.classes.shape):
        one = np.zeros(audit.classes.shape, dtype=bool)
        one[i, j] = True
        yield f"layer {audit.trace.model.kept_layers[i]} head {j}", one


def _row(part: str, point: Point) -> list[Any]:
    sketch, rule = point.sketch, point.rule
    false = [point.false_elimination[name] for name in DEFINITIONS]
    named = [part, sketch.kind, sketch.size, sketch.nbytes, rule.form, rule.value, point.scope]
    return [*named, point.elimination, point.of_oracle, *false, point.lost_mean, point.lost_max, point.moved]


def audit_text(audit: Audit, drift: Drift | None = None, tree: Tree | None = None) -> str:
    """Lay out the certified eliminations and the ranks as text, drift and trees if measured, the verdict last."""
    rule, share = RULES.index(Rule("staged", EPS[0])), RULES.index(Rule("share", 0.7))
    about = (
        f"{audit.trace.name}: {len(audit.steps)} of {audit.trace.steps} steps, {audit.cold_tokens} cold tokens, "
        f"{audit.violations} bounds violated\n"
        f"head, group: ruled out by the staged certificate at eps {percent(EPS[0], 0)}; oracle: group, as a share of "
        "what exact scores rule out\n"
        "rank, top 32: Spearman's correlation of estimate and score, overlap of the best 32; needed, lost: needed "
        "tokens gone\nand worst lost mass when the lowest 70 % by estimate are ruled out"
    )
    columns = ("bytes", "head", "group", "oracle", "rank", "top 32", "needed", "lost")
    header = f"{'sketch':20}" + "".join(f"{name:>8}" for name in columns)
    rows = [_text_row(audit, i, rule, share) for i in range(len(audit.sketches))]
    more = ([] if drift is None else [drift_text(drift), ""]) + ([] if tree is None else [tree_text(tree), ""])
    return "\n".join([about, "", header, *rows, "", *more, *sentences(audit), "", verdict(audit)])


def _text_row(audit: Audit, i: int, rule: int, share: int) -> str:
    head, group = (audit.point(i, rule, scope) for scope in SCOPES)
    lowest = audit.point(i, share, "head")
    numbers = [
        head.elimination,
        group.elimination,
        group.of_oracle,
        float(audit.spearman[i].mean()),
        float(audit.overlap[i].mean()),
        lowest.false_elimination["needed"],
        lowest.lost_max,
    ]
    sketch = audit.sketches[i]
    return f"{sketch.label:20}{sketch.nbytes:8g}" + "".join(f"{value:8.3f}" for value in numbers)
