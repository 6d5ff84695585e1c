"""The frontier of KV-cache policies on a recorded trace: what each loses against the bytes that it moves."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.config.load import load_policy
from ghostsim.config.policy import Pin, Policy
from ghostsim.errors import Location, StoreError, TraceError, UsageError
from ghostsim.plan.selection import Selection, Stream
from ghostsim.policy.evaluate import Progress, select
from ghostsim.policy.needs import unmet
from ghostsim.study.budgets import OWN, promised, swept
from ghostsim.trace.compose import compose
from ghostsim.trace.format import Trace

Floats = npt.NDArray[np.float64]

STEPS = 64
ORACLE = "oracle"
ORACLE_EPS = (0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 5e-3, 2e-3, 1e-3, 3e-4, 1e-4, 1e-5, 1e-6)
MEASURES = ("lost_mass.mean", "lost_mass.max", "output_error.mean")
"""What a policy may lie on the frontier of."""


@dataclass(frozen=True)
class Point:
    """One policy at one budget; bytes are means per step over all KV heads of the trace."""

    policy: str
    budget: str
    """`own`: as the file has it; else `x0.5` (of the file's budget) or `eps 0.1`."""
    index: float
    hbm: float
    fetched: float
    migrate: float
    lost_mean: float
    lost_max: float
    certified_max: float | None
    error_mean: float | None
    error_max: float | None
    leads: tuple[str, ...] = ()
    """The measures in which no ranked point has as few bytes and loses as little."""

    @property
    def nbytes(self) -> float:
        """Bytes a step in all."""
        return self.index + self.hbm + self.fetched + self.migrate

    @property
    def label(self) -> str:
        """Policy and budget."""
        return self.policy if self.budget == OWN else f"{self.policy} {self.budget}"

    def loss(self, measure: str) -> float | None:
        """Return the value of one of `MEASURES`."""
        return {"lost_mass.mean": self.lost_mean, "lost_mass.max": self.lost_max}.get(measure, self.error_mean)


@dataclass(frozen=True)
class Frontier:
    """Policies on a trace; `full` are the bytes of a step that reads everything in fp16."""

    trace: Trace
    steps: int
    policies: Mapping[str, Policy]
    points: tuple[Point, ...]
    oracle: tuple[Point, ...]
    """The limit, by falling eps: exact scores at no cost and nothing pinned."""
    skipped: Mapping[str, str]
    full: float

    def ranked(self, point: Point, measure: str) -> bool:
        """Whether a point takes part in a ranking: as published, one token a step, with all that it loses in view."""
        policy = self.policies[point.policy]
        seen = policy.lossless or measure.startswith("output_error")
        alone = policy.read.speculate == 1
        return policy.fidelity == "exact" and alone and seen and point.loss(measure) is not None

    def leaders(self, measure: str) -> list[str]:
        """Return the policies on the frontier of a measure, the one with the fewest bytes first.

        A budget that is raised until everything is read is no merit.
        """
        lead = [point for point in self.points if measure in point.leads and self.ranked(point, measure)]
        lead = [point for point in lead if point.nbytes < self.full or point.budget == OWN]
        return list(dict.fromkeys(point.policy for point in sorted(lead, key=lambda point: point.nbytes)))


def frontier(
    trace: Trace,
    policies: Sequence[Policy],
    *,
    steps: int = STEPS,
    jobs: int = 0,
    progress: Progress | None = None,
) -> Frontier:
    """Evaluate policies, each at several budgets, and the oracle.

    Parameters
    ----------
    policies
        Those that the trace cannot serve are skipped with the reason.
    steps
        Decode steps from the first; at most those recorded.
    jobs, progress
        As `select` takes them.

    Raises
    ------
    TraceError
        If the trace can serve none of the policies.
    """
    named = {policy.name: policy for policy in policies if policy.name != ORACLE}
    if len({policy.name for policy in policies}) < len(policies):
        raise UsageError("--policy: found two policies of one name, expected different names")
    reasons = {name: unmet(policy, trace) for name, policy in named.items()}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    served = {name: policy for name, policy in named.items() if name not in skipped}
    if not served and skipped:
        name, reason = next(iter(skipped.items()))
        raise TraceError(f"{name}: {reason}", Location(trace.path))
    curves = {(name, label): each for name, policy in served.items() for label, each in swept(policy).items()}
    limit = {(ORACLE, f"eps {eps:g}"): promised(_free(), eps) for eps in ORACLE_EPS}
    asked = curves | limit
    workload = compose([trace], None, requests=1, steps=min(steps, trace.steps), context=None, seed=1)
    found = select({"/".join(key): each for key, each in asked.items()}, workload, jobs=jobs, progress=progress)
    measured = {key: _point(key[1], each, found["/".join(key)]) for key, each in asked.items()}
    result = Frontier(
        trace=trace,
        steps=workload.steps,
        policies=served,
        points=tuple(measured[key] for key in curves),
        oracle=tuple(measured[key] for key in limit),
        skipped=skipped,
        full=_full(found["/".join(next(iter(asked)))], trace),
    )
    return _with_leads(result)


def _free() -> Policy:
    """Return the oracle without pins: with them, a policy that pins less could beat the limit."""
    policy = load_policy(ORACLE).value
    return policy.model_copy(update={"read": policy.read.model_copy(update={"pin": Pin()})})


def _full(selection: Selection, trace: Trace) -> float:
    attended = float(selection.weights() @ selection.attended.mean(axis=1))
    return attended * 4 * trace.model.head_dim


def _point(budget: str, policy: Policy, selection: Selection) -> Point:
    weights = selection.weights()

    def per_step(values: npt.NDArray[np.int64]) -> float:
        return float(weights @ values.mean(axis=1))

    ways = np.array([_way(stream) for stream in selection.streams])
    error = selection.output_error
    certified = selection.certified_mass
    return Point(
        policy=policy.name,
        budget=budget,
        index=per_step(selection.scan_bytes.sum(axis=0)),
        hbm=per_step(selection.stream_bytes[ways == "hbm"].sum(axis=0)),
        fetched=per_step(selection.stream_bytes[ways == "fetched"].sum(axis=0)),
        migrate=per_step(
            selection.stream_bytes[ways == "migrate"].sum(axis=0)
            + selection.state_bytes
            + selection.refit_bytes
            + selection.rewritten_bytes
        ),
        lost_mean=_mean(selection.lost_mass, weights),
        lost_max=float(selection.lost_mass.max()),
        certified_max=None if certified is None else float(certified.max()),
        error_mean=None if error is None else _mean(error, weights),
        error_max=None if error is None else float(error.max()),
    )


def _way(stream: Stream) -> str:
    if stream.op == "migrate":
        return "migrate"
    return "fetched" if stream.role == "cold" else "hbm"


def _mean(values: Floats, weights: npt.NDArray[np.int64]) -> float:
    """Return the mean over the heads of the trace, the steps and the query heads."""
    return float(np.average(values.mean(axis=(1, 2)), weights=weights))


# --- domination ------------------------------------------------------------------------------------------------


def _with_leads(found: Frontier) -> Frontier:
    leads = {measure: _leading(found, measure) for measure in MEASURES}
    marked = [
        replace(point, leads=tuple(measure for measure in MEASURES if leads[measure][i]))
        for i, point in enumerate(found.points)
    ]
    return replace(found, points=tuple(marked))


def _leading(found: Frontier, measure: str) -> list[bool]:
    """Return which points no ranked one dominates: no more bytes, no more loss, and less of one of them."""
    rivals = [point for point in found.points if found.ranked(point, measure)]
    return [point.loss(measure) is not None and not _beaten(point, rivals, measure) for point in found.points]


def _beaten(point: Point, rivals: Sequence[Point], measure: str) -> bool:
    mine = (point.nbytes, point.loss(measure))
    theirs = ((rival.nbytes, rival.loss(measure)) for rival in rivals)
    return any(b <= mine[0] and loss <= mine[1] and (b, loss) != mine for b, loss in theirs)  # type: ignore[operator]


# --- verdict ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The best ranked points within some bytes a step, and what the oracle needs to lose as little."""

    limit: float
    sound: Point | None
    best: Point | None
    oracle: Point | None


SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)
"""Of the bytes of everything: where the verdict looks."""


