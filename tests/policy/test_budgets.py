"""A policy at other budgets: what changes, and nothing else."""

import pytest

from ghostsim.study.budgets import OWN, swept


def test_a_selector_is_scaled(shipped):
    budgets = {label: policy.read.rule.topk for label, policy in swept(shipped["quest"]).items()}
    assert budgets == {OWN: 2048, "x0.25": 512, "x0.5": 1024, "x2": 4096}


def test_the_deciding_stage_of_a_cascade_is_scaled(make_policy):
    policy = make_policy({
        "rule": {"topfrac": 0.5}, "score": {"box": {"page": 16}},
        "then": [{"rule": {"topk": 100}, "score": "exact"}],
    })  # fmt: skip
    half = swept(policy)["x0.5"].read
    assert half.then[0].rule.topk == 50
    assert half.rule == policy.read.rule


def test_a_share_ends_at_everything(make_policy):
    policy = make_policy({"rule": {"topfrac": 0.8}, "score": "exact"})
    assert swept(policy)["x2"].read.rule.topfrac == 1.0


def test_an_evictor_is_scaled_where_it_keeps(shipped):
    found = swept(shipped["snapkv"])
    assert found["x0.25"].keep[0].select.rule.topk == 504
    assert found["x0.25"].keep[0].select.pin == shipped["snapkv"].keep[0].select.pin
    assert found["x0.25"].read == shipped["snapkv"].read


def test_an_evictor_by_window_alone_is_scaled_in_its_window(shipped):
    assert swept(shipped["streaming_llm"])["x0.5"].keep[0].select.pin.window == 1000


@pytest.mark.parametrize("name", ["ghostkv", "ghostkv_tree"])
def test_a_promise_is_shared_out_as_in_the_file(shipped, name):
    found = swept(shipped[name])
    assert set(found) == {OWN, "eps 0.1", "eps 0.001"}
    wide, own = found["eps 0.1"].read, shipped[name].read
    assert wide.eps == pytest.approx(0.1)
    before, after = ([stage.rule.certify for stage in read.cascade] for read in (own, wide))
    assert after == pytest.approx([10 * eps for eps in before])


@pytest.mark.parametrize("name", ["full", "int4", "kivi", "wkvquant", "flexgen"])
def test_a_policy_without_a_budget_has_one_point(shipped, name):
    assert swept(shipped[name]) == {OWN: shipped[name]}
