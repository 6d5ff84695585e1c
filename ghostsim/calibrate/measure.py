"""Runs a clock over all points."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ghostsim.calibrate.points import LATENCY, Machine, Point, points
from ghostsim.errors import GhostsimError

Clock = Callable[[Point], float]
"""Returns the microseconds of one point: the median over repeats."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """A point and the value that the table states of it."""

    point: Point
    value: float


def measure(clock: Clock, machine: Machine, say: Progress) -> list[Sample]:
    """Time all points; zero-copy rows take the measured latency of the host as a condition.

    Raises
    ------
    GhostsimError
        If a time is not above zero, or the GPU cannot do what is asked of it.
    """
    planned = points(machine)
    found: list[Sample] = []
    for number, point in enumerate(planned, start=1):
        say(f"measure {point.probe}, {number} of {len(planned)}")
        us = _timed(clock, point)
        if not (math.isfinite(us) and us > 0):
            raise GhostsimError(f"{point.probe}: found a time of {us} us, expected one above zero")
        found.append(Sample(point, point.value(us)))
    return _with_latency(found)


def _timed(clock: Clock, point: Point) -> float:
    try:
        return clock(point)
    except RuntimeError as error:  # what torch raises for the errors of CUDA
        raise GhostsimError(f"{point.probe}: found {error}, expected an idle GPU with free memory") from None


def _with_latency(samples: Sequence[Sample]) -> list[Sample]:
    latency_ns = next(sample.value for sample in samples if sample.point.probe == LATENCY) * 1e3
    condition = {"latency_ns": float(f"{latency_ns:.4g}")}
    return [
        Sample(Point(one.point.probe, {**one.point.conditions, **condition}, one.point.work), one.value)
        if one.point.probe == "gpu_zero_copy"
        else one
        for one in samples
        if one.point.probe != LATENCY
    ]
