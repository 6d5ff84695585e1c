"""Are Johnson-Lindenstrauss margins what the formula says, never taken for bounds, and caught where they fail?"""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from ghostsim.config.scores import Jl
from ghostsim.policy.head import evaluate_head
from ghostsim.policy.indexes import build_jl

PIN = {"sinks": 2, "window": 4}


def presumed(make_policy, dims, c, form="staged"):
    read = {"rule": {"presume": 0.01, "form": form}, "score": {"jl": {"dims": dims, "c": c}}, "pin": PIN}
    return make_policy(read)


def test_a_certificate_on_a_statistical_bound_is_refused(make_policy):
    with pytest.raises(ValidationError, match="certify on the score jl, which is only a claimed bound"):
        make_policy({"rule": {"certify": 0.01}, "score": {"jl": {"dims": 64}}})


@pytest.mark.parametrize("score", ["exact", {"qkeys": {"bits": 4}}, {"published": {"dims": 16}}, {"mean": {"page": 4}}])
def test_a_presumption_on_anything_else_is_refused(make_policy, score):
    with pytest.raises(ValidationError, match="expected jl, a statistical bound"):
        make_policy({"rule": {"presume": 0.01}, "score": score})


def margins(head, dims, c):
    """Return the claimed bounds [steps, g, tokens], from the index's own matrix."""
    matrix = build_jl(head.keys, head.context, Jl(dims=dims, c=c)).basis
    numbers = (head.keys @ matrix).astype(np.float16).astype(float)
    margin = np.sqrt(c * np.log(head.context) / dims)
    lengths = np.linalg.norm(head.queries, axis=2)[..., None] * np.linalg.norm(head.keys, axis=1)
    return head.scale * (head.queries @ matrix @ numbers.T + margin * lengths)


@pytest.mark.parametrize(("dims", "c"), [(8, 0.1), (64, 8.0), (16, 2.0)])
def test_violations_are_those_of_the_formula(make_policy, random_head, dims, c):
    head = random_head(np.random.default_rng(1), 300, 4, 16, 1.0)
    rows = evaluate_head(presumed(make_policy, dims, c), head)
    below = margins(head, dims, c) < head.scale * head.queries @ head.keys.T
    for step in range(4):
        cold = slice(2, 300 + step + 1 - 4)
        assert rows.violations[step].tolist() == pytest.approx(below[step, :, cold].sum(axis=1), abs=1)
    assert (rows.bound_checks == [[295 + s, 295 + s] for s in range(4)]).all()


def test_a_loose_margin_is_caught_and_the_lemma_holds(make_policy, random_head):
    head = random_head(np.random.default_rng(2), 2000, 8, 16, 1.0)
    broken = {}
    for c in (0.05, 2.0, 8.0):
        rows = evaluate_head(presumed(make_policy, 64, c), head)
        broken[c] = rows.violations.sum() / rows.bound_checks.sum()
    assert broken[0.05] > 0.1
    assert broken[2.0] <= 5 / 2000, "a union over N pairs leaves about one in N"
    assert broken[8.0] == 0


def test_nothing_is_promised(make_policy, random_head):
    policy = presumed(make_policy, 64, 2.0)
    rows = evaluate_head(policy, random_head(np.random.default_rng(3), 100, 2, 16, 1.0))
    assert policy.read.eps is None
    assert rows.certified_mass is None
    assert rows.violations is not None


@pytest.mark.parametrize("form", ["staged", "one_pass", "flat"])
def test_a_loose_margin_may_lose_more_than_it_presumes(make_policy, random_head, form):
    head = random_head(np.random.default_rng(4), 800, 6, 16, 2.0)
    lost = evaluate_head(presumed(make_policy, 4, 0.01, form), head).lost_mass
    assert lost.max() > 0.01


def test_shipped_ones_say_what_they_are(shipped):
    names = [name for name in shipped if name.startswith("ghostkv_jl")]
    assert len(names) == 3
    assert all(shipped[name].note.startswith("heuristic") for name in names)
    assert all(shipped[name].fidelity != "exact" for name in names)
