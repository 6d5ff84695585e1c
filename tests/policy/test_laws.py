"""Do the laws of the algebra hold for any policy: bytes, lost mass, refinement, groups?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ghostsim.errors import ConfigError
from ghostsim.policy.head import evaluate_head

SCORES = st.sampled_from(
    [{"exact": {}}, {"qkeys": {"bits": 4}}, {"sketch": {"dims": 4}}, {"box": {"page": 4}}, {"published": {"dims": 4}}]
)
RULES = st.sampled_from([{"topk": 12}, {"topfrac": 0.3}, {"above": 0.0}, {"margin": 2.0}])
KEEPS = st.sampled_from(
    [
        {"select": "all"},
        {"select": {"rule": "none", "pin": {"sinks": 2, "window": 20}}},
        {"select": {"rule": {"topk": 10}, "score": {"hist": {}}, "pin": {"window": 20}, "reduce": "sum"}},
        {
            "every": "prefill_end",
            "select": {"rule": {"topk": 9}, "score": {"obs": {"window": 4}}, "pin": {"window": 9}},
        },
    ]
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), score=SCORES, rule=RULES, keep=KEEPS, window=st.sampled_from([None, 40]))
def test_reads_are_stored_and_mass_adds_up(make_policy, random_head, seed, score, rule, keep, window):
    head = replace(random_head(np.random.default_rng(seed), 64, 4, 8, 2.0), window=window)
    unit = "page" if "box" in score else "token"
    rows = evaluate_head(make_policy({"rule": rule, "score": score, "unit": unit}, keep), head)
    everything = evaluate_head(make_policy({"rule": "all"}, keep), head)
    for s in range(4):
        read, stored = set(rows.positions(s).tolist()), set(everything.positions(s).tolist())
        assert read <= stored
        assert 64 + s in read
        assert len(read) == rows.hot_tokens[s] + rows.read_tokens[s]
        assert rows.hot_tokens[s] + rows.cold_tokens[s] == rows.attended[s] == min(64 + s + 1, window or 999)
        scores = head.scale * head.queries[s] @ head.keys[: 64 + s + 1].T
        scores[:, : 64 + s + 1 - rows.attended[s]] = -np.inf
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        np.testing.assert_allclose(rows.lost_mass[s], 1 - p[:, sorted(read)].sum(1), atol=1e-12)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), k=st.integers(1, 50))
def test_a_larger_budget_reads_a_superset(make_policy, random_head, seed, k):
    head = random_head(np.random.default_rng(seed), 64, 3, 8, 2.0)
    small, large = (evaluate_head(make_policy({"rule": {"topk": n}, "score": {"qkeys": {}}}), head) for n in (k, k + 7))
    assert not (small.sets & ~large.sets).any()
    assert (small.scanned == large.scanned).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999))
def test_a_group_reads_the_union_of_its_heads(make_policy, random_head, seed):
    head = random_head(np.random.default_rng(seed), 64, 3, 8, 2.0)
    policy = make_policy({"rule": {"certify": 0.05}, "score": {"qkeys": {"bits": 6}}})
    both = evaluate_head(policy, head)
    apart = [evaluate_head(policy, replace(head, queries=head.queries[:, j : j + 1])) for j in range(2)]
    assert (both.sets == apart[0].sets | apart[1].sets).all()
    for j in range(2):
        assert (both.lost_mass[:, j] <= apart[j].lost_mass[:, 0] + 1e-15).all()


def test_ties_go_to_the_lower_position(make_policy, random_head):
    head = random_head(np.random.default_rng(0), 64, 2, 8, 1.0)
    head.keys[:] = head.keys[0]
    rows = evaluate_head(make_policy({"rule": {"topk": 5}, "score": "exact"}), head)
    assert rows.positions(0).tolist() == [0, 1, 2, 3, 4, 64]
    oracle = evaluate_head(make_policy({"rule": {"certify": 0.5}, "score": "exact"}), head)
    assert oracle.positions(0).tolist() == [*range(32), 64]


def test_pins_that_keep_evicts_are_refused(make_policy, random_head):
    keep = {"select": {"rule": "none", "pin": {"window": 5}}}
    policy = make_policy({"rule": "none", "pin": {"window": 9}}, keep)
    with pytest.raises(ConfigError, match="pins that keep evicts"):
        evaluate_head(policy, random_head(np.random.default_rng(0), 64, 2, 8, 1.0))


@pytest.mark.parametrize(
    ("read", "keep", "found"),
    [
        ({"rule": {"certify": 0.01}, "score": {"sketch": {"residual": "none"}}}, None, "only an estimate"),
        ({"rule": {"certify": 0.01}, "score": "published"}, None, "only a claimed bound"),
        ({"rule": {"certify": 0.01}, "score": "age"}, None, "only a prior"),
        ({"rule": {"certify": 0.01}, "score": "exact", "reduce": "mean"}, None, "certify with reduce"),
        ({"rule": {"certify": 0.01}, "score": "exact"}, {"select": {"rule": "none"}}, "certify over an evicting"),
        ({"rule": {"certify": 0.01}, "score": "exact"}, {"select": "all", "format": {"int": {}}}, "integer format"),
        ({"rule": {"topk": 3}}, None, "without a score"),
        ({"rule": {"topk": 3}, "score": {"hist": {}}}, None, "in read"),
        ({"rule": "all", "pin": {"last_page": True}}, None, "without pages"),
        (
            {"rule": "all"},
            {"every": "step", "select": {"rule": {"topk": 1}, "score": {"obs": {}}}},
            "clock of the decode",
        ),
        ({"rule": "all"}, {"select": {"rule": {"above": 1.0}, "score": "exact"}}, "in keep"),
        ({"rule": "all"}, {"select": {"rule": {"topk": 1}, "score": {"obs": {"pool": 4}}}}, "odd number"),
    ],
)
def test_policies_that_break_a_law_are_refused_at_load(make_policy, read, keep, found):
    with pytest.raises(ValidationError, match=found):
        make_policy(read, keep)
