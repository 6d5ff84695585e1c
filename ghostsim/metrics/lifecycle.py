"""Lifecycle: how far the records of cold tokens lag behind the decode, and what the decode waited for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ghostsim.engine.clock import PS_PER_MS
from ghostsim.metrics.critical_path import step_ends
from ghostsim.pipeline.executor import Times
from ghostsim.plan.plan import Plan


def lifecycle_metrics(plan: Plan, times: Times) -> dict[str, float] | None:
    """Return what metrics.json says of the records of tokens that turn cold, none for a policy without an index.

    Returns
    -------
    mapping
        `behind_steps` and `behind_steps_max`: steps whose records are not all made when a step ends. `stalled_ms`: time
        per step that the decode waited for records alone.
    """
    if "ghostify" not in plan.names:
        return None
    ends = step_ends(plan, times)
    made = times.finish[plan.names.index("ghostify") :: len(plan.names)].reshape(plan.steps, plan.layers).max(axis=1)
    behind = np.array([np.count_nonzero(made[: step + 1] > end) for step, end in enumerate(ends.tolist())])
    return {
        "behind_steps": float(behind.mean()),
        "behind_steps_max": int(behind.max()),
        "stalled_ms": float(_stalls(plan, times).sum()) / plan.steps / PS_PER_MS,
    }


def _stalls(plan: Plan, times: Times) -> NDArray[np.int64]:
    """Return how long each layer's first row waited for a record after everything else it waits for had ended."""
    width, record = len(plan.names), plan.names.index("ghostify")
    stalls = np.zeros(plan.steps * plan.layers, np.int64)
    for place in range(len(stalls)):
        waits = plan.after[plan.offsets[place * width] : plan.offsets[place * width + 1]]
        others = times.finish[waits[waits % width != record]]
        stalls[place] = times.start[place * width] - others.max(initial=0) if len(waits) else 0
    return stalls
