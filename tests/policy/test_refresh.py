"""Do indexes stay sound and honest while a decode goes on: joining anchors, refreshing, and what that moves?"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ghostsim.config.load import load_model
from ghostsim.config.scores import Centroid
from ghostsim.plan.plan import OPS, ROLES
from ghostsim.policy.clusters import build_clusters
from ghostsim.policy.evaluate import select
from ghostsim.policy.head import after, evaluate_head
from ghostsim.policy.output import step_bytes
from ghostsim.policy.placement import Placement, place
from ghostsim.trace.compose import Shape, compose
from ghostsim.trace.format import open_trace

JOINS = {"centroid": {"tokens": 6, "rounds": 3, "radius": True, "joins": True}}
FITTED = {
    "centroid": JOINS,
    "qkeys": {"qkeys": {"bits": 4}},
    "pca": {"sketch": {"dims": 4, "bits": 8, "centred": True}},
    "symmetric": {"sketch": {"dims": 4, "bits": 16, "basis": "symmetric"}},
    "integer": {"sketch": {"dims": 16, "bits": 4, "integer": True}},
}
PIN = {"sinks": 2, "window": 4}


def policy_of(make_policy, score, refresh="never", **other):
    read = {"rule": {"certify": 0.01}, "score": score, "refresh": refresh, "pin": PIN}
    return make_policy(read | other)


def drifting(rng, random_head, tokens, steps, spread):
    """Return a head whose late keys wander off from the prompt's."""
    head = random_head(rng, tokens, steps, 16, spread)
    head.keys[tokens:] += np.cumsum(rng.standard_normal((steps, 16)), axis=0) * spread
    return head


@pytest.mark.parametrize("name", sorted(FITTED))
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 0.1, 1.0, 30.0]),
    refresh=st.sampled_from(["never", {"steps": 1}, {"steps": 5}, {"steps": 100}]),
    form=st.sampled_from(["staged", "one_pass", "flat"]),
)
def test_bounds_and_certificates_hold_however_keys_drift(make_policy, random_head, name, seed, spread, refresh, form):
    head = drifting(np.random.default_rng(seed), random_head, 40, 14, spread)
    rule = {"certify": 0.01, "form": form}
    rows = evaluate_head(policy_of(make_policy, FITTED[name], refresh, rule=rule), head)
    assert not rows.violations.any()
    assert rows.bound_checks.sum() > 0
    assert (rows.lost_mass <= rows.certified_mass).all()
    assert (rows.certified_mass <= 0.01).all()


@pytest.mark.parametrize("name", sorted(FITTED))
def test_after_a_refresh_all_is_as_if_the_prompt_had_ended_there(make_policy, random_head, name):
    head = drifting(np.random.default_rng(3), random_head, 60, 12, 1.0)
    refreshed = evaluate_head(policy_of(make_policy, FITTED[name], {"steps": 8}), head)
    later = evaluate_head(policy_of(make_policy, FITTED[name]), after(head, 8))
    for item in fields(later):
        found, expected = getattr(refreshed, item.name), getattr(later, item.name)
        if expected is not None and item.name not in ("sets", "refit_bytes", "rewritten_bytes"):
            steps_last = item.name in ("scanned", "scan_bytes", "stream_tokens", "stream_bytes")
            found = found[:, 8:] if steps_last else found[8:]
            np.testing.assert_array_equal(found, expected, err_msg=item.name)


def test_a_refresh_shows_in_what_is_read(make_policy, random_head):
    head = random_head(np.random.default_rng(4), 60, 40, 16, 3.0)
    head.keys[60:] *= 4  # beyond the range of codes that were fitted on the prompt
    never, often = (
        evaluate_head(policy_of(make_policy, {"qkeys": {"bits": 6}}, refresh), head)
        for refresh in ("never", {"steps": 4})
    )
    np.testing.assert_array_equal(never.read_tokens[:4], often.read_tokens[:4])
    assert often.read_tokens[20:].sum() < never.read_tokens[20:].sum()


def test_a_ball_reaches_its_members_and_no_further(random_head):
    head = drifting(np.random.default_rng(5), random_head, 50, 20, 1.0)
    index = build_clusters(head.keys, 50, slice(2, 46), Centroid(tokens=6, rounds=3, radius=True, joins=True))
    for own in range(50, 70):
        members = range(max(50, own + 1 - 4))
        expected = np.zeros(len(index.centres))
        for token in members:
            cluster = index.labels[token]
            expected[cluster] = max(expected[cluster], np.linalg.norm(head.keys[token] - index.centres[cluster]))
        radii = index.radii(np.array([own]))[0]
        assert (radii >= expected).all()
        assert radii == pytest.approx(expected, rel=2e-3)


def test_late_tokens_join_the_nearest_centre(random_head):
    head = drifting(np.random.default_rng(6), random_head, 50, 20, 1.0)
    index = build_clusters(head.keys, 50, slice(2, 46), Centroid(tokens=6, rounds=3, radius=True, joins=True))
    filled = np.unique(index.labels[:50])
    for token in range(50, 70):
        distances = np.linalg.norm(index.centres[filled] - head.keys[token], axis=1)
        assert index.labels[token] == filled[np.argmin(distances)]


