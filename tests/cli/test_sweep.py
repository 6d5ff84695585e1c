"""Does a sweep compute every point once, whatever fails, dies or is interrupted?"""

import csv
import errno
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import SCENARIO

from ghostsim.config.load import load_scenario
from ghostsim.errors import ConfigError, GhostsimError, StoreError, UsageError
from ghostsim.sweep import worker
from ghostsim.sweep.compare import compare_runs, comparison_text
from ghostsim.sweep.executor import run_sweep

BATCHES = "grid: {workload.batch: [1, 2, 3]}"


@pytest.fixture
def sweep(beside_tiny):
    """Return a function that writes a sweep of the tiny scenario."""
    return lambda axes, name="sweep": beside_tiny(f"{name}.yaml", f"schema: 1\nscenario: tiny.yaml\n{axes}\n")


def rows(folder):
    with (folder / "points.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in (folder / "points").iterdir()}


def forbid_simulating(monkeypatch):
    def simulate(*_, **__):
        raise AssertionError("a finished point was computed again")

    monkeypatch.setattr(worker, "simulate", simulate)


def test_every_combination_of_grid_and_zip_is_a_row(sweep, tmp_path):
    path = sweep(
        'grid: {platform.devices.host0.root_complex: ["10 GB/s", "50 GB/s"]}\n'
        "zip: {runs.offload.kv_tier: [cxl, hbm], workload.batch: [2, 1]}"
    )
    result = run_sweep(path, [], tmp_path / "out")
    assert (result.done, result.failed, result.folder) == (4, 0, tmp_path / "out")
    paths = ("platform.devices.host0.root_complex", "runs.offload.kv_tier", "workload.batch")
    expected = [(rate, *pair) for rate in ("10 GB/s", "50 GB/s") for pair in (("cxl", "2"), ("hbm", "1"))]
    assert [tuple(row[path] for path in paths) for row in rows(tmp_path / "out")] == expected
    assert [row["full.batch"] for row in rows(tmp_path / "out")] == ["2", "1", "2", "1"]
    slow, fast = (float(rows(tmp_path / "out")[i]["offload.step_ms.p50"]) for i in (0, 2))
    assert slow > fast


def test_a_row_has_the_figures_of_its_run_folder(sweep, tmp_path):
    run_sweep(sweep(BATCHES), [], tmp_path / "out")
    for row in rows(tmp_path / "out"):
        folder = tmp_path / "out" / "points" / row["point"]
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.yaml", "manifest.json", "metrics.json", "steps.csv"]  # fmt: skip
        run = compare_runs([folder])["labels"]["offload"][0]["figures"]
        assert float(row["offload.tokens_per_s"]) == run["tokens_per_s"]
        assert int(row["workload.batch"]) == run["batch"]
        ratio = float(row["compare.full.offload.tokens_per_s"])
        assert ratio == float(row["offload.tokens_per_s"]) / float(row["full.tokens_per_s"])


def test_points_are_drawn_from_ranges_and_choices(sweep, tmp_path):
    fields = (
        '{platform.devices.host0.root_complex: {from: "10 GB/s", to: "50 GB/s", scale: log}, workload.batch: [1, 2]}'
    )
    path = sweep(f"runs: [offload]\nlatin_hypercube: {{n: 4, seed: 7, fields: {fields}}}")
    result = run_sweep(path, [], tmp_path / "out")
    assert (result.done, result.failed) == (4, 0)
    found = rows(result.folder)
    assert sorted(row["workload.batch"] for row in found) == ["1", "1", "2", "2"]
    assert all(10 <= float(row["platform.devices.host0.root_complex"].split()[0]) <= 50 for row in found)
    assert not any(column.startswith("full.") for column in found[0])


def test_only_the_runs_that_are_asked_for_are_simulated(sweep, tmp_path):
    result = run_sweep(sweep(f"runs: [offload]\n{BATCHES}"), [], tmp_path / "out")
    loaded = load_scenario(points(result.folder)[0] / "config.yaml").scenario
    assert (list(loaded.runs), loaded.baseline) == (["offload"], ())


def test_a_point_that_misses_a_bound_is_done_and_marked(sweep, tmp_path):
    (tmp_path / "tiny.yaml").write_text(SCENARIO + 'require: ["offload.batch <= 2"]\n')
    result = run_sweep(sweep(BATCHES), [], tmp_path / "out")
    assert (result.done, result.failed, result.missed) == (3, 0, 1)
    assert [row["missed"] for row in rows(result.folder)] == [
        "", "", "require: found offload.batch = 3.0, expected <= 2"]  # fmt: skip


def test_progress_says_how_long_it_will_take(sweep, tmp_path):
    said = []
    run_sweep(sweep(BATCHES), [], tmp_path / "out", progress=said.append)
    assert said[0] == "resolve 3 points"
    assert said[1].startswith("1 points done, 0 failed, 2 to come, about ")
    assert said[-1] == "3 points done, 0 failed, 0 to come"


def test_a_full_disk_ends_the_sweep_and_loses_no_point(sweep, tmp_path, monkeypatch):
    path, out, written = sweep(BATCHES), tmp_path / "out", []

    def write_run(folder, *more, **options):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "metrics.json"))
        written.append(folder)
        real(folder, *more, **options)

    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "cold"))
    real = worker.write_run
    with monkeypatch.context() as patch:
        patch.setattr(worker, "write_run", write_run)
        with pytest.raises(GhostsimError, match="No space left on device"):
            run_sweep(path, [], out)
    assert [row["status"] for row in rows(out)] == ["done", "pending", "pending"]
    assert [name.startswith(".") for name in stamps(out)] == [False]
    assert run_sweep(path, [], out, resume=True).done == 3


