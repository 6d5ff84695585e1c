"""Does a search find what an exhaustive one finds, tell when nothing fits, and go on where it was stopped?"""

import csv
import json
import sqlite3

import pytest
from tiny import SCENARIO

from ghostsim.errors import ConfigError, StoreError, UsageError
from ghostsim.sweep import search as searching
from ghostsim.sweep import store
from ghostsim.sweep.executor import Crew, run_sweep
from ghostsim.sweep.search import effective_search, run_search
from ghostsim.sweep.sensitivity import run_sensitivity

optuna = pytest.importorskip("optuna")

BESIDE = SCENARIO.replace("baseline:", "  beside: {policy: full, kv_tier: dram}\nbaseline:")
LINK = "platform.links.cxl0.width"
RATE = "platform.devices.host0.root_complex"
SEARCH = f"""
schema: 1
scenario: tiny.yaml
runs: [full, offload]
fields:
  {LINK}: [1, 2, 4, 8, 16]
  {RATE}: {{from: 2 GB/s, to: 60 GB/s, scale: log}}
objectives: {{{RATE}: minimise}}
subject_to: ["offload.step_ms.p95 <= 3 * full.step_ms.p95"]
trials: 10
"""


@pytest.fixture
def spec(beside_tiny):
    """Return a function that writes a search of the tiny scenario and of one run more."""
    beside_tiny("tiny.yaml", BESIDE)
    return lambda text=SEARCH, old="", new="": beside_tiny("spec.yaml", text.replace(old, new) if old else text)


def searched(path, out, **options):
    return run_search(effective_search(path), out, Crew(1), **options)


