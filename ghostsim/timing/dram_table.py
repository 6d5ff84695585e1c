"""Reads the DRAM configurations of ``hwmodels/reference/dram_timings.csv``."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import fields
from functools import cache

from ghostsim import bundled
from ghostsim.timing.dram_timing import DramTiming

_COLUMNS = {
    "tCK_ps": "cycle_unit_ns",
    "subchannels": "channels",
    "row_bytes": "row_bytes_per_rank_or_pc",
}


@cache
def load_timings() -> Mapping[str, DramTiming]:
    """Return every configuration of the table by its name (column `config`)."""
    path = bundled.folder("hwmodels") / "reference" / "dram_timings.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return {row["config"]: _timing(row) for row in csv.DictReader(file)}


def _timing(row: Mapping[str, str]) -> DramTiming:
    texts = {field.name: row.get(_COLUMNS.get(field.name, field.name), "") for field in fields(DramTiming)}
    numbers = {name: int(text) for name, text in texts.items() if text and name not in {"standard", "tCK_ps"}}
    return DramTiming(standard=texts["standard"], tCK_ps=float(texts["tCK_ps"]) * 1000, **numbers)
