"""The viability condition of filtering before moving: as published, corrected, and as the simulation has it.

Published: the chance that a token is fetched, times what one fetch takes, must stay below the time of computing.
It lacks the number of fetches and what they share. Corrected, per layer: scan, the way of the ids back, latency and
the bytes of all survivors over the slowest resource of their route must fit into what does not wait for survivors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostsim.pipeline.executor import Times
from ghostsim.plan.plan import OPS, Op, Plan

PUBLISHED_FETCH_US: Mapping[str, float] = {"dram": 0.08, "cxl": 0.15}
"""T_fetch of one token as the concept publishes it, by tier."""
_PS_PER_US = 1e6
_HIDDEN = 0.05
"""Exposed share of the work up to which it counts as hidden."""


@dataclass(frozen=True)
class Viability:
    """Microseconds of the mean layer; `exposed_us` is what attention over survivors waited beyond the overlap."""

    scan_us: float
    latency_us: float
    fetch_us: float
    overlap_us: float
    exposed_us: float
    published_us: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the three conditions, each with its two sides and whether it holds."""
        needed = self.scan_us + self.latency_us + self.fetch_us
        published = None if self.published_us is None else _sides(self.published_us, self.overlap_us)
        return {
            "published": published,
            "corrected": {
                "scan_us": self.scan_us, "latency_us": self.latency_us, "fetch_us": self.fetch_us,
                **_sides(needed, self.overlap_us),
            },
            "simulated": {"exposed_us": self.exposed_us, "holds": self.exposed_us <= _HIDDEN * needed},
        }  # fmt: skip


def _sides(left_us: float, right_us: float) -> dict[str, Any]:
    return {"left_us": left_us, "right_us": right_us, "holds": left_us <= right_us}


def viability(plan: Plan, times: Times, resurrection_rate: float) -> Viability | None:
    """Return the terms of the condition for a run that filters before it fetches from another tier, else none.

    Parameters
    ----------
    resurrection_rate
        Read tokens over cold tokens, the published chance of a fetch.
    """
    tier = plan.tiers["cold"]
    if tier == "hbm" or "index" not in plan.tiers:
        return None
    scan, ids, read = (_rows(plan, op) for op in ("scan", "filter", "read"))
    hot, survivors = (_named(plan, name) for name in ("hot", "survivors"))
    ends = (times.start + times.wait + times.delay + times.service)[hot]
    begun = times.start[survivors]
    published = PUBLISHED_FETCH_US.get(tier)
    return Viability(
        scan_us=_mean_us(plan, times.service, scan | ids) + _longest_us(plan, times.delay, scan)
        + _longest_us(plan, times.delay, ids),
        latency_us=_longest_us(plan, times.delay, read),
        fetch_us=_mean_us(plan, times.service, read),
        overlap_us=float((times.delay + times.service)[hot].mean()) / _PS_PER_US,
        exposed_us=float(np.maximum(0, begun - ends).mean()) / _PS_PER_US,
        published_us=None if published is None else resurrection_rate * published,
    )  # fmt: skip


def _rows(plan: Plan, op: Op) -> NDArray[np.bool_]:
    return np.asarray(plan.op == OPS.index(op))


def _named(plan: Plan, name: str) -> slice:
    return slice(plan.names.index(name), None, len(plan.names))


def _mean_us(plan: Plan, ps: NDArray[np.int64], rows: NDArray[np.bool_]) -> float:
    """Return the sum over the rows of a layer, mean over layers and steps."""
    return float(ps[rows].sum()) / (plan.steps * plan.layers) / _PS_PER_US


def _longest_us(plan: Plan, ps: NDArray[np.int64], rows: NDArray[np.bool_]) -> float:
    """Return the largest of the rows of a layer, mean over layers and steps."""
    by_layer = np.where(rows, ps, 0).reshape(plan.steps * plan.layers, len(plan.names))
    return float(by_layer.max(axis=1).mean()) / _PS_PER_US
