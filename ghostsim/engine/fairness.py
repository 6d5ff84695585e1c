"""Weighted max-min fairness by progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_ROUNDING = 1 + 1e-12


@dataclass(frozen=True)
class Demand:
    """`count` equal flows: units of each resource (by index) that a byte costs, weight, ceiling in bytes per time."""

    costs: tuple[tuple[int, float], ...]
    weight: float
    ceiling: float
    count: int


def max_min_rates(demands: Sequence[Demand], capacities: Sequence[float]) -> list[float]:
    """Return the rate of one flow of each demand, in bytes per the time unit of `capacities`.

    All flows rise together, each in proportion to its weight, until a resource is full or a flow meets its
    ceiling; those concerned stay, the others go on. No resource is used beyond its capacity, and no flow could
    gain without taking from one whose rate per weight is not higher.
    """
    rates = [0.0] * len(demands)
    room = list(capacities)
    rising = set(range(len(demands)))
    level = 0.0
    while rising:
        wanted = _wanted(demands, rising)
        # Levels never fall; the bound keeps rounding from making one do so, or reach 0.
        level = max(level, _next_level(demands, rising, room, wanted))
        full = {resource for resource, units in wanted.items() if room[resource] <= units * level * _ROUNDING}
        for i in sorted(rising):
            demand = demands[i]
            capped = demand.ceiling <= demand.weight * level * _ROUNDING
            if capped or any(resource in full for resource, _ in demand.costs):
                rates[i] = min(demand.ceiling, demand.weight * level)
                rising.discard(i)
                for resource, cost in demand.costs:
                    room[resource] -= demand.count * cost * rates[i]
    return rates


def _wanted(demands: Sequence[Demand], rising: set[int]) -> dict[int, float]:
    """Units of each resource that the rising flows take per unit of level."""
    wanted: dict[int, float] = {}
    for i in sorted(rising):
        demand = demands[i]
        for resource, cost in demand.costs:
            wanted[resource] = wanted.get(resource, 0.0) + demand.count * demand.weight * cost
    return wanted


def _next_level(demands: Sequence[Demand], rising: set[int], room: Sequence[float], wanted: dict[int, float]) -> float:
    filled = min((room[resource] / units for resource, units in wanted.items()), default=math.inf)
    return min(filled, *(demands[i].ceiling / demands[i].weight for i in rising))
