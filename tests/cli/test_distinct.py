"""Do requests that are not composed read as those that are, so that all batches share one evaluation?"""

import json

import pytest

SCENARIO = """
schema: 1
name: alike
model: docs_5m
platform: h100_cxl_pim
workload: {trace: [natural_4k, manual_4k], context: 6000, steps: 2, batch: 4, distinct: 2}
runs:
  two: {policy: ghostkv, kv_tier: dram, workload: {batch: 2}}
  four: {policy: ghostkv, kv_tier: dram}
  one: {policy: ghostkv, kv_tier: dram, workload: {batch: 1}}
  own: {policy: ghostkv, kv_tier: dram, workload: {batch: 2, distinct: null}}
"""


@pytest.fixture(scope="module")
def runs(ghostsim, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alike")
    (folder / "alike.yaml").write_text(SCENARIO)
    done = ghostsim("run", "alike.yaml", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["runs"]


def kv(run):
    return run["bytes_per_step"]["dram"]["kv"]


def test_every_further_request_reads_as_an_earlier_one(runs):
    assert kv(runs["four"]) == 2 * kv(runs["two"])


def test_a_batch_below_takes_the_first_requests(runs):
    assert 0 < kv(runs["one"]) < kv(runs["two"])


def test_nothing_changes_where_all_are_composed(runs):
    assert runs["two"] == runs["own"]
