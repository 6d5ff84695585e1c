"""Does `ghostsim run` keep its contract: exit codes, streams, files, and the letter of metrics.json?"""

import csv
import gzip
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from ghostsim import bundled

SCENARIO = """
schema: 1
name: small
model: docs_5m
platform: h100_cxl_pim
workload: {trace: natural_4k, steps: 4, batch: 2}
baseline: [full]
runs:
  full: {policy: full}
  offload: {policy: full, kv_tier: dram}
  quest: {policy: quest, index_tier: hbm, kv_tier: dram, filter: gpu}
  ghost_cxl: {policy: ghostkv, index_tier: cxl, kv_tier: cxl, filter: cxl}
  ghost_pim: {policy: ghostkv, index_tier: pim, kv_tier: dram, filter: pim}
  published: {policy: ghostkv_published, index_tier: cxl, kv_tier: cxl, filter: cxl}
"""
CAUSES = {"index", "kv", "weights", "write", "migrate"}
PATH = {"gemm", "attend_hot", "attend_survivors", "scan", "select", "fetch_queue", "fetch_service", "migrate", "launch",
        "other"}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(SCENARIO)
    return folder


@pytest.fixture(scope="module")
def done(folder, ghostsim):
    result = ghostsim("run", "small.yaml", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def metrics(done):
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "args", [("--out", "small.yaml/x.html"), ("--out", "runs", "--force"), ("--out", "small.yaml")]
)
def test_compare_writes_a_new_file_only(done, folder, ghostsim, args):
    result = ghostsim("compare", "runs/small", *args, cwd=folder)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr


@pytest.mark.parametrize("name", ["loop", "x" * 300, ""])
def test_an_out_that_cannot_be_made_is_wrong_usage(folder, ghostsim, name, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "small.yaml").write_text(SCENARIO)
    result = ghostsim("run", "small.yaml", "--out", name, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"loop", "small.yaml"}


def test_compare_makes_the_folder_of_its_page(done, folder, ghostsim):
    result = ghostsim("compare", "runs/small", "--out", "pages/new/c.html", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "pages/new/c.html").is_file()


def test_a_run_folder_whose_configuration_is_damaged_cannot_be_simulated_again(done, folder, ghostsim):
    shutil.copytree(folder / "runs/small", folder / "damaged")
    (folder / "damaged/timeline.json.gz").unlink()
    (folder / "damaged/config.yaml").write_text("schema: 1\nname: x\nruns: {}\n")
    result = ghostsim("report", "damaged", cwd=folder)
    assert (result.returncode, result.stderr.count("\n")) == (4, 1), result.stderr


def test_folder_is_the_last_line_on_stderr(done, folder):
    assert (folder / done.stderr.rstrip().splitlines()[-1] / "metrics.json").is_file()


def test_run_folder_holds_every_file(done, folder):
    run = folder / done.stderr.rstrip().splitlines()[-1]
    names = {"manifest.json", "config.yaml", "metrics.json", "steps.csv", "timeline.json.gz", "report.html"}
    assert {path.name for path in run.iterdir()} == names


def test_nothing_else_is_left_behind(done, folder):
    assert {path.name for path in (folder / "runs").iterdir() if path.name.startswith(".")} == set()


def test_stdout_is_metrics_and_simulator(metrics, done, folder):
    written = json.loads((folder / done.stderr.rstrip().splitlines()[-1] / "metrics.json").read_text())
    assert {key: value for key, value in metrics.items() if key != "simulator"} == written
    assert set(metrics["simulator"]) == {
        "events", "flows", "wall_s", "selection_wall_s", "peak_rss_mb", "steps_wall_s", "events_per_s",
    }  # fmt: skip


def test_top_level_keys(metrics):
    assert set(metrics) == {"schema", "scenario", "seed", "trace", "runs", "compare", "simulator"}
    assert set(metrics["trace"]) == {"name", "kind", "context_tokens", "steps"}


