"""Traffic: what the requests of a batch move by each way, summed over the KV heads of a layer."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ghostsim.plan.selection import GROUPS, Selection, Stream
from ghostsim.policy.prefetch import Ahead

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Moved:
    """Tokens and bytes [requests, steps, layers] of some streams, summed over KV heads."""

    tokens: Ints
    nbytes: Ints
    record_bytes: int
    lossy: bool


@dataclass(frozen=True)
class Traffic:
    """What each request moves, summed over KV heads: arrays [requests, steps, layers]."""

    near: tuple[Moved, ...]
    """Pinned tokens in HBM, as they are and dequantised."""
    warm: Moved
    """Pinned tokens that come from their tier."""
    here: Moved
    """Selected tokens that are in HBM."""
    fetched: Moved
    """Selected tokens that come from their tier when they are asked for."""
    landed: Ints
    """Bytes of all selected tokens that come from their tier, foretold or not."""
    archived: Moved
    """Selected tokens that come from the archive."""
    hot: Ints
    cold: Ints
    read: Ints
    runs: Ints
    archive: Ints
    archive_runs: Ints
    state: Ints
    refit: Ints
    rewritten: Ints
    scanned: tuple[Ints, ...]
    scan_bytes: tuple[Ints, ...]


def sum_over_heads(
    selection: Selection, batch: int, *, apart: bool, away: bool, warm: Collection[int], unit_bytes: int
) -> Traffic:
    """Sum what the first `batch` requests move.

    Parameters
    ----------
    apart, away
        Whether KV, and archived KV, lie outside HBM.
    warm
        KEEP clauses whose pinned tokens lie outside HBM.
    unit_bytes
        What the medium of fetched tokens moves at once.
    """
    rows = selection.unit_of[:batch]

    def per_request(values: Ints) -> Ints:
        return np.asarray(values[rows].sum(axis=2, dtype=np.int64).swapaxes(1, 2))

    def moved(of: list[int]) -> Moved:
        zero = np.zeros((batch, selection.steps, rows.shape[1]), np.int64)
        kinds = {(selection.streams[i].clause, selection.streams[i].selected): i for i in reversed(of)}
        tokens = sum((per_request(selection.stream_tokens[i]) for i in kinds.values()), zero)
        nbytes = sum((per_request(selection.stream_bytes[i]) for i in of), zero)
        lossy = any(selection.streams[i].role == "warm" for i in of)
        return Moved(tokens, nbytes, -(-int(nbytes.sum()) // max(1, int(tokens.sum()))), lossy)

    selects = apart or away or bool(selection.stages)
    ways = _ways(selection.streams, selects=selects, apart=apart, away=away, warm=warm)
    fetched = moved(ways.fetched)
    return Traffic(
        near=tuple(moved(of) for of in ways.near),
        warm=moved(ways.warm),
        here=moved(ways.here),
        fetched=fetched,
        landed=fetched.nbytes,
        archived=moved(ways.archived),
        hot=per_request(selection.hot_tokens),
        cold=per_request(selection.cold_tokens),
        read=per_request(selection.read_tokens),
        runs=per_request(_pieces(selection, unit_bytes // max(1, fetched.record_bytes))),
        archive=per_request(selection.archive_tokens),
        archive_runs=per_request(selection.archive_runs),
        state=per_request(selection.state_bytes),
        refit=per_request(selection.refit_bytes),
        rewritten=per_request(selection.rewritten_bytes),
        scanned=tuple(per_request(each) for each in selection.scanned),
        scan_bytes=tuple(per_request(each) for each in selection.scan_bytes),
    )


def without_hits(traffic: Traffic, ahead: Ahead | None) -> Traffic:
    """Take what was brought ahead from what is fetched on demand."""
    if ahead is None:
        return traffic
    all_ = traffic.fetched
    left = all_.tokens - ahead.hits
    return replace(
        traffic,
        fetched=replace(all_, tokens=left, nbytes=all_.nbytes * left // np.maximum(all_.tokens, 1)),
        runs=-(-traffic.runs * left // np.maximum(all_.tokens, 1)),
    )


def _pieces(selection: Selection, unit_tokens: int) -> Ints:
    """Return the pieces [U, S] in which a medium sees the tokens that are read: runs in one unit of it are one.

    The tokens of a KV head lie in the order of their positions. A unit counts as the largest power of two of tokens
    that it holds.
    """
    exponent = min(GROUPS, unit_tokens.bit_length() - 1)
    if exponent < 1:
        return selection.read_runs
    return np.minimum(selection.read_runs, selection.read_groups[..., exponent - 1])


class _Ways(NamedTuple):
    """Streams by their indexes."""

    near: list[list[int]]
    """Attended at once, as they are and dequantised."""
    warm: list[int]
    """Attended as soon as they have come from their tier."""
    here: list[int]
    """Attended after selection."""
    fetched: list[int]
    """Attended after selection and a fetch."""
    archived: list[int]
    """The same, from an archive that is not in HBM."""


def _ways(streams: tuple[Stream, ...], *, selects: bool, apart: bool, away: bool, warm: Collection[int]) -> _Ways:
    """Divide streams by how they are attended.

    Where KV is apart, what a policy calls cold is fetched; a policy without a cold role has all of its KV there. Where
    it is not, nothing is recalled.
    """
    at_once = [i for i, stream in enumerate(streams) if not (stream.selected and selects)]
    there = [i for i, stream in enumerate(streams) if apart or stream.op != "migrate"]
    later = [i for i in there if streams[i].selected and selects]
    archived = [i for i in later if away and streams[i].role == "archive"]
    rest = [i for i in later if i not in archived]
    cold = [i for i in rest if streams[i].role == "cold"] or rest
    fetched = cold if apart else []
    warmed = [i for i in at_once if streams[i].clause in warm]
    here = [i for i in at_once if i not in warmed]
    plain = [i for i in here if streams[i].op != "decode"]
    lossy = [i for i in here if streams[i].op == "decode"]
    near = [of for of in (plain, lossy) if of] or [[]]
    return _Ways(near, warmed, [i for i in rest if i not in fetched], fetched, archived)
