"""Tables for other tools: columns of numbers with their units in the names, as CSV or Parquet."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from ghostsim.errors import Location, StoreError, UsageError

Cells = Sequence[str] | Sequence[float | None]
Columns = Mapping[str, Cells]
Format = Literal["csv", "parquet"]


def write_tables(folder: Path, tables: Mapping[str, Columns], form: Format) -> None:
    """Write one file per table; an empty cell is a missing value.

    Raises
    ------
    UsageError
        If Parquet is asked for without pyarrow.
    StoreError
        If a file cannot be written.
    """
    write = _write_csv if form == "csv" else _parquet_writer()
    for name, columns in tables.items():
        path = folder / f"{name}.{form}"
        try:
            write(path, columns)
        except OSError as error:
            raise StoreError(
                f"found a file that cannot be written ({error.strerror}), expected one that can", Location(path)
            ) from None


def _write_csv(path: Path, columns: Columns) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _parquet_writer() -> Callable[[Path, Columns], None]:
    try:
        import pyarrow as pa  # noqa: PLC0415  (an extra)
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise UsageError('--parquet: found no pyarrow, expected it, e.g. pip install "ghostsim[parquet]"') from None

    def write(path: Path, columns: Columns) -> None:
        pq.write_table(pa.table({name: list(cells) for name, cells in columns.items()}), path)

    return write
