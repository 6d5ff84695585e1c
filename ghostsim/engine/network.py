"""Bulk movement as fluid: flows share the resources of their routes by weighted max-min fairness.

A flow moves bytes over a route; each byte costs so many units of every resource on it. Rates change only when
a flow starts or ends, so the cost of a simulation does not grow with bytes. A server that takes requests first
come, first served divides itself in proportion to what each requester keeps outstanding, hence the weights.

Flows of one class (same route, costs, weight and ceiling) have equal rates at all times. A class therefore
keeps one cumulative service and a heap of finish tags, as fair queueing does (Demers, Keshav and Shenker,
SIGCOMM 1989), and the network solves for the rates of classes, not of flows.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import simpy

from ghostsim.engine.clock import LAST, NEVER, PS_PER_S, SLACK_PS, Call, whole_ps
from ghostsim.engine.fairness import CEILING, Demand, fill

Route: TypeAlias = tuple[tuple["Resource", float], ...]
Mix: TypeAlias = Callable[[float], float]
Share: TypeAlias = tuple[float, int]
"""A rate in bytes/ps, and the resource (by index) or `CEILING` that holds it there."""
_NONE: Share = (0.0, CEILING)
_ClassKey: TypeAlias = tuple[Route, float, float | None, tuple["Resource", ...]]
_Counts: TypeAlias = tuple[tuple["FlowClass", int], ...]
"""Classes in the order of their index, with the flows of each."""

_MOST_STATES = 2**15
_MOST_ROUNDS = 8
_TIGHTER = 1 + 1e-9
"""A resource that is busier than another by this factor fills first, whatever the rounding."""
_NUMBER = itemgetter(1)


def _index(entry: tuple[FlowClass, int]) -> int:
    return entry[0].index


@dataclass(frozen=True, eq=False)
class Resource:
    """Something that flows share: `capacity` units (bytes, operations, activations) per second.

    With `mix`, a share x of writes among the units leaves `mix(x)` units per second; `mix(0)` is `capacity`.
    """

    name: str
    capacity: float
    index: int
    mix: Mix | None = None

    def at(self, write_share: float) -> float:
        """Return the units per second at that share of writes."""
        return self.mix(write_share) if self.mix else self.capacity


class FlowClass:
    """Flows that always run at the same rate; made by `Network.flow_class`.

    Attributes
    ----------
    route
        Resources and the units of each that one byte costs.
    weight
        Bytes that the requester of one flow keeps outstanding; only ratios matter.
    ceiling
        Highest rate of one flow, bytes/s.
    writes
        Resources of the route to which the bytes are written.
    solo_rate
        Rate of a flow that is alone, bytes/s.
    solo_limit
        Index of the resource that then limits it, `CEILING` for its own ceiling.
    changed_ps, shares
        When the rate changed, and to what: a share is a rate and the resource or `CEILING` that held it there. Shares
        are few and shared with the memo of the network, so that a change takes two pointers.
    mixed
        Resources of the route that have a `mix`, the units of each that one byte costs, and whether it is written.
    rate
        Present rate of one flow, bytes/ps; 0 while there is none.
    served
        Bytes that every flow got from when the class became busy until `since_ps`, when `rate` began to hold.
    tags
        Heap of flows by the value of `served` at which they end.
    finish_ps
        When the first of them ends if `rate` holds.
    """

    __slots__ = (
        "ceiling",
        "changed_ps",
        "costs",
        "finish_ps",
        "index",
        "mixed",
        "rate",
        "route",
        "served",
        "shares",
        "since_ps",
        "solo_limit",
        "solo_rate",
        "tags",
        "weight",
        "writes",
    )

    def __init__(
        self, index: int, route: Route, weight: float, ceiling: float | None, writes: tuple[Resource, ...]
    ) -> None:
        self.index = index
        self.route = route
        self.costs = tuple((resource.index, cost) for resource, cost in route)
        self.weight = weight
        self.ceiling = ceiling
        self.writes = writes
        self.mixed = tuple((resource, cost, resource in writes) for resource, cost in route if resource.mix)
        rates = [(resource.at(float(resource in writes)) / cost, resource.index) for resource, cost in route]
        self.solo_rate, self.solo_limit = min(rates if ceiling is None else [*rates, (ceiling, CEILING)])
        self.changed_ps: list[int] = []
        self.shares: list[Share] = []
        self.tags: list[tuple[float, int, Flow]] = []
        self.served = 0.0
        self.since_ps = 0
        self.rate = 0.0
        self.finish_ps = NEVER

    def push(self, flow: Flow, now: int) -> None:
        """Add a flow; if its class was idle it stands still until the rates are solved."""
        tag = self.served + self.rate * (now - self.since_ps) + flow.nbytes
        heappush(self.tags, (tag, flow.number, flow))
        if self.tags[0][2] is flow and self.rate:
            self.finish_ps = self.since_ps + whole_ps((tag - self.served) / self.rate)

    def pop_due(self, now: int) -> list[tuple[float, int, Flow]]:
        """Remove and return the flows that end now, of which there is one at least."""
        due = [heappop(self.tags)]
        reached = self.served + self.rate * (now - self.since_ps + SLACK_PS)
        while self.tags and self.tags[0][0] <= reached:
            due.append(heappop(self.tags))
        if self.tags:
            self.finish_ps = self.since_ps + whole_ps((self.tags[0][0] - self.served) / self.rate)
        else:
            self.served, self.since_ps, self.finish_ps = 0.0, now, NEVER
        return due

    def change_rate(self, share: Share, now: int) -> None:
        """Let every flow have a share from now on, of rate 0 if there is none."""
        self.changed_ps.append(now)
        self.shares.append(share)
        rate = share[0]
        self.served += self.rate * (now - self.since_ps)
        self.since_ps = now
        self.rate = rate
        self.finish_ps = NEVER
        if rate:
            left_ps = (self.tags[0][0] - self.served) / rate - SLACK_PS
            self.finish_ps = now + math.ceil(left_ps) if left_ps > 0 else now


class Flow(simpy.Event):
    """Bytes on their way; as an event, the moment `start_ps` at which the first of them leaves."""

    def __init__(
        self, env: simpy.Environment, number: int, flow_class: FlowClass, nbytes: int, on_finish: Callable[[], object]
    ) -> None:
        self.env = env
        self.callbacks = []
        self._ok = True
        self._value = None
        self.number = number
        self.flow_class = flow_class
        self.nbytes = nbytes
        self.on_finish = on_finish
        self.start_ps = 0


class Probe:
    """Something that watches a network; override what you need."""

    def on_rates(self, now_ps: int, used: Sequence[float]) -> None:
        """See the units per second in use of each resource (by `Resource.index`) from now on.

        Of a resource with a `mix` it is the share of its time, times `Resource.capacity`.
        """

    def on_course(self, times_ps: Sequence[int], used: Sequence[Sequence[float]]) -> None:
        """See the rates of several past instants at once, as `on_rates` would one by one."""
        for now_ps, units in zip(times_ps, used, strict=True):
            self.on_rates(now_ps, units)

    def on_start(self, now_ps: int, flow: Flow) -> None:
        """See a flow whose first byte leaves now."""

    def on_finish(self, now_ps: int, flow: Flow) -> None:
        """See a flow whose last byte has arrived, before its callback."""


class State:
    """How many flows of each class there are, the rates that follow, and the neighbouring states."""

    __slots__ = (
        "after_finish", "after_start", "changes", "classes", "counts", "mixes", "notes", "shares", "used", "writes",
    )  # fmt: skip

    def __init__(self, counts: _Counts) -> None:
        self.counts = counts
        self.classes = [flow_class for flow_class, _ in counts]
        self.writes = any(flow_class.writes for flow_class in self.classes)
        self.changes: dict[State, list[tuple[FlowClass, Share]]] = {}
        self.after_start: dict[FlowClass, State] = {}
        self.after_finish: dict[FlowClass, State] = {}
        self.shares: dict[FlowClass, Share] | None = None
        self.mixes: dict[int, _Mixed] = {}
        self.used: tuple[float, ...] | None = None
        self.notes: dict[object, int] = {}


class Moment(NamedTuple):
    """An instant at which the rates changed, and the state from then on."""

    ps: int
    state: State


@dataclass(eq=False)
class Course:
    """What a network did from one idle instant to the next, to be done again.

    Attributes
    ----------
    moments
        When the rates changed, and the states from then on; the first is the idle instant.
    flows
        Flows that started.
    noted
        When the share of each class changed, and to what; gathered when it is first done again.
    """

    moments: Sequence[Moment]
    flows: int
    noted: dict[FlowClass, tuple[list[int], list[Share]]] = field(default_factory=dict)


class _Mixed(NamedTuple):
    """What a resource can do at a share of writes, and what it has to, in units/s."""

    capacity: float
    asked: float

    def matters_not(self, before: float) -> bool:
        """Say whether rates found with a capacity of `before` stand: it is the same, or neither is ever reached."""
        return self.capacity == before or self.asked * _TIGHTER < min(self.capacity, before)


class Network:
    """Resources and the flows on them.

    Attributes
    ----------
    scale
        Factors on the capacities of resources by name, for what-if questions.
    probes, meters
        Watchers of flows and rates, and of rates alone; empty lists cost nothing.
    moments
        What the network did, if somebody set an empty list.
    flows_started, solves, fills
        Flows so far; instants at which rates were looked up; look-ups that had to be computed.
    """

    def __init__(self, env: simpy.Environment, scale: Mapping[str, float] | None = None) -> None:
        self.env = env
        self.scale = scale or {}
        self.probes: list[Probe] = []
        self.meters: list[Probe] = []
        self.resources: dict[str, Resource] = {}
        self.moments: list[Moment] | None = None
        self.flows_started = 0
        self.solves = 0
        self.fills = 0
        self._classes: dict[_ClassKey, FlowClass] = {}
        self._states: dict[_Counts, State] = {}
        self._state = self._solved = State(())
        self._armed_ps = NEVER
        self._settling = False
        self._tighter: dict[int, set[int]] = {}
        self._limiting: dict[FlowClass, tuple[tuple[int, float], ...]] = {}
        self._nominal: list[float] = []
        self._per_ps: list[float] = []

    def resource(self, name: str, capacity: float, mix: Mix | None = None) -> Resource:
        """Add a resource of `capacity` units per second, or of `mix(share of writes)` if that is given.

        Raises
        ------
        ValueError
            If the capacity is not a positive finite number or the name is taken.
        """
        if not (math.isfinite(capacity) and capacity > 0):
            raise ValueError(f"resource {name}: found capacity {capacity!r}, expected a positive number, e.g. 56e9")
        if name in self.resources:
            raise ValueError(f"resource {name}: found the name twice, expected one resource of that name")
        factor = self.scale.get(name, 1.0)
        scaled = mix if mix is None or factor == 1 else lambda share: factor * mix(share)
        self.resources[name] = Resource(name, factor * capacity, len(self.resources), scaled)
        self._nominal.append(factor * capacity)
        self._per_ps.append(factor * capacity / PS_PER_S)
        return self.resources[name]

    def flow_class(
        self,
        route: Sequence[tuple[Resource, float]],
        weight: float = 1.0,
        ceiling: float | None = None,
        writes: Sequence[Resource] = (),
    ) -> FlowClass:
        """Return the class of flows over `route`, the same object for the same arguments.

        Parameters
        ----------
        route
            Resources with the units of each that one byte costs; a resource named twice costs the sum.
        weight
            Share of one flow relative to the others: the bytes its requester keeps outstanding.
        ceiling
            Highest rate of one flow, bytes/s.
        writes
            Resources of the route to which the bytes are written; matters where a resource has a `mix`.

        Raises
        ------
        ValueError
            If a number is out of range, a resource is another network's, or nothing limits the flow.
        """
        costs: dict[Resource, float] = {}
        for resource, cost in route:
            if self.resources.get(resource.name) is not resource:
                raise ValueError(f"resource {resource.name}: found one of another network, expected one of this")
            costs[resource] = costs.get(resource, 0.0) + float(cost)
        paid = tuple((resource, cost) for resource, cost in costs.items() if cost)
        mixed = tuple(resource for resource in costs if resource in writes and resource.mix)
        key = (paid, float(weight), ceiling, mixed)
        if key not in self._classes:
            _check_class(*key[:3])
            self._classes[key] = FlowClass(len(self._classes), *key)
            self._compare(paid)
        return self._classes[key]

    def start(self, flow_class: FlowClass, nbytes: int, on_finish: Callable[[], object], delay_ps: int = 0) -> None:
        """Send `nbytes` after `delay_ps`; call `on_finish` when the last one has arrived.

        Flows that end together call back in the order of their `start`; none calls back before `start` returns.
        """
        if nbytes < 0 or delay_ps < 0:
            raise ValueError(f"found a flow of {nbytes} B after {delay_ps} ps, expected neither below 0")
        self.flows_started += 1
        flow = Flow(self.env, self.flows_started, flow_class, int(nbytes), on_finish)
        if not nbytes:
            Call(self.env, lambda _: self._skip(flow), int(delay_ps))
        elif delay_ps:
            flow.callbacks.append(self._begin_late)
            self.env.schedule(flow, delay=int(delay_ps))
        else:
            self._begin(flow)
            if not self._settling:
                self._settling = True
                Call(self.env, self._settle, 0, LAST)

    def transfer(self, flow_class: FlowClass, nbytes: int, delay_ps: int = 0) -> simpy.Event:
        """Return the event that is triggered when `nbytes` have arrived."""
        arrived = simpy.Event(self.env)
        self.start(flow_class, nbytes, arrived.succeed, delay_ps)
        return arrived

    def solo_ps(self, flow_class: FlowClass, nbytes: int) -> int:
        """Return how long `nbytes` take on an idle network, without delay."""
        return whole_ps(nbytes / (flow_class.solo_rate / PS_PER_S)) if nbytes else 0

    def used(self, resource: Resource) -> float:
        """Return the units per second of `resource` in use since the rates last changed."""
        used = self._solved.used or self._usage(self._solved)
        return used[resource.index] if resource.index < len(used) else 0.0

    @property
    def idle(self) -> bool:
        """Whether no flow is on its way; some may wait for their first byte."""
        return not self._state.counts

    @property
    def solved(self) -> State:
        """The state that the present rates follow from; it may be about to change at this instant."""
        return self._solved

    @property
    def notes(self) -> dict[object, int]:
        """A place for what follows from the present use of resources alone; it comes back with the same flows."""
        return self._solved.notes

    def repeat(self, course: Course, shift_ps: int) -> None:
        """Let an idle network have done once more, up to now, what it did in a course that is `shift_ps` older.

        Watchers of rates see it, watchers of flows do not. Rates are settled at the end of this instant.
        """
        if not course.noted:
            self._gather(course)
        for flow_class, (times_ps, shares) in course.noted.items():
            flow_class.changed_ps += [then + shift_ps for then in times_ps]
            flow_class.shares += shares
        for meter in self.meters:
            used = [state.used or self._usage(state) for _, state in course.moments[1:]]
            meter.on_course([then + shift_ps for then, _ in course.moments[1:]], used)
        self._solved = course.moments[-1].state
        self.flows_started += course.flows
        if not self._settling:
            self._settling = True
            Call(self.env, self._settle, 0, LAST)

    def _gather(self, course: Course) -> None:
        for (_, before), (then, state) in pairwise(course.moments):
            for flow_class, share in before.changes.get(state) or self._changes(before, state):
                times_ps, shares = course.noted.setdefault(flow_class, ([], []))
                times_ps.append(then)
                shares.append(share)

    def _skip(self, flow: Flow) -> None:
        flow.start_ps = now = int(self.env.now)
        for probe in self.probes:
            probe.on_start(now, flow)
            probe.on_finish(now, flow)
        flow.on_finish()

    def _begin(self, flow: Flow) -> None:
        flow.start_ps = now = int(self.env.now)
        flow_class = flow.flow_class
        flow_class.push(flow, now)
        state = self._state
        self._state = state.after_start.get(flow_class) or self._neighbour(state.after_start, flow_class, 1)
        for probe in self.probes:
            probe.on_start(now, flow)

    def _begin_late(self, flow: simpy.Event) -> None:
        assert isinstance(flow, Flow)
        self._begin(flow)
        if not self._settling:
            self._settle_soon(flow.start_ps)

    def _end_due(self, _: simpy.Event) -> None:
        """End the flows whose time has come; an alarm that a later solve moved finds nothing to do."""
        now = int(self.env.now)
        if now != self._armed_ps:
            return
        self._armed_ps = NEVER
        due: list[tuple[float, int, Flow]] = []
        for flow_class in self._solved.classes:
            if flow_class.finish_ps <= now:
                due += flow_class.pop_due(now)
        if len(due) > 1:
            due.sort(key=_NUMBER)
        calls, self._settling = not self._settling, True
        for entry in due:
            self._end(entry[2], now)
        if calls:
            self._settle_soon(now)

    def _end(self, flow: Flow, now: int) -> None:
        state, flow_class = self._state, flow.flow_class
        self._state = state.after_finish.get(flow_class) or self._neighbour(state.after_finish, flow_class, -1)
        for probe in self.probes:
            probe.on_finish(now, flow)
        flow.on_finish()

    def _settle_soon(self, now: int) -> None:
        """Settle after all events of this instant, at once if this is the last of them."""
        if self.env.peek() > now:
            self._settle()
        else:
            self._settling = True
            Call(self.env, self._settle, 0, LAST)

    def _settle(self, _: simpy.Event | None = None) -> None:
        """Give every class the rate that follows from the present flows and set the alarm for the next end."""
        now = int(self.env.now)
        self._settling = False
        self.solves += 1
        state, before = self._state, self._solved
        if state is not before:
            self._solved = state
            if self.moments is not None:
                self.moments.append(Moment(now, state))
            changes = before.changes.get(state)
            for flow_class, share in self._changes(before, state) if changes is None else changes:
                flow_class.change_rate(share, now)
            for meter in self.meters:
                meter.on_rates(now, state.used or self._usage(state))
            for probe in self.probes:
                probe.on_rates(now, state.used or self._usage(state))
        next_ps = NEVER
        for flow_class in state.classes:
            if flow_class.finish_ps < next_ps:  # noqa: PLR1730 - half the time of `min`
                next_ps = flow_class.finish_ps
        if next_ps < self._armed_ps:
            self._armed_ps = next_ps
            Call(self.env, self._end_due, next_ps - now)

    def _neighbour(self, known: dict[FlowClass, State], flow_class: FlowClass, change: int) -> State:
        """Find the state that differs from the present one by one flow, and remember the way to it."""
        counts = self._state.counts
        at = bisect_left(counts, flow_class.index, key=_index)
        here = counts[at : at + 1] if counts[at : at + 1] and counts[at][0] is flow_class else ()
        count = (here[0][1] if here else 0) + change
        there = (*counts[:at], *(((flow_class, count),) if count else ()), *counts[at + len(here) :])
        if there not in self._states:
            if len(self._states) >= _MOST_STATES:
                self._forget_states()
            self._states[there] = State(there)
        known[flow_class] = self._states[there]
        return self._states[there]

    def _forget_states(self) -> None:
        for state in self._states.values():
            state.after_start.clear()
            state.after_finish.clear()
            state.changes.clear()
        self._states.clear()

    def _changes(self, before: State, after: State) -> list[tuple[FlowClass, Share]]:
        """Return the classes whose rate differs between two states, with the new share, and remember them."""
        old, new = self._shares(before), self._shares(after)
        gone = [(cls, _NONE) for cls in old if cls not in new]
        changed = [(cls, share) for cls, share in new.items() if cls not in old or old[cls][0] != share[0]]
        before.changes[after] = gone + changed
        return before.changes[after]

    def _shares(self, state: State) -> dict[FlowClass, Share]:
        if state.shares is None:
            self.fills += 1
            state.shares = self._fill(state)
        return state.shares

    def _fill(self, state: State) -> dict[FlowClass, Share]:
        """Solve for rates and their limits; where writes lower a capacity, until rates and shares of writes agree."""
        demands = [self._demand(cls, count) for cls, count in state.counts]
        able, rates, limits = self._nominal, *fill(demands, self._per_ps)
        state.mixes = self._mixes(state, rates)
        for _ in range(_MOST_ROUNDS - 1):
            if all(each.matters_not(able[index]) for index, each in state.mixes.items()):
                break
            able = self._nominal.copy()
            for index, each in state.mixes.items():
                able[index] = each.capacity
            rates, limits = fill(demands, [capacity / PS_PER_S for capacity in able])
            state.mixes = self._mixes(state, rates)
        return dict(zip(state.classes, zip(rates, limits, strict=True), strict=True))

    def _demand(self, flow_class: FlowClass, count: int) -> Demand:
        """Return what some flows ask for, in bytes/ps, of the resources that can limit them."""
        costs = self._limiting.get(flow_class)
        if costs is None:
            limiting = [cost for cost in flow_class.costs if not self._tighter.get(cost[0])]
            costs = self._limiting[flow_class] = tuple(limiting)
        ceiling = math.inf if flow_class.ceiling is None else flow_class.ceiling / PS_PER_S
        return Demand(costs, flow_class.weight, ceiling, count)

    def _compare(self, route: Route) -> None:
        """Keep, for each resource, those that fill before it whatever crosses it; with one, it never limits."""
        needs = [(resource.index, cost / resource.capacity) for resource, cost in route if not resource.mix]
        for index, need in needs:
            tighter = {other for other, more in needs if more > need * _TIGHTER}
            self._tighter[index] = tighter & self._tighter.get(index, tighter)
        self._limiting.clear()

    def _mixes(self, state: State, rates: Sequence[float]) -> dict[int, _Mixed]:
        """Return what resources with a mix can do and have to, by index, at the shares of writes in `rates`."""
        if not state.writes:
            return {}
        reads_and_writes: dict[Resource, list[float]] = {}
        for (cls, count), rate in zip(state.counts, rates, strict=True):
            for resource, cost, written in cls.mixed:
                reads_and_writes.setdefault(resource, [0.0, 0.0])[written] += count * rate * cost
        return {
            each.index: _Mixed(each.at(writes / (reads + writes)), (reads + writes) * PS_PER_S)
            for each, (reads, writes) in reads_and_writes.items()
        }

    def _usage(self, state: State) -> tuple[float, ...]:
        if state.used is None:
            shares = self._shares(state)
            units: dict[int, float] = {}
            for flow_class, count in state.counts:
                rate = count * shares[flow_class][0]
                for index, cost in flow_class.costs:
                    units[index] = units.get(index, 0.0) + rate * cost * PS_PER_S
            used, mixes = [0.0] * len(self.resources), state.mixes
            for index, taken in units.items():
                # Rounding, and the last round of a mix, must not make a full resource busier than full.
                able = mixes[index].capacity if index in mixes else self._nominal[index]
                used[index] = self._nominal[index] * min(1.0, taken / able)
            state.used = tuple(used)
        return state.used


def _check_class(route: Route, weight: float, ceiling: float | None) -> None:
    numbers = [weight, *(cost for _, cost in route), *([] if ceiling is None else [ceiling])]
    if not all(math.isfinite(number) and number > 0 for number in numbers):
        raise ValueError(f"found weight, costs and ceiling {numbers}, expected positive finite numbers")
    if not route and ceiling is None:
        raise ValueError("found a flow without resource and ceiling, expected something that limits its rate")
