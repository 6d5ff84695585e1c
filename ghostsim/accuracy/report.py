"""Replays reference tables through the models and reports the errors."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ghostsim import bundled
from ghostsim.accuracy import dram, gpu_memory, kernels
from ghostsim.accuracy.kernels import GpuPart
from ghostsim.accuracy.table import Measurement, Row, read, schemas
from ghostsim.config.hardware import Gpu
from ghostsim.errors import TableError
from ghostsim.timing.dram_table import load_timings

_PREDICTORS: Mapping[str, Callable[[Row], float]] = {**dram.PROBES, **kernels.PROBES}
_GPU_PREDICTORS: Mapping[str, Callable[[GpuPart, Row], float]] = {**kernels.GPU_PROBES, **gpu_memory.GPU_PROBES}
_LABEL_ONLY = ("memory_system_latency", "cxl_latency_model")
"""Probes whose part is a label."""
SCHEMAS = schemas(
    {**dram.COLUMNS, **kernels.COLUMNS, **gpu_memory.COLUMNS},
    {**dram.UNITS, **kernels.UNITS, **gpu_memory.UNITS},
    _LABEL_ONLY,
)


_CONTROLLER = ("mapping", "page_policy", "refresh")
"""Conditions whose other values are not modelled: such rows are counted as skipped."""
_RANGES = {
    "read_fraction": (0, 1),
    "dram_latency_mean.read_fraction": (0.01, 1),
    "dram_latency_p95.read_fraction": (0.01, 1),
    "record_bytes": (1, 65536),
    "n_records": (1, 1_000_000),
    "gpu_gather.n_records": (1, 1e9),
    "gpu_sketch_score.n_records": (1, 1e9),
    "outstanding": (1, 65536),
    "read_queue": (1, 65536),
    "write_queue": (1, 65536),
    "max_GBps": (0.001, 1e6),
}
"""What the memory models accept of conditions, of all probes or of one; a latency needs reads."""
_KNOWN = {
    **{(probe, "part"): "'H100-SXM5-80GB'" for probe in _GPU_PREDICTORS},
    ("upmem_mram_dma", "part"): "'UPMEM_DPU_350MHz'",
    **{(probe, "part"): "'DDR5_4800C_1sub_1R'" for probe in dram.PROBES},
}


@dataclass(frozen=True)
class Prediction:
    """A measured row and what the model says; none if the row's condition is not modelled."""

    measured: Measurement
    predicted: float | None

    @property
    def error(self) -> float:
        """Signed relative error."""
        return math.nan if self.predicted is None else (self.predicted - self.measured.value) / self.measured.value


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
    def of(cls, rows: Sequence[Prediction]) -> Errors:
        """Return the statistics of `rows`; all zero if every row was skipped."""
        errors = np.array([row.error for row in rows if row.predicted is not None])
        skipped = len(rows) - len(errors)
        if not len(errors):
            return cls(0, skipped, 0.0, 0.0, 0.0, 0.0)
        size = np.abs(errors)
        median, p90 = (float(np.quantile(size, q)) for q in (0.5, 0.9))
        return cls(len(errors), skipped, median, p90, float(size.max()), float(np.median(errors)))