def verdict(found: Frontier) -> Verdict:
    """Return the verdict at the smallest share of all bytes at which some policy has a certificate."""

    def within(limit: float, *, sound: bool) -> list[Point]:
        ranked = (point for point in found.points if found.ranked(point, "lost_mass.mean"))
        fit = (point for point in ranked if point.nbytes <= limit)
        return [point for point in fit if not sound or point.certified_max is not None]

    limits = [share * found.full for share in SHARES]
    limit = next((limit for limit in limits if within(limit, sound=True)), None)
    if limit is None:
        limit = next((limit for limit in limits if within(limit, sound=False)), limits[-1])
    sound, best = (_least(within(limit, sound=only)) for only in (True, False))
    aim = sound or best
    enough = [] if aim is None else [point for point in found.oracle if point.lost_mean <= aim.lost_mean]
    return Verdict(limit, sound, best, min(enough, key=lambda point: point.nbytes, default=None))


def _least(points: Sequence[Point]) -> Point | None:
    return min(points, key=lambda point: (point.lost_mean, point.nbytes), default=None)


# --- as data -----------------------------------------------------------------------------------------------------

COLUMNS = (
    *("policy", "budget", "family", "fidelity", "lossless", "ranked", "index_bytes", "hbm_bytes", "fetched_bytes"),
    *("migrate_bytes", "bytes", "lost_mass_mean", "lost_mass_max", "certified_mass_max", "output_error_mean"),
    *("output_error_max", "frontier", "claim"),
)


