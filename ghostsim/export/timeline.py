"""The timeline of a run as Chrome trace JSON, gzipped: Perfetto and chrome://tracing open it.

One process per run label, one thread per lane, complete events for slices, arrows from what a slice waited for on
another lane, and counter events: utilisation and bandwidth of resources, and what is outstanding on each lane.
Chrome's `ts` and `dur` are microseconds; they are written with six decimals, so every picosecond survives.
"""

from __future__ import annotations

import gzip
import heapq
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from ghostsim.errors import Location, StoreError

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
"""Made once: json.dumps with options makes an encoder per call."""

_ARROW_PS = 1000


@dataclass(frozen=True)
class Slice:
    """One interval of work on one lane of a run."""

    label: str
    lane: str
    name: str
    category: str
    start_ps: int
    finish_ps: int
    args: Mapping[str, Any] = field(default_factory=dict)
    row: int = -1
    """Number within its run, by which others name it."""
    after: tuple[int, ...] = ()
    """Rows of the same run that ended before it could start."""


@dataclass(frozen=True)
class Counter:
    """The mean of a quantity in consecutive bins of `bin_ps` from t = 0, e.g. utilisation from 0 to 1."""

    label: str
    resource: str
    bin_ps: int
    values: Sequence[float]
    unit: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Timeline:
    """What a timeline file holds."""

    slices: tuple[Slice, ...] = ()
    counters: tuple[Counter, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def write_timeline(
    path: Path, slices: Iterable[Slice], counters: Iterable[Counter], metadata: Mapping[str, Any]
) -> None:
    """Write a Chrome trace; the same input gives the same bytes.

    Slices that overlap in one lane are spread over "LANE", "LANE #2", and so on, because viewers cannot draw
    overlapping slices of one thread. A counter writes an event only where its value changes.
    """
    by_lane: dict[str, dict[str, list[Slice]]] = {}
    for one in slices:
        by_lane.setdefault(one.label, {}).setdefault(one.lane, []).append(one)
    listed = list(counters)
    pids = {label: pid for pid, label in enumerate(dict.fromkeys([*by_lane, *(one.label for one in listed)]), start=1)}
    events = [_named("process_name", pid, 0, label) for label, pid in pids.items()]
    arrow = count(1)
    for label, lanes in by_lane.items():
        events += _process(pids[label], lanes, arrow)
    for counter in listed:
        events += _counter_events(counter, pids[counter.label])
    about = {"metadata": dict(metadata), "counters": [_counter_header(one) for one in listed]}
    tail = _encode(about)
    text = '{"displayTimeUnit":"ns","traceEvents":[\n' + ",\n".join(events) + '\n],"otherData":' + tail + "}\n"
    # mtime=0 keeps the time of writing out of the file; level 4 is twice as fast as 9 and 10 % larger
    path.write_bytes(gzip.compress(text.encode(), compresslevel=4, mtime=0))


def _named(kind: str, pid: int, tid: int, name: str) -> str:
    return f'{{"ph":"M","name":"{kind}","pid":{pid},"tid":{tid},"args":{{"name":{json.dumps(name)}}}}}'


def _process(pid: int, lanes: Mapping[str, list[Slice]], arrow: Iterator[int]) -> Iterator[str]:
    tid = 0
    placed: dict[int, tuple[int, Slice]] = {}
    for lane, slices in lanes.items():
        yield from _outstanding(lane, slices, pid)
        for number, track in enumerate(_tracks(slices), start=1):
            tid += 1
            yield _named("thread_name", pid, tid, lane if number == 1 else f"{lane} #{number}")
            yield f'{{"ph":"M","name":"thread_sort_index","pid":{pid},"tid":{tid},"args":{{"sort_index":{tid}}}}}'
            yield from _slice_events(track, pid, tid)
            placed |= {one.row: (tid, one) for one in track if one.row >= 0}
    yield from _arrows(placed, pid, arrow)


def _outstanding(lane: str, slices: Sequence[Slice], pid: int) -> Iterator[str]:
    """Count the slices that are on a lane at a time: running, or queueing behind others."""
    changes: dict[int, int] = {}
    for one in slices:
        changes[one.start_ps] = changes.get(one.start_ps, 0) + 1
        changes[one.finish_ps] = changes.get(one.finish_ps, 0) - 1
    name, level = json.dumps(f"{lane} outstanding"), 0
    for at, change in sorted(changes.items()):
        level += change
        if change:
            yield f'{{"ph":"C","name":{name},"pid":{pid},"ts":{_us(at)},"args":{{"value":{level}}}}}'


def _arrows(placed: Mapping[int, tuple[int, Slice]], pid: int, arrow: Iterator[int]) -> Iterator[str]:
    """Lead from the end of each slice to the start of those on other lanes that waited for it."""
    for tid, one in placed.values():
        for row in one.after:
            source_tid, source = placed.get(row, (tid, one))
            if source.lane == one.lane:
                continue
            common = f'"name":"then","cat":"wait","id":{next(arrow)},"pid":{pid}'
            # a viewer binds an arrow to the slice around its instant, so it leaves just before the end
            leaves = max(source.start_ps, source.finish_ps - _ARROW_PS)
            yield f'{{"ph":"s",{common},"tid":{source_tid},"ts":{_us(leaves)}}}'
            yield f'{{"ph":"f","bp":"e",{common},"tid":{tid},"ts":{_us(one.start_ps)}}}'


def _tracks(slices: list[Slice]) -> list[list[Slice]]:
    """Spread slices over the fewest tracks on which none overlap; each takes the lowest free track."""
    tracks: list[list[Slice]] = []
    busy: list[tuple[int, int]] = []
    free: list[int] = []
    for one in sorted(slices, key=lambda each: (each.start_ps, each.finish_ps)):
        while busy and busy[0][0] <= one.start_ps:
            heapq.heappush(free, heapq.heappop(busy)[1])
        index = heapq.heappop(free) if free else len(tracks)
        if index == len(tracks):
            tracks.append([])
        tracks[index].append(one)
        heapq.heappush(busy, (one.finish_ps, index))
    return tracks


def _slice_events(track: list[Slice], pid: int, tid: int) -> Iterator[str]:
    quoted: dict[str, str] = {}
    for one in track:
        for text in (one.name, one.category):
            if text not in quoted:
                quoted[text] = json.dumps(text)
        args = f',"args":{_encode(dict(one.args))}' if one.args else ""
        yield (
            f'{{"ph":"X","name":{quoted[one.name]},"cat":{quoted[one.category]},"pid":{pid},"tid":{tid},'
            f'"ts":{_us(one.start_ps)},"dur":{_us(one.finish_ps - one.start_ps)}{args}}}'
        )


def _us(ps: int) -> str:
    return f"{ps // 1_000_000}.{ps % 1_000_000:06d}"


def _counter_header(one: Counter) -> dict[str, Any]:
    header = {"label": one.label, "resource": one.resource, "bin_ps": one.bin_ps, "bins": len(one.values)}
    return {**header, "unit": one.unit, "args": dict(one.args)}


def _counter_events(one: Counter, pid: int) -> Iterator[str]:
    name, before = json.dumps(one.resource), None
    for index, value in enumerate(one.values):
        now = f"{float(value):.6g}"
        if now != before:
            yield f'{{"ph":"C","name":{name},"pid":{pid},"ts":{_us(index * one.bin_ps)},"args":{{"value":{now}}}}}'
        before = now


def read_timeline(path: Path) -> Timeline:
    """Read what `write_timeline` wrote; lanes that were split keep their "#2".

    Raises
    ------
    StoreError
        If the file is missing, is not gzipped JSON, or is not a timeline of this program.
    """
    try:
        document = json.loads(gzip.decompress(path.read_bytes()))
        return _timeline(document["traceEvents"], document["otherData"])
    except OSError as error:
        reason = error.strerror or str(error)
    except (EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise StoreError(f"found no readable timeline ({reason}), expected one that a run wrote", Location(path))


def _timeline(events: list[dict[str, Any]], about: Mapping[str, Any]) -> Timeline:
    labels = {each["pid"]: each["args"]["name"] for each in events if each["name"] == "process_name"}
    lanes = {(each["pid"], each["tid"]): each["args"]["name"] for each in events if each["name"] == "thread_name"}
    slices = tuple(
        _slice(each, labels[each["pid"]], lanes[each["pid"], each["tid"]]) for each in events if each["ph"] == "X"
    )
    changes: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for each in events:
        if each["ph"] == "C":
            changes.setdefault((labels[each["pid"]], each["name"]), []).append((_ps(each["ts"]), each["args"]["value"]))
    counters = tuple(
        _counter(header, changes.get((header["label"], header["resource"]), [])) for header in about["counters"]
    )
    return Timeline(slices, counters, about["metadata"])


def _ps(us: float) -> int:
    return round(us * 1_000_000)


def _slice(event: Mapping[str, Any], label: str, lane: str) -> Slice:
    start = _ps(event["ts"])
    return Slice(label, lane, event["name"], event["cat"], start, start + _ps(event["dur"]), event.get("args", {}))


def _counter(header: Mapping[str, Any], changes: list[tuple[int, float]]) -> Counter:
    values: list[float] = []
    for index, (_, value) in enumerate(changes):
        until = changes[index + 1][0] // header["bin_ps"] if index + 1 < len(changes) else header["bins"]
        values += [value] * (until - len(values))
    return Counter(header["label"], header["resource"], header["bin_ps"], values, header["unit"], header["args"])