def test_without_joins_late_tokens_are_always_read(make_policy, random_head):
    head = random_head(np.random.default_rng(7), 50, 20, 16, 1.0)
    score = {"centroid": JOINS["centroid"] | {"joins": False}}
    rows = evaluate_head(policy_of(make_policy, score, rule={"certify": 0.9}), head)
    assert set(range(50, 70)) <= set(rows.positions(19).tolist())


# --- bytes ----------------------------------------------------------------------------------------------------


def test_bytes_of_a_refresh_are_those_of_a_hand_count(make_policy, random_head):
    """40 + 14 tokens of 16 channels: at step s cold are 40 + s + 1 - 4 - 2; keys of 32 bytes, records of 10."""
    head = random_head(np.random.default_rng(8), 40, 14, 16, 1.0)
    rows = evaluate_head(policy_of(make_policy, {"qkeys": {"bits": 4}}, {"steps": 5}), head)
    cold = {5: 40, 10: 45}
    expected = np.array([[32 * cold.get(s, 0), 10 * cold.get(s, 0)] for s in range(14)])
    np.testing.assert_array_equal(np.stack([rows.refit_bytes, rows.rewritten_bytes], axis=1), expected)


def test_a_refresh_of_two_stages_reads_the_keys_once(make_policy, random_head):
    head = random_head(np.random.default_rng(9), 40, 14, 16, 1.0)
    then = [{"rule": {"certify": 0.01}, "score": {"qkeys": {"bits": 4}}, "refresh": {"steps": 5}}]
    rows = evaluate_head(policy_of(make_policy, JOINS, {"steps": 5}, then=then), head)
    clusters = -(-45 // 6)
    assert rows.refit_bytes[5] == 32 * 40
    assert rows.rewritten_bytes[5] == 34 * clusters + 10 * 40


@pytest.fixture(scope="module")
def placed(make_policy, tmp_path_factory):
    """Return a policy that refreshes at steps 2 and 4, its Selection, and its plan with KV in DRAM, index in CXL."""
    model = load_model("docs_5m", ()).value
    shape = Shape(model.layers, model.kv_heads, model.q_per_kv, model.head_dim)
    workload = compose([open_trace("natural_4k")], shape, requests=1, steps=5, context=None, seed=1)
    read = {"rule": {"certify": 0.01}, "score": {"qkeys": {"bits": 4}}, "pin": {"sinks": 4, "window": 256}}
    policy = make_policy(read | {"refresh": {"steps": 2}}, {"every": "step", "select": "all", "role": "cold"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        selection = select({"it": policy}, workload)["it"]
        selection = select({"it": policy}, workload)["it"]  # as it comes back from the cache
        plan = place(selection, policy, model, Placement("dram", "cxl", "cxl", "dma", 1, "bitmap"), 1)
        return policy, selection, plan


def test_a_plan_moves_the_keys_and_records_of_a_refresh(placed):
    _, selection, plan = placed
    heads = len(selection.attended)
    for op, role, name, size in (("migrate", "cold", "refit", 256), ("ghostify", "index", "rewrite", 66)):
        rows = (plan.op == OPS.index(op)) & (plan.role == ROLES.index(role))
        rows &= np.array([plan.names[i % len(plan.names)] == name for i in range(len(plan))])
        per_step = np.bincount(plan.step[rows], plan.nbytes[rows], minlength=5)
        cold = [3968 + s + 1 - 260 for s in range(5)]
        assert per_step.tolist() == [0, 0, heads * size * cold[2], 0, heads * size * cold[4]]


def test_bytes_of_a_tier_hold_a_refresh_as_migration(placed):
    _, selection, plan = placed
    heads, moved = len(selection.attended), plan.tier_bytes()
    for tier, size, record in (("dram", 256, 512), ("cxl", 66, 66)):
        cold = 3968 + 2 + 1 - 260
        assert moved[tier]["migrate"][1] == heads * record
        assert moved[tier]["migrate"][2] == heads * (record + size * cold)


def test_evaluate_lists_a_refresh(placed):
    policy, selection, _ = placed
    found = {(op, role): nbytes for op, role, nbytes in step_bytes(policy, selection, 128, 0, 2)}
    assert found["migrate", "cold"] == 256 * (3968 + 2 + 1 - 260)
    assert found["ghostify", "index"] == 66 * (3968 + 2 + 1 - 260)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (
            {"rule": {"topk": 64}, "score": {"box": {"page": 4}}},
            "refresh for the score box, of which nothing is fitted",
        ),
        ({"rule": {"topk": 64}, "score": "exact"}, "refresh for the score exact"),
        (
            {"rule": {"topfrac": 0.1}, "score": {"centroid": {}}, "completion": {"estimate": 0.2}},
            "refresh or joins with a completion from the index",
        ),
    ],
)
def test_a_refresh_without_meaning_is_refused(make_policy, read, words):
    with pytest.raises(ValidationError, match=words):
        make_policy(read | {"refresh": {"steps": 4}})
