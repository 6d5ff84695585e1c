"""Weighted max-min fairness by progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_ROUNDING = 1 + 1e-12


class Demand(NamedTuple):
    """`flows` equal flows: units of each resource (by index) that a byte costs, weight, ceiling in bytes per time."""

    costs: tuple[tuple[int, float], ...]
    weight: float
    ceiling: float
    flows: int


CEILING = -1
"""What limits a flow that meets its own ceiling, in place of the index of a resource."""


def fill(demands: Sequence[Demand], capacities: Sequence[float]) -> tuple[list[float], list[int]]:
    """Return the rate of one flow of each demand, and the resource (by index) or `CEILING` that stopped it.

    All flows rise together, each in proportion to its weight, until a resource is full or a flow meets its
    ceiling; those concerned stay, the others go on. No resource is used beyond its capacity, and no flow could
    gain without taking from one whose rate per weight is not higher.
    """
    rates, limits = [0.0] * len(demands), [CEILING] * len(demands)
    room = list(capacities)
    crossing = _crossing(demands)
    capped = sorted(range(len(demands)), key=lambda i: demands[i].ceiling / demands[i].weight, reverse=True)
    level = 0.0
    while capped:
        wanted = {resource: sum(users.values()) for resource, users in crossing.items() if users}
        filled = min((room[resource] / units for resource, units in wanted.items()), default=math.inf)
        # Levels never fall; the bound keeps rounding from making one do so, or reach 0.
        level = max(level, min(filled, demands[capped[-1]].ceiling / demands[capped[-1]].weight))
        full = [r for r, units in wanted.items() if room[r] <= units * level * _ROUNDING]
        stopping = {i: r for r in full for i in crossing[r]}
        while capped and demands[capped[-1]].ceiling <= demands[capped[-1]].weight * level * _ROUNDING:
            stopping.setdefault(capped.pop(), CEILING)
        for i in sorted(stopping):
            limits[i] = stopping[i]
            rates[i] = min(demands[i].ceiling, demands[i].weight * level)
            for resource, cost in demands[i].costs:
                del crossing[resource][i]
                room[resource] -= demands[i].flows * cost * rates[i]
        capped = [i for i in capped if i not in stopping]
    return rates, limits


def _crossing(demands: Sequence[Demand]) -> dict[int, dict[int, float]]:
    """Return, by resource, the demands on it and the units they take per unit of level."""
    crossing: dict[int, dict[int, float]] = {}
    for i, demand in enumerate(demands):
        for resource, cost in demand.costs:
            crossing.setdefault(resource, {})[i] = demand.flows * demand.weight * cost
    return crossing