def rows(folder, name="points.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_best_choice_is_that_of_a_whole_grid(spec, tmp_path):
    only_links = spec(SEARCH, f"  {RATE}: {{from: 2 GB/s, to: 60 GB/s, scale: log}}\n", "")
    text = only_links.read_text().replace(f"objectives: {{{RATE}", f"objectives: {{{LINK}").replace("3 * ", "6 * ")
    only_links.write_text(text)
    (tmp_path / "sweep.yaml").write_text(
        f"schema: 1\nscenario: tiny.yaml\nruns: [full, offload]\ngrid: {{{LINK}: [1, 2, 4, 8, 16]}}\n"
    )
    grid = rows(run_sweep(tmp_path / "sweep.yaml", [], tmp_path / "grid").folder)
    fits = [int(row[LINK]) for row in grid if float(row["offload.step_ms.p95"]) <= 6 * float(row["full.step_ms.p95"])]
    assert 0 < len(fits) < 5
    assert [trial.settings[LINK] for trial in searched(only_links, tmp_path / "out").best] == [min(fits)]


def test_the_best_point_meets_its_bounds_and_beats_the_others(spec, tmp_path):
    found = searched(spec(), tmp_path / "out")
    best, fitting = found.best[0], [trial for trial in found.trials if trial.feasible]
    assert 0 < len(fitting) < len(found.trials) == 10
    assert best.objectives[RATE] == min(trial.objectives[RATE] for trial in fitting)
    row = rows(tmp_path / "out")[best.number]
    assert (row["point"], row["meets_bounds"]) == (best.point, "true")
    assert float(row["offload.step_ms.p95"]) <= 3 * float(row["full.step_ms.p95"])


def test_what_is_tried_does_not_depend_on_an_interruption(spec, tmp_path, monkeypatch):
    whole = searched(spec(), tmp_path / "whole")
    real, ended = searching.worker.compute, []

    def compute(task):
        if len(ended) == 4:
            raise KeyboardInterrupt
        ended.append(task.point)
        return real(task)

    with monkeypatch.context() as patch:
        patch.setattr(searching.worker, "compute", compute)
        with pytest.raises(KeyboardInterrupt):
            searched(spec(), tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 4
    again = searched(spec(), tmp_path / "out", resume=True)
    assert again.trials == whole.trials
    assert (tmp_path / "out" / "points.csv").read_bytes() == (tmp_path / "whole" / "points.csv").read_bytes()


def test_a_search_goes_on_with_more_trials(spec, tmp_path):
    whole = searched(spec(), tmp_path / "whole")
    searched(spec(SEARCH, "trials: 10", "trials: 3"), tmp_path / "out")
    assert searched(spec(), tmp_path / "out", resume=True).trials == whole.trials


def test_a_study_is_sqlite_that_other_programs_read(spec, tmp_path):
    searched(spec(), tmp_path / "out")
    with sqlite3.connect(tmp_path / "out" / "study.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (10,)
    database.close()


def test_two_objectives_give_a_front_on_which_no_point_beats_another(spec, tmp_path):
    two = f"objectives: {{{RATE}: minimise, offload.tokens_per_s: maximise}}"
    path = spec(SEARCH.replace("3 * ", "30 * "), f"objectives: {{{RATE}: minimise}}", two)
    found = searched(path, tmp_path / "out")
    costs = [(trial.objectives[RATE], -trial.objectives["offload.tokens_per_s"]) for trial in found.best]
    every = [
        (trial.objectives[RATE], -trial.objectives["offload.tokens_per_s"]) for trial in found.trials if trial.feasible
    ]
    assert len(costs) > 1
    assert not any(a != b and a[0] <= b[0] and a[1] <= b[1] for a in every for b in costs)


def test_a_point_that_fails_is_a_row_and_no_answer(spec, tmp_path):
    path = spec(SEARCH, "trials: 10", "trials: 6")
    path.write_text(path.read_text().replace("fields:", "fields:\n  workload.batch: [1, 1000000]"))
    found = searched(path, tmp_path / "out")
    failed = [trial for trial in found.trials if trial.error]
    assert 0 < len(failed) < 6
    assert all("expected" in trial.error and not trial.feasible for trial in failed)
    assert [row["status"] for row in rows(tmp_path / "out")].count("failed") == len(failed)


def test_a_table_of_figures_is_an_objective_by_its_sum(spec, tmp_path):
    path = spec(SEARCH, f"{{{RATE}: minimise}}", "{offload.bytes_per_step.cxl: minimise}")
    path.write_text(path.read_text().replace("trials: 10", "trials: 1"))
    trial = searched(path, tmp_path / "out").trials[0]
    row = rows(tmp_path / "out")[0]
    parts = [float(cell) for column, cell in row.items() if column.startswith("offload.bytes_per_step.cxl.")]
    assert trial.objectives["offload.bytes_per_step.cxl"] == sum(parts) > 0


def test_the_store_of_another_search_is_refused(spec, tmp_path):
    searched(spec(SEARCH, "trials: 10", "trials: 1"), tmp_path / "out")
    with pytest.raises(UsageError, match="another search"):
        searched(spec(SEARCH, "3 * full", "4 * full"), tmp_path / "out", resume=True)
    with pytest.raises(StoreError, match="ghostsim search"):
        searched(spec(), tmp_path, resume=True)


def test_a_damaged_study_is_named(spec, tmp_path):
    path = spec(SEARCH, "trials: 10", "trials: 1")
    searched(path, tmp_path / "out")
    (tmp_path / "out" / "study.db").write_text("no database, but long enough to be looked at " * 40)
    with pytest.raises(StoreError, match=r"study\.db: found a study that cannot be used"):
        searched(path, tmp_path / "out", resume=True)


def test_one_search_works_on_a_store_at_a_time(spec, tmp_path):
    path = spec(SEARCH, "trials: 10", "trials: 1")
    searched(path, tmp_path / "out")
    with (
        store.claimed(tmp_path / "out", searching._STUDY_LOCK),
        pytest.raises(UsageError, match="another search at work"),
    ):
        searched(path, tmp_path / "out", resume=True)


def test_what_the_search_varies_cannot_be_set(spec):
    with pytest.raises(ConfigError, match="the search varies"):
        effective_search(spec(), [f"{LINK}=4"])


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_prints_the_best_point(spec, tmp_path, ghostsim, selections):
    spec(SEARCH, "trials: 10", "trials: 8")
    ended = ghostsim(
        "search", "spec.yaml", "--out", "out", "--json", "--set", "workload.steps=1",
        cwd=tmp_path, GHOSTSIM_CACHE=str(selections),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert (found["trials"], found["failed"], found["objectives"]) == (8, 0, {RATE: "minimise"})
    assert found["best"][0]["settings"]["workload.steps"] == 1
    assert found["best"][0]["gaps"]["offload.step_ms.p95 <= 3 * full.step_ms.p95"] <= 0
    assert ended.stderr.splitlines() == ["out/sweep.html", "out"]
    page = (tmp_path / "out" / "sweep.html").read_text()
    assert f"{RATE} {found['best'][0]['settings'][RATE]}. " in page.partition("</h1>")[0]


@pytest.mark.slow
def test_several_processes_search_too(spec, tmp_path, ghostsim, selections):
    spec(SEARCH, "trials: 10", "trials: 5")
    ended = ghostsim("search", "spec.yaml", "--out", "out", "--jobs", "2", cwd=tmp_path, GHOSTSIM_CACHE=str(selections))
    assert ended.returncode in (0, 5), ended.stderr
    assert [row["trial"] for row in rows(tmp_path / "out")] == list("01234")


def test_bounds_that_no_point_meets_end_the_command_with_five(spec, tmp_path, ghostsim, selections):
    spec(SEARCH.replace("trials: 10", "trials: 2"), "<= 3 * full", "<= 0.001 * full")
    ended = ghostsim("search", "spec.yaml", "--out", "out", cwd=tmp_path, GHOSTSIM_CACHE=str(selections))
    assert ended.returncode == 5, ended.stderr
    assert ended.stdout.startswith("2 trials, 0 failed, 0 meet the bounds\nclosest: trial ")
    error = "error: found no point that meets the bounds, expected one; see points.csv"
    assert ended.stderr.splitlines() == ["out/sweep.html", error, "out"]
    assert "No point meets the bounds" in (tmp_path / "out" / "sweep.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("minimise}", "minimize}", "found 'minimize', expected one of 'minimise' or 'maximise'"),
        ("offload.step_ms.p95 <=", "offload.step_ms.p59 <=", "which is no number of metrics.json"),
        ("[1, 2, 4, 8, 16]", "[1, 2, x]", "found 'x', expected a whole number"),
    ],
)
def test_a_bad_search_is_one_line(spec, tmp_path, refused, old, new, words):
    path = spec(SEARCH, old, new)
    line = refused(3, "search", path)
    assert line.startswith(f"error: {path}:")
    assert words in line


# --- assumed numbers ------------------------------------------------------------------------------------------

SENSITIVITY = """
schema: 1
scenario: tiny.yaml
runs: [full, offload]
sensitivity: {factor: 2}
"""


def effects(path, out):
    found = run_sensitivity(effective_search(path), out, Crew(1))
    return {effect.assumption.paths[0]: effect for effect in found.effects}, found


@pytest.mark.slow
def test_effects_are_those_of_runs_by_hand(spec, tmp_path):
    by_path, found = effects(spec(SENSITIVITY), tmp_path / "out")
    effect = by_path["platform.devices.switch0.hop"]
    assert effect.assumption.value == "100 ns"
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "schema: 1\nscenario: tiny.yaml\nruns: [full, offload]\n"
        'grid: {platform.devices.switch0.hop: ["50 ns", "100 ns", "200 ns"]}\n'
    )
    grid = rows(run_sweep(sweep, [], tmp_path / "grid").folder)
    ratios = [float(row["compare.full.offload.tokens_per_s"]) for row in grid]
    assert [effect.divided, effect.ratio, effect.multiplied] == ratios
    assert [each.size for each in found.effects] == sorted((each.size for each in found.effects), reverse=True)


