"""The frontier command, quality in depth of evaluate, and the list of systems outside the algebra."""

import csv
import json

import pytest
import yaml

from ghostsim import bundled

FEW = ("--policy", "full", "--policy", "quest", "--policy", "reformer", "--policy", "rest_kv")


@pytest.fixture(scope="module")
def made(ghostsim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    files = ("--report", "f.html", "--out", "f.csv")
    result = ghostsim("frontier", "manual_4k", *FEW, "--steps", 1, "--json", *files, cwd=folder)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_json_holds_points_oracle_frontier_and_what_was_skipped(made):
    found = json.loads(made[1].stdout)
    assert set(found["policies"]) == {"full", "quest", "reformer"}
    assert found["policies"]["quest"]["claim"].startswith("7.03x")
    assert [point["budget"] for point in found["policies"]["quest"]["points"]] == ["own", "x0.25", "x0.5", "x2"]
    assert found["policies"]["reformer"]["fidelity"] == "parameterised"
    assert found["skipped"] == {"rest_kv": "needs values (v), which the trace does not hold"}
    assert set(found["frontier"]) == {"lost_mass.mean", "lost_mass.max", "output_error.mean"}
    assert len(found["oracle"]) >= 8
    assert "a step" in found["verdict"]


def test_csv_has_a_row_per_point(made):
    found = json.loads(made[1].stdout)
    with (made[0] / "f.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(each["points"]) for each in found["policies"].values()) + len(found["oracle"])
    quest = next(row for row in rows if (row["policy"], row["budget"]) == ("quest", "own"))
    parts = ("index_bytes", "hbm_bytes", "fetched_bytes", "migrate_bytes")
    assert float(quest["bytes"]) == sum(float(quest[part]) for part in parts)
    assert {row["ranked"] for row in rows if row["policy"] == "reformer"} == {"no"}


def test_page_opens_with_the_verdict_and_marks_what_is_not_ranked(made):
    page = (made[0] / "f.html").read_text()
    assert f"<h1>{json.loads(made[1].stdout)['verdict']}</h1>" in page
    assert "parameterised" in page
    assert "7.03x self-attention" in page
    assert "rest_kv: needs values" in page


def test_text_names_every_policy(ghostsim, tmp_path):
    result = ghostsim("frontier", "manual_4k", "--policy", "quest", "--steps", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line for line in result.stdout.splitlines() if line.startswith("quest ")]
    assert "On the frontier of mean lost mass: quest" in result.stdout


def test_files_that_exist_are_refused(refused, made):
    for option, name in (("--out", "f.csv"), ("--report", "f.html")):
        assert f"{option}: found" in refused(2, "frontier", "manual_4k", option, made[0] / name)


@pytest.mark.slow
def test_bad_names_end_in_one_line(refused):
    assert "no policy named 'qest'" in refused(3, "frontier", "manual_4k", "--policy", "qest")
    assert "rest_kv: needs values" in refused(4, "frontier", "manual_4k", "--policy", "rest_kv", "--steps", 1)
    refused(4, "frontier", "no_such_trace", "--policy", "full")


@pytest.mark.slow
def test_evaluate_tells_quality_in_depth(ghostsim, tmp_path):
    result = ghostsim("evaluate", "streaming_llm", "--trace", "manual_4k", "--out", "e", "--json", cwd=tmp_path)
    found = json.loads(result.stdout)
    assert {"schema", "policy", "trace", "quality", "depth"} == set(found)
    assert set(found["depth"]) == {"all", "layer", "class", "step"}
    assert found["depth"]["all"]["lost_mass"] == found["quality"]["lost_mass"]
    with (tmp_path / "e/depth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["scope", "key", "measure", "value"]
    assert {row["scope"] for row in rows} == {"all", "layer", "class", "step"}


# --- list ------------------------------------------------------------------------------------------------------


def test_list_shows_family_and_fidelity(ghostsim, tmp_path):
    lines = ghostsim("list", "policies", cwd=tmp_path).stdout.splitlines()
    told = {line.split()[0]: line.split()[1:3] for line in lines}
    assert told["snapkv"] == ["evict", "exact"]
    assert told["reformer"] == ["retrieve", "parameterised"]
    assert told["full"] == ["baseline", "exact"]


def test_list_all_adds_what_is_outside_and_why(ghostsim, tmp_path):
    plain, whole = (
        json.loads(ghostsim("list", "policies", "--json", *more, cwd=tmp_path).stdout) for more in ((), ("--all",))
    )
    added = whole[len(plain) :]
    assert whole[: len(plain)] == plain
    path = bundled.folder("scenarios") / "outside" / "policies.yaml"
    assert {each["name"]: each["summary"] for each in added} == yaml.safe_load(path.read_text())["systems"]
    assert {each["kind"] for each in added} == {"outside"}
    assert all(set(each) == {"name", "kind", "path", "summary"} for each in added)


@pytest.mark.slow
def test_the_file_of_outside_systems_is_strict(ghostsim, refused, tmp_path):
    assert ghostsim("validate", bundled.folder("scenarios") / "outside" / "policies.yaml", cwd=tmp_path).returncode == 0
    (tmp_path / "twice.yaml").write_text("schema: 1\nsystems:\n  A: one\n  A: two\n")
    assert "twice.yaml:4:3" in refused(3, "validate", "twice.yaml")
    (tmp_path / "empty.yaml").write_text("schema: 1\nsystems: {A: }\n")
    assert "empty.yaml:2" in refused(3, "validate", "empty.yaml")
