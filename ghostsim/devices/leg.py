"""Legs: what one byte costs on one stretch of its way, and how long the first byte takes there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from ghostsim.engine.network import Network, Resource
from ghostsim.timing import loaded

Costs: TypeAlias = tuple[tuple[Resource, float], ...]
"""Resources with the units of each that one byte costs."""


@dataclass(frozen=True, eq=False)
class Load:
    """A medium whose latency grows with its load: the resources that say how full it is, and its idle latency."""

    resources: tuple[Resource, ...]
    idle_ps: int


@dataclass(frozen=True)
class Leg:
    """Resources with the units of each that one byte costs, and the latency of the stretch in ps when it is idle.

    `loads` are the media whose latency is part of it, `writes` the resources to which the bytes are written.
    """

    costs: Costs = ()
    latency_ps: int = 0
    loads: tuple[Load, ...] = ()
    writes: tuple[Resource, ...] = ()

    @property
    def bulk(self) -> Leg:
        """The stretch for bytes whose latency nobody waits for."""
        return Leg(self.costs, writes=self.writes)


def join(legs: Iterable[Leg]) -> Leg:
    """Put stretches one behind the other: costs stay apart, latencies add."""
    legs = tuple(legs)
    return Leg(
        tuple(cost for leg in legs for cost in leg.costs),
        sum(leg.latency_ps for leg in legs),
        tuple(load for leg in legs for load in leg.loads),
        tuple(resource for leg in legs for resource in leg.writes),
    )


def queueing_ps(network: Network, loads: tuple[Load, ...]) -> int:
    """Return what the present load of media adds to their idle latency: the loaded-latency curve of DRAM systems."""
    notes = network.notes
    if loads not in notes:
        waits = 0.0
        for load in loads:
            busy = max(network.used(resource) / resource.capacity for resource in load.resources)
            waits += load.idle_ps * (loaded.DRAM.factor(busy) - 1)
        notes[loads] = round(waits)
    return notes[loads]


_STEPS_PER_OCTAVE = 8
_EXACT_BYTES = 128


def rounded(size: float) -> int:
    """Round a size to a geometric grid of 9 % steps, a small one to whole bytes, so that similar flows share one class.

    Small pieces are records of one size; a grid would hide how many units of a memory they take.
    """
    if size <= _EXACT_BYTES:
        return max(1, round(size))
    return max(1, round(2 ** (round(math.log2(max(1.0, size)) * _STEPS_PER_OCTAVE) / _STEPS_PER_OCTAVE)))
