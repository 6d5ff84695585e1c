"""Do the laws of the algebra hold for any policy: bytes, lost mass, refinement, groups?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ghostsim.errors import ConfigError
from ghostsim.policy.costs import index_stages, streams_of
from ghostsim.policy.head import evaluate_group, evaluate_head
from ghostsim.policy.rules import ledger

SCORES = st.sampled_from(
    [
        {"exact": {}},
        {"qkeys": {"bits": 4}},
        {"sketch": {"dims": 4}},
        {"sketch": {"dims": 4, "residual": "none", "basis": "symmetric", "centred": True}},
        {"box": {"page": 4}},
        {"box": {"page": 4, "spread": "mean"}},
        {"mean": {"page": 4}},
        {"ball": {"page": 4}},
        {"subspaces": {"page": 4, "parts": 2}},
        {"centroid": {"tokens": 6, "rounds": 2}},
        {"chan": {"share": 0.5}},
        {"lsh": {"bits": 2, "tables": 6}},
        {"graph": {}},
        {"lightning": {}},
        {"random": {}},
        {"norm": {}},
        {"published": {"dims": 4}},
    ]
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


@settings(max_examples=120, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), score=SCORES, rule=RULES, keep=KEEPS, window=st.sampled_from([None, 40]))
def test_reads_are_stored_and_mass_adds_up(make_policy, random_head, seed, score, rule, keep, window):
    head = replace(random_head(np.random.default_rng(seed), 64, 4, 8, 2.0), window=window)
    rows = evaluate_head(make_policy({"rule": rule, "score": score}, keep), head)
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


BOUNDS = st.sampled_from(
    [
        {"exact": {}},
        {"qkeys": {"bits": 4}},
        {"sketch": {"dims": 4, "centred": True}},
        {"box": {"page": 4}},
        {"ball": {"page": 8}},
        {"subspaces": {"page": 4, "parts": 4}},
        {"centroid": {"tokens": 6, "rounds": 2, "radius": True}},
    ]
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    first=BOUNDS,
    second=BOUNDS,
    rules=st.tuples(RULES, RULES),
    completion=st.sampled_from(["renormalise", "track", "add_bound"]),
)
def test_refinement_reads_less_and_scans_survivors_only(
    make_policy, random_head, seed, first, second, rules, completion
):
    head = random_head(np.random.default_rng(seed), 64, 3, 8, 2.0)
    read = {"rule": rules[0], "score": first, "pin": {"sinks": 2, "window": 4}, "completion": completion}
    alone, refined = (
        evaluate_head(make_policy(each), head)
        for each in (read, read | {"then": [{"rule": rules[1], "score": second}]})
    )
    assert not (refined.sets & ~alone.sets).any()
    assert (refined.scanned[0] == alone.scanned[0]).all()
    assert (refined.scanned[1] <= alone.read_tokens).all()
    assert (refined.lost_mass >= alone.lost_mass - 1e-15).all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), score=SCORES, rule=RULES, role=st.sampled_from(["hot", "cold"]), pinned=st.booleans())
def test_bytes_are_those_of_stages_and_streams(make_policy, random_head, seed, score, rule, role, pinned):
    head = random_head(np.random.default_rng(seed), 64, 3, 8, 2.0)
    read = {"rule": rule, "score": score, "pin": {"sinks": 2, "window": 4} if pinned else {}}
    policy = make_policy(read, {"select": "all", "role": role})
    rows = evaluate_head(policy, head)
    for stage, scanned, nbytes in zip(index_stages(policy, 8), rows.scanned, rows.scan_bytes, strict=True):
        assert nbytes.tolist() == [stage.nbytes(int(records)) for records in scanned]
    streams = streams_of(policy, 8)
    assert (rows.stream_tokens.sum(axis=0) == rows.hot_tokens + rows.read_tokens).all()
    assert (rows.stream_bytes.sum(axis=0) == 32 * (rows.hot_tokens + rows.read_tokens)).all()
    near = sum(counts for stream, counts in zip(streams, rows.stream_tokens, strict=True) if stream.op == "attend")
    if role == "cold":
        assert (near == (rows.hot_tokens if pinned else 0)).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 999),
    role=st.sampled_from(["hot", "cold"]),
    form=st.sampled_from(["fp16", {"int": {"group": 8}}]),
)
def test_reading_all_loses_nothing(make_policy, random_head, seed, role, form):
    head = random_head(np.random.default_rng(seed), 64, 3, 8, 2.0)
    rows = evaluate_head(make_policy({"rule": "all"}, {"select": "all", "role": role, "format": form}), head)
    assert not rows.lost_mass.any()
    assert (rows.hot_tokens + rows.read_tokens == rows.attended).all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), tokens=st.integers(1, 80), by=st.sampled_from(["lru", "score"]))
def test_a_cache_changes_where_tokens_come_from_and_not_which(make_policy, random_head, seed, tokens, by):
    head = random_head(np.random.default_rng(seed), 64, 6, 8, 1.0)
    read = {"rule": {"topk": 20}, "score": "exact", "pin": {"window": 4}}
    keep = {"select": "all", "role": "cold"}
    plain = evaluate_head(make_policy(read, keep), head)
    cached = evaluate_head(make_policy(read | {"cache": {"tokens": tokens, "by": by}}, keep), head)
    assert (plain.sets == cached.sets).all()
    assert (cached.stream_tokens[1] + cached.stream_tokens[2] == plain.stream_tokens[1]).all()
    assert cached.stream_tokens[2, 0] == 0
    assert (cached.stream_tokens[2] <= tokens).all()


@pytest.mark.parametrize("pinned", [True, False])
def test_what_a_cache_recalls_moves_beside_what_is_attended(make_policy, random_head, pinned):
    head = random_head(np.random.default_rng(4), 64, 6, 8, 1.0)
    read = {"rule": {"topk": 20}, "score": "exact", "pin": {"window": 4} if pinned else {}}
    by_misses = {
        misses: evaluate_head(
            make_policy(read | {"cache": {"tokens": 30, "misses": misses}}, {"select": "all", "role": "cold"}), head
        )
        for misses in ("read", "migrate")
    }
    apart, recalled = by_misses["read"], by_misses["migrate"]
    assert (recalled.sets == apart.sets).all()
    assert (recalled.stream_tokens[1] == apart.stream_tokens[1]).all()
    assert (recalled.stream_tokens[[0, 2]].sum(axis=0) == recalled.hot_tokens + recalled.read_tokens).all()
    assert (recalled.stream_bytes == 32 * recalled.stream_tokens).all()


def cached(policy, heads, score, tokens):
    """Return how many tokens a cache lacks, step by step: plain sets, the lowest score leaves first."""
    held, missed = [set() for _ in heads], np.zeros((len(heads), heads[0].queries.shape[0]), dtype=int)
    for s in range(missed.shape[1]):
        for h, rows in enumerate(evaluate_group([policy], heads)[0]):
            own = heads[h].context + s
            read = {i for i in rows.positions(s).tolist() if i <= own - 4}
            missed[h, s] = len(read - held[h])
            worth = score(h, s)
            keep = sorted((held[h] | read) - read, key=lambda i: (-worth[i], i))
            held[h] = read | set(keep[: max(0, tokens - len(read))])
    return missed


def page_scores(head, s, reduce):
    """Return the score of its page of 4 for every token but the last four, of the query heads agreed by `reduce`."""
    size, table = head.context + s - 3, []
    for q in head.queries[s]:
        pages = [head.keys[p : min(p + 4, size)] for p in range(0, size, 4)]
        full = [head.keys[p : p + 4] for p in range(0, size, 4)]
        per_page = [head.scale * sum(np.maximum(q * k.min(0), q * k.max(0))) for k in full]
        table.append(np.repeat(per_page, [len(k) for k in pages]))
    return getattr(np, reduce)(table, axis=0)


@pytest.mark.parametrize("more", [{}, {"then": [{"rule": {"topk": 9}, "score": "exact"}]}])
def test_a_cache_that_goes_by_score_takes_the_page_scores_of_the_first_stage(make_policy, random_head, more):
    head = random_head(np.random.default_rng(5), 61, 8, 8, 1.0)
    read = {"rule": {"topk": 16}, "score": {"box": {"page": 4}}, "pin": {"window": 4}, **more}
    policy = make_policy(read | {"cache": {"tokens": 40, "by": "score"}}, {"select": "all", "role": "cold"})
    (missed,) = cached(policy, [head], lambda _, s: page_scores(head, s, "max"), 40)
    assert evaluate_head(policy, head).stream_tokens[1].tolist() == missed.tolist()
    assert 0 < missed[1:].sum() < evaluate_head(policy, head).read_tokens[1:].sum()


def test_a_cache_that_goes_by_score_agrees_with_the_heads_it_chooses_with(make_policy, random_head):
    heads = [random_head(np.random.default_rng(seed), 61, 8, 8, 1.0) for seed in (6, 7)]
    read = {"rule": {"topk": 16}, "score": {"box": {"page": 4}}, "pin": {"window": 4}, "reduce": "mean"}
    cache = {"scope": "layer", "cache": {"tokens": 40, "by": "score"}}
    policy = make_policy(read | cache, {"select": "all", "role": "cold"})
    wanted = cached(policy, heads, lambda _, s: np.mean([page_scores(h, s, "mean") for h in heads], axis=0), 40)
    found = [rows.stream_tokens[1].tolist() for rows in evaluate_group([policy], heads)[0]]
    assert found == wanted.tolist()


def test_a_cache_by_score_of_a_rule_without_scores_is_refused(make_policy):
    with pytest.raises(ValidationError, match=r"found cache.by score with the rule all, expected cache.by: lru"):
        make_policy({"rule": "all", "cache": {"tokens": 9, "by": "score"}})


@pytest.mark.parametrize("role", ["hot", "cold"])
@pytest.mark.parametrize("pin", [{}, {"window": 5}, {"last_page": True}])
def test_steps_that_are_verified_together_move_their_union_once(make_policy, random_head, role, pin):
    head = random_head(np.random.default_rng(8), 62, 7, 8, 1.0)
    read = {"rule": {"topk": 12}, "score": {"box": {"page": 4}}, "pin": pin}
    keep = {"select": "all", "role": role}
    alone = evaluate_head(make_policy(read, keep), head)
    together = evaluate_head(make_policy(read | {"speculate": 3}, keep), head)
    for start in (0, 3, 6):
        steps = range(start, min(start + 3, 7))
        union = set().union(*(alone.positions(s).tolist() for s in steps))
        for s in steps:
            assert together.positions(s).tolist() == sorted(i for i in union if i <= 62 + s)
        assert together.stream_tokens[:, start].sum() == len(union)
        assert together.stream_bytes[:, start].sum() == 32 * len(union)
        assert not together.stream_tokens[:, steps[1:]].any()


def test_a_cache_serves_steps_that_are_verified_together(make_policy, random_head):
    head = random_head(np.random.default_rng(9), 62, 6, 8, 1.0)
    read = {"rule": {"topk": 12}, "score": "exact", "pin": {"window": 5}, "speculate": 3}
    plain = evaluate_head(make_policy(read, {"select": "all", "role": "cold"}), head)
    rows = evaluate_head(make_policy(read | {"cache": {"tokens": 99}}, {"select": "all", "role": "cold"}), head)
    first, second = ({i for i in plain.positions(s).tolist() if i <= 62 + s - 5} for s in (2, 5))
    assert rows.stream_tokens[1, [0, 3]].tolist() == [len(first), len(second - first)]
    assert (rows.stream_tokens.sum(axis=0) == plain.stream_tokens.sum(axis=0)).all()


def test_the_oracle_is_computed_once_a_step(make_policy, random_head, monkeypatch):
    built = []
    monkeypatch.setattr("ghostsim.policy.cold.ledger", lambda *args: built.append(1) or ledger(*args))
    head = random_head(np.random.default_rng(0), 64, 6, 8, 1.0)
    evaluate_head(make_policy({"rule": {"topk": 9}, "score": "exact", "speculate": 3}), head)
    assert len(built) == 6


def test_ties_go_to_the_lower_position(make_policy, random_head):
    head = random_head(np.random.default_rng(0), 64, 2, 8, 1.0)
    head.keys[:] = head.keys[0]
    rows = evaluate_head(make_policy({"rule": {"topk": 5}, "score": "exact"}), head)
    assert rows.positions(0).tolist() == [0, 1, 2, 3, 4, 64]
    oracle = evaluate_head(make_policy({"rule": {"certify": 0.5}, "score": "exact"}), head)
    assert oracle.positions(0).tolist() == [*range(32), 64]


def test_nothing_but_the_own_token_is_pinned_where_what_is_decoded_is_let_go(make_policy, random_head):
    select = {"rule": {"topk": 9}, "score": {"obs": {"window": 4}}, "pin": {"window": 6}, "reduce": "mean"}
    keep = {"every": "prefill_end", "select": select, "generated": False}
    rows = evaluate_head(make_policy({"rule": "all"}, keep), random_head(np.random.default_rng(0), 64, 5, 8, 1.0))
    for s in range(5):
        assert len(rows.positions(s)) == 9 + 6 + 1
        assert rows.positions(s)[-7:].tolist() == [*range(58, 64), 64 + s]
        assert rows.hot_tokens[s] == 1


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
        ({"rule": {"certify": 0.01}, "score": "exact"}, {"select": "all", "format": {"int": {}}}, "lossy format"),
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
