"""The DRAM and memory-system models against the reference tables, at the bars the project states."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from ghostsim import bundled
from ghostsim.accuracy.dram import COLUMNS, KNOWN, PROBES, UNITS

BARS = {  # median, 90th percentile of the absolute relative error
    "dram_bandwidth": (0.03, 0.08),
    "dram_gather": (0.03, 0.10),
    "dram_latency_mean": (0.06, 0.15),
    "dram_latency_p95": (0.10, 0.30),
    "memory_system_latency": (0.05, 0.16),
    "cxl_latency_model": (0.05, 0.16),
}


def table(probe):
    path = bundled.folder("hwmodels") / "reference" / f"{probe}.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def errors(probe):
    return np.array([abs(PROBES[probe](row) / float(row["value"]) - 1) for row in table(probe)])


@pytest.mark.parametrize("probe", [pytest.param(probe, marks=pytest.mark.slow) for probe in BARS if "dram" in probe])
def test_dram_probe_meets_its_bar(probe, tmp_path, monkeypatch):
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path))
    median, p90 = np.percentile(errors(probe), [50, 90])
    assert (median <= BARS[probe][0], p90 <= BARS[probe][1]) == (True, True), (median, p90)


@pytest.mark.parametrize("probe", ["memory_system_latency", "cxl_latency_model"])
def test_system_probe_meets_its_bar(probe):
    median, p90 = np.percentile(errors(probe), [50, 90])
    assert (median <= BARS[probe][0], p90 <= BARS[probe][1]) == (True, True), (median, p90)


@pytest.mark.parametrize("probe", PROBES)
def test_rows_have_the_declared_columns_units_and_conditions(probe):
    for row in table(probe):
        assert set(COLUMNS[probe]) <= set(row)
        assert row["unit"] == UNITS[probe]
        assert all(row[column] in known for column, known in KNOWN.items() if column in row)
        for column, kind in COLUMNS[probe].items():
            kind(row[column])


def test_unknown_dram_part_is_a_key_error():
    with pytest.raises(KeyError, match="DDR9"):
        PROBES["dram_gather"]({**table("dram_gather")[0], "part": "DDR9"})
