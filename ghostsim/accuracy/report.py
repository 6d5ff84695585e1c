"""Replays reference tables through the models and reports the errors."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ghostsim import bundled
from ghostsim.accuracy.predict import SCHEMAS, Progress, predict
from ghostsim.accuracy.table import Measurement, read
from ghostsim.config.hardware import Gpu

BARS: Mapping[str, tuple[float, float]] = {
    "dram_bandwidth": (0.03, 0.08),
    "dram_gather": (0.03, 0.10),
    "dram_latency_mean": (0.06, 0.15),
    "dram_latency_p95": (0.10, 0.30),
    "memory_system_latency": (0.05, 0.16),
    "gpu_decode_attention": (0.06, 0.18),
    "gpu_gemm": (0.06, 0.18),
    "upmem_mram_dma": (0.05, 0.15),
}
"""The median and the 90th percentile of the error that a probe is to stay within; 0.15 and 0.40 for a GPU without rows
of its own."""
TITLES: Mapping[str, str] = {
    "dram_bandwidth": "DRAM saturated bandwidth",
    "dram_gather": "DRAM gather makespan",
    "dram_latency_mean": "DRAM loaded latency, mean",
    "dram_latency_p95": "DRAM loaded latency, 95th percentile",
    "memory_system_latency": "Loaded latency of real memory systems",
    "cxl_latency_model": "Loaded latency of a CXL expander, vendor simulation",
    "gpu_decode_attention": "GPU decode attention",
    "gpu_gemm": "GPU matrix products",
    "upmem_mram_dma": "UPMEM MRAM DMA",
}
_USUAL = frozenset({"CHUNK256", "open", "AllBank"})
"""Conditions of nearly all rows, not worth a reader's time."""


@dataclass(frozen=True)
class Prediction:
    """A measured row and what the model says; none if the row's condition is not modelled."""

    measured: Measurement
    predicted: float | None

    @property
    def error(self) -> float:
        """Signed relative error."""
        return math.nan if self.predicted is None else (self.predicted - self.measured.value) / self.measured.value

    @property
    def place(self) -> str:
        """Table and line of the row."""
        return f"{Path(self.measured.at.file).name}:{self.measured.at.line}"

    @property
    def conditions(self) -> str:
        """The part and the conditions that tell the row from others, as text."""
        row = self.measured.row
        shown = [f"{name}={row[name]}" for name in SCHEMAS[row["probe"]].columns if row[name] not in _USUAL]
        return ", ".join([row["part"], *(text for text in shown if not text.startswith("part="))])

    @property
    def figures(self) -> tuple[str, str, str]:
        """Value, prediction and error in per cent, as text."""
        value, unit = self.measured.value, self.measured.row["unit"].split(" per ")[0]
        if self.predicted is None:
            return f"{value:.4g} {unit}", "-", "-"
        return f"{value:.4g} {unit}", f"{self.predicted:.4g}", f"{100 * self.error:+.1f}"


@dataclass(frozen=True)
class Errors:
    """Statistics of relative errors, as fractions; quantiles are NumPy's 'linear'."""

    n: int
    skipped: int
    median: float
    p90: float
    max: float
    bias: float

    def meets(self, bar: tuple[float, float] | None) -> bool:
        """Say whether median and 90th percentile stay within `bar`; without one they do."""
        return bar is None or (self.median <= bar[0] and self.p90 <= bar[1])

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

    def errors(self, probe: str) -> Errors:
        """Return the statistics of a probe over all parts."""
        return Errors.of(_all(self.probes()[probe]))

    def write_predictions(self, folder: Path) -> Path:
        """Write ``predictions.csv`` into `folder`: file and line of each row, its conditions and both values."""
        path = folder / "predictions.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["table", "line", "probe", "part", "conditions", "unit", "value", "predicted", "error"])
            writer.writerows(_csv_row(each) for each in self.predictions)
        return path

    def worst(self, probe: str, count: int = 3) -> list[Prediction]:
        """Return the rows of a probe with the largest errors, the largest first."""
        answered = [each for each in _all(self.probes()[probe]) if each.predicted is not None]
        return sorted(answered, key=lambda each: -abs(each.error))[:count]

    def worst_table(self, count: int = 3) -> Table:
        """Return the worst rows of every probe as a table for people."""
        table = Table("probe", "table:line", "conditions", "value", "predicted", "error %", title="Worst rows")
        for probe in self.probes():
            for each in self.worst(probe, count):
                table.add_row(probe, each.place, each.conditions, *each.figures)
        return table

    def table(self) -> Table:
        """Return the statistics as a table for people, errors in per cent."""
        table = Table("probe", "part", *("n", "skipped", "median %", "p90 %", "max %", "bias %"))
        for probe, parts in self.probes().items():
            table.add_row(probe, "all", *_cells(_all(parts)))
            for part, rows in parts.items():
                table.add_row("", part, *_cells(rows))
        return table


def accuracy(
    paths: Sequence[Path] | None = None,
    parts: Sequence[Gpu] = (),
    *,
    jobs: int = 1,
    progress: Progress | None = None,
) -> AccuracyResult:
    """Replay `paths`, or all bundled reference tables, through the models.

    `parts`, `jobs` and `progress` are those of `predict`.

    Raises
    ------
    TableError
        If a table is malformed or names a part that no model knows; the message names row and column.
    """
    tables = list(paths) if paths else bundled_tables()
    rows = [row for path in tables for row in read(Path(path), SCHEMAS)]
    answers = predict(rows, jobs, progress, parts)
    return AccuracyResult([Prediction(row, answer) for row, answer in zip(rows, answers, strict=True)])


def bundled_tables() -> list[Path]:
    """Return the reference tables that hold rows of a probe."""
    folder = bundled.folder("hwmodels") / "reference"
    return [path for path in sorted(folder.glob("*.csv")) if path.stem in SCHEMAS]


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
