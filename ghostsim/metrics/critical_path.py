"""Critical path: which rows the end of a step waited for, and what they spent the time on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

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


def attribute(plan: Plan, times: Times) -> NDArray[np.int64]:
    """Divide every step among the causes of `CAUSES`.

    Walks back from the end of each step over the predecessor that ended last. A row starts when that one ends,
    so the parts sum exactly to the step.

    Returns
    -------
    array [steps, causes]
        Picoseconds.
    """
    ends = step_ends(plan, times)
    starts = np.concatenate([[0], ends[:-1]])
    last_row = len(plan.names) * plan.layers - 1
    kinds = [_kind(plan, i) for i in range(len(plan.names))]
    columns = (times.start.tolist(), times.finish.tolist(), times.delay.tolist(), times.service.tolist())
    before = _latest_predecessor(plan, times)
    spent = np.zeros((plan.steps, len(CAUSES)), np.int64)
    for step in range(plan.steps):
        _walk(spent[step], (step + 1) * (last_row + 1) - 1, int(starts[step]), columns, kinds, before)
    return spent


def _walk(
    spent: NDArray[np.int64], row: int, since: int, columns: Sequence[list[int]], kinds: Sequence[tuple[str, bool]],
    before: list[int],
) -> None:  # fmt: skip
    start, finish, delay, service = columns
    until = finish[row]
    while row >= 0 and until > since:
        begin = max(start[row], since)
        flowing = until - max(begin, min(until, start[row] + delay[row]))
        _charge(spent, kinds[row % len(kinds)], until - begin - flowing, flowing, service[row])
        row, until = before[row], begin
    spent[CAUSES.index("other")] += max(0, until - since)


def _charge(spent: NDArray[np.int64], kind: tuple[str, bool], delay: int, flowing: int, service: int) -> None:
    """Book the delay and the flowing time of one row; only a fetch tells queueing from service."""
    cause, kernel = kind
    if cause == "fetch":
        served = min(flowing, service)
        spent[CAUSES.index("fetch_service")] += delay + served
        spent[CAUSES.index("fetch_queue")] += flowing - served
        return
    spent[CAUSES.index("launch" if kernel else cause)] += delay
    spent[CAUSES.index(cause)] += flowing


def _kind(plan: Plan, i: int) -> tuple[str, bool]:
    """Name the cause of a row of the program, and whether its delay is the launch of a GPU kernel."""
    op, on_gpu = OPS[int(plan.op[i])], plan.tiers[ROLES[int(plan.role[i])]] == "hbm"
    if op == "read":
        return "fetch", False
    if op in ("attend", "decode"):
        return ("attend_survivors" if plan.stage[i] else "attend_hot"), True
    return _DIRECT[op], on_gpu or op in _KERNELS


def _latest_predecessor(plan: Plan, times: Times) -> list[int]:
    """Return for every row the predecessor that ended last (of equal ones the first), -1 for none."""
    before = np.full(len(plan), -1, np.int64)
    counts = np.diff(plan.offsets)
    waiting = np.repeat(np.arange(len(plan)), counts)
    order = np.lexsort((-plan.after, times.finish[plan.after], waiting))
    before[waiting[order]] = plan.after[order]
    return list(before.tolist())
