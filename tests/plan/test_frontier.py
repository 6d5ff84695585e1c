"""The frontier's figures against the files of evaluate, and its domination against the definition."""

import numpy as np
import pytest

from ghostsim.config.load import load_policy
from ghostsim.errors import TraceError
from ghostsim.policy.evaluate import select
from ghostsim.policy.output import step_bytes
from ghostsim.study.budgets import OWN
from ghostsim.study.frontier import MEASURES, frontier, verdict
from ghostsim.trace.compose import compose
from ghostsim.trace.format import open_trace

NAMES = ("full", "h2o", "quest", "ghostkv", "kivi", "reformer", "laprox", "arkvale", "medusa")
STEPS = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield frontier(open_trace("manual_4k"), [load_policy(name).value for name in NAMES], steps=STEPS, jobs=1)


def own(found, name):
    return next(point for point in found.points if (point.policy, point.budget) == (name, OWN))


@pytest.mark.parametrize("name", ["h2o", "quest", "ghostkv", "kivi"])
def test_bytes_are_those_of_evaluate(found, name):
    policy = load_policy(name).value
    workload = compose([open_trace("manual_4k")], None, requests=1, steps=STEPS, context=None, seed=1)
    selection = select({name: policy}, workload, jobs=1)[name]
    sums = dict.fromkeys(("index", "hbm", "fetched", "migrate"), 0)
    for row, step in np.ndindex(8, STEPS):
        for op, role, nbytes in step_bytes(policy, selection, 128, row, step):
            part = {"scan": "index", "migrate": "migrate", "read": "fetched", "write": None}.get(op, "hbm")
            if part:
                sums[part] += nbytes
            assert (op == "read") == (role == "cold")
    point = own(found, name)
    assert {part: getattr(point, part) for part in sums} == {part: total / STEPS for part, total in sums.items()}
    assert point.lost_mean == pytest.approx(selection.lost_mass.mean())
    assert point.lost_max == selection.lost_mass.max()


def test_what_a_cache_holds_is_read_from_hbm_and_what_it_recalls_is_migration(found):
    workload = compose([open_trace("manual_4k")], None, requests=1, steps=STEPS, context=None, seed=1)
    selection = select({"a": load_policy("arkvale").value}, workload, jobs=1)["a"]
    point = own(found, "arkvale")
    assert point.fetched == 0
    assert 0 < point.migrate < point.hbm
    tokens = np.unpackbits(selection.sets, axis=2).sum() / STEPS
    assert point.hbm == tokens * 512


def test_everything_costs_everything(found):
    tokens = np.mean([3968 + step + 1 for step in range(STEPS)])
    assert own(found, "full").nbytes == found.full == tokens * 512 * 8
    assert own(found, "full").lost_max == 0


@pytest.mark.parametrize("measure", MEASURES[:2])
def test_leaders_are_those_that_no_ranked_point_beats(found, measure):
    ranked = [point for point in found.points if point.policy in ("full", "h2o", "quest", "ghostkv", "arkvale")]
    assert [point for point in found.points if found.ranked(point, measure)] == ranked
    lead = set()
    for point in found.points:
        mine = np.array([point.nbytes, point.loss(measure)])
        theirs = np.array([[rival.nbytes, rival.loss(measure)] for rival in ranked])
        if not ((theirs <= mine).all(axis=1) & (theirs < mine).any(axis=1)).any():
            lead.add(point.label)
    assert {point.label for point in found.points if measure in point.leads} == lead


def test_what_is_not_as_published_or_not_lossless_leads_nothing(found):
    assert not set(found.leaders("lost_mass.mean")) & {"kivi", "reformer", "medusa"}
    assert "full" in found.leaders("lost_mass.mean")


def test_a_trace_without_values_knows_no_output_error(found):
    assert found.leaders("output_error.mean") == []
    assert own(found, "kivi").error_mean is None


def test_what_the_trace_cannot_serve_is_skipped_with_its_reason(found):
    assert found.skipped == {"laprox": "needs values (v), which the trace does not hold"}
    with pytest.raises(TraceError, match="laprox: needs values"):
        frontier(open_trace("manual_4k"), [load_policy("laprox").value], steps=1)


def test_the_oracle_keeps_its_promise_and_reads_less_for_more(found):
    eps = [float(point.budget.removeprefix("eps ")) for point in found.oracle]
    assert all(point.lost_max <= limit for point, limit in zip(found.oracle, eps, strict=True))
    sizes = [point.nbytes for point in found.oracle]
    assert sizes == sorted(sizes)
    assert all(point.index == 0 for point in found.oracle)


def test_the_verdict_is_the_best_sound_point_within_its_bytes(found):
    seen = verdict(found)
    rivals = [point for point in found.points if point.policy == "ghostkv" and point.nbytes <= seen.limit]
    assert seen.sound.lost_mean == min(point.lost_mean for point in rivals)
    assert seen.oracle.lost_mean <= seen.sound.lost_mean
    assert seen.oracle.nbytes <= seen.sound.nbytes
