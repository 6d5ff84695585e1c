"""What if: how much shorter the step would be if one resource were faster, from the steps of the run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ghostsim.metrics.attribution import Spent
from ghostsim.metrics.critical_path import step_ends
from ghostsim.pipeline.executor import Times
from ghostsim.plan.plan import Plan

FACTOR = 2.0
_MOST_RESOURCES = 4
_MOST_STEPS = 4
_LEAST_SHARE = 0.02

Replay = Callable[[Plan, Mapping[str, float]], Times]
"""Runs a plan on the same hardware, with factors on the capacities of some resources."""


@dataclass(frozen=True)
class WhatIf:
    """A resource `factor` times as fast changes the mean step by `change` (-0.14: 14 % shorter)."""

    resource: str
    factor: float
    change: float


def candidates(spent: Spent, resources: Sequence[str]) -> list[str]:
    """Return the resources that the critical path waited for most, longest first."""
    whole = sum(sum(kinds.values()) for kinds in spent.values())
    shares = {name: (kinds["service"] + kinds["queue"]) / whole for name, kinds in spent.items() if name in resources}
    ranked = sorted(shares, key=lambda name: (-shares[name], name))
    return [name for name in ranked if shares[name] >= _LEAST_SHARE][:_MOST_RESOURCES]


def what_if(plan: Plan, spent: Spent, resources: Sequence[str], replay: Replay) -> list[WhatIf]:
    """Replay some steps of `plan` with each of the resources that mattered twice as fast.

    The rows, their bytes and what they wait for are those of the run; only rates differ. Steps are taken evenly
    over the run.
    """
    names = candidates(spent, resources)
    if not names:
        return []
    chosen = np.unique(np.linspace(0, plan.steps - 1, min(_MOST_STEPS, plan.steps)).round().astype(int)).tolist()
    some = plan.at_steps(chosen)
    before = _length_ps(some, replay(some, {}))
    found = [WhatIf(name, FACTOR, _length_ps(some, replay(some, {name: FACTOR})) / before - 1) for name in names]
    return sorted(found, key=lambda each: each.change)


def _length_ps(plan: Plan, times: Times) -> int:
    return int(step_ends(plan, times)[-1])
