"""The store of a sweep or a search: its document, a run folder per finished point in ``points/``, ``points.csv``.

A point is finished when its folder is there, and it appears by rename: whatever kills a process costs the points in
flight. ``points.csv`` is made from the folders. Two processes may work on one store; each locks the point it computes.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ghostsim.config.document import dump, read
from ghostsim.errors import ConfigError, GhostsimError, Location, StoreError, UsageError
from ghostsim.export.run_folder import staged
from ghostsim.metrics.require import missed

SWEEP, SEARCH, POINTS, TABLE = "sweep.yaml", "search.yaml", "points", "points.csv"
_LOCK = ".lock"
_TEMPORARY = ".tmp-"
_UNSAID = ("name", "summary", "trials")
"""Keys of a document that may change between a store and its continuation."""
_WRITING_SHARE = 0.1
"""Largest share of the time that goes into rewriting the table of a large sweep."""

Status = Literal["done", "failed", "pending"]


# --- the folder ------------------------------------------------------------------------------------------------


def create(folder: Path, document: Mapping[str, Any], name: str = SWEEP) -> None:
    """Make an empty store, which holds `document` under a file name.

    Raises
    ------
    UsageError
        If `folder` exists or cannot be written.
    """
    if folder.exists():
        raise UsageError(f"--out: found {folder}, which exists; expected a new folder, or --resume to continue a store")
    with staged(folder, marker=name) as temporary:
        (temporary / name).write_text(dump(dict(document)), encoding="utf-8")
        (temporary / POINTS).mkdir()


def check(folder: Path, document: Mapping[str, Any], name: str = SWEEP) -> None:
    """Check that `folder` is a store of `document`, and that it can be written.

    Raises
    ------
    StoreError
        If it is no store.
    UsageError
        If it is the store of another sweep or search, or cannot be written.
    """
    kind = Path(name).stem
    if not (folder / name).is_file() or not (folder / POINTS).is_dir():
        raise StoreError(
            f"found no {name} and {POINTS}, expected a store that `ghostsim {kind}` wrote", Location(folder)
        )
    try:
        stored = read(folder / name)[0].plain()
    except ConfigError as error:
        raise StoreError(str(error)) from None
    if _identity(stored) != _identity(document):
        raise UsageError(f"--resume: found the store of another {kind} in {folder}, expected a store of this one")
    try:
        (folder / _LOCK).open("a+b").close()
    except OSError as error:
        raise UsageError(f"--out: found {folder}, expected a folder that can be written: {error.strerror}") from None


def _identity(document: Mapping[str, Any]) -> str:
    said = {key: value for key, value in document.items() if key not in _UNSAID and value}
    return json.dumps({key: list(value.items()) if isinstance(value, dict) else value for key, value in said.items()})


@contextmanager
def claimed(folder: Path, point: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a point, which ends with the process; yields False where another process has it."""
    offset = int(point, 16) % (1 << 62)
    with (folder / _LOCK).open("a+b") as file:
        # of the open file, not of the process: threads lock each other out, and closing one file frees one point
        wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, wanted)
        except (BlockingIOError, PermissionError):
            yield False
            return
        yield True


@contextmanager
def new_point(folder: Path, point: str) -> Iterator[Path]:
    """Yield a temporary folder that becomes the folder of a point if the block ends well; the point must be claimed."""
    temporary = folder / POINTS / f"{_TEMPORARY}{point}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        temporary.rename(folder / POINTS / point)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what killed processes left behind; what a living one is writing stays."""
    for path in sorted((folder / POINTS).glob(f"{_TEMPORARY}*")):
        with claimed(folder, path.name.removeprefix(_TEMPORARY), wait=False) as mine:
            if mine:
                shutil.rmtree(path, ignore_errors=True)


def is_done(folder: Path, point: str) -> bool:
    """Tell whether a point is finished."""
    return (folder / POINTS / point).is_dir()


# --- the table -------------------------------------------------------------------------------------------------


