"""What prompts cost once: the index that decode looks at, and how soon shorter steps pay for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ghostsim.engine.clock import PS_PER_MS
from ghostsim.pipeline.settling import Settled


def prefill_metrics(found: Settled) -> dict[str, Any]:
    """Return what metrics.json says of the prompts of a run, outside its steps.

    Returns
    -------
    mapping
        `index_ms`: time to make the index of all prompts. `settle_ms`: with moving their cold KV to its tier. `bytes`:
        what that writes, by tier and cause.
    """
    return {
        "index_ms": found.index_ps / PS_PER_MS,
        "settle_ms": found.all_ps / PS_PER_MS,
        "bytes": {tier: dict(causes) for tier, causes in found.tier_bytes.items()},
    }


def payback_steps(run: Mapping[str, Any], base: Mapping[str, Any]) -> int | None:
    """Return the decode steps after which a run has made up for what its prompts cost more than the baseline's.

    ``ceil((settle - r settle_base) / (r step_base - step))`` with r the ratio of batches, so that both have as many
    tokens; 0 where the prompts cost no more, none where the steps are no shorter.
    """
    ratio = run["batch"] / base["batch"]
    cost = run["prefill"]["settle_ms"] - ratio * base["prefill"]["settle_ms"]
    gain = ratio * base["step_ms"]["mean"] - run["step_ms"]["mean"]
    return max(0, math.ceil(cost / gain)) if gain > 0 else None
