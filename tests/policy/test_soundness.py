"""Is every claimed bound above the true score, and every certificate above the mass really lost?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.policy.head import evaluate_head, evaluate_heads
from ghostsim.policy.indexes import rounded_up
from ghostsim.policy.rows import claims
from ghostsim.trace.compose import compose
from ghostsim.trace.format import open_trace

SOUND = {
    "qkeys1": {"qkeys": {"bits": 1}},
    "qkeys4": {"qkeys": {"bits": 4}},
    "qkeys8": {"qkeys": {"bits": 8}},
    "sketch_pca": {"sketch": {"dims": 4, "bits": 8}},
    "sketch_random": {"sketch": {"dims": 4, "bits": 4, "basis": "random"}},
    "sketch_fp16": {"sketch": {"dims": 8, "bits": 16}},
    "sketch_centred": {"sketch": {"dims": 4, "centred": True, "basis": "symmetric"}},
    "sketch_query": {"sketch": {"dims": 4, "bits": 2, "basis": "query"}},
    "sketch_summed": {"sketch": {"dims": 4, "basis": "summed"}},
    "box": {"box": {"page": 4}},
    "ball": {"ball": {"page": 4}},
    "subspaces": {"subspaces": {"page": 4, "parts": 4}},
    "centroid": {"centroid": {"tokens": 6, "rounds": 3, "radius": True}},
    "centroid in codes": {"centroid": {"tokens": 6, "rounds": 3, "radius": True, "bits": 8}},
    "exact": {"exact": {}},
}
QKEYS = {"rule": {"certify": 0.002}, "score": {"qkeys": {"bits": 4}}}


def stage(page, form="one_pass"):
    return {"rule": {"certify": 0.004, "form": form}, "score": {"ball": {"page": page}}}


CASCADES = {
    "ball_then_qkeys": [stage(4), QKEYS],
    "three_levels": [stage(16), stage(4), QKEYS],
    "all_staged": [stage(16, "staged"), stage(4, "staged"), QKEYS],
    "clusters_then_sketch": [
        {"rule": {"certify": 0.004}, "score": SOUND["centroid"]},
        {"rule": {"certify": 0.004}, "score": {"sketch": {"dims": 4}}},
    ],
    "flat_then_exact": [stage(4, "flat"), {"rule": {"certify": 0.002}, "score": {"exact": {}}}],
}


def certify(make_policy, score, form="staged", eps=0.01):
    pin = {"sinks": 2, "window": 4}
    return make_policy({"rule": {"certify": eps, "form": form}, "score": score, "pin": pin})


def cascade(make_policy, name):
    first, *then = CASCADES[name]
    return make_policy(first | {"pin": {"sinks": 2, "window": 4}, "then": then})


def make_adversarial(head):
    """Late keys outside the fitted range, outliers, zero and huge rows, and queries along the error."""
    head.keys[80:] *= 1000
    head.keys[10] = 0
    head.keys[20] = 60000
    head.keys[30, 3] = -1e6
    head.queries[0, 0] = 0
    head.queries[1, 0] = head.keys[20] / 1e4
    head.queries[2] = head.keys[40]
    return head


def assert_sound(rows, eps):
    assert not rows.violations.any()
    assert rows.bound_checks.sum() > 0
    assert (rows.certified_mass >= rows.lost_mass).all()
    assert (rows.certified_mass <= eps).all()


@pytest.mark.parametrize("name", sorted(SOUND))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.sampled_from([0.0, 1e-6, 0.1, 1.0, 8.0, 300.0]),
    single=st.booleans(),
    form=st.sampled_from(["staged", "one_pass", "flat"]),
    eps=st.sampled_from([1e-6, 0.01, 0.5]),
)
def test_bounds_and_certificates_hold_on_random_vectors(
    make_policy, random_head, name, seed, spread, single, form, eps
):
    rng = np.random.default_rng(seed)
    head = random_head(rng, 60, 3, 16, spread, np.float32 if single else np.float64)
    assert_sound(evaluate_head(certify(make_policy, SOUND[name], form, eps), head), eps)


@pytest.mark.parametrize("name", sorted(SOUND))
def test_bounds_hold_on_adversarial_vectors(make_policy, random_head, name):
    head = make_adversarial(random_head(np.random.default_rng(5), 80, 4, 16, 1.0, np.float32))
    rows = evaluate_head(certify(make_policy, SOUND[name]), head)
    assert not rows.violations.any()
    assert (rows.certified_mass >= rows.lost_mass).all()
    assert np.isfinite(rows.certified_mass).all()


@pytest.mark.parametrize("softcap", [None, 30.0])
@pytest.mark.parametrize("name", sorted(SOUND))
def test_bounds_hold_on_recorded_vectors(make_policy, cut, name, softcap):
    assert_sound(evaluate_head(certify(make_policy, SOUND[name]), cut(tokens=2000, steps=4, softcap=softcap)), 0.01)


@pytest.mark.parametrize("name", sorted(CASCADES))
@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 0.1, 1.0, 8.0]), single=st.booleans())
def test_certificates_of_cascades_hold(make_policy, random_head, name, seed, spread, single):
    policy = cascade(make_policy, name)
    head = random_head(np.random.default_rng(seed), 80, 4, 16, spread, np.float32 if single else np.float64)
    assert_sound(evaluate_head(policy, head), policy.read.eps)
    rows = evaluate_head(policy, make_adversarial(head))
    assert not rows.violations.any()
    assert (rows.certified_mass >= rows.lost_mass).all()


@pytest.mark.parametrize("frame", [1, 7, 16, 4096])
@pytest.mark.parametrize("single", [True, False])
def test_bounds_of_page_local_frames_hold(make_policy, cut, frame, single):
    head = cut(tokens=700, steps=4)
    if single:
        head = replace(head, keys=head.keys.astype(np.float32), queries=head.queries.astype(np.float32))
    score = {"sketch": {"dims": 16, "bits": 8, "frame": frame}}
    assert_sound(evaluate_head(certify(make_policy, score), head), 0.01)
    head.keys[500:] *= 50
    rows = evaluate_head(certify(make_policy, score), head)
    assert not rows.violations.any()
    assert (rows.certified_mass >= rows.lost_mass).all()


CLAIMED = ("ghostkv_published", "ghostkv_jl")
"""What their margins promise is a claim, or holds with some probability."""
TRACES = ("code_4k", "facts_4k", "logs_4k", "manual_4k", "natural_4k", "tutorial_4k")


@pytest.mark.slow
@pytest.mark.parametrize(("trace", "context"), [*((trace, None) for trace in TRACES), ("natural_4k", 9000)])
def test_no_policy_of_the_library_violates_its_bound_on_a_bundled_trace(shipped, trace, context):
    """All policies that claim a proven bound, in all layers; composed contexts are of single precision."""
    proven = [each for each in shipped.values() if claims(each) and not each.name.startswith(CLAIMED)]
    assert len(proven) >= 20
    workload = compose([open_trace(trace)], None, requests=1, steps=2, context=context, seed=1)
    broken: set[str] = set()
    for unit in range(len(workload.heads)):
        for policy, rows in zip(proven, evaluate_heads(proven, workload.head(unit)), strict=True):
            assert rows.bound_checks.sum() > 0
            broken |= {f"{policy.name}: bound"} if rows.violations.any() else set()
            if rows.certified_mass is not None:
                broken |= {f"{policy.name}: mass"} if (rows.certified_mass < rows.lost_mass).any() else set()
            if policy.read.eps is not None:
                broken |= {f"{policy.name}: eps"} if (rows.certified_mass > policy.read.eps).any() else set()
    assert broken == set()


def test_published_bound_is_violated_by_a_third_of_the_tokens(shipped, natural):
    broken = checked = 0
    for unit in range(len(natural.heads)):
        rows = evaluate_head(shipped["ghostkv_published"], natural.head(unit))
        broken, checked = broken + rows.violations.sum(), checked + rows.bound_checks.sum()
    assert broken / checked > 0.3, f"AttnUB lies below the score of {broken / checked:.3f} of the tokens"


def test_published_cosine_bound_is_compared_as_a_cosine(make_policy, cut):
    head = cut(tokens=1000)
    score = {"published": {"dims": 16, "scale": "cosine", "epsilon": 3.0}}
    rows = evaluate_head(make_policy({"rule": {"above": 0.4}, "score": score}), head)
    assert not rows.violations.any()
    tight = {"published": {"dims": 16, "scale": "cosine", "epsilon": 0.0, "sigma": 0.0}}
    assert evaluate_head(make_policy({"rule": {"above": 0.4}, "score": tight}), head).violations.any()


def test_an_estimate_claims_no_bound(make_policy, cut):
    score = {"sketch": {"dims": 16, "residual": "none"}}
    rows = evaluate_head(make_policy({"rule": {"topk": 10}, "score": score}), cut())
    assert rows.violations is None
    assert rows.violated_mass is None


@given(value=st.floats(0, 1e9, allow_nan=False))
def test_stored_norms_never_round_down(value):
    assert rounded_up(np.array([value])).astype(float)[0] >= value
