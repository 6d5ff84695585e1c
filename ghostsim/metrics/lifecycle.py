"""Lifecycle: how far the records of cold tokens lag behind the decode, and what the decode waited for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ghostsim.engine.clock import PS_PER_MS
from ghostsim.metrics.critical_path import others_end, step_ends
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
    first = plan.names[0]
    return np.asarray(times.start[:: len(plan.names)] - others_end(plan, times, first, but="ghostify"))
