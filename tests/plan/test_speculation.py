"""Do steps that share what they read move it once, score it for each, and still count one token a step?"""

import numpy as np
import pytest

from ghostsim.config.load import load_scenario
from ghostsim.plan.plan import OPS
from ghostsim.simulation import simulate

SCENARIO = """\
schema: 1
name: together
model: docs_5m
platform: h100_cxl_pim
workload: {trace: natural_4k, batch: 2, steps: 8}
runs:
  alone: {policy: ghostkv, kv_tier: dram}
  together: {policy: ghostkv_speculative, kv_tier: dram}
"""
TOGETHER = 4


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    file = tmp_path_factory.mktemp("speculation") / "s.yaml"
    file.write_text(SCENARIO)
    return simulate(load_scenario(file).scenario)


def by_step(done, label, op, column="nbytes"):
    plan = done.records[label].plan
    rows = plan.op == OPS.index(op)
    return np.bincount(plan.step[rows], getattr(plan, column)[rows], minlength=plan.steps)


def test_every_step_is_a_token_of_every_request(done):
    for run in done.metrics["runs"].values():
        assert run["tokens_per_s"] == pytest.approx(2 / run["step_ms"]["mean"] * 1000)


def test_steps_that_are_verified_together_scan_and_fetch_once(done):
    for op in ("scan", "read"):
        moved = by_step(done, "together", op).reshape(-1, TOGETHER)
        assert (moved[:, 0] > 0).all()
        assert not moved[:, 1:].any()


def test_the_shared_scan_scores_every_query(done):
    ratio = [
        by_step(done, label, "scan", "flops")[0] / by_step(done, label, "scan")[0] for label in ("alone", "together")
    ]
    assert ratio[1] == pytest.approx(TOGETHER * ratio[0])


def test_every_step_reads_the_weights(done):
    weights = by_step(done, "together", "gemm")
    assert len(set(weights.tolist())) == 1


def test_the_report_says_what_the_tokens_rest_on(done):
    assert [note for note in done.notes if "all drafts count as accepted" in note and note.startswith("together")]