def test_run_keys(metrics):
    for run in metrics["runs"].values():
        assert set(run) == {
            "policy", "platform", "batch", "step_ms", "tokens_per_s", "bytes_per_step", "utilisation",
            "critical_path_ms", "waits_ms", "read_amplification", "viability", "lifecycle", "prefill", "prefetch",
            "quality", "energy_mj_per_token", "capacity_bytes",
        }  # fmt: skip
        assert set(run["step_ms"]) == {"mean", "p50", "p95", "p99", "max", "n"}
        assert set(run["critical_path_ms"]) == PATH
        assert set(run["quality"]) == {
            "elimination_rate", "resurrection_rate", "lost_mass", "certified_mass", "false_elimination_rate",
            "false_resurrection_rate", "violations", "output_error",
        }  # fmt: skip
        assert all(set(causes) == CAUSES for causes in run["bytes_per_step"].values())


def test_critical_path_sums_to_the_step(metrics):
    for run in metrics["runs"].values():
        assert sum(run["critical_path_ms"].values()) == pytest.approx(run["step_ms"]["mean"], rel=1e-9)


def test_tokens_per_s_is_batch_over_mean_step(metrics):
    for run in metrics["runs"].values():
        assert run["tokens_per_s"] == pytest.approx(run["batch"] / run["step_ms"]["mean"] * 1000)


def test_utilisation_never_exceeds_one(metrics):
    assert all(0 <= share <= 1 for run in metrics["runs"].values() for share in run["utilisation"].values())


def test_offloaded_bytes_cross_the_link_once(metrics):
    bytes_moved = metrics["runs"]["offload"]["bytes_per_step"]
    assert bytes_moved["pcie0"]["kv"] == bytes_moved["dram"]["kv"] > 0


def test_striped_bytes_share_the_expander_links(metrics):
    moved = metrics["runs"]["ghost_cxl"]["bytes_per_step"]
    assert moved["cxl0"]["kv"] == moved["cxl"]["kv"] == pytest.approx(moved["cxl1"]["kv"] + moved["cxl2"]["kv"])


def test_filter_near_memory_keeps_the_scan_off_the_link(metrics):
    moved = metrics["runs"]["ghost_cxl"]["bytes_per_step"]
    assert moved["cxl0"]["index"] < moved["cxl"]["index"] / 10


def test_sound_policy_has_no_violations_and_the_published_one_has(metrics):
    assert metrics["runs"]["ghost_cxl"]["quality"]["violations"] == 0
    assert metrics["runs"]["published"]["quality"]["violations"] > 0


def test_full_attention_claims_no_bound(metrics):
    assert metrics["runs"]["full"]["quality"]["violations"] is None
    assert metrics["runs"]["full"]["quality"]["certified_mass"] is None


def test_compare_holds_every_other_label(metrics):
    assert set(metrics["compare"]) == {"full"}
    assert set(metrics["compare"]["full"]) == set(metrics["runs"]) - {"full"}


