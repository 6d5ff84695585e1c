"""Do the audit's further parts count what they say: drift over the steps, and nodes visited in trees?"""

from __future__ import annotations

import heapq
import json
import subprocess
import sys

import numpy as np
import pytest

from ghostsim.errors import TraceError
from ghostsim.policy.head import evaluate_head
from ghostsim.report.audit_further import aged, visited
from ghostsim.study import drift as drifts
from ghostsim.study import tree as trees
from ghostsim.study.drift import INDEXES, MEASURES, REFRESH, drift, drift_text, policy_of
from ghostsim.study.synth import synthesise
from ghostsim.study.tree import LEAF, Balls, balls_of_leaves, grown, halved, tree, tree_text, walked
from ghostsim.trace.compose import compose
from ghostsim.trace.format import open_trace


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a synthetic trace of 600 prompt tokens and 128 steps."""
    folder = tmp_path_factory.mktemp("drift") / "small"
    synthesise(open_trace("natural_4k"), folder, 728, 128, 1)
    return open_trace(folder)


@pytest.fixture(scope="module")
def found(small):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drifts, "REFRESH", (None, 256, 32))
        patch.setattr(drifts, "LOOKED", 3)
        yield drift(small)


# --- drift ----------------------------------------------------------------------------------------------------


def test_no_bound_is_violated_and_no_certificate_exceeded(found):
    assert found.violations == 0
    assert 0 < found.lost_max <= drifts.EPS


def test_a_clock_beyond_the_decode_is_never(found):
    np.testing.assert_array_equal(found.values[:, 0], found.values[:, 1])
    assert [found.cost(i, 1) for i in range(len(INDEXES))] == [0.0] * len(INDEXES)


def test_refits_change_nothing_before_the_first(found):
    before = [w for w, (_, end) in enumerate(found.windows) if end <= 32]
    np.testing.assert_array_equal(found.values[:, 0][:, before], found.values[:, 2][:, before])
    assert not np.array_equal(found.values[:, 0], found.values[:, 2])


@pytest.mark.parametrize("name", sorted(INDEXES))
def test_elimination_by_group_is_what_the_policy_reads(small, found, name):
    i, refresh = list(INDEXES).index(name), 2
    head = compose([small], None, requests=1, steps=None, context=None, seed=0).head(3)
    rows = evaluate_head(policy_of(name, drifts.REFRESH[refresh]), head)
    for w, (first, end) in enumerate(found.windows):
        looked = np.linspace(first, end - 1, 3).astype(int)
        eliminated = 1 - rows.read_tokens[looked] / rows.cold_tokens[looked]
        group = found.values[i, refresh, w, MEASURES.index("group"), head.kept_layer]
        assert group[head.kv_head * 4 : head.kv_head * 4 + 4] == pytest.approx(eliminated.mean(), abs=1e-12)


def test_cost_of_a_refit_is_its_bytes_over_the_clock(found):
    i = list(INDEXES).index("4-bit keys")
    assert found.cost(i, 2) == (256 + 66) / 512 / 32


def test_a_short_decode_has_no_drift(small, tmp_path):
    synthesise(open_trace("natural_4k"), tmp_path / "short", 728, 64, 1)
    with pytest.raises(TraceError, match="expected at least 128"):
        drift(open_trace(tmp_path / "short"))


def test_drift_is_laid_out_in_full(found):
    assert len(drift_text(found).splitlines()) == 3 + len(INDEXES) * len(REFRESH) + 2
    assert len(aged(found).table.rows) == len(found.parts()) * len(INDEXES) * len(REFRESH) * drifts.WINDOWS


# --- trees ----------------------------------------------------------------------------------------------------


def best_first(own, parents, sizes, mass, hot, eps):
    """Open nodes one by one, the largest bound first, until the rest is certified; return what was seen and read."""
    children = {node: [c for c, p in enumerate(parents) if p == node] for node in range(len(own))}
    top = [node for node, p in enumerate(parents) if p < 0]
    leaves = [node for node in range(len(own)) if not children[node]]
    effective, heap, seen, read = {}, [], set(), set()

    def push(node, limit):
        effective[node] = min(own[node], limit)
        seen.add(node)
        heapq.heappush(heap, (-effective[node], node))

    for node in top:
        push(node, np.inf)
    z = hot
    while sum(sizes[n] * np.exp(-e) for e, n in heap) > eps / (1 - eps) * z:
        _, node = heapq.heappop(heap)
        for child in children[node]:
            push(child, effective[node])
        if not children[node]:
            read.add(leaves.index(node))
            z += mass[leaves.index(node)]
    return seen, read


@pytest.mark.parametrize("branching", [2, 3, 5, 16])
@pytest.mark.parametrize("spread", [1.0, 6.0])
def test_a_walk_visits_what_best_first_search_visits(branching, spread):
    rng = np.random.default_rng(branching)
    keys = np.repeat(rng.standard_normal((12, 8)) * spread, 3 * LEAF, axis=0) + 0.1 * rng.standard_normal(
        (36 * LEAF, 8)
    )
    queries = rng.standard_normal((2, 8))
    scores = queries @ keys.T
    peak = scores.max(axis=1, keepdims=True)
    levels = grown(balls_of_leaves(keys), branching)
    mass = np.exp(scores - peak).reshape(2, -1, LEAF).sum(axis=2)
    bounds = [level.upper(queries) - peak for level in levels][::-1]
    result = walked(bounds, mass, np.full(2, 0.5), branching, 0.01)
    starts = np.cumsum([0] + [each.shape[1] for each in bounds])
    parents = [-1] * bounds[0].shape[1]
    for depth, each in enumerate(bounds[1:]):
        parents += [starts[depth] + n // branching for n in range(each.shape[1])]
    sizes = np.concatenate([level.sizes for level in levels[::-1]]) * LEAF
    for j in range(2):
        own = np.concatenate([each[j] for each in bounds])
        seen, read = best_first(own, parents, sizes, mass[j], 0.5, 0.01)
        assert set(np.flatnonzero(result.visited[j]).tolist()) == seen
        assert set(np.flatnonzero(result.leaves[j]).tolist()) == read
    if spread > 1:
        assert result.leaves.mean() < 0.5, "the walk prunes where there is something to prune"


@pytest.mark.parametrize("branching", [2, 5])
def test_every_ball_of_a_tree_holds_the_keys_below_it(branching):
    keys = np.random.default_rng(1).standard_normal((37 * LEAF, 8)).astype(np.float32) * 30
    queries = np.random.default_rng(2).standard_normal((3, 8)).astype(np.float32)
    exact = (queries @ keys.T).reshape(3, -1, LEAF).max(axis=2)
    for level in grown(balls_of_leaves(keys), branching):
        assert level.sizes.sum() == 37
        ends = np.cumsum(level.sizes)
        for n, (first, end) in enumerate(zip(ends - level.sizes, ends, strict=True)):
            assert (level.upper(queries)[:, n] >= exact[:, first:end].max(axis=1)).all()


def test_a_tree_has_as_many_levels_as_its_branching_asks_for():
    leaves = Balls(np.zeros((1000, 2)), np.zeros(1000), np.ones(1000, dtype=np.int64))
    assert [len(each.radii) for each in grown(leaves, 10)] == [1000, 100, 10]
    assert [len(each.radii) for each in grown(leaves, 4)] == [1000, 250, 63, 16, 4]


def test_an_order_by_content_brings_like_keys_together():
    rng = np.random.default_rng(3)
    keys = rng.permutation(np.repeat(rng.standard_normal((64, 8)) * 10, LEAF, axis=0)) + 0.01 * rng.random((1024, 8))
    order = halved(keys)
    assert sorted(order.tolist()) == list(range(1024))
    loose, tight = (balls_of_leaves(each).radii.mean() for each in (keys, keys[order]))
    assert tight < 0.5 * loose


@pytest.fixture(scope="module")
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trees, "HEADS", 1)
        yield tree(open_trace("code_4k"), (4096, 8192, 32768))


def test_walks_grow_with_the_context_and_stay_within_the_tree(short):
    assert len(short.walks) == 3 * len(trees.ORDERS) * len(trees.BRANCHINGS)
    for walk in short.walks:
        assert walk.least <= walk.visited <= walk.group <= walk.nodes
        leaves = (walk.context - 256) // LEAF - 1
        assert walk.nodes >= leaves
    assert short.repeats > 1


def test_the_exponent_is_the_slope_between_the_ends(short):
    curve = short.curve("position", 4)
    ends = np.log(curve[-1].visited / curve[0].visited) / np.log(curve[-1].context / curve[0].context)
    assert short.exponent("position", 4) == pytest.approx(ends, abs=0.1)


def test_trees_are_laid_out_in_full(short):
    assert tree_text(short).count("32,768") == len(trees.ORDERS) * len(trees.BRANCHINGS) + 1
    assert len(visited(short).table.rows) == len(short.walks)


# --- cascades as policies ---------------------------------------------------------------------------------------


def walk_of_pages(head, step, pages, policy):
    """Visit the pages of a cascade one by one; return how many balls are looked at per level, and the tokens left."""
    own = head.context + step
    c0, c1 = 2, own + 1 - 4
    scores = head.scale * head.queries[step] @ head.keys[: own + 1].T
    peak = scores.max(axis=1)
    hot = np.exp(scores - peak[:, None])[:, np.r_[0:c0, c1 : own + 1]].sum(axis=1)
    alive, counts = set(range(c0, c1)), []
    for page, stage in zip(pages, policy.read.cascade, strict=True):
        groups = {}
        for token in alive:
            groups.setdefault(token // page, []).append(token)
        counts.append(len(groups))
        eps = stage.rule.certify
        theta = np.log(hot) + np.log(eps / (1 - eps) / (c1 - c0))
        kept = set()
        for number, tokens in groups.items():
            members = head.keys[number * page : min((number + 1) * page, own + 1)]
            centre = members.mean(axis=0).astype(np.float16).astype(float)
            radius = np.linalg.norm(members - centre, axis=1).max()
            queries = head.queries[step] * head.scale
            bound = queries @ centre + np.linalg.norm(queries, axis=1) * radius - peak
            if (bound >= theta).any():
                kept |= set(tokens)
        alive = kept
    return counts, alive


@pytest.mark.parametrize("pages", [(32, 16, 8, 4), (27, 9, 3), (64, 4), (50, 25, 5, 1)])
def test_a_tree_of_any_depth_and_branching_visits_what_a_plain_walk_visits(make_policy, random_head, pages):
    rng = np.random.default_rng(len(pages))
    head = random_head(rng, 400, 3, 16, 1.0)
    head.keys[:] = np.repeat(rng.standard_normal((51, 16)) * 6, 8, axis=0)[:403] + 0.1 * head.keys
    head.queries[:] = head.keys[400:403][:, None] * 0.5 + 0.1 * head.queries
    first, *then = [{"rule": {"certify": 0.003, "form": "flat"}, "score": {"ball": {"page": page}}} for page in pages]
    policy = make_policy(first | {"pin": {"sinks": 2, "window": 4}, "then": then})
    rows = evaluate_head(policy, head)
    for step in range(3):
        counts, alive = walk_of_pages(head, step, pages, policy)
        assert rows.scanned[:, step].tolist() == counts
        assert set(rows.positions(step).tolist()) & set(range(2, 397 + step)) == alive
    assert (rows.read_tokens < rows.cold_tokens).all(), "the walk prunes"


def test_the_shipped_tree_is_at_least_three_deep(shipped):
    pages = [stage.page for stage in shipped["ghostkv_tree"].read.cascade]
    assert pages == [256, 64, 16, 1]


# --- the command ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_adds_drift_to_json_and_page(small, tmp_path):
    page = tmp_path / "audit.html"
    given = ["audit", str(small.path), "--steps", "2", "--drift", "--json", "--quiet", "--report", str(page)]
    done = subprocess.run([sys.executable, "-m", "ghostsim", *given], capture_output=True, text=True, check=True)
    data = json.loads(done.stdout)
    assert set(data["drift"]["indexes"]) == set(INDEXES)
    assert "tree" not in data
    assert "Drift over the decode" in page.read_text()