def flattened(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scalars of metrics.json by dotted name: ``LABEL.step_ms.p50``, ``compare.BASE.LABEL.step_p50``."""
    return dict(_scalars(metrics["runs"], "")) | dict(_scalars(metrics["compare"], "compare."))


def _scalars(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}.")
        elif not isinstance(value, list):
            yield f"{prefix}{key}", value


def _cell(value: object) -> str:
    """Return a figure or a setting as text, numbers in full."""
    return value if isinstance(value, str) else json.dumps(value, allow_nan=False)


class Table:
    """``points.csv``: one row per point in the order of the sweep, rewritten as points end.

    Columns: point, status, error, missed (the `require:` bounds that a finished point misses), the swept fields, and
    the figures of all finished points.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        fields: Sequence[str],
        settings: Sequence[Mapping[str, Any]],
        bounds: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._folder, self._names = folder, names
        self._bounds = bounds or {}
        self._missed: dict[str, str] = {}
        self._fields = tuple(fields)
        self._settings = [[_cell(point[path]) if path in point else "" for path in fields] for point in settings]
        self._states: dict[str, tuple[Status, str]] = dict.fromkeys(names, ("pending", ""))
        self._headers: dict[tuple[str, ...], int] = {}
        self._columns: list[str] = []
        self._lines: dict[int, str] = {}
        self._rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            self._rows.setdefault(name, []).append(row)
        self._ended = self._cost = 0.0

    def count(self, status: Status) -> int:
        """Return the number of rows with a status."""
        return sum(self._states[name][0] == status for name in self._names)

    @property
    def missed(self) -> int:
        """Number of rows that miss a bound."""
        return sum(name in self._missed for name in self._names)

    def put(self, name: str, error: str | None = None) -> None:
        """Note that a point is done, or failed with `error`.

        Raises
        ------
        StoreError
            If the folder of a finished point is damaged.
        """
        self._states[name] = ("failed", error) if error is not None else ("done", "")
        figures = self._figures(name)
        header, first = tuple(figures), self._rows[name][0]
        if first < self._headers.get(header, len(self._names)):
            self._headers[header] = first
            self._arrange()
        self._format(name, figures)

    def _arrange(self) -> None:
        """Set the columns anew: those of the first point that has figures, then what others have beside them."""
        ordered = sorted(self._headers, key=lambda header: self._headers[header])
        columns = list(dict.fromkeys(column for header in ordered for column in header))
        if columns != self._columns:
            self._columns = columns
            self._lines.clear()

    def _figures(self, name: str) -> dict[str, Any]:
        if self._states[name][0] != "done":
            return {}
        path = self._folder / POINTS / name / "metrics.json"
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            self._judge(name, metrics)
            return flattened(metrics)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else type(error).__name__
            raise StoreError(
                f"found no metrics of a finished point ({reason}), expected what a run wrote; remove the folder of the "
                "point to compute it again",
                Location(path),
            ) from None

    def _judge(self, name: str, metrics: Mapping[str, Any]) -> None:
        try:
            sentences = missed(self._bounds.get(name, ()), metrics)
        except ConfigError as error:
            sentences = [str(error)]
        if sentences:
            self._missed[name] = "; ".join(sentences)

    def _format(self, name: str, figures: Mapping[str, Any]) -> None:
        numbers = [_cell(figures[column]) if figures.get(column) is not None else "" for column in self._columns]
        for row in self._rows[name]:
            self._lines[row] = _line(
                [name, *self._states[name], self._missed.get(name, ""), *self._settings[row], *numbers]
            )

    def write(self, *, last: bool = False) -> None:
        """Replace the file; in the middle of a large sweep only as often as is cheap.

        Raises
        ------
        GhostsimError
            If the folder has no room or cannot be written; the old file stays.
        """
        begun = time.perf_counter()
        if not last and begun - self._ended < self._cost / _WRITING_SHARE:
            return
        for name in dict.fromkeys(name for row, name in enumerate(self._names) if row not in self._lines):
            self._format(name, self._figures(name))
        header = _line(["point", "status", "error", "missed", *self._fields, *self._columns])
        temporary = self._folder / f"{_TEMPORARY}{os.getpid()}-{TABLE}"
        try:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.writelines([header, *(self._lines[row] for row in range(len(self._names)))])
            temporary.replace(self._folder / TABLE)
        except OSError as error:
            raise unwritable(f"{error.filename or self._folder / TABLE}: {error.strerror or error}") from None
        finally:
            temporary.unlink(missing_ok=True)
        self._ended = time.perf_counter()
        self._cost = self._ended - begun


def unwritable(why: str | None) -> GhostsimError:
    """Return the error of a store that cannot be written."""
    return GhostsimError(f"found that the store cannot be written ({why}), expected room; then --resume")


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
