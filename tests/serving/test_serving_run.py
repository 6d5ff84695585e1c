"""`ghostsim run` of a scenario with a serving block, small enough for seconds."""

import csv
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from ghostsim.config.serving import Serving
from ghostsim.serving import jobs_of, requests_of
from ghostsim.trace.agent_sessions import AgentTurns, agent_sessions

SCENARIO = """\
schema: 1
name: small
seed: 3
model: {{extends: docs_5m}}
platform: h100_cxl_pim
workload: {{trace: natural_4k, context: 1024, batch: 2, steps: 2}}
serving:
  requests: requests.csv
  max_batch: 4
  prefill_chunk: 256
  slo: {{ttft: 1 ms, tpot: 200 us}}
  prefix_cache: {{dram: 1 GB}}
{more}
baseline: [full_hbm]
runs:
  full_hbm: {{policy: full}}
  full_offload: {{policy: full, kv_tier: dram}}
"""


def row(number):
    prompt, output = 300 + 37 * (number % 5), 1 + 7 * (number % 6)
    return f"{number * 400_000_000},{prompt},{output},,{' '.join(map(str, range(-(-prompt // 64))))}\n"


REQUESTS = "arrival_ps,prompt_tokens,output_tokens,session,blocks_64\n" + "".join(map(row, range(40)))


def table(path, label=None):
    with path.open() as file:
        return [row for row in csv.DictReader(file) if label in (None, row["label"])]


