"""Critical path: which rows the end of a step waited for, and what they spent the time on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from ghostsim.pipeline.executor import Times
from ghostsim.plan.plan import OPS, ROLES, Plan

PathCause = Literal[
    "gemm", "attend_hot", "attend_survivors", "scan", "select", "fetch_queue", "fetch_service", "migrate", "launch",
    "other",
]  # fmt: skip
CAUSES: tuple[str, ...] = get_args(PathCause)
_DIRECT: dict[str, PathCause] = {
    "gemm": "gemm", "scan": "scan", "filter": "select", "write": "migrate", "migrate": "migrate", "ghostify": "migrate",
}  # fmt: skip
_KERNELS = ("gemm", "attend", "decode")


def step_ends(plan: Plan, times: Times) -> NDArray[np.int64]:
    """Return when the last layer of each step ended, ps: the last row of the program is the last to end."""
    width = len(plan.names)
    return times.finish[width * plan.layers - 1 :: width * plan.layers]


class Segment(NamedTuple):
    """A piece of a step that it spent on `row`: from `begin` to `until`, ps."""

    row: int
    begin: int
    until: int


Paths: TypeAlias = Sequence[Sequence[Segment]]


def segments(plan: Plan, times: Times) -> list[list[Segment]]:
    """Return the critical path of every step, from its end to its start.

    Walks back over the predecessor that ended last. A row starts when that one ends, so the segments join; what
    no row explains is a segment of row -1.
    """
    ends = step_ends(plan, times).tolist()
    starts = [0, *ends[:-1]]
    width = len(plan.names) * plan.layers
    start, before = times.start.tolist(), _latest_predecessor(plan, times)
    return [
        list(_walk((step + 1) * width - 1, until, since, start, before))
        for step, (since, until) in enumerate(zip(starts, ends, strict=True))
    ]


def _walk(row: int, until: int, since: int, start: Sequence[int], before: Sequence[int]) -> Iterator[Segment]:
    while row >= 0 and until > since:
        begin = max(start[row], since)
        yield Segment(row, begin, until)
        row, until = before[row], begin
    if until > since:
        yield Segment(-1, since, until)


def attribute(plan: Plan, times: Times, paths: Paths | None = None) -> NDArray[np.int64]:
    """Divide every step among the causes of `CAUSES`, exactly; `paths` are its segments, where they are known.

    Returns
    -------
    array [steps, causes]
        Picoseconds.
    """
    kinds = [_kind(plan, i) for i in range(len(plan.names))]
    columns = (times.start.tolist(), times.delay.tolist(), times.service.tolist())
    spent = [dict.fromkeys(CAUSES, 0) for _ in range(plan.steps)]
    for step, path in enumerate(segments(plan, times) if paths is None else paths):
        for piece in path:
            _book(spent[step], piece, kinds, columns)
    return np.array([list(causes.values()) for causes in spent], np.int64)


def _book(
    spent: dict[str, int], piece: Segment, kinds: Sequence[tuple[str, bool]], columns: Sequence[list[int]]
) -> None:
    if piece.row < 0:
        spent["other"] += piece.until - piece.begin
        return
    start, delay, service = (column[piece.row] for column in columns)
    flowing = piece.until - max(piece.begin, min(piece.until, start + delay))
    _charge(spent, kinds[piece.row % len(kinds)], piece.until - piece.begin - flowing, flowing, service)


def _charge(spent: dict[str, int], kind: tuple[str, bool], delay: int, flowing: int, service: int) -> None:
    """Book the delay and the flowing time of one row; only a fetch tells queueing from service."""
    cause, kernel = kind
    if cause == "fetch":
        served = min(flowing, service)
        spent["fetch_service"] += delay + served
        spent["fetch_queue"] += flowing - served
        return
    spent["launch" if kernel else cause] += delay
    spent[cause] += flowing


def _kind(plan: Plan, i: int) -> tuple[str, bool]:
    """Name the cause of a row of the program, and whether its delay is the launch of a GPU kernel."""
    op, on_gpu = OPS[int(plan.op[i])], plan.tiers[ROLES[int(plan.role[i])]] == "hbm"
    if op == "read":
        return "fetch", False
    if op in ("attend", "decode"):
        return ("attend_survivors" if plan.stage[i] else "attend_hot"), True
    return _DIRECT[op], on_gpu or op in _KERNELS


def others_end(plan: Plan, times: Times, name: str, but: str) -> NDArray[np.int64]:
    """Return when all that each row `name` waits for, but for rows `but`, had ended; 0 where it waits for nothing.

    Returns
    -------
    array [places]
        Picoseconds, by step and layer.
    """
    width, row, left_out = len(plan.names), plan.names.index(name), plan.names.index(but)
    counts = np.diff(plan.offsets)
    waiting = np.repeat(np.arange(len(plan)), counts)
    counted = (waiting % width == row) & (plan.after % width != left_out)
    ends = np.zeros(plan.steps * plan.layers, np.int64)
    np.maximum.at(ends, waiting[counted] // width, times.finish[plan.after[counted]])
    return ends


def _latest_predecessor(plan: Plan, times: Times) -> list[int]:
    """Return for every row the predecessor that ended last (of equal ones the first), -1 for none."""
    before = np.full(len(plan), -1, np.int64)
    counts = np.diff(plan.offsets)
    waiting = np.repeat(np.arange(len(plan)), counts)
    order = np.lexsort((-plan.after, times.finish[plan.after], waiting))
    before[waiting[order]] = plan.after[order]
    return list(before.tolist())
