"""Does GhostKV's laboratory say what its definitions say? Its synthetic tables again, exactly and with other draws.

Figures: github.com/manishklach/ghostkv-lab, commit 682b68a, results/{elimination_tradeoff,bandwidth_sweep,
sketch_quality}.csv, MIT licence, copyright (c) 2026 GhostKV Lab. Keys and queries are Gaussian, d = 128, 16,384 tokens
of which the newest 2,048 are hot, 25 steps; the table of bytes is for one head of one layer.
"""

from __future__ import annotations

import numpy as np
import pytest

from ghostsim.policy.head import evaluate_head
from ghostsim.trace.compose import Head

D, TOKENS, HOT, STEPS = 128, 16384, 2048, 25
TOP = 32

# (sketch dims, theta): elimination, false elimination, overlap of the top 32, bytes saved
TRADEOFF = {
    (8, 0.1): (0.500095, 0.231721, 0.8025, 0.355552),
    (8, 0.9): (0.523164, 0.246046, 0.79, 0.375737),
    (16, 0.1): (0.500301, 0.140824, 0.87625, 0.301045),
    (16, 0.9): (0.543491, 0.165759, 0.855, 0.338835),
    (32, 0.1): (0.50079, 0.055209, 0.9525, 0.192097),
    (32, 0.9): (0.575751, 0.089123, 0.9225, 0.257688),
    (64, 0.1): (0.499043, 0.009888, 0.99125, -0.028181),
    (64, 0.9): (0.630815, 0.026856, 0.97625, 0.087119),
}
# resurrection rate: bytes, saved
BANDWIDTH = {
    0.005: (10548224.0, 0.842819),
    0.01: (10873344.0, 0.837975),
    0.02: (11523584.0, 0.828285),
    0.05: (13473792.0, 0.799225),
}
# sketch dims: overlap of the top 8, 16, 32, 64; "rank correlation"
QUALITY = {
    8: (0.0, 0.0, 0.0625, 0.0625, 0.821606),
    16: (0.125, 0.125, 0.15625, 0.125, 0.8555),
    32: (0.0, 0.0, 0.03125, 0.09375, 0.872534),
    64: (0.0, 0.0, 0.09375, 0.125, 0.879459),
}


def kv_bytes(hot, read, ghosts, record, d):
    """Bytes of a step: fp16 K and V of what is read, a record per ghost."""
    return (hot + read) * 4 * d + ghosts * record


def projection(seed, m):
    return np.random.default_rng(seed).normal(0.0, 1 / np.sqrt(m), size=(D, m))


def upper_bound(queries, keys, matrix):
    """AttnUB as published: the sketch product over sqrt(m), plus two constants of 0.05."""
    return (queries @ matrix) @ (keys @ matrix).T / np.sqrt(matrix.shape[1]) + 0.05 + 0.05


def lab_step(exact, bound, theta, m):
    """Return elimination, false elimination, overlap and bytes saved of one step, as the laboratory counts them."""
    cold = len(exact) - HOT
    out = bound < theta
    least = np.partition(exact, -TOP)[-TOP]
    relevant = exact[:cold] >= least
    kept = exact.copy()
    kept[:cold][out] = -np.inf
    overlap = len(set(np.argsort(-exact)[:TOP]) & set(np.argsort(-kept)[:TOP])) / TOP
    spent = kv_bytes(HOT, np.count_nonzero(~out), cold, 4 * m + 16, D)
    false = np.count_nonzero(relevant & out) / max(1, np.count_nonzero(relevant))
    return out.mean(), false, overlap, 1 - spent / (len(exact) * 4 * D)


@pytest.mark.parametrize("m", [8, 16, 32, 64])
def test_its_seeds_give_its_table(m):
    rng = np.random.default_rng(117 + m)
    keys = rng.normal(size=(TOKENS, D))
    queries = rng.normal(size=(STEPS, D))
    exact = queries @ keys.T / np.sqrt(D)
    bound = upper_bound(queries, keys[:-HOT], projection(117 + m, m))
    for theta in (0.1, 0.9):
        rows = [lab_step(e, b, theta, m) for e, b in zip(exact, bound, strict=True)]
        assert np.mean(rows, axis=0) == pytest.approx(TRADEOFF[m, theta], abs=2e-6)


