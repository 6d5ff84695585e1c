"""Do the smaller commands print what they promise, and refuse what they must in one line?"""

import csv
import json

import numpy as np
import pytest
import yaml

KINDS = ("parts", "platforms", "models", "policies", "traces", "scenarios")


@pytest.mark.parametrize("kind", KINDS)
def test_list_json_has_the_four_keys(ghostsim, tmp_path, kind):
    entries = json.loads(ghostsim("list", kind, "--json", cwd=tmp_path).stdout)
    assert entries
    assert all(set(entry) == {"name", "kind", "path", "summary"} for entry in entries)


def test_list_prints_a_line_each(ghostsim, tmp_path):
    names = [entry["name"] for entry in json.loads(ghostsim("list", "policies", "--json", cwd=tmp_path).stdout)]
    lines = ghostsim("list", "policies", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == names


def test_show_prints_what_runs(ghostsim, tmp_path):
    shown = ghostsim("show", "cxl_pim", "--set", "platform.links.cxl0.width=4", cwd=tmp_path)
    document = yaml.safe_load(shown.stdout)
    assert document["platform"]["links"]["cxl0"]["width"]["value"] == 4
    assert document["runs"]["quest"]["policy"]["name"] == "quest"


def test_shown_scenario_is_valid(ghostsim, tmp_path):
    (tmp_path / "again.yaml").write_text(ghostsim("show", "cxl_pim", cwd=tmp_path).stdout)
    assert ghostsim("validate", "again.yaml", cwd=tmp_path).returncode == 0


def test_validate_reports_every_bad_file_and_the_first_code(ghostsim, tmp_path):
    (tmp_path / "a.yaml").write_text("schema: 1\nname: [\n")
    (tmp_path / "b.yaml").write_text("")
    result = ghostsim("validate", "a.yaml", "quest", "b.yaml", cwd=tmp_path)
    assert result.returncode == 3
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["a.yaml", "quest", "b.yaml"]


def test_schema_is_written_per_kind(ghostsim, tmp_path):
    assert ghostsim("schema", "--out", "schemas", cwd=tmp_path).returncode == 0
    assert "scenario.schema.json" in {path.name for path in (tmp_path / "schemas").iterdir()}


def test_schema_is_not_written_over_a_file(refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert "expected a folder" in refused(2, "schema", "--out", "file")


@pytest.mark.parametrize(
    "args", [("compose", "natural_4k", "--context"), ("synth", "--like", "natural_4k", "--tokens")]
)
def test_a_trace_too_long_to_write_is_refused_at_once(ghostsim, tmp_path, args):
    assert ghostsim("trace", *args, 10**12, "--out", "o", cwd=tmp_path).returncode == 2


def test_trace_info_json(ghostsim, tmp_path):
    found = json.loads(ghostsim("trace", "info", "natural_4k", "--json", cwd=tmp_path).stdout)
    assert (found["prompt_len"], found["steps"]) == (3968, 128)


def test_trace_check_of_what_was_composed(ghostsim, tmp_path):
    made = ghostsim("trace", "compose", "natural_4k", "manual_4k", "--context", 6000, "--steps", 4, "--out", "long",
                    cwd=tmp_path)  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert ghostsim("trace", "check", "long", cwd=tmp_path).returncode == 0


def test_evaluate_writes_reads_that_match_their_counts(ghostsim, tmp_path):
    result = ghostsim("evaluate", "streaming_llm", "--trace", "manual_4k", "--out", "e", "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    reads, offsets = np.load(tmp_path / "e/reads.npy"), np.load(tmp_path / "e/reads_offsets.npy")
    assert (reads.dtype, offsets.dtype, len(offsets)) == (np.int32, np.int64, 128 * 4 * 2 + 1)
    assert set(np.diff(offsets)) == {2004}
    first = reads[offsets[0] : offsets[1]]
    assert first.tolist() == [0, 1, 2, 3, *range(3969 - 2000, 3969)]


def test_evaluate_columns(ghostsim, tmp_path):
    ghostsim("evaluate", "ghostkv", "--trace", "manual_4k", "--out", "e", "--quiet", cwd=tmp_path)
    with (tmp_path / "e/quality.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "layer", "q_head", "read_tokens", "lost_mass", "certified_mass", "violations"]
    assert all(float(row["lost_mass"]) <= float(row["certified_mass"]) <= 0.01 for row in rows)
    assert {row["violations"] for row in rows} == {"0"}


def test_evaluate_takes_a_changed_policy(ghostsim, tmp_path):
    tight = ghostsim(
        "evaluate", "ghostkv", "--trace", "manual_4k", "--set", "read.rule.certify=0.0001", "--json", cwd=tmp_path
    )
    assert json.loads(tight.stdout)["quality"]["certified_mass"]["max"] <= 0.0001


def test_accuracy_of_one_table(ghostsim, tmp_path):
    table = tmp_path / "dma.csv"
    table.write_text(
        "probe,part,op,tasklets,transfer_bytes,value,unit,source\n"
        "upmem_mram_dma,UPMEM_DPU_350MHz,copy,1,8,165.3,DPU cycles per loop iteration,test\n"
    )
    result = ghostsim("accuracy", table, "--json", "--out", "acc", cwd=tmp_path)
    found = json.loads(result.stdout)["probes"]["upmem_mram_dma"]
    assert set(found) == {"n", "skipped", "median", "p90", "max", "bias", "parts"}
    assert (tmp_path / "acc/predictions.csv").is_file()


@pytest.mark.parametrize(
    ("code", "args"),
    [
        (2, ("run", "cxl_pim", "--out", "/proc/none/x")),
        (3, ("run", "nowhere")),
        (3, ("run", ".")),
        (3, ("show", "nowhere.yaml")),
        (3, ("evaluate", "no_policy", "--trace", "natural_4k")),
        (4, ("evaluate", "full", "--trace", "no_trace")),
        (4, ("trace", "info", "nowhere")),
        (4, ("trace", "check", ".")),
        (4, ("report", "nowhere")),
        (4, ("report", ".")),
        (4, ("compare", "nowhere", "nowhere")),
        (4, ("accuracy", ".")),
        (4, ("accuracy", "nowhere.csv")),
        (3, ("sweep", "nowhere")),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(refused, code, args):
    assert "expected" in refused(code, *args)


def test_help_names_the_exit_codes(ghostsim, tmp_path):
    text = ghostsim("--help", cwd=tmp_path).stdout
    assert "130 interrupted" in " ".join(text.split())


@pytest.mark.parametrize("group", [(), ("trace",)])
def test_help_cuts_no_line_short(ghostsim, tmp_path, group):
    text = ghostsim(*group, "--help", cwd=tmp_path, COLUMNS="80").stdout
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "--nope"], "No such option: --nope"),
        (["run", "cxl_pim", "--seed", "x"], "Invalid value for '--seed'"),
        (["run"], "Missing argument 'scenario'"),
        (["list", "nope"], "Invalid value for 'kind': 'nope' is not one of 'parts', "),
        (["nope"], "No such command 'nope'"),
        (["trace", "nope"], "No such command 'nope'"),
    ],
)
def test_wrong_usage_is_one_line_that_leads_to_the_help(refused, args, words):
    line = refused(2, *args)
    assert line.startswith(f"error: {words}")
    assert line.endswith("--help")


@pytest.mark.parametrize("args", [[], ["trace"]])
def test_a_command_without_arguments_prints_its_help(ghostsim, tmp_path, args):
    bare, asked = ghostsim(*args, cwd=tmp_path), ghostsim(*args, "--help", cwd=tmp_path)
    assert asked.returncode == 0
    assert (bare.stdout + bare.stderr).strip() == asked.stdout.strip()
