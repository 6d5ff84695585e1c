"""Draws from a run folder what its verdict needs beyond metrics.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostsim.config.catalogue import assumed_numbers
from ghostsim.report.store import RunFolder
from ghostsim.report.verdict import BoundCheck, Facts


def facts_of(run: RunFolder) -> Facts:
    """Return the facts of a run folder."""
    workload = run.manifest.get("workload")
    workload = workload if isinstance(workload, Mapping) else {}
    return Facts(
        not_lossless=frozenset(label for label, lossless in (workload.get("lossless") or {}).items() if not lossless),
        bounds=bound_checks(run.steps),
        workload=workload,
        assumed=len(assumed_numbers(run.config)),
    )


def bound_checks(steps: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[str, BoundCheck]:
    """Return for every run with bounds the share of them that lies below the true score, over all steps."""
    found = {}
    for label, columns in steps.items():
        checks = _sum(columns.get("bound_checks", ()))
        masses = [mass for mass in columns.get("violated_mass_mean", ()) if mass is not None]
        if checks:
            mass = sum(masses) / len(masses) if masses else 0.0
            found[label] = BoundCheck(_sum(columns.get("violations", ())) / checks, mass)
    return found


def _sum(values: Sequence[float | None]) -> float:
    return sum(value for value in values if value is not None)
