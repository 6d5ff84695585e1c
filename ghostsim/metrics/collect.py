"""Collects the figures of one run: what metrics.json and steps.csv say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostsim.config.hardware import Platform
from ghostsim.engine.clock import PS_PER_MS, PS_PER_S
from ghostsim.metrics import critical_path
from ghostsim.metrics.amplification import read_amplification
from ghostsim.metrics.attribution import Spent, by_resource
from ghostsim.metrics.energy import Activity, energy_mj_per_token
from ghostsim.metrics.lifecycle import lifecycle_metrics
from ghostsim.metrics.prefetch import prefetch_metrics
from ghostsim.metrics.prefill import prefill_metrics
from ghostsim.metrics.quality import quality, step_quality, step_state
from ghostsim.metrics.viability import viability
from ghostsim.pipeline.bound import Bound
from ghostsim.pipeline.executor import Times
from ghostsim.pipeline.settling import Settled
from ghostsim.plan.plan import CAUSE_OF, CAUSES, OPS, ROLES, Plan
from ghostsim.plan.selection import Selection
from ghostsim.policy.prefetch import Ahead

Ints = NDArray[np.int64]
Bytes = Mapping[str, Mapping[str, Ints]]


@dataclass(frozen=True)
class Record:
    """Everything a finished run leaves behind in memory."""

    label: str
    policy: str
    platform: Platform
    batch: int
    gpus: int
    """Equal GPUs in step; bytes and capacities are those of one, energy is that of all."""
    plan: Plan
    bound: Sequence[Bound]
    times: Times
    selection: Selection
    ahead: Ahead | None
    """What was fetched before it was asked for."""
    capacity_bytes: Mapping[str, int]
    stored_bytes: Mapping[str, Sequence[int]]
    """Bytes per tier after every step: what the run keeps there, weights and buffers included."""
    utilisation: Mapping[str, float]
    bin_ps: int
    resources: Sequence[str]
    """Names of the resources of the network, by index."""
    series: Mapping[str, Sequence[float]] = field(repr=False)
    """Utilisation of each resource in bins of `bin_ps`."""
    settled: Settled
    """How its prompts settled before step 0."""

    @cached_property
    def paths(self) -> critical_path.Paths:
        """The critical path of every step."""
        return critical_path.segments(self.plan, self.times)

    @cached_property
    def causes_ps(self) -> Ints:
        """What each step spent its time on, [steps, causes]."""
        return critical_path.attribute(self.plan, self.times, self.paths)

    @cached_property
    def waits_ms(self) -> Spent:
        """What the mean step waited for, by resource."""
        return by_resource(self.plan, self.bound, self.times, self.resources, self.paths)

    @cached_property
    def moved(self) -> Bytes:
        """Bytes per step by tier and by link, and by cause."""
        return moved(self.plan, self.bound)


def moved(plan: Plan, bound: Sequence[Bound]) -> Bytes:
    """Return bytes per step by tier and by link, and by cause; a byte counts under its tier and each link."""
    found: dict[str, dict[str, Ints]] = {
        tier: {cause: np.zeros(plan.steps, np.int64) for cause in CAUSES} for tier in dict.fromkeys(plan.tiers.values())
    }
    for tier, causes in plan.tier_bytes().items():
        for cause, per_step in causes.items():
            found[tier][cause] += per_step
    width = len(plan.names)
    for i, row in enumerate(bound):
        for link, share in row.links:
            causes_of_link = found.setdefault(link, {cause: np.zeros(plan.steps, np.int64) for cause in CAUSES})
            per_step = plan.nbytes[i::width].reshape(plan.steps, plan.layers).sum(axis=1)
            causes_of_link[CAUSE_OF[OPS[int(plan.op[i])]]] += np.rint(per_step * share).astype(np.int64)
    return found


def step_ms(record: Record) -> NDArray[np.float64]:
    """Return the duration of every step in ms."""
    return np.diff(critical_path.step_ends(record.plan, record.times), prepend=0) / PS_PER_MS


def run_metrics(record: Record) -> dict[str, Any]:
    """Return what metrics.json says of a run."""
    durations, bytes_moved = step_ms(record), record.moved
    path = record.causes_ps.mean(axis=0) / PS_PER_MS
    mean = float(durations.mean())
    found = quality(record.selection, record.batch)
    viable = viability(record.plan, record.times, found["resurrection_rate"])
    return {
        "policy": record.policy,
        "platform": record.platform.name,
        "batch": record.batch,
        "step_ms": {
            "mean": mean,
            **{f"p{q}": float(np.percentile(durations, q)) for q in (50, 95, 99)},
            "max": float(durations.max()),
            "n": len(durations),
        },
        "tokens_per_s": record.batch / mean * 1000,
        "bytes_per_step": {
            place: {cause: float(per_step.mean()) for cause, per_step in causes.items()}
            for place, causes in bytes_moved.items()
        },
        "read_amplification": read_amplification(record.plan, record.platform),
        "utilisation": dict(record.utilisation),
        "critical_path_ms": dict(zip(critical_path.CAUSES, path.tolist(), strict=True)),
        "waits_ms": record.waits_ms,
        "viability": viable and viable.as_json(),
        "lifecycle": lifecycle_metrics(record.plan, record.times),
        "prefill": prefill_metrics(record.settled),
        "prefetch": record.ahead and prefetch_metrics(record.plan, record.times, record.ahead),
        "quality": found,
        "energy_mj_per_token": _energy(record, bytes_moved, float(durations.sum()) / 1000),
        "capacity_bytes": dict(record.capacity_bytes),
    }


def _energy(record: Record, bytes_moved: Bytes, elapsed_s: float) -> dict[str, float]:
    tokens = record.batch * record.plan.steps / record.gpus
    return energy_mj_per_token(record.platform, activity(record, bytes_moved, elapsed_s), tokens)


def activity(record: Record, bytes_moved: Bytes, elapsed_s: float) -> Activity:
    """Return what a run did, for its energy; `elapsed_s` is the sum of its steps."""
    plan = record.plan
    by_op = {op: int(plan.flops[plan.op == o].sum()) for o, op in enumerate(OPS)}
    away = set(plan.tiers.values()) - {"hbm"}
    return Activity(
        moved={place: int(sum(per_step.sum() for per_step in each.values())) for place, each in bytes_moved.items()},
        attended=int(sum(bytes_moved[tier]["kv"].sum() for tier in away)),
        copied=copied(plan, record.bound),
        bounced=sum(_row_bytes(plan, i) for i in _bounced(plan, record.bound)),
        tensor_flops=sum(flops for op, flops in by_op.items() if op not in ("scan", "filter")),
        utilisation=record.utilisation,
        simulated_s=int(record.times.finish.max()) / PS_PER_S,
        elapsed_s=elapsed_s,
    )


def copied(plan: Plan, bound: Sequence[Bound]) -> dict[str, int]:
    """Return the bytes that staged copies wrote to and read from the memory of each host."""
    found: dict[str, int] = {}
    for i, row in enumerate(bound):
        for host, times in row.copies:
            found[host] = found.get(host, 0) + round(times * _row_bytes(plan, i))
    return found


def _bounced(plan: Plan, bound: Sequence[Bound]) -> list[int]:
    """Return the rows of the program whose bytes a drive brings to the memory of a host."""
    return [i for i, row in enumerate(bound) if row.copies and plan.tiers[ROLES[int(plan.role[i])]] == "ssd"]


def _row_bytes(plan: Plan, i: int) -> int:
    """Return the bytes of a row of the program over the whole run."""
    return int(plan.nbytes[i :: len(plan.names)].sum())


def step_rows(record: Record) -> list[dict[str, Any]]:
    """Return the rows of steps.csv of a run."""
    durations, bytes_moved = step_ms(record), record.moved
    path = record.causes_ps / PS_PER_MS
    columns: dict[str, list[Any]] = {
        "label": [record.label] * len(durations),
        "step": list(range(len(durations))),
        "step_ms": durations.tolist(),
        "tokens_per_s": (record.batch / durations * 1000).tolist(),
    }
    columns |= {f"cp_{cause}_ms": path[:, c].tolist() for c, cause in enumerate(critical_path.CAUSES)}
    for place, causes in bytes_moved.items():
        columns |= {f"bytes_{place}_{cause}": per_step.tolist() for cause, per_step in causes.items()}
    columns |= step_quality(record.selection, record.batch) | step_state(record.selection, record.batch)
    columns |= {f"stored_bytes_{tier}": list(each) for tier, each in record.stored_bytes.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def compare(runs: Mapping[str, Mapping[str, Any]], baselines: Sequence[str]) -> dict[str, dict[str, dict[str, float]]]:
    """Return for every baseline the ratios of every other run; above 1 is better than the baseline."""

    def ratios(run: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, float]:
        return {
            "tokens_per_s": run["tokens_per_s"] / base["tokens_per_s"],
            "step_p50": base["step_ms"]["p50"] / run["step_ms"]["p50"],
            "step_p95": base["step_ms"]["p95"] / run["step_ms"]["p95"],
        }

    return {
        base: {label: ratios(run, runs[base]) for label, run in runs.items() if label != base} for base in baselines
    }