def test_steps_csv_averages_to_metrics(metrics, done, folder):
    run = folder / done.stderr.rstrip().splitlines()[-1]
    with (run / "steps.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] == "quest"]
    mean = sum(float(row["step_ms"]) for row in rows) / len(rows)
    assert mean == pytest.approx(metrics["runs"]["quest"]["step_ms"]["mean"])


def steps_of(done, folder):
    with (folder / done.stderr.rstrip().splitlines()[-1] / "steps.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_states_of_tokens_sum_to_the_context_at_every_step(metrics, done, folder):
    for row in steps_of(done, folder):
        states = [float(row[f"tokens_{state}"]) for state in ("hot", "cold", "archived", "evicted")]
        assert min(states) >= 0
        assert sum(states) == pytest.approx(metrics["trace"]["context_tokens"] + int(row["step"]) + 1)


def test_what_is_stored_grows_to_the_capacity_in_use(metrics, done, folder):
    rows = steps_of(done, folder)
    for label, run in metrics["runs"].items():
        ours = [row for row in rows if row["label"] == label]
        for tier, nbytes in run["capacity_bytes"].items():
            stored = [int(row[f"stored_bytes_{tier}"]) for row in ours]
            assert stored == sorted(stored)
            assert stored[-1] == nbytes


def test_timeline_leads_from_query_to_fetch_and_attention(done, folder):
    run = folder / done.stderr.rstrip().splitlines()[-1]
    events = json.loads(gzip.decompress((run / "timeline.json.gz").read_bytes()))["traceEvents"]
    runs = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    lanes = {(e["pid"], e["tid"]): e["args"]["name"].split(" #")[0] for e in events if e["name"] == "thread_name"}
    ends = {}
    for event in events:
        if event["ph"] in "sf" and runs[event["pid"]] == "ghost_cxl":
            ends.setdefault(event["id"], []).append(lanes[event["pid"], event["tid"]])
    chain = ["gpu", "cxl queries", "cxl filter", "cxl ids", "cxl fetch", "gpu"]
    assert set(itertools.pairwise(chain)) <= set(map(tuple, ends.values()))


def test_config_yaml_is_a_scenario_that_runs_to_the_same_metrics(done, folder, tmp_path, ghostsim):
    first = folder / done.stderr.rstrip().splitlines()[-1]
    again = ghostsim("run", first / "config.yaml", "--out", tmp_path / "again", "--quiet", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "metrics.json").read_bytes() == (first / "metrics.json").read_bytes()


def test_metrics_are_byte_identical_in_another_process_and_with_other_jobs(done, folder, tmp_path, ghostsim):
    first = folder / done.stderr.rstrip().splitlines()[-1]
    again = ghostsim(
        "run", "small.yaml", "--out", tmp_path / "again", "--quiet", "--jobs", 2, cwd=folder,
        GHOSTSIM_CACHE=str(tmp_path / "cache"), PYTHONHASHSEED="7",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again" / "metrics.json").read_bytes() == (first / "metrics.json").read_bytes()


def test_report_can_be_made_again_to_the_same_bytes(done, folder, ghostsim):
    run = folder / done.stderr.rstrip().splitlines()[-1]
    before = (run / "report.html").read_bytes()
    assert ghostsim("report", run, cwd=folder).returncode == 0
    assert (run / "report.html").read_bytes() == before


def test_report_makes_a_missing_timeline(done, folder, tmp_path, ghostsim):
    assert ghostsim("run", "small.yaml", "--out", tmp_path / "r", "--quiet", cwd=folder).returncode == 0
    before = (tmp_path / "r" / "timeline.json.gz").read_bytes()
    (tmp_path / "r" / "timeline.json.gz").unlink()
    assert ghostsim("report", tmp_path / "r", cwd=folder).returncode == 0
    assert (tmp_path / "r" / "timeline.json.gz").read_bytes() == before


def test_timeline_is_chrome_json(done, folder):
    run = folder / done.stderr.rstrip().splitlines()[-1]
    events = json.loads(gzip.decompress((run / "timeline.json.gz").read_bytes()))["traceEvents"]
    assert {event["ph"] for event in events} >= {"M", "X", "C"}


def test_second_run_takes_the_next_free_name(done, folder, ghostsim):
    again = ghostsim("run", "small.yaml", "--quiet", cwd=folder)
    assert again.stderr.splitlines()[-1] == "runs/small-2"


def test_existing_out_is_a_usage_error(done, folder, ghostsim):
    again = ghostsim("run", "small.yaml", "--out", "runs/small", cwd=folder)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)


def test_force_refuses_a_folder_that_is_not_a_run(folder, tmp_path, ghostsim):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    again = ghostsim("run", "small.yaml", "--out", tmp_path / "precious", "--force", cwd=folder)
    assert again.returncode == 2
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "x"


def test_missed_requirement_writes_results_and_exits_5(folder, tmp_path, ghostsim):
    bound = "require=['full.step_ms.p50 <= 0.000001']"
    again = ghostsim("run", "small.yaml", "--out", tmp_path / "r", "--set", bound, "--quiet", cwd=folder)
    assert again.returncode == 5, again.stderr
    assert (tmp_path / "r" / "metrics.json").is_file()
    error, folder_line = again.stderr.splitlines()
    assert error.startswith("error: require: found full.step_ms.p50 = ")
    assert folder_line == str(tmp_path / "r")


def test_unknown_set_is_a_configuration_error_with_a_suggestion(folder, ghostsim):
    again = ghostsim("run", "small.yaml", "--set", "platform.links.cxl0.widht=4", cwd=folder)
    assert (again.returncode, again.stderr.count("\n")) == (3, 1)
    assert "width" in again.stderr


def test_narrower_link_is_slower(metrics, folder, tmp_path, ghostsim):
    again = ghostsim(
        "run", "small.yaml", "--set", "platform.links.cxl0.width=1", "--out", tmp_path / "r", "--json", cwd=folder
    )
    slow = json.loads(again.stdout)["runs"]["ghost_cxl"]["step_ms"]["mean"]
    assert slow > metrics["runs"]["ghost_cxl"]["step_ms"]["mean"]


def test_overfull_tier_fails_before_time_starts(folder, ghostsim):
    again = ghostsim("run", "small.yaml", "--set", "workload.batch=1000000", cwd=folder)
    assert (again.returncode, again.stderr.count("\n")) == (3, 1)
    assert "hbm" in again.stderr


def test_too_many_steps_is_a_configuration_error(folder, ghostsim):
    again = ghostsim("run", "small.yaml", "--set", "workload.steps=5000", cwd=folder)
    assert (again.returncode, again.stderr.count("\n")) == (3, 1)


def test_missing_trace_is_a_data_error(folder, ghostsim):
    again = ghostsim("run", "small.yaml", "--set", "workload.trace=nowhere", cwd=folder)
    assert (again.returncode, again.stderr.count("\n")) == (4, 1)


def test_failed_run_leaves_nothing(folder, tmp_path, ghostsim):
    ghostsim("run", "small.yaml", "--set", "workload.steps=5000", "--out", tmp_path / "r", cwd=folder)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_with_their_code_and_leave_nothing(folder, tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "ghostsim", "run", "cxl_pim", "--out", str(tmp_path / "r"), "--quiet"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"GHOSTSIM_CACHE": str(tmp_path / "c")},
    )  # fmt: skip
    time.sleep(4)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "c"] == []


