"""Legs: what one byte costs on one stretch of its way, and how long the first byte takes there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from ghostsim.engine.network import Resource

Costs: TypeAlias = tuple[tuple[Resource, float], ...]
"""Resources with the units of each that one byte costs."""


@dataclass(frozen=True)
class Leg:
    """Resources with the units of each that one byte costs, and the latency of the stretch in ps."""

    costs: Costs = ()
    latency_ps: int = 0


def join(legs: Iterable[Leg]) -> Leg:
    """Put stretches one behind the other: costs stay apart, latencies add."""
    legs = tuple(legs)
    return Leg(tuple(cost for leg in legs for cost in leg.costs), sum(leg.latency_ps for leg in legs))


_STEPS_PER_OCTAVE = 8


def rounded(size: float) -> int:
    """Round a size to a geometric grid of 9 % steps, so that similar flows share one class."""
    return max(1, round(2 ** (round(math.log2(max(1.0, size)) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE)))