@pytest.mark.slow
def test_a_number_that_two_devices_take_from_one_part_is_one_assumption(spec, tmp_path):
    by_path, _ = effects(spec(SENSITIVITY), tmp_path / "out")
    assert by_path["platform.devices.cxl_exp0.filter.macs"].assumption.paths == (
        "platform.devices.cxl_exp0.filter.macs",
        "platform.devices.cxl_exp1.filter.macs",
    )


@pytest.mark.slow
def test_a_verdict_on_the_edge_is_flipped_by_what_moves_it(spec, tmp_path):
    (tmp_path / "tiny.yaml").write_text(BESIDE.replace("baseline: [full]", "baseline: [beside]"))
    by_path, found = effects(spec(SENSITIVITY, "[full, offload]", "[beside, offload]"), tmp_path / "out")
    flips = {path for path, effect in by_path.items() if effect.flips}
    for path, effect in by_path.items():
        sides = [each for each in (effect.divided, effect.multiplied) if each is not None]
        assert (path in flips) == any((side > 1) != (found.ratios["beside"]["offload"] > 1) for side in sides)


@pytest.mark.slow
def test_a_change_that_is_no_platform_is_left_empty(spec, tmp_path):
    by_path, _ = effects(spec(SENSITIVITY), tmp_path / "out")
    effect = by_path["platform.devices.cxl_exp0.memory.efficiency"]
    assert effect.multiplied is None
    assert effect.divided is not None


def test_sensitivity_needs_a_baseline(spec, tmp_path):
    path = spec(SENSITIVITY, "[full, offload]", "[offload]")
    with pytest.raises(ConfigError, match="baseline"):
        run_sensitivity(effective_search(path), tmp_path / "out", Crew(1))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_prints_and_writes_the_effects(spec, tmp_path, ghostsim, selections):
    spec(SENSITIVITY)
    ended = ghostsim("search", "spec.yaml", "--out", "out", "--json", cwd=tmp_path, GHOSTSIM_CACHE=str(selections))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert len(found["effects"]) == len(rows(tmp_path / "out", "sensitivity.csv")) > 20
    assert found["ratios"]["full"]["offload"] < 1
    assert "<h1>offload against full: 0." in (tmp_path / "out" / "sweep.html").read_text()
    text = ghostsim(
        "search", "spec.yaml", "--out", "out", "--resume", cwd=tmp_path, GHOSTSIM_CACHE=str(selections)
    ).stdout
    assert text.startswith("offload against full: tokens_per_s ratio 0.")
