"""Reads the store of a sweep or a search: its points, the fields that change, and the figures of every run."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from ghostsim.errors import Location, StoreError

TABLE, SENSITIVITY = "points.csv", "sensitivity.csv"
_OF_POINT = ("point", "status", "error", "missed")
_P95 = ".step_ms.p95"
_TRIAL, _MEETS = "trial", "meets_bounds"
_DIRECTIONS = ("minimise ", "maximise ")
_MOST_LEVELS, _RANGES = 12, 4
"""A field with more values than the first is shown in this many ranges."""


@dataclass(frozen=True)
class SweepPoint:
    """One finished point: its settings as text, and the figures of its runs by dotted name."""

    name: str
    settings: Mapping[str, str]
    figures: Mapping[str, float]
    missed: str
    page: str | None
    """Its own report, relative to the store."""
    trial: str = ""
    """Its number in a search."""
    meets_bounds: bool = True
    objectives: Mapping[str, float] = field(default_factory=dict)
    """What a search asks for, by direction and path, such as `minimise platform.links.cxl0.width`."""

    def of(self, label: str, figure: str) -> float | None:
        """Return a figure of a run."""
        return self.figures.get(f"{label}.{figure}")

    def energy(self, label: str) -> float | None:
        """Return the energy of a token in mJ, over all components."""
        prefix = f"{label}.energy_mj_per_token."
        spent = [value for name, value in self.figures.items() if name.startswith(prefix)]
        return sum(spent) if spent else None


@dataclass(frozen=True)
class SweepStore:
    """What a sweep's page is made of."""

    path: Path
    fields: Sequence[str]
    labels: Sequence[str]
    points: Sequence[SweepPoint]
    failed: Sequence[tuple[str, str]]
    """Points that failed or are pending, with the reason."""
    not_lossless: frozenset[str]
    """Runs whose format changes scores, as the manifest of the first point says."""
    effects: Sequence[Mapping[str, str]]
    """Rows of sensitivity.csv, the largest first."""

    def values(self, field: str) -> list[str]:
        """Return the values of a field: numbers of one unit by size, others in the order of the points."""
        found = list(dict.fromkeys(point.settings[field] for point in self.points))
        return found if self.unit(field) is None else sorted(found, key=lambda value: amount(value) or 0.0)

    def unit(self, field: str) -> str | None:
        """Return the unit of a field whose values are numbers of one unit, empty for bare numbers."""
        found = {point.settings[field] for point in self.points}
        units = {value.partition(" ")[2] for value in found}
        return units.pop() if len(units) == 1 and all(amount(value) is not None for value in found) else None

    def levels(self, field: str) -> dict[str, str]:
        """Return each value of a field with how it is shown: itself, or its range where there are many."""
        values = self.values(field)
        if len(values) <= _MOST_LEVELS:
            return {value: value for value in values}
        ends = [len(values) * part // _RANGES for part in range(_RANGES + 1)]
        ranges = [values[begin:end] for begin, end in pairwise(ends)]
        return {value: f"{some[0].partition(' ')[0]} to {some[-1]}" for some in ranges for value in some}

    @property
    def varied(self) -> list[str]:
        """Fields that take more than one value; of those that always change together, the first."""
        columns = {tuple(point.settings[field] for point in self.points): field for field in reversed(self.fields)}
        return [field for field in self.fields if field in columns.values() and len(self.values(field)) > 1]

    @property
    def objectives(self) -> list[str]:
        """What a search asked for; nothing for a sweep."""
        return max((list(point.objectives) for point in self.points), key=len)

    def describe(self, point: SweepPoint) -> str:
        """Name a point by its settings."""
        named = [f"{field} {point.settings[field]}" for field in self.varied or self.fields if point.settings[field]]
        return ", ".join(named) or "the settings of the scenario"


def load_sweep(path: Path) -> SweepStore:
    """Read the store at `path`.

    Raises
    ------
    StoreError
        If its table is missing, is not what a sweep writes, or holds no finished point.
    """
    header, rows = read_table(path / TABLE)
    if tuple(header[: len(_OF_POINT)]) != _OF_POINT:
        raise StoreError("found other columns, expected the table of a sweep", Location(path / TABLE, 1))
    labels = [name.removesuffix(_P95) for name in header if name.endswith(_P95) and not name.startswith("compare.")]
    begin = next((i for i, name in enumerate(header) if name in {f"{label}.policy" for label in labels}), len(header))
    fields = [name for name in header[len(_OF_POINT) : begin] if not _is_of_search(name)]
    done = {row["point"]: row for row in rows if row["status"] == "done"}
    if not done:
        raise StoreError("found no finished point, expected one or more", Location(path / TABLE))
    failed = [(row["point"], row["error"] or row["status"]) for row in rows if row["status"] != "done"]
    points = [_point(path, row, fields, header[begin:]) for row in done.values()]
    effects = read_table(path / SENSITIVITY)[1] if (path / SENSITIVITY).is_file() else []
    return SweepStore(path, fields, labels, points, failed, _not_lossless(path, points[0].name), effects)


def _is_of_search(name: str) -> bool:
    return name in (_TRIAL, _MEETS) or name.startswith(_DIRECTIONS)


def _not_lossless(path: Path, point: str) -> frozenset[str]:
    try:
        manifest = json.loads((path / "points" / point / "manifest.json").read_text(encoding="utf-8"))
        return frozenset(label for label, lossless in manifest["workload"]["lossless"].items() if not lossless)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()  # the table alone is enough for a page


def _point(path: Path, row: Mapping[str, str], fields: Sequence[str], columns: Sequence[str]) -> SweepPoint:
    name = row["point"]
    page = f"points/{name}/report.html"
    known = re.fullmatch("[0-9a-f]+", name) is not None and (path / page).is_file()
    figures = {column: value for column in columns if (value := _number(row[column])) is not None}
    return SweepPoint(
        name,
        {field: row[field] for field in fields},
        figures,
        row["missed"],
        page if known else None,
        row.get(_TRIAL, ""),
        row.get(_MEETS, "true") == "true",
        {
            column: value
            for column in row
            if column.startswith(_DIRECTIONS) and (value := _number(row[column])) is not None
        },
    )


def amount(value: str) -> float | None:
    """Return the number of a setting such as `26 GB/s`."""
    return _number(value.partition(" ")[0])


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header and the rows of a CSV table.

    Raises
    ------
    StoreError
        If it cannot be read, or a row has more or fewer cells than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise StoreError(
            f"found no readable table ({error}), expected one that a sweep wrote", Location(path)
        ) from None
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise StoreError(f"found {len(row)} cells, expected {len(header)}", Location(path, line))
    return header, [dict(zip(header, row, strict=True)) for row in rows]
