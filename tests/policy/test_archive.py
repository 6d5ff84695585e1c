"""Is an archived token bounded by its cluster's ball alone, resurrected with its cluster, and its bytes in its tier?"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ghostsim.config.load import load_model, load_scenario
from ghostsim.config.policy import Policy
from ghostsim.pipeline.capacity import footprint
from ghostsim.plan.plan import OPS, ROLES
from ghostsim.policy.clusters import build_clusters
from ghostsim.policy.costs import index_stages
from ghostsim.policy.evaluate import select
from ghostsim.policy.head import evaluate_head
from ghostsim.policy.output import positions_read
from ghostsim.policy.placement import Placement, place
from ghostsim.trace.compose import Shape, compose
from ghostsim.trace.format import open_trace

COLD = 20
BALLS = {"centroid": {"tokens": 6, "rounds": 3, "radius": True, "joins": True}}
QKEYS = {"rule": {"certify": 0.05}, "score": {"qkeys": {"bits": 4}}}


def lifecycle(read=None, cold=COLD):
    """Return a policy: hot to 4 tokens, cold to `cold`, archived beyond."""
    pin = {"sinks": 2, "window": 4}
    balls = {"rule": {"certify": 0.05, "form": "one_pass"}, "score": BALLS, "pin": pin, "then": [QKEYS]}
    near = {"every": "step", "select": {"rule": "none", "pin": {"sinks": 2, "window": cold}}, "role": "cold"}
    far = {"every": "step", "select": "all", "role": "archive"}
    keep = [near, far]
    return Policy.model_validate({"schema": 1, "name": "test", "keep": keep, "read": read or balls})


def grouped(rng, random_head, tokens=120, steps=8):
    """Return a head whose keys come in groups, so that balls rule some out."""
    head = random_head(rng, tokens, steps, 16, 0.3)
    head.keys[:] += np.repeat(rng.standard_normal((20, 16)) * 8, 7, axis=0)[: len(head.keys)]
    head.queries[:] = head.keys[tokens:][:, None] * 0.3 + head.queries
    return head


def ages(head, step):
    """Return the positions that are cold and those that are archived at a step."""
    own = head.context + step
    edge = own + 1 - COLD
    return range(edge, own + 1 - 4), range(2, edge)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), form=st.sampled_from(["staged", "one_pass", "flat"]))
def test_certificates_hold(random_head, seed, form):
    policy = lifecycle()
    rule = policy.read.rule.model_copy(update={"form": form})
    policy = policy.model_copy(update={"read": policy.read.model_copy(update={"rule": rule})})
    rows = evaluate_head(policy, grouped(np.random.default_rng(seed), random_head))
    assert not rows.violations.any()
    assert (rows.lost_mass <= rows.certified_mass).all()
    assert (rows.certified_mass <= policy.read.eps).all()


def test_a_cluster_of_the_archive_is_read_as_a_whole_or_not_at_all(random_head):
    head = grouped(np.random.default_rng(1), random_head)
    rows = evaluate_head(lifecycle(), head)
    index = build_clusters(head.keys, head.context, slice(2, head.context - 4), lifecycle().read.score.centroid)
    partly = 0
    for step in range(8):
        _, archived = ages(head, step)
        read = set(rows.positions(step).tolist())
        taken = {int(index.labels[t]) for t in archived if t in read}
        assert {t for t in archived if index.labels[t] in taken} == read & set(archived)
        assert rows.archive_tokens[step] == len(archived)
        assert rows.archive_runs[step] == len(taken)
        partly += 0 < len(read & set(archived)) < len(archived)
    assert partly, "some clusters are read and some are not"


def test_only_cold_tokens_have_records_of_their_own(random_head):
    head = grouped(np.random.default_rng(2), random_head)
    rows = evaluate_head(lifecycle(), head)
    alone = evaluate_head(lifecycle(lifecycle().read.model_dump(exclude={"then"})), head)
    for step in range(8):
        cold, _ = ages(head, step)
        survived = set(alone.positions(step).tolist()) & set(cold)
        assert rows.scanned[0, step] == -(-120 // 6)
        assert rows.scanned[1, step] == len(survived)


def test_an_archived_token_has_less_than_16_bytes_in_the_index(shipped):
    balls, *_ = index_stages(shipped["ghostkv_lifecycle"], 128)
    assert balls.record_bytes / balls.unit_tokens == 258 / 32 < 16


def test_runs_of_the_cold_tier_do_not_count_the_archive(random_head):
    head = grouped(np.random.default_rng(3), random_head)
    rows = evaluate_head(lifecycle(), head)
    for step in range(8):
        cold, _ = ages(head, step)
        read = sorted(set(rows.positions(step).tolist()) & set(cold))
        assert rows.read_runs[step] == sum(t - 1 not in read for t in read)


# --- bytes by tier ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(shipped, tmp_path_factory):
    """Return a Selection of the shipped lifecycle, its policy and model, and by step the cold and archived reads."""
    model, policy = load_model("docs_5m", ()).value, shipped["ghostkv_lifecycle"]
    shape = Shape(model.layers, model.kv_heads, model.q_per_kv, model.head_dim)
    workload = compose([open_trace("natural_4k")], shape, requests=1, steps=2, context=None, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        selection = select({"it": policy}, workload)["it"]
    read = np.zeros((2, 2), dtype=int)
    for row in selection.unit_of.ravel():
        for step in range(2):
            found, own = positions_read(selection, row, step), 3968 + step
            edge = own + 1 - 1024
            read[step] += [((found >= edge) & (found <= own - 256)).sum(), ((found >= 4) & (found < edge)).sum()]
    return selection, policy, model, read


@pytest.mark.parametrize(("cold", "archive"), [("dram", "ssd"), ("hbm", "ssd"), ("dram", "cxl"), ("dram", None)])
def test_bytes_of_each_tier_are_those_of_a_hand_count(counted, cold, archive):
    selection, policy, model, read = counted
    plan = place(selection, policy, model, Placement(cold, "hbm", "gpu", "dma", 1, "bitmap", archive), 1)
    heads = selection.unit_of.size
    expected = {}
    for tier, tokens in ((cold, read[:, 0]), (archive or cold, read[:, 1])):
        expected[tier] = expected.get(tier, 0) + 512 * tokens
    moved = plan.tier_bytes()
    for tier in expected.keys() - {"hbm"}:
        assert moved[tier]["kv"].tolist() == expected[tier].tolist()
    leaves = 512 * heads  # a token of every KV head turns cold at a step, and one is archived
    if archive is not None:
        assert (moved[archive]["migrate"] == leaves).all()
    if cold != "hbm":
        assert (moved[cold]["migrate"] == leaves * (1 if archive is None else 2)).all()


def test_a_cluster_is_one_piece_of_its_tier(counted):
    selection, policy, model, _ = counted
    plan = place(selection, policy, model, Placement("dram", "hbm", "gpu", "dma", 1, "bitmap", "ssd"), 1)
    rows = (plan.op == OPS.index("read")) & (plan.role == ROLES.index("archive"))
    runs = np.bincount(plan.step[rows], plan.runs[rows], minlength=2)
    assert runs.tolist() == selection.archive_runs[selection.unit_of.ravel()].sum(axis=0).tolist()


SCENARIO = {
    "schema": 1,
    "name": "archive",
    "model": "docs_5m",
    "platform": "h100_cxl_pim",
    "workload": {"trace": "natural_4k", "batch": 1, "steps": 2},
    "baseline": ["full"],
    "runs": {
        "full": {"policy": "full"},
        "archive": {"policy": "ghostkv_lifecycle", "kv_tier": "dram", "archive_tier": "ssd"},
    },
}


def written(tmp_path, **changes):
    runs = {"full": SCENARIO["runs"]["full"], "archive": SCENARIO["runs"]["archive"] | changes}
    file = tmp_path / "archive.yaml"
    file.write_text(yaml.safe_dump(SCENARIO | {"runs": runs}))
    return file


def ghostsim(*given):
    return subprocess.run([sys.executable, "-m", "ghostsim", *given], capture_output=True, text=True, check=False)


def test_a_run_moves_the_archive_from_its_drive(counted, tmp_path):
    _, _, _, read = counted
    done = ghostsim("run", str(written(tmp_path)), "--out", str(tmp_path / "out"), "--quiet")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["runs"]["archive"]
    assert found["bytes_per_step"]["ssd"]["kv"] == found["bytes_per_step"]["nvme0"]["kv"] == 512 * read[:, 1].mean()
    assert found["bytes_per_step"]["dram"]["kv"] == 512 * read[:, 0].mean()
    assert found["quality"]["violations"] == 0
    assert found["quality"]["lost_mass"]["max"] <= 0.01


def test_capacity_counts_the_archive_in_its_tier(tmp_path):
    run = load_scenario(written(tmp_path), ()).value.runs["archive"]
    heads, tokens = 8, 4000
    tiers = footprint(run, run.model, tokens, 1).tiers
    assert tiers["ssd"] == heads * tokens * 512
    assert tiers["dram"] == heads * 1028 * 512
    index = heads * (258 * -(-tokens // 32) + 66 * 1028)
    assert tiers["hbm"] == run.model.weight_bytes + heads * 261 * 512 + 2 * 2 * tokens * 512 + index


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        QKEYS,
        {"rule": {"topk": 64}, "score": {"centroid": {}}},
        {"rule": {"topk": 64}, "score": BALLS, "also": [{"rule": {"topk": 8}, "score": "exact"}]},
    ],
)
def test_an_archive_without_balls_is_refused(read):
    with pytest.raises(ValidationError, match="role: archive, expected read to begin with"):
        lifecycle(read)


def test_an_archive_tier_without_an_archive_is_refused(tmp_path):
    done = ghostsim("run", str(written(tmp_path, policy="ghostkv")), "--out", str(tmp_path / "out"))
    assert done.returncode == 3
    assert "found archive_tier for ghostkv, expected a policy with role: archive" in done.stderr
    assert done.stderr.count("\n") == 1
