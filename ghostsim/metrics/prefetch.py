"""Prefetch: how much of what was asked for had been brought, how much was brought for nothing, and what came late."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ghostsim.engine.clock import PS_PER_MS
from ghostsim.metrics.critical_path import others_end
from ghostsim.pipeline.executor import Times
from ghostsim.plan.plan import OPS, Op, Plan
from ghostsim.policy.prefetch import Ahead


def prefetch_metrics(plan: Plan, times: Times, ahead: Ahead) -> dict[str, float]:
    """Return what metrics.json says of a prefetch.

    Returns
    -------
    mapping
        `hit_rate`: tokens that were foretold / tokens fetched at all that were read; `waste_rate`: foretold tokens that
        were not read / foretold tokens; `tokens`, `hits`, `misses`, `waste` per step; `late_rate`: places (layers
        of a step) whose survivors had to wait for what was foretold, and `late_ms` how long per step.
    """
    hits, brought = int(ahead.hits.sum()), int(ahead.tokens.sum())
    misses = _tokens_of(plan, "read") - brought
    late_ps = _late_ps(plan, times, ahead.shift)
    return {
        "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
        "waste_rate": (brought - hits) / brought if brought else 0.0,
        "tokens": brought / plan.steps,
        "hits": hits / plan.steps,
        "misses": misses / plan.steps,
        "waste": (brought - hits) / plan.steps,
        "late_rate": float(np.count_nonzero(late_ps)) / len(late_ps),
        "late_ms": float(late_ps.sum()) / plan.steps / PS_PER_MS,
    }


def _tokens_of(plan: Plan, op: Op) -> int:
    return int(plan.records[plan.op == OPS.index(op)].sum())


def _late_ps(plan: Plan, times: Times, shift: int) -> NDArray[np.int64]:
    """Return how long the survivors of each place waited for the prefetch alone."""
    brought = times.finish[plan.names.index("prefetch") :: len(plan.names)]
    others = others_end(plan, times, "survivors", but="prefetch")
    late = np.zeros_like(brought)
    late[shift:] = np.maximum(0, brought[: len(brought) - shift] - others[shift:])
    return late