def test_a_memory_of_points_that_cannot_be_written_costs_no_point(sweep, tmp_path, monkeypatch):
    def remember(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(worker, "_remember", remember)
    assert run_sweep(sweep("grid: {workload.batch: [5]}"), [], tmp_path / "out").done == 1


def test_a_set_reaches_every_point_and_is_written_down(sweep, tmp_path):
    run_sweep(sweep(BATCHES), ["platform.name=mine"], tmp_path / "out")
    assert {row["full.platform"] for row in rows(tmp_path / "out")} == {"mine"}
    again = run_sweep(tmp_path / "out" / "sweep.yaml", [], tmp_path / "again")
    assert (again.folder / "points.csv").read_bytes() == (tmp_path / "out" / "points.csv").read_bytes()


def test_a_point_is_named_by_what_its_figures_depend_on(sweep, tmp_path):
    path = sweep("grid: {workload.batch: [1, 2], name: [one, two]}")
    one = [row["point"] for row in rows(run_sweep(path, [], tmp_path / "one").folder)]
    two = [row["point"] for row in rows(run_sweep(path, ["model.name=other"], tmp_path / "two").folder)]
    assert len({*one, *two}) == 8
    (tmp_path / "tiny.yaml").write_text("# a remark changes nothing\n" + SCENARIO)
    same = [row["point"] for row in rows(run_sweep(path, [], tmp_path / "same").folder)]
    assert same == one


def test_a_point_that_fails_is_a_row_with_one_line(sweep, tmp_path):
    result = run_sweep(sweep("grid: {workload.batch: [1, 1000000, -3]}"), [], tmp_path / "out")
    assert (result.done, result.failed) == (1, 2)
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "failed", "failed"]
    overflow, invalid = (row["error"] for row in rows(tmp_path / "out")[1:])
    assert "expected" in overflow
    assert "workload.batch" in invalid
    assert "\n" not in overflow + invalid
    assert len(stamps(tmp_path / "out")) == 1


def test_resume_computes_only_what_is_missing(sweep, tmp_path, monkeypatch):
    path, out = sweep(BATCHES), tmp_path / "out"
    run_sweep(path, [], out)
    table, before = (out / "points.csv").read_bytes(), stamps(out)
    forbid_simulating(monkeypatch)
    assert run_sweep(path, [], out, resume=True).done == 3
    assert stamps(out) == before
    assert (out / "points.csv").read_bytes() == table


def test_resume_tries_failed_points_again(sweep, tmp_path, monkeypatch):
    path, out = sweep(BATCHES), tmp_path / "out"
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "cold"))
    with monkeypatch.context() as patch:
        forbid_simulating(patch)
        assert run_sweep(path, [], out).failed == 3
    assert run_sweep(path, [], out, resume=True).done == 3


def test_two_stores_share_their_points(sweep, tmp_path, monkeypatch):
    run_sweep(sweep(BATCHES), [], tmp_path / "out")
    forbid_simulating(monkeypatch)
    other = run_sweep(sweep("list: [{workload.batch: 3}, {workload.batch: 1}]", "other"), [], tmp_path / "other")
    assert other.done == 2
    assert set(stamps(tmp_path / "other")) < set(stamps(tmp_path / "out"))


