"""Weighted max-min fairness by progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    left = list(range(len(demands)))
    wanted = _wanted(demands, left)
    routes = [{resource for resource, _ in demand.costs} for demand in demands]
    rank = {resource: i for i, resource in enumerate(wanted)}
    capped = [i for i in left if demands[i].ceiling < math.inf]
    capped.sort(key=lambda i: demands[i].ceiling / demands[i].weight, reverse=True)
    level = 0.0
    while left:
        filled = min([room[resource] / units for resource, units in wanted.items()], default=math.inf)
        lowest = demands[capped[-1]].ceiling / demands[capped[-1]].weight if capped else math.inf
        # Levels never fall; the bound keeps rounding from making one do so, or reach 0.
        level = max(level, min(filled, lowest))
        full = {r for r, units in wanted.items() if room[r] <= units * level * _ROUNDING}
        stopping = {i: max(full & routes[i], key=rank.__getitem__) for i in left if not full.isdisjoint(routes[i])}
        while capped and demands[capped[-1]].ceiling <= demands[capped[-1]].weight * level * _ROUNDING:
            stopping.setdefault(capped.pop(), CEILING)
        for i, limit in stopping.items():
            limits[i], rates[i] = limit, min(demands[i].ceiling, demands[i].weight * level)
        left = [i for i in left if i not in stopping]
        if not left:
            break
        for i in sorted(stopping):
            for resource, cost in demands[i].costs:
                room[resource] -= demands[i].flows * cost * rates[i]
        capped = [i for i in capped if i not in stopping]
        wanted = _wanted(demands, left)
    return rates, limits


def _wanted(demands: Sequence[Demand], left: Iterable[int]) -> dict[int, float]:
    """Return, by resource, the units that those left take per unit of level."""
    wanted: dict[int, float] = {}
    for i in left:
        costs, weight, _, flows = demands[i]
        for resource, cost in costs:
            wanted[resource] = wanted.get(resource, 0.0) + flows * weight * cost
    return wanted
