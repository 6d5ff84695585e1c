"""Do further systems, written again as plain loops from what is published of them, read the same on two traces?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loops import assert_reads, best, library, observed, pins, received, scores, softmax

from ghostsim.policy import scoring
from ghostsim.policy.costs import streams_of
from ghostsim.policy.exact import blocks
from ghostsim.policy.head import evaluate_group, evaluate_head
from ghostsim.trace.compose import compose
from ghostsim.trace.format import open_trace

N, STEPS = 300, 6


@pytest.fixture(scope="module", params=["natural_4k", "logs_4k"])
def cut(request):
    """Return the end of a recorded head."""
    workload = compose([open_trace(request.param)], None, requests=1, steps=STEPS, context=None, seed=1)

    def make(unit):
        head = workload.head(unit)
        values = None if head.values is None else head.values[head.context - N :]
        classes = np.random.default_rng(2).choice([0] * 30 + [1], N + STEPS).astype(np.uint8)
        return replace(head, context=N, keys=head.keys[head.context - N :], values=values, token_class=classes)

    return make


def served(kept):
    """Return what is kept of the prompt and everything since, step by step."""
    return lambda s: kept | set(range(N, N + s + 1))


def test_not_all_thoughts_moves_tokens_between_tiers_by_what_they_received(cut):
    """Quantiles of one running sum, over all that some tier stores; attention is over all of it."""
    head, policy = cut(3), library("not_all_thoughts", ("window: 64", "window: 20"))
    rows, total = evaluate_head(policy, head), received(head)
    streams = streams_of(policy, 128)
    stored = set(range(N))
    for s in range(STEPS):
        own = N + s
        static = pins(own, 4, 20)
        rest = (stored | {own}) - static
        hot, far, packed = (best(total.sum(0), int(share * (own + 1)), rest) for share in (0.25, 0.5, 0.75))
        stored = static | packed
        order = sorted(stored)
        for j, row in enumerate(scores(head, s)):
            total[j, order] += softmax(row[order])
        assert rows.positions(s).tolist() == order
        assert rows.state_bytes[s] == 4 * len(order)
        tiers = {0: (len(static | hot), 512), 1: (len(far - hot), 512), 2: (len(packed - far), 136)}
        assert min(tokens for tokens, _ in tiers.values()) > 0
        for clause, (tokens, size) in tiers.items():
            mine = [n for n, stream in enumerate(streams) if stream.clause == clause]
            assert rows.stream_tokens[mine, s].sum() == tokens
            assert rows.stream_bytes[mine, s].sum() == tokens * size


def test_snapstream_keeps_a_compressed_prompt_and_a_ring(cut):
    """What is decoded stays as long as the ring reaches."""
    head = cut(3)
    policy = library("snapstream", ("topk: 2016", "topk: 50"), ("window: 512", "window: 3"))
    kept = set(range(N - 32, N)) | best(observed(head, 32, "avg").mean(0), 50, range(N - 32))
    assert_reads(evaluate_head(policy, head), lambda s: kept | pins(N + s, 4, 3))


def test_protection_shares_a_budget_over_the_whole_model(cut):
    heads = [cut(unit) for unit in (1, 3, 4, 6)]
    policy = library("protection", ("window: 64", "window: 40"), ("sinks: 64", "sinks: 20"))
    table = [observed(head, 32, "avg", end=N - 40).mean(0) for head in heads]
    among = [(h, i) for h in range(4) for i in range(20, N - 40)]
    taken = sorted(among, key=lambda place: (-table[place[0]][place[1]], place))[: 4 * int(0.13 * N)]
    counts = set()
    for h, rows in enumerate(evaluate_group([policy], heads)[0]):
        mine = {i for g, i in taken if g == h}
        counts.add(len(mine))
        assert_reads(rows, served(mine | set(range(20)) | set(range(N - 40, N))))
    assert len(counts) > 1


def test_transactional_attention_never_lets_go_of_anchors(cut):
    head, policy = cut(3), library("transactional_attention")
    total, kept, sets = received(head), set(range(N)), []
    anchors = {i for i, kind in enumerate(head.token_class) if kind == 1}
    assert len(anchors) > 5
    for s in range(STEPS):
        own = N + s
        static = pins(own, 4, 16) | {i for i in anchors if i <= own}
        kept = static | best(total.sum(0), 16, (kept | {own}) - static)
        order = sorted(kept)
        for j, row in enumerate(scores(head, s)):
            total[j, order] += softmax(row[order])
        sets.append(kept)
    assert_reads(evaluate_head(policy, head), lambda s: sets[s])


@pytest.mark.parametrize(("layer", "upper"), [(0, False), (23, False), (24, True), (31, True)])
def test_speed_shows_the_prompt_to_lower_layers_only(cut, layer, upper):
    prompt = {*range(4), *range(N - 64, N)} if upper else set(range(N))
    assert_reads(evaluate_head(library("speed", layer=layer), cut(3)), served(prompt))


def test_memorizing_transformers_scan_all_keys_for_the_best(cut):
    head, policy = cut(3), library("memorizing_transformers", ("window: 512", "window: 30"))
    rows = evaluate_head(policy, head)

    def expected(s):
        static = pins(N + s, 0, 30)
        return static.union(*(best(row, 32, set(range(N + s)) - static) for row in scores(head, s)))

    assert_reads(rows, expected)
    assert rows.scan_bytes[0].tolist() == [256 * (N + s + 1 - 30) for s in range(STEPS)]
    assert rows.stream_bytes[1].tolist() == [512 * (len(expected(s)) - 30) for s in range(STEPS)]


def test_ghostkv_fetches_by_falling_bound_until_the_rest_is_small_and_shares_reads(cut):
    """The staged rule of each query; four steps that are verified together read the union."""
    eps, head = 0.01, cut(3)
    policy = library("ghostkv_speculative", ("window: 256", "window: 40"))
    index = scoring.build(policy.read.score, head, slice(4, N - 40))
    (block,) = blocks(head)
    upper = index.scores(block, block.queries, head)
    alone = []
    for s in range(STEPS):
        own = N + s
        static, exact = pins(own, 4, 40), scores(head, s)
        wanted = set(static)
        for j, row in enumerate(exact):
            u = {i: np.exp(upper[s, j, i] - row.max()) for i in range(own) if i not in static}
            assert all(u[i] >= np.exp(row[i] - row.max()) for i in u)
            weight = np.exp(row - row.max())
            near, tail = sum(weight[i] for i in static), sum(u.values())
            for i in sorted(u, key=lambda i: (-u[i], i)):
                if tail <= eps / (1 - eps) * near:
                    break
                wanted.add(i)
                near, tail = near + weight[i], tail - u[i]
        alone.append(wanted)
    rows = evaluate_head(policy, head)
    for first in (0, 4):
        group = range(first, min(first + 4, STEPS))
        union = set().union(*(alone[s] for s in group))
        assert rows.stream_tokens[:, first].sum() == len(union)
        assert rows.scanned[0, group].tolist() == [N + first + 1 - 44] + [0] * (len(group) - 1)
        for s in group:
            assert rows.positions(s).tolist() == sorted(i for i in union if i <= N + s)
    assert any(len(alone[s]) < N + s + 1 for s in range(STEPS))
