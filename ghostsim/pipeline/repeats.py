"""Layers that recur: one that begins on an idle machine goes the way of an earlier one whose rows had the same sizes.

Several layers of a model take their attention from one recorded layer, so most layers of a step move the same bytes.
Time is a whole number of picoseconds and an idle network remembers nothing, so the second time differs from the first
by a shift alone, to the last bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ghostsim.engine.network import Course, Network
from ghostsim.plan.plan import Plan

Start: TypeAlias = tuple[object, tuple[int, ...], bytes]
"""All that the course of a layer depends on: what the network did last, the rows that begin first, the sizes of all."""


@dataclass(frozen=True)
class Layer:
    """A layer that ran from one idle instant to the next, with its first row and what the network did meanwhile."""

    row: int
    begin_ps: int
    end_ps: int
    course: Course
    first: tuple[int, ...]
    """Rows that can begin at its end, counted from there."""


class Repeats:
    """The layers that ran so far, by their start."""

    def __init__(self, network: Network, plan: Plan) -> None:
        sizes = np.stack((plan.nbytes, plan.records, plan.runs, plan.flops), axis=1)
        self._sizes = sizes.reshape(-1, len(plan.names) * sizes.shape[1])
        self._rows = len(plan.names)
        self._network = network
        self._ran: dict[Start, Layer] = {}
        self._watched: tuple[Start, int, int, int] | None = None

    def at_boundary(self, row: int, ready: Iterable[int], now: int) -> Layer | None:
        """Note the layer that ends as `row` and others are ready; return an earlier one like the layer that begins.

        All rows before `row` have ended. Without an earlier one, the new layer is watched until the next boundary.
        """
        first = tuple(other - row for other in ready)
        self._note(row, first, now)
        self._watched = None
        if not all(0 <= offset < self._rows for offset in first) or not self._network.idle:
            return None
        start = (self._network.solved, first, self._sizes[row // self._rows].tobytes())
        if start not in self._ran:
            self._watched = (start, row, now, self._network.flows_started)
            self._network.moments = []
        return self._ran.get(start)

    def _note(self, row: int, first: tuple[int, ...], now: int) -> None:
        """Keep the watched layer, if it ends here and stood still for its first instant."""
        moments, self._network.moments = self._network.moments, None
        if self._watched is None or not moments:
            return
        start, begun, begin_ps, flows = self._watched
        if begun + self._rows == row and moments[0].ps == begin_ps and not moments[0].state.counts:
            course = Course(moments, self._network.flows_started - flows)
            self._ran[start] = Layer(begun, begin_ps, now, course, first)
