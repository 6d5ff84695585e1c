"""Strict reading of reference tables: whatever is wrong is one line with file, row and column."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostsim.errors import Location, TableError

Row = Mapping[str, str]
_NUMBER = {int: re.compile(r"[0-9]{1,19}\Z"), float: re.compile(r"[0-9]*\.?[0-9]+([eE][+-]?[0-9]{1,3})?\Z")}
_LARGEST = 1e18
_SHOWN = 80
COMMON = ("probe", "part", "value", "unit", "source")


@dataclass(frozen=True)
class Schema:
    """What rows of one probe look like: its condition columns with their types, and the unit of `value`.

    `label_only`: any part is accepted and further columns are ignored.
    """

    columns: Mapping[str, type]
    unit: str
    label_only: bool = False


def schemas(
    columns: Mapping[str, Mapping[str, type]], units: Mapping[str, str], label_only: Collection[str] = ()
) -> dict[str, Schema]:
    """Return the schema of every probe in `columns`."""
    return {probe: Schema(columns[probe], units[probe], probe in label_only) for probe in columns}


@dataclass(frozen=True)
class Measurement:
    """One row: its texts by column, its checked value and where it stands."""

    row: Row
    value: float
    at: Location

    @property
    def probe(self) -> str:
        """The probe of the row."""
        return self.row["probe"]

    @property
    def part(self) -> str:
        """The part of the row."""
        return self.row["part"]

    def column(self, name: str) -> Location:
        """Return the place of column `name` (1 is the first) in this row."""
        return Location(self.at.file, self.at.line, list(self.row).index(name) + 1)


def read(path: Path, known: Mapping[str, Schema]) -> list[Measurement]:
    """Return the rows of the table at `path`.

    Raises
    ------
    TableError
        If the file cannot be read as a table of known probes; the message names row and column.
    """
    records = _records(path)
    header_line, header = next(records, (1, []))
    if not any(header):
        raise TableError(
            "table: found an empty file, expected a header, e.g. 'probe,part,...,value,unit,source'", Location(path)
        )
    _check_header(path, header_line, header)
    rows = [_measurement(path, line, header, record, known) for line, record in records if record]
    if not rows:
        raise TableError("table: found a header without rows, expected at least one row", Location(path, header_line))
    return rows


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the records with the line on which each begins."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    line = 1
    try:
        for record in reader:
            yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"table: found {error}, expected comma-separated values", Location(path, line)) from None


def _text(path: Path) -> str:
    if path.is_dir():
        raise TableError("table: found a folder, expected a CSV file, e.g. 'gpu_gemm.csv'", Location(path))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TableError("table: found bytes that are not UTF-8, expected a CSV text file", Location(path)) from None
    except OSError as error:
        raise TableError(f"table: found {error.strerror}, expected a readable CSV file", Location(path)) from None
    if "\0" in text:
        raise TableError("table: found a binary file, expected a CSV text file", Location(path))
    return text


def _check_header(path: Path, line: int, header: Sequence[str]) -> None:
    for number, name in enumerate(header, start=1):
        if header.index(name) != number - 1:
            raise TableError(f"{name}: found this column twice, expected it once", Location(path, line, number))
    for name in COMMON:
        if name not in header:
            message = f"{name}: found no such column among {', '.join(header)}, expected {', '.join(COMMON)}"
            raise TableError(message, Location(path, line))


def _measurement(
    path: Path, line: int, header: Sequence[str], record: Sequence[str], known: Mapping[str, Schema]
) -> Measurement:
    if len(record) != len(header):
        message = f"row: found {len(record)} fields, expected {len(header)} as in the header"
        raise TableError(message, Location(path, line))
    row = dict(zip(header, record, strict=True))
    found = Measurement(row, 0.0, Location(path, line))
    schema = known.get(row["probe"])
    if schema is None:
        raise _wrong(found, "probe", f"one of {', '.join(known)}")
    _check_columns(found, known)
    for name, kind in schema.columns.items():
        _checked(found, name, kind)
    if row["unit"] != schema.unit:
        raise _wrong(found, "unit", f"{schema.unit!r}")
    value = _checked(found, "value", float)
    if not value > 0:
        raise _wrong(found, "value", "a number above zero, e.g. 18.256")
    return Measurement(row, value, found.at)


def _check_columns(found: Measurement, known: Mapping[str, Schema]) -> None:
    """Hold the row's columns against its probe; columns of other probes in a mixed table must be empty here."""
    schema = known[found.probe]
    for name in schema.columns:
        if name not in found.row:
            message = f"{name}: found no such column, expected it for probe {found.probe}"
            raise TableError(message, found.at)
    others = {name for other in known.values() for name in other.columns}
    for name, text in found.row.items():
        if name in schema.columns or name in COMMON or schema.label_only or (name in others and not text):
            continue
        expected = ", ".join((*COMMON[:2], *schema.columns, *COMMON[2:]))
        message = f"{name}: found a column that probe {found.probe} does not have, expected {expected}"
        raise TableError(message, found.column(name))


def _checked(found: Measurement, name: str, kind: type) -> float:
    """Return the field as a number; texts must not be empty."""
    text = found.row[name]
    if kind is str:
        if not text:
            raise _wrong(found, name, "a text")
        return 0.0
    number = kind(text) if _NUMBER[kind].match(text) else math.nan
    if not 0 <= number <= _LARGEST:
        raise _wrong(found, name, "a whole number, e.g. 128" if kind is int else "a number, e.g. 18.256")
    return float(number)


def _wrong(found: Measurement, name: str, expected: str) -> TableError:
    text = found.row[name]
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    return TableError(f"{name}: found {shown}, expected {expected}", found.column(name))
