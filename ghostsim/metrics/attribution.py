"""Attribution: which resource the critical path waited for, service and queueing apart, summing to the step.

A segment of the critical path is the time of one row: its wait for a server, its delay (launch, latency), and the
time its flow was on the network. A flow that is alone takes its service time; whatever it takes longer it lost
to others, and the resource that held its rate down at each instant answers for that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from ghostsim.engine.clock import PS_PER_MS, PS_PER_S
from ghostsim.engine.fairness import CEILING
from ghostsim.engine.network import FlowClass
from ghostsim.metrics.critical_path import Paths, Segment, segments
from ghostsim.pipeline.bound import Bound
from ghostsim.pipeline.executor import Times
from ghostsim.plan.plan import Plan

Kind = Literal["service", "queue", "latency"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Spent: TypeAlias = dict[str, dict[Kind, float]]
_Booked: TypeAlias = dict[tuple[str, Kind], float]


def by_resource(
    plan: Plan, bound: Sequence[Bound], times: Times, names: Sequence[str], paths: Paths | None = None
) -> Spent:
    """Return ms of the mean step by resource: service, queue (waits and lost bandwidth) and latency.

    Parameters
    ----------
    names
        Resources of the network by index.
    paths
        The critical path of every step, where it is known.

    Returns
    -------
    mapping
        Latency is booked under the lane of its row (``gpu``, ``cxl fetch``), and so is what a flow loses to its own
        ceiling. All values sum to the mean step.
    """
    spent: _Booked = {}
    book = _Book(plan, bound, times, names, spent)
    for path in segments(plan, times) if paths is None else paths:
        for piece in path:
            book.segment(piece)
    found: Spent = {}
    for (name, kind), ps in spent.items():
        found.setdefault(name, dict.fromkeys(KINDS, 0.0))[kind] = ps / plan.steps / PS_PER_MS
    return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


class _Book:
    """Books segments under resources."""

    def __init__(self, plan: Plan, bound: Sequence[Bound], times: Times, names: Sequence[str], spent: _Booked) -> None:
        self.lanes, self.names, self.spent = [row.lane for row in bound], names, spent
        self.width, self.classes = len(plan.names), times.classes
        columns = (times.start, times.wait, times.delay, times.service, times.finish)
        self.start, self.wait, self.delay, self.service, self.finish = (column.tolist() for column in columns)

    def segment(self, piece: Segment) -> None:
        """Divide a segment into wait, delay, service and lost bandwidth."""
        if piece.row < 0:
            self.add("idle", "latency", piece.until - piece.begin)
            return
        row, lane = piece.row, self.lanes[piece.row % self.width]
        granted = self.start[row] + self.wait[row]
        flows_from = granted + self.delay[row]
        flow_class = self.classes[row]
        waited, delayed, flowing = _cut(piece, granted, flows_from)
        self.add(lane, "latency", delayed)
        if flow_class is None:
            self.add(lane, "latency", waited + flowing)
            return
        alone = self.name(flow_class.solo_limit, lane)
        self.add(alone, "queue", waited)
        whole = self.finish[row] - flows_from
        served = flowing if not whole else min(flowing, self.service[row] * flowing / whole)
        self.add(alone, "service", served)
        self.lost(flow_class, max(flows_from, piece.begin), piece.until, flowing - served, lane)

    def lost(self, flow_class: FlowClass, begin: int, until: int, ps: float, lane: str) -> None:
        """Share lost time among what held the rate down, by how far it held it down and how long."""
        blame = _held_down(flow_class, begin, until) if ps > 0 else {}
        total = sum(blame.values())
        if not total:
            self.add(self.name(flow_class.solo_limit, lane), "queue", ps)
        for limit, weight in blame.items():
            self.add(self.name(limit, lane), "queue", ps * weight / total if total else 0)

    def name(self, limit: int, lane: str) -> str:
        return lane if limit == CEILING else self.names[limit]

    def add(self, name: str, kind: Kind, ps: float) -> None:
        if ps:
            self.spent[name, kind] = self.spent.get((name, kind), 0.0) + ps


def _cut(piece: Segment, granted: int, flows_from: int) -> tuple[int, int, int]:
    """Return how much of a segment lies before the grant, between grant and flow, and in the flow."""
    granted = min(max(granted, piece.begin), piece.until)
    flows_from = min(max(flows_from, piece.begin), piece.until)
    return granted - piece.begin, flows_from - granted, piece.until - flows_from


def _held_down(flow_class: FlowClass, begin: int, until: int) -> Mapping[int, float]:
    """Return, by limit, the time that a class lost between two instants."""
    changed, solo = flow_class.changed_ps, flow_class.solo_rate / PS_PER_S
    blame: dict[int, float] = {}
    for i in range(max(0, bisect_right(changed, begin) - 1), len(changed)):
        since, (rate, limit) = changed[i], flow_class.shares[i]
        if since >= until:
            break
        after = changed[i + 1] if i + 1 < len(changed) else until
        slow = (min(after, until) - max(since, begin)) * (1 - rate / solo)
        if slow > 0 and rate:
            blame[limit] = blame.get(limit, 0.0) + slow
    return blame