def as_data(found: Frontier) -> dict[str, Any]:
    """Return everything as plain data."""
    return {
        "schema": 1,
        "trace": {
            "name": found.trace.name,
            "kind": found.trace.kind,
            "context_tokens": found.trace.prompt_len,
            "steps": found.steps,
        },
        "full_bytes_per_step": found.full,
        "policies": {name: _policy_data(found, policy) for name, policy in found.policies.items()},
        "oracle": [_point_data(point) for point in found.oracle],
        "frontier": {measure: found.leaders(measure) for measure in MEASURES},
        "skipped": dict(found.skipped),
    }


def _policy_data(found: Frontier, policy: Policy) -> dict[str, Any]:
    return {
        "family": policy.family,
        "fidelity": policy.fidelity,
        "lossless": policy.lossless,
        "claim": policy.claim,
        "points": [_point_data(point) for point in found.points if point.policy == policy.name],
    }


def _point_data(point: Point) -> dict[str, Any]:
    parts = {"index": point.index, "hbm": point.hbm, "fetched": point.fetched, "migrate": point.migrate}
    known = point.error_mean is not None
    return {
        "budget": point.budget,
        "bytes_per_step": parts | {"total": point.nbytes},
        "lost_mass": {"mean": point.lost_mean, "max": point.lost_max},
        "certified_mass_max": point.certified_max,
        "output_error": {"mean": point.error_mean, "max": point.error_max} if known else None,
        "frontier": list(point.leads),
    }


def write_csv(found: Frontier, path: Path) -> None:
    """Write a row per point, the oracle's last; an empty value means that there is no such thing."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with half.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(_csv_rows(found))
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        message = f"found a folder that cannot be written ({error.strerror}), expected one that can"
        raise StoreError(message, Location(path)) from None


def _csv_rows(found: Frontier) -> Iterator[list[str]]:
    oracle = load_policy(ORACLE).value
    for point in (*found.points, *found.oracle):
        policy = found.policies.get(point.policy, oracle)
        ranked = point in found.points and found.ranked(point, "lost_mass.mean")
        marks = [policy.family, policy.fidelity, _yes(policy.lossless), _yes(ranked)]
        yield [point.policy, point.budget, *marks, *_csv_numbers(point), " ".join(point.leads), policy.claim or ""]


def _csv_numbers(point: Point) -> list[str]:
    sizes = (point.index, point.hbm, point.fetched, point.migrate, point.nbytes)
    losses = (point.lost_mean, point.lost_max, point.certified_max, point.error_mean, point.error_max)
    return ["" if value is None else repr(value) for value in (*sizes, *losses)]


def _yes(fact: bool) -> str:
    return "yes" if fact else "no"
