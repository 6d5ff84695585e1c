"""Do the tables of a run come back as they were, whatever reads them?"""

import csv

import pytest

from ghostsim.cli import app
from ghostsim.errors import StoreError, UsageError
from ghostsim.export.tables import write_tables
from ghostsim.report.run_tables import run_tables
from ghostsim.report.store import load_run


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return {name: [row[at] for row in rows] for at, name in enumerate(header)}


def as_text(columns):
    return {name: ["" if cell is None else str(cell) for cell in cells] for name, cells in columns.items()}


def test_csv_holds_every_number_in_full(run_folder, tmp_path):
    tables = run_tables(load_run(run_folder))
    write_tables(tmp_path, tables, "csv")
    assert {name: read_csv(tmp_path / f"{name}.csv") for name in tables} == {n: as_text(t) for n, t in tables.items()}


def test_parquet_gives_back_numbers_and_gaps(run_folder, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    tables = run_tables(load_run(run_folder))
    write_tables(tmp_path, tables, "parquet")
    for name, columns in tables.items():
        assert parquet.read_table(tmp_path / f"{name}.parquet").to_pydict() == {
            key: list(c) for key, c in columns.items()
        }


def test_metrics_table_has_the_figures_of_metrics_json_with_units(run_folder):
    run = load_run(run_folder)
    rows = run_tables(run)["metrics"]
    found = {
        (label, name): (value, unit)
        for label, name, value, unit in zip(rows["run"], rows["metric"], rows["value"], rows["unit"], strict=True)
    }
    quest = run.metrics["runs"]["quest"]
    assert found["quest", "step_ms.p95"] == (quest["step_ms"]["p95"], "ms")
    assert found["quest", "bytes_per_step.dram.kv"] == (quest["bytes_per_step"]["dram"]["kv"], "bytes")
    assert found["quest", "quality.lost_mass.max"] == (quest["quality"]["lost_mass"]["max"], "share")
    assert found["quest", "energy_mj_per_token.hbm"][1] == "mJ/token"


def test_steps_table_has_a_row_per_run_and_step(run_folder):
    run = load_run(run_folder)
    steps = run_tables(run)["steps"]
    assert len(steps["run"]) == sum(len(columns["step_ms"]) for columns in run.steps.values())
    assert "lost_mass_max_share" in steps


def test_folder_that_cannot_be_written_is_one_line(run_folder, tmp_path):
    with pytest.raises(StoreError, match="cannot be written"):
        write_tables(tmp_path / "nowhere", run_tables(load_run(run_folder)), "csv")


def test_tables_that_are_there_are_kept(run_folder, tmp_path):
    app(["report", str(run_folder), "--csv", str(tmp_path)], standalone_mode=False)
    before = (tmp_path / "steps.csv").read_bytes()
    with pytest.raises(UsageError, match="--force"):
        app(["report", str(run_folder), "--csv", str(tmp_path)], standalone_mode=False)
    assert (tmp_path / "steps.csv").read_bytes() == before