def test_the_store_of_another_sweep_is_refused(sweep, tmp_path):
    run_sweep(sweep(BATCHES), [], tmp_path / "out")
    with pytest.raises(UsageError, match="another sweep"):
        run_sweep(sweep(BATCHES, "other"), ["workload.steps=1"], tmp_path / "out", resume=True)
    with pytest.raises(UsageError, match="--resume"):
        run_sweep(sweep(BATCHES), [], tmp_path / "out")


def test_resume_needs_a_store(sweep, tmp_path):
    with pytest.raises(StoreError):
        run_sweep(sweep(BATCHES), [], tmp_path / "nowhere", resume=True)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("text", ["workload.batch=2", "workload.bach=2", "workload.steps=many"])
def test_a_set_that_cannot_be_is_refused_before_anything_is_written(sweep, tmp_path, text):
    with pytest.raises(ConfigError):
        run_sweep(sweep(BATCHES), [text], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_any_number_of_processes_writes_the_same_table(sweep, tmp_path, monkeypatch):
    path = sweep("grid: {workload.batch: [1, 2, 3, 1000000], platform.links.cxl0.width: [4, 8]}")
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "one"))
    one = run_sweep(path, [], tmp_path / "inside")
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "two"))
    two = run_sweep(path, [], tmp_path / "processes", jobs=2)
    assert (one.done, one.failed) == (two.done, two.failed) == (6, 2)
    assert (one.folder / "points.csv").read_bytes() == (two.folder / "points.csv").read_bytes()
    for name in stamps(one.folder):
        metrics = [(each.folder / "points" / name / "metrics.json").read_bytes() for each in (one, two)]
        assert metrics[0] == metrics[1]


DYING = """
import os
from ghostsim.sweep import worker
real = worker.compute
def compute(task):
    if task.settings["workload.batch"] == 2:
        os._exit(9)
    return real(task)
"""


def test_a_process_that_dies_costs_its_own_point_only(sweep, tmp_path, monkeypatch):
    (tmp_path / "dying_worker.py").write_text(DYING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(worker, "compute", importlib.import_module("dying_worker").compute)
    result = run_sweep(sweep(BATCHES), [], tmp_path / "out", jobs=2)
    assert (result.done, result.failed) == (2, 1)
    assert [row["status"] for row in rows(tmp_path / "out")] == ["done", "failed", "done"]
    assert "died" in rows(tmp_path / "out")[1]["error"]


# --- interrupted ----------------------------------------------------------------------------------------------


def start(path, out, *more):
    command = [sys.executable, "-m", "ghostsim", "sweep", path, "--out", out, "--jobs", "2", "--quiet", *more]
    return subprocess.Popen(
        [str(part) for part in command], cwd=path.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found] + [below for child in found for below in children(int(child))]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_what_ends_a_sweep_costs_the_points_in_flight(sweep, tmp_path, monkeypatch, sent, code):
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "cold"))
    path, out = sweep(f"grid: {{workload.batch: {list(range(1, 11))}}}"), tmp_path / "out"
    with start(path, out) as process:
        until(lambda: out.exists() and any(not name.startswith(".") for name in stamps(out)))
        family = children(process.pid)
        os.kill(process.pid, sent)
        process.communicate(timeout=60)
    assert process.returncode == code
    until(lambda: not any(map(alive, family)), 20)
    assert len(rows(out)) == 10
    finished = {name: stamp for name, stamp in stamps(out).items() if not name.startswith(".")}
    assert 0 < len(finished) < 10
    assert run_sweep(path, [], out, resume=True).done == 10
    after = stamps(out)
    assert {name: after[name] for name in finished} == finished
    assert len(after) == 10
    assert {row["status"] for row in rows(out)} == {"done"}


@pytest.mark.slow
def test_two_programs_may_work_on_one_store(sweep, tmp_path, monkeypatch):
    path, out = sweep(f"grid: {{workload.batch: {list(range(1, 9))}}}"), tmp_path / "out"
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("steps: 2", "steps: 3"))
    with start(path, out) as first:
        until(out.exists)
        with start(path, out, "--resume") as second:
            ends = [process.communicate(timeout=100)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), ends
    assert [row["status"] for row in rows(out)] == ["done"] * 8
    assert len(stamps(out)) == 8


