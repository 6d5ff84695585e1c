"""The files of the evaluate command: what a policy reads of a recorded trace, what that loses, and its bytes."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import Policy
from ghostsim.plan.selection import Selection
from ghostsim.policy.costs import format_bytes
from ghostsim.trace.compose import Workload

QUALITY = ("step", "layer", "q_head", "read_tokens", "lost_mass", "certified_mass", "violations")
_ORDER = ("scan", "read", "attend", "decode", "migrate", "ghostify", "write")
BYTES = ("step", "layer", "kv_head", "op", "role", "nbytes")


def write_evaluation(policy: Policy, workload: Workload, selection: Selection, folder: Path) -> None:
    """Write reads.npy, reads_offsets.npy, quality.csv and bytes.csv of the first request into an existing folder.

    Rows are in the order step, layer, KV head (or query head). ``read_tokens`` counts all positions attended, as
    ``reads`` lists them. CSV numbers are written in full; an empty field means that the policy claims no such thing.
    """
    reads = [positions_read(selection, row, step) for step, _, _, row in _heads(selection)]
    offsets = np.concatenate([[0], np.cumsum([len(read) for read in reads])]).astype(np.int64)
    np.save(folder / "reads.npy", np.concatenate(reads), allow_pickle=False)
    np.save(folder / "reads_offsets.npy", offsets, allow_pickle=False)
    _write_csv(folder / "quality.csv", QUALITY, _quality_rows(selection))
    _write_csv(folder / "bytes.csv", BYTES, _bytes_rows(policy, selection, workload.shape.head_dim))


def positions_read(selection: Selection, row: int, step: int) -> npt.NDArray[np.int32]:
    """Return the positions attended at a step by row `row` of a Selection, ascending."""
    return np.flatnonzero(np.unpackbits(selection.sets[row, step], bitorder="little")).astype(np.int32)


def _heads(selection: Selection) -> Iterator[tuple[int, int, int, int]]:
    """Yield (step, layer, KV head, row) of the first request."""
    _, layers, kv_heads = selection.unit_of.shape
    for step, layer, kv_head in np.ndindex(selection.steps, layers, kv_heads):
        yield step, layer, kv_head, int(selection.unit_of[0, layer, kv_head])


def _quality_rows(selection: Selection) -> Iterator[Sequence[str]]:
    group = selection.lost_mass.shape[2]
    for step, layer, kv_head, row in _heads(selection):
        count = int(selection.hot_tokens[row, step] + selection.read_tokens[row, step])
        for j in range(group):
            lost = repr(float(selection.lost_mass[row, step, j]))
            certified = selection.certified_mass
            bound = "" if certified is None else repr(float(certified[row, step, j]))
            broken = "" if selection.violations is None else str(int(selection.violations[row, step, j]))
            yield str(step), str(layer), str(kv_head * group + j), str(count), lost, bound, broken


def _bytes_rows(policy: Policy, selection: Selection, head_dim: int) -> Iterator[Sequence[str]]:
    for step, layer, kv_head, row in _heads(selection):
        for op, role, nbytes in step_bytes(policy, selection, head_dim, row, step):
            yield str(step), str(layer), str(kv_head), op, role, str(nbytes)


def step_bytes(
    policy: Policy, selection: Selection, head_dim: int, row: int, step: int
) -> Iterable[tuple[str, str, int]]:
    """Return (op, role, bytes) of one step of one KV head; operations that move nothing are left out.

    Tokens that KEEP stores hot are attended in place, others are read from their tier first. ``migrate`` is what a
    cache recalls, before it is attended there, the bookkeeping that a clause rewrites at every step, and cold keys
    that an index is built again from; ``ghostify`` are its records, ``write`` is the new token.
    """
    moved: dict[tuple[str, str], int] = {}
    for nbytes in selection.scan_bytes[:, row, step].tolist():
        moved["scan", "index"] = moved.get(("scan", "index"), 0) + nbytes
    for stream, nbytes in zip(selection.streams, selection.stream_bytes[:, row, step].tolist(), strict=True):
        moved[stream.op, stream.role] = moved.get((stream.op, stream.role), 0) + nbytes
    moved["migrate", "hot"] = int(selection.state_bytes[row, step])
    moved["migrate", "cold"] = int(selection.refit_bytes[row, step])
    moved["ghostify", "index"] = int(selection.rewritten_bytes[row, step])
    moved["write", "hot"] = format_bytes(policy.keep[0].format, head_dim)
    order = sorted(moved, key=lambda kind: _ORDER.index(kind[0]))
    return [(*kind, moved[kind]) for kind in order if moved[kind]]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