def run(folder, more="", requests=REQUESTS, *options):
    folder.mkdir(exist_ok=True)
    (folder / "requests.csv").write_text(requests)
    (folder / "small.yaml").write_text(SCENARIO.format(more=more))
    command = [
        sys.executable,
        "-m",
        "ghostsim",
        "run",
        str(folder / "small.yaml"),
        "--out",
        str(folder / "out"),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    result = run(folder)
    assert result.returncode == 0, result.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def metrics(done):
    return json.loads((done / "metrics.json").read_text())


def test_every_request_has_a_row_per_run(done):
    rows = table(done / "requests.csv")
    assert len(rows) == 80
    assert all(float(row["ttft_ms"]) > 0 for row in rows)


def test_the_figures_are_those_of_the_rows(done, metrics):
    rows = table(done / "requests.csv", "full_hbm")
    found = metrics["runs"]["full_hbm"]["serving"]
    assert found["ttft_ms"]["mean"] == pytest.approx(sum(float(row["ttft_ms"]) for row in rows) / 40)
    assert found["slo_share"] == sum(int(row["met_slo"]) for row in rows) / 40


@pytest.mark.parametrize("label", ["full_hbm", "full_offload"])
def test_littles_law_in_the_metrics(metrics, label):
    found = metrics["runs"][label]["serving"]
    rate = found["completed"] / found["duration_s"]
    assert found["in_system_mean"] == pytest.approx(rate * found["e2e_ms"]["mean"] / 1000, rel=1e-12)


def test_queues_over_time_average_to_the_same(done, metrics):
    rows = table(done / "serving.csv", "full_hbm")
    mean = sum(float(row["waiting"]) + float(row["in_service"]) for row in rows) / len(rows)
    assert mean == pytest.approx(metrics["runs"]["full_hbm"]["serving"]["in_system_mean"], rel=1e-9)


def test_prompts_that_share_a_beginning_find_it(metrics):
    found = metrics["runs"]["full_hbm"]["serving"]
    assert found["prefix"]["hit_tokens"] + found["prefilled_tokens"] == found["prompt_tokens"]
    assert found["prefix"]["hit_tokens"] > 0.8 * found["prompt_tokens"]


def test_the_report_has_its_section(done):
    page = (done / "report.html").read_text()
    assert 'id="part-serving"' in page
    assert "serves most requests in time" in page


def test_the_same_inputs_give_the_same_bytes(done, tmp_path):
    run(tmp_path / "again")
    for name in ("metrics.json", "requests.csv", "serving.csv"):
        assert (tmp_path / "again" / "out" / name).read_bytes() == (done / name).read_bytes()


def test_prompts_leave_their_cold_kv_and_its_records(tmp_path):
    """Four sinks and a window of 256 stay; a token of 8 heads has 512 bytes and a record of 66."""
    placed = "runs.full_offload={policy: ghostkv, kv_tier: cxl, index_tier: cxl, filter: cxl}"
    result = run(tmp_path / "settle", "", REQUESTS, "--json", "--set", placed)
    found = json.loads(result.stdout)["runs"]["full_offload"]["serving"]
    rows = table(tmp_path / "settle" / "out" / "requests.csv", "full_offload")
    ends = [(int(row["hit_tokens"]), int(row["prompt_tokens"])) for row in rows]
    cold = sum(max(0, end - 259) - max(0, begin - 259) for begin, end in ends)
    assert found["settled_bytes"] == {"cxl": {"migrate": 8 * cold * (512 + 66)}}
    assert 0 < found["settle_ms"]["mean"] < found["ttft_ms"]["mean"]


def test_without_an_index_in_hbm_nothing_settles(metrics):
    found = metrics["runs"]["full_hbm"]["serving"]
    assert found["settled_bytes"] == {}
    assert found["settle_ms"]["max"] == 0


def test_speculation_needs_fewer_iterations(metrics, tmp_path):
    result = run(tmp_path / "spec", "  speculation: {draft: 1, acceptance: 0.9}", REQUESTS, "--json")
    found = json.loads(result.stdout)["runs"]["full_hbm"]["serving"]
    assert found["decoded_tokens"] == metrics["runs"]["full_hbm"]["serving"]["decoded_tokens"]
    assert found["tpot_ms"]["mean"] < 0.8 * metrics["runs"]["full_hbm"]["serving"]["tpot_ms"]["mean"]


def test_closed_loop_clients_keep_the_system_at_their_number(tmp_path):
    result = run(tmp_path / "closed", "  arrivals: {clients: 2}", REQUESTS, "--json")
    found = json.loads(result.stdout)["runs"]["full_hbm"]["serving"]
    assert 1.9 < found["in_system_mean"] <= 2


def test_poisson_arrivals_come_at_their_rate(tmp_path):
    result = run(tmp_path / "rate", "  arrivals: {rate: 1000}", REQUESTS, "--json")
    assert result.returncode == 0
    arrived = [float(row["arrival_s"]) for row in table(tmp_path / "rate" / "out" / "requests.csv", "full_hbm")]
    assert 0.5 < arrived[-1] / (39 / 1000) < 2


def test_a_turn_comes_when_its_client_has_thought_about_the_one_before(tmp_path):
    drawn = {"count": 3, "turns": 3, "system_tokens": 64, "task_tokens": 64, "result_tokens": 64, "output_tokens": 8}
    sets = [
        f"serving.sessions={json.dumps(drawn)}",
        "serving.requests=null",
        "serving.arrivals={clients: 2, think: 1 ms}",
    ]
    result = run(tmp_path / "sessions", "", REQUESTS, *(word for each in sets for word in ("--set", each)))
    assert result.returncode == 0, result.stderr
    rows = table(tmp_path / "sessions" / "out" / "requests.csv", "full_hbm")
    times = {int(row["request"]): (float(row["arrival_s"]), float(row["finish_s"])) for row in rows}
    session = requests_of(Serving.model_validate({"sessions": drawn, "slo": {"ttft": "1 s", "tpot": "1 s"}}), 3).session
    for number in range(3):
        turns = [times[i] for i in np.flatnonzero(session == number)]
        assert all(after[0] - before[1] >= 0.001 - 1e-9 for before, after in pairwise(turns))


def test_two_gpus_serve_faster(metrics, tmp_path):
    option = ["--set", "runs.full_hbm.tensor_parallel={gpus: 2, link: nvlink4}"]
    result = run(tmp_path / "two", "", REQUESTS, "--json", *option)
    found = json.loads(result.stdout)["runs"]["full_hbm"]["serving"]
    assert found["completed"] == metrics["runs"]["full_hbm"]["serving"]["completed"]
    assert found["kv_capacity_bytes"]["hbm"] > metrics["runs"]["full_hbm"]["serving"]["kv_capacity_bytes"]["hbm"]


def test_a_malformed_request_file_ends_with_4_and_its_line(tmp_path):
    result = run(tmp_path / "bad", "", REQUESTS.replace("\n400000000,", "\nsoon,"))
    assert result.returncode == 4
    assert "requests.csv:3:1: arrival_ps: found 'soon'" in result.stderr
    assert not (tmp_path / "bad" / "out").exists()


def test_a_wrong_field_ends_with_3_and_its_place(tmp_path):
    result = run(tmp_path / "wrong", "  max_batches: 3")
    assert result.returncode == 3
    assert "small.yaml:13:3: serving.max_batches: found the unknown key" in result.stderr


# --- workloads ------------------------------------------------------------------------------------------------------


def test_a_turn_leaves_its_output_to_the_next():
    """What the next prompt of a session repeats is kept: prompt and output up to the last whole block."""
    requests = agent_sessions(1, 1, 3, AgentTurns(system_tokens=64, task_tokens=64, spread=0.0, block_tokens=16))
    serving = Serving.model_validate({"sessions": {"count": 1, "turns": 3}, "slo": {"ttft": "1 s", "tpot": "1 s"}})
    first, second, last = jobs_of(serving, requests)
    assert first.kept_blocks == second.blocks[: (first.prompt_tokens + first.output_tokens - 1) // 16]
    assert len(first.kept_blocks) > len(first.blocks)
    assert last.kept_blocks == last.blocks
