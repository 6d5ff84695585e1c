"""Does `diff` say what moved between two runs, and which input explains it?"""

import json
import shutil

import pytest
from tiny import SCENARIO

from ghostsim.errors import StoreError
from ghostsim.sweep.diff import diff_runs, diff_text
from ghostsim.sweep.executor import run_sweep

RATE = "platform.devices.host0.root_complex"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, selections):
    """Return run folders of one scenario: as it is, slower hardware, a larger batch, a smaller policy."""
    root = tmp_path_factory.mktemp("diff")
    (root / "tiny.yaml").write_text(SCENARIO)
    (root / "sweep.yaml").write_text(
        f'schema: 1\nscenario: tiny.yaml\nlist: [{{workload.batch: 1}}, {{{RATE}: "5 GB/s"}}, {{runs.offload.kv_tier: '
        "dram}, {runs.offload.policy: streaming_llm}]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTSIM_CACHE", str(selections))
        done = run_sweep(root / "sweep.yaml", [], root / "out").folder
    names = [line.split(",")[0] for line in (done / "points.csv").read_text().splitlines()[1:]]
    return [done / "points" / name for name in names]


def test_a_run_is_the_same_as_itself(folders):
    found = diff_runs(folders[0], folders[0])
    assert (found["equal"], found["figures"], found["inputs"]) == (True, [], {})
    assert diff_text(found) == "the runs are the same"


def test_figures_come_by_their_relative_change(folders):
    figures = diff_runs(folders[0], folders[1])["figures"]
    changes = [each["change"] for each in figures if each["change"] is not None]
    assert [abs(change) for change in changes] == sorted(map(abs, changes), reverse=True)
    moved = {each["path"]: each for each in figures}
    rate = moved["offload.tokens_per_s"]
    assert rate["change"] == (rate["after"] - rate["before"]) / rate["before"] < 0
    assert "full.tokens_per_s" not in moved


def test_only_changes_above_the_threshold_are_shown(folders):
    every, large = (diff_runs(folders[0], folders[1], above)["figures"] for above in (0.0, 0.5))
    assert large == [each for each in every if each["change"] is None or abs(each["change"]) > 0.5]
    assert 0 < len(large) < len(every)


@pytest.mark.parametrize(
    ("other", "kinds", "words"),
    [
        (1, ["config"], "the same bytes move, on other hardware"),
        (2, ["config", "plans"], "placed or batched otherwise, in offload"),
        (3, ["config", "inputs", "selections", "plans"], "what is read differs"),
    ],
)
def test_the_nearest_cause_is_named(folders, other, kinds, words):
    found = diff_runs(folders[0], folders[other])
    assert list(found["inputs"]) == kinds
    assert words in diff_text(found)


def test_a_point_that_another_sweep_made_names_its_own_files(tmp_path, folders, selections, monkeypatch):
    monkeypatch.setenv("GHOSTSIM_CACHE", str(selections))
    (tmp_path / "tiny.yaml").write_text(SCENARIO)
    (tmp_path / "sweep.yaml").write_text("schema: 1\nscenario: tiny.yaml\nlist: [{workload.batch: 1}]\n")
    done = run_sweep(tmp_path / "sweep.yaml", [], tmp_path / "out").folder
    recalled = json.loads((done / "points" / folders[0].name / "manifest.json").read_text())
    assert str(tmp_path / "tiny.yaml") in recalled["inputs"]
    assert str(folders[0].parents[2] / "tiny.yaml") not in recalled["inputs"]
    assert "trace natural_4k" in recalled["inputs"]


def test_settings_are_named_by_their_path(folders):
    assert diff_runs(folders[0], folders[1])["inputs"]["config"][RATE][1] == "5 GB/s"


def test_versions_and_seeds_are_inputs(folders, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(folders[0], changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["packages"]["numpy"], manifest["seed"] = "0.1", 77
    (changed / "manifest.json").write_text(json.dumps(manifest))
    found = diff_runs(folders[0], changed)
    assert found["inputs"]["seed"] == {"seed": [1, 77]}
    assert found["inputs"]["packages"]["numpy"][1] == "0.1"
    assert not found["equal"]


def test_a_figure_that_moved_without_any_input_is_said(folders, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(folders[0], changed)
    text = (changed / "metrics.json").read_text()
    metrics = json.loads(text)
    metrics["runs"]["full"]["tokens_per_s"] *= 2
    (changed / "metrics.json").write_text(json.dumps(metrics))
    found = diff_runs(folders[0], changed)
    assert [(each["path"], each["change"]) for each in found["figures"]] == [("full.tokens_per_s", 1.0)]
    assert "no input differs" in diff_text(found)


@pytest.mark.parametrize("damage", ["missing", "metrics.json", "manifest.json", "config.yaml"])
def test_a_folder_that_is_no_run_is_refused(folders, tmp_path, damage):
    bad = tmp_path / "bad"
    if damage != "missing":
        shutil.copytree(folders[0], bad)
        (bad / damage).write_text("{")
    with pytest.raises(StoreError, match="bad"):
        diff_runs(folders[0], bad)


@pytest.mark.parametrize("other", [0, 1])
def test_the_command_ends_with_zero_whether_runs_differ_or_not(folders, tmp_path, ghostsim, other):
    ended = ghostsim("diff", folders[0], folders[other], "--json", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["equal"] == (other == 0)


def test_a_missing_folder_ends_the_command_with_four(tmp_path, refused):
    assert "nowhere" in refused(4, "diff", tmp_path / "nowhere", tmp_path)
