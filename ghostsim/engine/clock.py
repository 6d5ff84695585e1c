"""Integer-picosecond time on SimPy."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import simpy
from simpy.events import NORMAL, EventPriority

PS_PER_NS = 10**3
PS_PER_US = 10**6
PS_PER_MS = 10**9
PS_PER_S = 10**12
NEVER = 2**127

LAST = EventPriority(NORMAL + 1)
"""Comes after every ordinary event of its instant."""

# Quotients of floats miss a whole picosecond by their rounding; without the slack 1000 B at 1 GB/s would
# take 1_000_001 ps.
SLACK_PS = 1e-3


def whole_ps(duration: float) -> int:
    """Round a duration in picoseconds up to the next whole one."""
    return math.ceil(duration - SLACK_PS)


class Call(simpy.Event):
    """The cheapest SimPy event: calls `action` (with itself) after `delay_ps`."""

    def __init__(
        self,
        env: simpy.Environment,
        action: Callable[[Any], None],
        delay_ps: int = 0,
        priority: EventPriority = NORMAL,
    ) -> None:
        self.env = env
        self.callbacks = [action]
        self._ok = True
        self._value = None
        env.schedule(self, priority, delay_ps)


def call_after(env: simpy.Environment, delay_ps: int, action: Callable[[], object]) -> None:
    """Call `action` after `delay_ps`; calls of one instant happen in the order they were asked for."""

    def act(_: simpy.Event) -> None:
        action()

    Call(env, act, int(delay_ps))


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's cyclic collector off while events are processed: they leave no cycles for it to find."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class CountingEnvironment(simpy.Environment):
    """An environment whose clock counts picoseconds and that knows how many events it has processed."""

    def __init__(self) -> None:
        super().__init__(initial_time=0)
        self._draws = 0

    @property
    def events(self) -> int:
        """Events processed so far: the ids given out, less those of this count and of the events still queued."""
        drawn = next(self._eid)
        self._draws += 1
        return drawn - (self._draws - 1) - len(self._queue)