@pytest.mark.slow
def test_read_only_cache_is_worked_around(folder, tmp_path, ghostsim):
    (tmp_path / "cache").write_text("a file where the cache should be")
    again = ghostsim(
        "run", "small.yaml", "--out", tmp_path / "r", "--quiet", cwd=folder, GHOSTSIM_CACHE=str(tmp_path / "cache")
    )
    assert again.returncode == 0, again.stderr


def test_manifest_names_seed_and_inputs(done, folder):
    run = folder / done.stderr.rstrip().splitlines()[-1]
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["seed"] == 1
    assert any(name.endswith("small.yaml") for name in manifest["inputs"])
    assert all(len(digest) == 64 for digest in manifest["inputs"].values())


def test_effective_config_has_no_names_left_to_resolve(done, folder):
    run = folder / done.stderr.rstrip().splitlines()[-1]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert isinstance(config["platform"], dict)
    assert isinstance(config["runs"]["quest"]["policy"], dict)


@pytest.mark.slow
def test_trace_beside_the_scenario_is_found_from_anywhere_and_again(folder, tmp_path, ghostsim):
    shutil.copytree(bundled.folder("traces") / "manual_4k", tmp_path / "scenarios" / "mine")
    text = SCENARIO.replace("natural_4k, steps: 4", "mine, steps: 2")
    (tmp_path / "scenarios" / "own.yaml").write_text(text)
    first = ghostsim("run", tmp_path / "scenarios" / "own.yaml", "--out", tmp_path / "a", "--quiet", cwd=folder)
    assert first.returncode == 0, first.stderr
    again = ghostsim("run", tmp_path / "a" / "config.yaml", "--out", tmp_path / "b", "--quiet", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "a/metrics.json").read_bytes() == (tmp_path / "b/metrics.json").read_bytes()


def test_drive_moves_its_own_data(folder, tmp_path, ghostsim):
    changes = ["--set", "runs.quest.kv_tier=ssd"]
    run = json.loads(ghostsim("run", "small.yaml", *changes, "--out", tmp_path / "r", "--json", cwd=folder).stdout)[
        "runs"
    ]
    assert run["quest"]["utilisation"]["gpu0.copy"] == 0
    assert run["quest"]["utilisation"]["nvme0"] > 0.3


def test_zero_copy_from_a_drive_is_refused(folder, tmp_path, ghostsim):
    changes = ["--set", "runs.quest.kv_tier=ssd", "--set", "runs.quest.fetch=zero_copy"]
    again = ghostsim("run", "small.yaml", *changes, "--out", tmp_path / "r", cwd=folder)
    assert (again.returncode, again.stderr.count("\n")) == (3, 1)