@pytest.mark.parametrize(("batch", "code"), [(1, 0), (1000000, 1)])
def test_a_failed_point_ends_the_command_with_one(sweep, tmp_path, ghostsim, selections, batch, code):
    sweep(f"grid: {{workload.batch: [{batch}]}}")
    ended = ghostsim("sweep", "sweep.yaml", "--out", "out", "--quiet", cwd=tmp_path, GHOSTSIM_CACHE=str(selections))
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.splitlines()[-1] == "out"
    assert "Traceback" not in ended.stderr


# --- on a cluster ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask's own, about sockets of processes that were killed
def test_a_cluster_whose_workers_die_computes_the_same_table(sweep, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    (tmp_path / "tiny.yaml").write_text(SCENARIO.replace("steps: 2", "steps: 16"))
    path, out = sweep("grid: {workload.batch: [1, 2, 3, 1000000, 4, 5, 6, 7]}"), tmp_path / "out"
    here = run_sweep(path, [], tmp_path / "here")
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "cold"))
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        start(path, out, "--scheduler", cluster.scheduler_address) as process,
    ):
        until(lambda: out.exists() and any(not name.startswith(".") for name in stamps(out)), 200)
        os.kill(cluster.workers[0].pid, signal.SIGKILL)
        ends = process.communicate(timeout=300)
    assert process.returncode == 1, ends
    assert (out / "points.csv").read_bytes() == (here.folder / "points.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("address", ["no-scheme", "tcp://127.0.0.1:9"])
def test_a_scheduler_that_does_not_answer_is_one_line(sweep, tmp_path, refused, monkeypatch, address):
    pytest.importorskip("distributed")
    line = refused(2, "sweep", sweep(BATCHES), "--out", tmp_path / "out", "--scheduler", address)
    assert line.startswith("error: --scheduler: found ")
    assert not (tmp_path / "out").exists()


# --- compare --------------------------------------------------------------------------------------------------


def points(folder):
    return [folder / "points" / row["point"] for row in rows(folder)]


def test_compare_names_the_settings_that_differ(sweep, tmp_path):
    path = sweep('grid: {platform.devices.host0.root_complex: ["10 GB/s", "50 GB/s"]}')
    found = compare_runs(points(run_sweep(path, [], tmp_path / "out").folder))
    assert found["config"] == {"platform.devices.host0.root_complex": ["10 GB/s", "50 GB/s"]}
    first, second = found["labels"]["offload"]
    assert first["ratios"] == {"tokens_per_s": 1.0, "step_p50": 1.0, "step_p95": 1.0}
    ratio = second["figures"]["tokens_per_s"] / first["figures"]["tokens_per_s"]
    assert second["ratios"]["tokens_per_s"] == ratio > 1
    assert found["labels"]["full"][1]["ratios"]["step_p50"] == 1.0


def test_compare_aligns_runs_that_only_one_folder_has(sweep, tmp_path):
    path = sweep("list: [{workload.batch: 1}, {runs.more: {policy: full, kv_tier: cxl}}]")
    found = compare_runs(points(run_sweep(path, [], tmp_path / "out").folder))
    assert found["labels"]["more"][0] is None
    assert found["labels"]["more"][1]["ratios"]["tokens_per_s"] == 1.0
    assert "more" in comparison_text(found)


def test_compare_prints_every_folder_in_the_order_given(sweep, tmp_path):
    folders = points(run_sweep(sweep(BATCHES), [], tmp_path / "out").folder)[::-1]
    lines = comparison_text(compare_runs(folders)).splitlines()
    assert [line.split()[1] for line in lines[1:4]] == [str(folder) for folder in folders]
    assert lines[-1].split() == ["workload.batch", "3", "2", "1"]


@pytest.mark.parametrize("damage", ["missing", "config.yaml", "metrics.json"])
def test_compare_refuses_a_bad_folder_in_one_line(sweep, tmp_path, damage):
    folder = points(run_sweep(sweep(BATCHES), [], tmp_path / "out").folder)[0]
    bad = tmp_path / "bad"
    if damage != "missing":
        folder.rename(bad)
        (bad / damage).write_text("{")
    with pytest.raises(StoreError, match="bad") as found:
        compare_runs([bad])
    assert "\n" not in str(found.value)


def test_a_stored_configuration_is_the_scenario_of_its_point(sweep, tmp_path):
    folders = points(run_sweep(sweep(BATCHES), [], tmp_path / "out").folder)
    assert [load_scenario(folder / "config.yaml").scenario.workload.batch for folder in folders] == [1, 2, 3]
