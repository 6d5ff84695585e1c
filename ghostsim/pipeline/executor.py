"""The executor: runs the rows of a plan as their dependencies allow, and notes when each began and ended."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import simpy
from numpy.typing import NDArray

from ghostsim.devices.job import Part
from ghostsim.devices.leg import Load, queueing_ps
from ghostsim.engine.clock import PS_PER_S, Call, uncollected
from ghostsim.engine.network import FlowClass, Network
from ghostsim.errors import GhostsimError, InvariantError
from ghostsim.pipeline.bound import Bound, Row
from ghostsim.pipeline.repeats import Layer, Repeats
from ghostsim.plan.plan import Plan

Ints = NDArray[np.int64]
_LONGEST_PS = 100 * 86_400 * PS_PER_S


@dataclass(frozen=True)
class Times:
    """When each row of a plan ran, in ps.

    A row's time is its wait for a server, its delay (launch, latency), the time its flows take alone, and the
    rest: the share of bandwidth that others had.
    """

    start: Ints
    finish: Ints
    wait: Ints
    delay: Ints
    service: Ints
    classes: Sequence[FlowClass | None] = field(repr=False)
    """Class of the flow of each row that ended last; none where a row had no work."""


class Executor:
    """Starts every row at the instant its last predecessor ends; equal instants in the order of the plan."""

    def __init__(self, env: simpy.Environment, network: Network, plan: Plan, bound: Sequence[Bound]) -> None:
        self.env, self.network, self.plan = env, network, plan
        self.makers = [row.make for row in bound]
        self.width = len(bound)
        self.sizes = [column.tolist() for column in (plan.nbytes, plan.records, plan.runs, plan.flops)]
        self.waiting = np.diff(plan.offsets).tolist()
        self.successors, self.offsets = _successors(plan)
        rows = len(plan)
        self.start, self.finish, self.wait, self.delay, self.service = ([0] * rows for _ in range(5))
        self.classes: list[FlowClass | None] = [None] * rows
        self.ready: deque[int] = deque()
        self.begun = self.finished = 0
        self.draining = False
        # What others send, or want to see of every flow, does not repeat.
        self.repeats = Repeats(network, plan) if env.peek() == math.inf and not network.probes else None
        self.done = simpy.Event(env)

    def run(self) -> Times:
        """Run all rows to the end; what others send on, as the hosts of a pool do, goes on without them.

        Raises
        ------
        InvariantError
            If time ends while rows still wait.
        """
        self.ready.extend(row for row, count in enumerate(self.waiting) if not count)
        self._drain()
        if self.finished != len(self.start) and self.env.peek() != math.inf:
            # The queue may run empty: then rows wait for each other, as said below.
            with contextlib.suppress(RuntimeError), uncollected():
                self.env.run(self.done)
        if self.finished != len(self.start):
            raise InvariantError(f"found {len(self.start) - self.finished} rows that never ran, expected none")
        if self.env.now > _LONGEST_PS:
            days = f"{self.env.now / PS_PER_S / 86_400:.3g} days"
            raise GhostsimError(f"found steps that take {days} in all, expected less than 100, e.g. fewer steps")
        columns = (self.start, self.finish, self.wait, self.delay, self.service)
        start, finish, wait, delay, service = (np.array(column, np.int64) for column in columns)
        return Times(start, finish, wait, delay, service, self.classes)

    def _drain(self) -> None:
        """Start what is ready; rows without work end at once and may make more ready."""
        if self.draining:
            return
        self.draining = True
        while self.ready and not (self.begun == self.finished and self._repeats()):
            self._begin(self.ready.popleft())
        self.draining = False

    def _repeats(self) -> bool:
        """Between two layers, with nothing under way, begin one that has been before and tell so."""
        row, now = self.finished, int(self.env.now)
        if row % self.width or self.repeats is None:
            return False
        like = self.repeats.at_boundary(row, self.ready, now)
        if like is None:
            return False
        self.ready.clear()
        Call(self.env, lambda _: self._repeat(row, like), like.end_ps - like.begin_ps)
        return True

    def _repeat(self, row: int, like: Layer) -> None:
        """End a layer that went as an earlier one did."""
        until, old = row + self.width, slice(like.row, like.row + self.width)
        shift_ps = int(self.env.now) - like.end_ps
        for times in (self.start, self.finish):
            times[row:until] = [then + shift_ps for then in times[old]]
        for spans in (self.wait, self.delay, self.service):
            spans[row:until] = spans[old]
        self.classes[row:until] = self.classes[old]
        self.network.repeat(like.course, shift_ps)
        self.begun = self.finished = until
        for successor in self.successors[self.offsets[row] : self.offsets[until]]:
            self.waiting[successor] -= 1
        self.ready.extend(until + offset for offset in like.first if until + offset < len(self.start))
        self._finish()
        self._drain()

    def _begin(self, row: int) -> None:
        self.begun += 1
        self.start[row] = int(self.env.now)
        nbytes, records, runs, flops = self.sizes
        sizes = Row(nbytes[row], records[row], runs[row], flops[row])
        if not any(sizes):
            self._end(row)
            return
        delay_ps, parts, loads = self.makers[row % self.width](sizes)
        self.delay[row] = delay_ps
        if loads and parts[0][2] is None:
            self.wait[row] = queueing_ps(self.network, loads)
        self.classes[row] = parts[0][0]
        if len(parts) == 1:
            self._send(row, parts[0], loads, partial(self._end, row))
            return
        last = self._last_of(len(parts), row)
        for part in parts:
            self._send(row, part, loads, partial(last, part.flow_class))

    def _send(self, row: int, part: Part, loads: tuple[Load, ...], done: Callable[[], object]) -> None:
        """Start a flow of a row, at its turn if it has to wait for one."""
        flow_class, nbytes, server = part
        alone_ps = self.network.solo_ps(flow_class, nbytes)
        self.service[row] = max(self.service[row], alone_ps)
        if server is None:
            self.network.start(flow_class, nbytes, done, self.wait[row] + self.delay[row])
        else:
            server.submit(partial(self._serve, row, part, loads), done)

    def _serve(self, row: int, part: Part, loads: tuple[Load, ...], release: Callable[[], object]) -> None:
        """Start a flow whose turn has come; what it waits for is as busy as it is now."""
        waits_ps = queueing_ps(self.network, loads)
        self.wait[row] = int(self.env.now) - self.start[row] + waits_ps
        self.network.start(part.flow_class, part.nbytes, release, self.delay[row] + waits_ps)

    def _last_of(self, parts: int, row: int) -> Callable[..., None]:
        """Return what ends a row when the last of its parts calls it, with the class of that part."""
        left = parts

        def part_done(flow_class: FlowClass) -> None:
            nonlocal left
            left -= 1
            if not left:
                self.classes[row] = flow_class
                self._end(row)

        return part_done

    def _end(self, row: int) -> None:
        self.finish[row] = int(self.env.now)
        self.finished += 1
        self._finish()
        waiting = self.waiting
        for successor in self.successors[self.offsets[row] : self.offsets[row + 1]]:
            waiting[successor] -= 1
            if not waiting[successor]:
                self.ready.append(successor)
        self._drain()

    def _finish(self) -> None:
        if self.finished == len(self.start):
            self.done.succeed()


def _successors(plan: Plan) -> tuple[list[int], list[int]]:
    """Turn the lists of predecessors around: return those of all rows in one, and where that of each row begins."""
    waiting = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    offsets = np.cumsum(np.bincount(plan.after, minlength=len(plan)))
    return waiting[np.argsort(plan.after, kind="stable")].tolist(), [0, *offsets.tolist()]
