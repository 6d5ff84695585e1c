"""Plan: the units of work of a decode as immutable columns, with what each must wait for.

A plan is made from a template, the program of one layer: the same rows recur in every layer and step, only
their sizes differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ghostsim.errors import InvariantError

Op = Literal["scan", "filter", "read", "decode", "attend", "gemm", "write", "migrate", "ghostify"]
Role = Literal["hot", "warm", "index", "cold", "archive", "weights"]
Cause = Literal["index", "kv", "weights", "write", "migrate"]
OPS: tuple[Op, ...] = get_args(Op)
ROLES: tuple[Role, ...] = get_args(Role)
CAUSES: tuple[Cause, ...] = get_args(Cause)
CAUSE_OF: Mapping[Op, Cause] = {
    "scan": "index",
    "filter": "index",
    "read": "kv",
    "decode": "kv",
    "attend": "kv",
    "gemm": "weights",
    "write": "write",
    "migrate": "migrate",
    "ghostify": "migrate",
}
BATCH = -1
"""`request` of a row that serves the whole batch at once."""

Ints = NDArray[np.int64]
Sizes = int | Ints


@dataclass(frozen=True)
class Work:
    """One row of the program of a layer.

    Sizes are numbers, or arrays [steps, layers]. `after` names the rows that must end first, each with how many
    layers back it is (0: the same layer).
    """

    name: str
    op: Op
    role: Role
    request: int = BATCH
    stage: int = 0
    record_bytes: int = 0
    nbytes: Sizes = 0
    records: Sizes = 0
    runs: Sizes = 0
    flops: Sizes = 0
    after: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Plan:
    """Rows of work, ordered by step, layer and place in the program.

    `after[offsets[i]:offsets[i + 1]]` are the rows that must end before row i starts; all are smaller than i.
    `tiers` binds roles to tiers.
    """

    tiers: Mapping[Role, str]
    names: tuple[str, ...]
    """Name of each row of the program; row i is an instance of ``names[i % len(names)]``."""
    steps: int
    layers: int
    step: Ints
    request: Ints
    layer: Ints
    op: NDArray[np.int8]
    """Index into `OPS`."""
    stage: Ints
    role: NDArray[np.int8]
    """Index into `ROLES`."""
    nbytes: Ints
    records: Ints
    record_bytes: Ints
    runs: Ints
    flops: Ints
    offsets: Ints
    after: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.nbytes)

    @property
    def content_hash(self) -> str:
        """SHA-256 of all columns and of the binding of roles to tiers."""
        digest = hashlib.sha256(repr((sorted(self.tiers.items()), self.names)).encode())
        for column in (self.step, self.request, self.layer, self.op, self.stage, self.role, self.nbytes,
                       self.records, self.record_bytes, self.runs, self.flops, self.offsets, self.after):  # fmt: skip
            digest.update(np.ascontiguousarray(column).tobytes())
        return digest.hexdigest()

    def tier_bytes(self) -> dict[str, dict[Cause, Ints]]:
        """Return the bytes of every tier and cause, one number per step."""
        found: dict[str, dict[Cause, Ints]] = {}
        for r, role in enumerate(ROLES):
            for o, op in enumerate(OPS):
                rows = (self.role == r) & (self.op == o)
                if role not in self.tiers or not rows.any():
                    continue
                per_step = np.bincount(self.step[rows], self.nbytes[rows].astype(np.float64), minlength=self.steps)
                causes = found.setdefault(self.tiers[role], {})
                causes[CAUSE_OF[op]] = causes.get(CAUSE_OF[op], 0) + per_step.astype(np.int64)
        return found

    def at_steps(self, steps: Sequence[int]) -> Plan:
        """Return the plan of some of the steps, one behind the other; all steps wait alike for the one before."""
        width = len(self.names) * self.layers
        rows = (np.asarray(steps, np.int64)[:, None] * width + np.arange(width)).ravel()
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        step = np.repeat(np.arange(len(steps)), width)
        offsets = self.offsets[: len(rows) + 1]
        return replace(
            self, **columns, steps=len(steps), step=step, offsets=offsets, after=self.after[: int(offsets[-1])]
        )

    def check(self) -> None:
        """Raise `InvariantError` if a size is negative or a row waits for itself or a later one."""
        columns = {"nbytes": self.nbytes, "records": self.records, "runs": self.runs, "flops": self.flops}
        for name, column in columns.items():
            if (column < 0).any():
                raise InvariantError(f"found a negative {name} in row {int(np.argmin(column))} of the plan")
        waiting = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        if (self.after >= waiting).any():
            raise InvariantError("found a row of the plan that waits for itself or for a later row")


_COLUMNS = ("request", "layer", "op", "stage", "role", "nbytes", "records", "record_bytes", "runs", "flops")


def build(program: Sequence[Work], tiers: Mapping[Role, str], steps: int, layers: int) -> Plan:
    """Repeat the program of one layer over all layers and steps."""
    places, width = steps * layers, len(program)
    place = np.repeat(np.arange(places), width)
    offsets, after = _dependencies(program, places)
    plan = Plan(
        tiers=dict(tiers),
        names=tuple(work.name for work in program),
        steps=steps,
        layers=layers,
        step=place // layers,
        layer=place % layers,
        request=np.tile([work.request for work in program], places),
        op=np.tile(np.array([OPS.index(work.op) for work in program], np.int8), places),
        stage=np.tile([work.stage for work in program], places),
        role=np.tile(np.array([ROLES.index(work.role) for work in program], np.int8), places),
        record_bytes=np.tile([work.record_bytes for work in program], places),
        nbytes=_column([work.nbytes for work in program], steps, layers),
        records=_column([work.records for work in program], steps, layers),
        runs=_column([work.runs for work in program], steps, layers),
        flops=_column([work.flops for work in program], steps, layers),
        offsets=offsets,
        after=after,
    )
    plan.check()
    return plan


def _column(sizes: Sequence[Sizes], steps: int, layers: int) -> Ints:
    wide = [np.broadcast_to(np.asarray(size, np.int64), (steps, layers)) for size in sizes]
    return np.stack(wide, axis=-1).reshape(-1)


def _dependencies(program: Sequence[Work], places: int) -> tuple[Ints, Ints]:
    """Lay out the `after` lists of all rows one behind the other."""
    width = len(program)
    index = {work.name: i for i, work in enumerate(program)}
    pairs = [(i, index[name], back) for i, work in enumerate(program) for name, back in work.after]
    row = np.array([i for i, _, _ in pairs], np.int64)
    shift = np.array([before - back * width for _, before, back in pairs], np.int64)
    base = np.arange(places)[:, None] * width
    waiting, awaited = (base + row).ravel(), (base + shift).ravel()
    real = awaited >= 0
    counts = np.bincount(waiting[real], minlength=places * width)
    return np.concatenate([[0], np.cumsum(counts)]), awaited[real]
