"""Replays reference tables through the models and reports the errors."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ghostsim import bundled
from ghostsim.accuracy import dram, kernels
from ghostsim.accuracy.table import Measurement, Row, read, schemas
from ghostsim.errors import TableError

_PREDICTORS: Mapping[str, Callable[[Row], float]] = {**dram.PROBES, **kernels.PROBES}
_LABEL_ONLY = ("memory_system_latency", "cxl_latency_model")
"""Probes whose part is a label."""
SCHEMAS = schemas({**dram.COLUMNS, **kernels.COLUMNS}, {**dram.UNITS, **kernels.UNITS}, _LABEL_ONLY)


@dataclass(frozen=True)
class Prediction:
    """A measured row and what the model says."""

    measured: Measurement
    predicted: float

    @property
    def error(self) -> float:
        """Signed relative error."""
        return (self.predicted - self.measured.value) / self.measured.value


@dataclass(frozen=True)
class Errors:
    """Statistics of relative errors, as fractions; quantiles are NumPy's 'linear'."""

    n: int
    skipped: int
    median: float
    p90: float
    max: float
    bias: float

    @classmethod
    def of(cls, errors: Sequence[float]) -> Errors:
        """Return the statistics of signed relative `errors`; no probe has conditions that are unmodelled."""
        size = np.abs(errors)
        median, p90 = (float(np.quantile(size, q)) for q in (0.5, 0.9))
        return cls(len(errors), 0, median, p90, float(size.max()), float(np.median(errors)))


@dataclass(frozen=True)
class AccuracyResult:
    """All predictions, in the order of the tables."""

    predictions: Sequence[Prediction]

    def probes(self) -> dict[str, dict[str, list[float]]]:
        """Return the signed errors by probe and part, both in order of appearance."""
        found: dict[str, dict[str, list[float]]] = {}
        for each in self.predictions:
            found.setdefault(each.measured.probe, {}).setdefault(each.measured.part, []).append(each.error)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``ghostsim accuracy --json`` prints."""
        probes = {
            probe: {
                **vars(Errors.of([error for errors in parts.values() for error in errors])),
                "parts": {part: vars(Errors.of(errors)) for part, errors in parts.items()},
            }
            for probe, parts in self.probes().items()
        }
        return {"schema": 1, "probes": probes}

    def write_predictions(self, folder: Path) -> Path:
        """Write ``predictions.csv`` into `folder`: file and line of each row, its conditions and both values."""
        path = folder / "predictions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["table", "line", "probe", "part", "conditions", "unit", "value", "predicted", "error"])
            writer.writerows(_csv_row(each) for each in self.predictions)
        return path

    def table(self) -> Table:
        """Return the statistics as a table for people, errors in per cent."""
        table = Table("probe", "part", *("n", "skipped", "median %", "p90 %", "max %", "bias %"))
        for probe, parts in self.probes().items():
            table.add_row(probe, "all", *_cells([error for errors in parts.values() for error in errors]))
            for part, errors in parts.items():
                table.add_row("", part, *_cells(errors))
        return table


def accuracy(paths: Sequence[Path] | None = None) -> AccuracyResult:
    """Replay `paths`, or all bundled reference tables, through the models.

    Raises
    ------
    TableError
        If a table is malformed or names a part that no model knows; the message names row and column.
    """
    tables = list(paths) if paths else bundled_tables()
    rows = [row for path in tables for row in read(Path(path), SCHEMAS)]
    return AccuracyResult([Prediction(row, _predict(row)) for row in rows])


def bundled_tables() -> list[Path]:
    """Return the reference tables that hold rows of a probe."""
    folder = bundled.folder("hwmodels") / "reference"
    return [path for path in sorted(folder.glob("*.csv")) if path.stem in SCHEMAS]


def _predict(row: Measurement) -> float:
    try:
        return _PREDICTORS[row.probe](row.row)
    except KeyError as error:
        column, expected = "part", f"a part that the models know; {error} is none"
    except kernels.FieldError as error:
        column, expected = error.column, error.expected
    except ValueError as error:
        raise TableError(f"row: {error}", row.at) from None
    found = row.row[column]
    raise TableError(f"{column}: found {found!r}, expected {expected}", row.column(column))


def _csv_row(each: Prediction) -> list[str]:
    row, at = each.measured.row, each.measured.at
    conditions = json.dumps({name: row[name] for name in SCHEMAS[row["probe"]].columns})
    file = Path(at.file).name
    values = [repr(each.measured.value), repr(each.predicted), repr(each.error)]
    return [file, str(at.line), row["probe"], row["part"], conditions, row["unit"], *values]


def _cells(errors: Sequence[float]) -> list[str]:
    found = Errors.of(errors)
    fractions = (found.median, found.p90, found.max, found.bias)
    return [str(found.n), str(found.skipped), *(f"{100 * fraction:.1f}" for fraction in fractions)]