@dataclass(frozen=True)
class AccuracyResult:
    """All predictions, in the order of the tables."""

    predictions: Sequence[Prediction]

    def probes(self) -> dict[str, dict[str, list[Prediction]]]:
        """Return the predictions by probe and part, both in order of appearance."""
        found: dict[str, dict[str, list[Prediction]]] = {}
        for each in self.predictions:
            found.setdefault(each.measured.probe, {}).setdefault(each.measured.part, []).append(each)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``ghostsim accuracy --json`` prints."""
        probes = {
            probe: {
                **vars(Errors.of(_all(parts))),
                "parts": {part: vars(Errors.of(rows)) for part, rows in parts.items()},
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
            table.add_row(probe, "all", *_cells(_all(parts)))
            for part, rows in parts.items():
                table.add_row("", part, *_cells(rows))
        return table


def accuracy(paths: Sequence[Path] | None = None, parts: Sequence[Gpu] = ()) -> AccuracyResult:
    """Replay `paths`, or all bundled reference tables, through the models.

    `parts` are GPUs that rows may name besides those of the catalogue.

    Raises
    ------
    TableError
        If a table is malformed or names a part that no model knows; the message names row and column.
    """
    tables = list(paths) if paths else bundled_tables()
    rows = [row for path in tables for row in read(Path(path), SCHEMAS)]
    gpus = {**kernels.gpu_parts(), **{part.name: kernels.gpu_of(part) for part in parts}}
    return AccuracyResult([Prediction(row, _predict(row, gpus)) for row in rows])


def bundled_tables() -> list[Path]:
    """Return the reference tables that hold rows of a probe."""
    folder = bundled.folder("hwmodels") / "reference"
    return [path for path in sorted(folder.glob("*.csv")) if path.stem in SCHEMAS]


def _predict(row: Measurement, gpus: Mapping[str, GpuPart]) -> float | None:
    _check_range(row)
    if row.probe in dram.PROBES and not _modelled(row):
        return None
    try:
        if row.probe in _GPU_PREDICTORS:
            return _GPU_PREDICTORS[row.probe](gpus[row.part], row.row)
        return _PREDICTORS[row.probe](row.row)
    except KeyError as error:
        column = next((name for name, text in row.row.items() if text == error.args[0]), "part")
        expected = f"a {column} that the models know, e.g. {_KNOWN.get((row.probe, column), 'that of a bundled table')}"
    except kernels.FieldError as error:
        column, expected = error.column, error.expected
    except ValueError as error:
        raise TableError(f"row: {error}", row.at) from None
    except ArithmeticError:
        raise TableError("row: found numbers too large to calculate with, expected a real shape", row.at) from None
    raise TableError(f"{column}: found {row.row[column]!r}, expected {expected}", row.column(column))


def _check_range(row: Measurement) -> None:
    for name in SCHEMAS[row.probe].columns:
        limits = _RANGES.get(f"{row.probe}.{name}") or _RANGES.get(name)
        if limits and not limits[0] <= float(row.row[name]) <= limits[1]:
            message = f"{name}: found {row.row[name]!r}, expected a number from {limits[0]:g} to {limits[1]:g}"
            raise TableError(message, row.column(name))


def _modelled(row: Measurement) -> bool:
    """Say whether the controller's settings are modelled; of other conditions an unknown value is an error."""
    for name, known in dram.MODELLED.items():
        if name in SCHEMAS[row.probe].columns and row.row[name] not in known:
            if name in _CONTROLLER and row.part in load_timings():
                return False
            if name in _CONTROLLER:
                continue
            expected = f"one of {', '.join(sorted(known))}"
            raise TableError(f"{name}: found {row.row[name]!r}, expected {expected}", row.column(name))
    return True


def _csv_row(each: Prediction) -> list[str]:
    row, at = each.measured.row, each.measured.at
    conditions = json.dumps({name: row[name] for name in SCHEMAS[row["probe"]].columns})
    file = Path(at.file).name
    answer = ["", ""] if each.predicted is None else [repr(each.predicted), repr(each.error)]
    values = [repr(each.measured.value), *answer]
    return [file, str(at.line), row["probe"], row["part"], conditions, row["unit"], *values]


def _all(parts: Mapping[str, Sequence[Prediction]]) -> list[Prediction]:
    return [each for rows in parts.values() for each in rows]


def _cells(rows: Sequence[Prediction]) -> list[str]:
    found = Errors.of(rows)
    fractions = (found.median, found.p90, found.max, found.bias)
    return [str(found.n), str(found.skipped), *(f"{100 * fraction:.1f}" for fraction in fractions)]