def test_its_bound_is_no_bound_even_on_its_own_data():
    """AttnUB lies below the logit of about half the tokens."""
    rng = np.random.default_rng(117 + 16)
    keys, queries = rng.normal(size=(TOKENS, D)), rng.normal(size=(STEPS, D))
    exact = queries @ keys.T / np.sqrt(D)
    assert np.mean(upper_bound(queries, keys, projection(133, 16)) < exact) > 0.45


@pytest.mark.parametrize("m", [8, 16, 32, 64])
def test_the_published_policy_gives_its_table_within_sampling_error(make_policy, m):
    """Other keys, queries and matrix, through the evaluator."""
    rng = np.random.default_rng(m)
    head = Head(
        request=0,
        kept_layer=0,
        kv_head=0,
        context=TOKENS - 1,
        keys=rng.standard_normal((TOKENS - 1 + STEPS, D)),
        queries=rng.standard_normal((STEPS, 1, D)),
        prompt_queries=rng.standard_normal((64, 1, D)),
        values=None,
        q_ahead=None,
        scale=D**-0.5,
        softcap=None,
        window=None,
    )
    score = {"published": {"dims": m, "record": 4 * m + 16}}
    rows = evaluate_head(make_policy({"rule": {"above": 0.1}, "score": score, "pin": {"window": HOT}}), head)
    elimination, false, _, saved = TRADEOFF[m, 0.1]
    per_step = (rows.top_eliminated / rows.top_cold)[:, 0]
    # Both means are over 25 steps; two matrices differ too, which the steps of one run do not show.
    assert per_step.mean() == pytest.approx(false, abs=4 * np.sqrt(2) * per_step.std() / np.sqrt(STEPS))
    assert 1 - rows.read_tokens.sum() / rows.cold_tokens.sum() == pytest.approx(elimination, abs=0.01)
    spent = kv_bytes(rows.hot_tokens, rows.read_tokens, rows.cold_tokens, 4 * m + 16, D)
    assert np.mean(1 - spent / (rows.attended * 4 * D)) == pytest.approx(saved, abs=0.01)


@pytest.mark.parametrize("rate", sorted(BANDWIDTH))
def test_its_bandwidth_sweep_is_arithmetic(rate):
    context, hot = 128 * 1024, 4096
    ghosts = context - hot
    spent = kv_bytes(hot, int(ghosts * rate), ghosts, 64, D)
    assert (spent, round(1 - spent / (context * 4 * D), 6)) == BANDWIDTH[rate]


@pytest.mark.parametrize("m", sorted(QUALITY))
def test_its_rank_correlation_is_a_cosine_of_ranks(m):
    """Uncentred, so that rankings that have nothing to do with each other reach 0.75."""
    rng = np.random.default_rng(17)
    keys, query = rng.normal(size=(8192, D)), rng.normal(size=D)
    exact, matrix = keys @ query, projection(17 + m, m)
    estimate = (keys @ matrix) @ (query @ matrix)
    orders = np.argsort(-exact), np.argsort(-estimate)
    overlaps = [len(set(orders[0][:k]) & set(orders[1][:k])) / k for k in (8, 16, 32, 64)]
    ranks = [np.argsort(order) + 1.0 for order in orders]
    cosine = ranks[0] @ ranks[1] / np.linalg.norm(ranks[0]) / np.linalg.norm(ranks[1])
    assert (*overlaps, cosine) == pytest.approx(QUALITY[m], abs=1e-6)
    shuffled = rng.permutation(ranks[0])
    assert ranks[0] @ shuffled / (ranks[0] @ ranks[0]) == pytest.approx(0.75, abs=0.01)
