"""Does every policy read exactly what a plain loop over tokens, written from its definition, reads?"""

from __future__ import annotations

import numpy as np
import pytest

from ghostsim.policy.head import evaluate_head
from ghostsim.policy.indexes import build_published


def scores_of(head, s, keys=None):
    """Return (position, [g, position + 1] scores, first attended position)."""
    own = head.context + s
    keys = head.keys if keys is None else keys
    raw = head.scale * head.queries[s] @ keys[: own + 1].T
    if head.softcap is not None:
        raw = head.softcap * np.tanh(raw / head.softcap)
    begin = max(0, own - head.window + 1) if head.window else 0
    raw[:, :begin] = -np.inf
    return own, raw, begin


def softmax(row):
    e = np.exp(row - row.max())
    return e / e.sum()


def best(row, k, among):
    """Return the k best of `among`, ties to the lower position."""
    return set(sorted(among, key=lambda i: (-row[i], i))[: max(0, k)])


def staged(bounds, exact, hot, cold, eps):
    """Read in descending bound until U <= eps / (1 - eps) * Z_S."""
    peak = exact.max()
    z = sum(np.exp(exact[i] - peak) for i in hot)
    order = sorted(cold, key=lambda i: (-bounds[i], i))
    tail = np.cumsum([np.exp(bounds[i] - peak) for i in reversed(order)])[::-1] if order else []
    read = set()
    for j, i in enumerate(order):
        if tail[j] <= eps / (1 - eps) * z:
            break
        read.add(i)
        z += np.exp(exact[i] - peak)
    return read


def check(policy, head, expected_reads):
    rows = evaluate_head(policy, head)
    for s in range(len(head.queries)):
        _, exact, _ = scores_of(head, s)
        expected = sorted(expected_reads(s))
        assert rows.positions(s).tolist() == expected
        for j in range(exact.shape[0]):
            lost = 1 - softmax(exact[j])[expected].sum()
            assert rows.lost_mass[s, j] == pytest.approx(lost, abs=1e-12)
    return rows


def pinned(own, sinks, window):
    return set(range(min(sinks, own + 1))) | set(range(max(0, own + 1 - window), own + 1)) | {own}


def test_full_reads_all(shipped, cut):
    head = cut()
    rows = check(shipped["full"], head, lambda s: range(head.context + s + 1))
    assert not rows.lost_mass.any()
    assert not rows.output_error.any()


def test_sliding_window_hides_older_tokens(shipped, cut):
    head = cut(window=100)
    rows = check(shipped["full"], head, lambda s: range(head.context + s - 99, head.context + s + 1))
    assert (rows.attended == 100).all()


def test_streaming_llm_keeps_sinks_and_window(make_policy, cut):
    keep = {"every": "step", "select": {"rule": "none", "pin": {"sinks": 4, "window": 50}}}
    head = cut()
    rows = check(make_policy({"rule": "all"}, keep), head, lambda s: pinned(head.context + s, 4, 50))
    assert (rows.stored_tokens == 54).all()
    assert (rows.hot_tokens == 54).all()
    assert not rows.read_tokens.any()


@pytest.mark.parametrize("reduce", ["any", "max", "mean", "sum"])
def test_exact_topk_agrees_as_declared(make_policy, cut, reduce):
    head = cut()
    read = {"rule": {"topk": 40}, "score": "exact", "pin": {"sinks": 2, "window": 8}, "reduce": reduce}

    def expected(s):
        own, exact, _ = scores_of(head, s)
        cold = set(range(own + 1)) - pinned(own, 2, 8)
        if reduce == "any":
            return pinned(own, 2, 8).union(*(best(row, 40, cold) for row in exact))
        combined = {"max": exact.max(0), "mean": exact.mean(0), "sum": exact.sum(0)}[reduce]
        return pinned(own, 2, 8) | best(combined, 40, cold)

    check(make_policy(read), head, expected)


def test_topfrac_rounds_down(make_policy, cut):
    head = cut()

    def expected(s):
        own, exact, _ = scores_of(head, s)
        cold = set(range(own))
        return {own}.union(*(best(row, int(0.1 * len(cold)), cold) for row in exact))

    check(make_policy({"rule": {"topfrac": 0.1}, "score": "exact"}), head, expected)


def test_margin_counts_from_the_best_cold_score(make_policy, cut):
    head = cut()

    def expected(s):
        own, exact, _ = scores_of(head, s)
        return {own} | {i for i in range(own) if any(row[i] >= row[:own].max() - 3.0 for row in exact)}

    check(make_policy({"rule": {"margin": 3.0}, "score": "exact"}), head, expected)


def test_age_takes_the_newest(make_policy, cut):
    head = cut()
    check(
        make_policy({"rule": {"topk": 30}, "score": "age"}),
        head,
        lambda s: range(head.context + s - 30, head.context + s + 1),
    )


def quest_pages(head, s, k, page):
    own, _, begin = scores_of(head, s)
    last = own // page
    chosen = set()
    for q in head.queries[s]:
        value = {}
        for p in range(begin // page, last):
            keys = head.keys[p * page : (p + 1) * page]
            value[p] = np.maximum(q * keys.min(0), q * keys.max(0)).sum()
        chosen |= best(value, max(3, k // page) - 1, list(value))
    chosen |= {last}
    return {i for p in chosen for i in range(p * page, (p + 1) * page) if begin <= i <= own}


@pytest.mark.parametrize(("tokens", "k"), [(500, 100), (505, 16), (511, 230)])
def test_quest_reads_the_best_pages(make_policy, cut, tokens, k):
    head = cut(tokens=tokens)
    read = {"rule": {"topk": k}, "score": {"box": {"page": 16}}, "unit": "page", "pin": {"last_page": True}}
    rows = check(make_policy(read), head, lambda s: quest_pages(head, s, k, 16))
    assert rows.scanned[0].tolist() == [(tokens + s) // 16 + 1 for s in range(5)]
    assert not rows.violations.any()


def test_h2o_keeps_window_and_heavy_hitters(make_policy, cut):
    head = cut(tokens=300, steps=12)
    select = {"rule": {"topk": 40}, "score": {"hist": {}}, "pin": {"window": 30}, "reduce": "sum"}
    keep = {"every": "step", "select": select, "state": 4}
    prompt = np.zeros((4, 300 + 12))
    width = len(head.prompt_queries)
    for i, queries in enumerate(head.prompt_queries):
        own = 300 - width + i
        for j, q in enumerate(queries):
            prompt[j, : own + 1] += softmax(head.scale * head.keys[: own + 1] @ q)
    received, kept, sets = prompt, set(range(300)), []
    for s in range(12):
        own, exact, _ = scores_of(head, s)
        window = set(range(own - 29, own + 1))
        kept = window | best(received.sum(0), 40, kept - window)
        order = sorted(kept)
        for j, row in enumerate(exact):
            received[j, order] += softmax(row[order])
        sets.append(kept)
    rows = check(make_policy({"rule": "all"}, keep), head, lambda s: sets[s])
    assert (rows.stored_tokens == 70).all()


@pytest.mark.parametrize("kernel", ["avg", "max"])
@pytest.mark.parametrize("reduce", ["mean", "any"])
def test_snapkv_compresses_the_prompt(make_policy, cut, kernel, reduce):
    head = cut(tokens=300)
    obs = {"window": 16, "pool": 5, "kernel": kernel}
    select = {"rule": {"topk": 60}, "score": {"obs": obs}, "pin": {"window": 16}, "reduce": reduce}
    seen = np.zeros((4, 300))
    for i, queries in enumerate(head.prompt_queries[-16:]):
        own = 300 - 16 + i
        for j, q in enumerate(queries):
            seen[j, : own + 1] += softmax(head.scale * head.keys[: own + 1] @ q)
    around = [[seen[:, max(0, i - 2) : min(284, i + 3)]][0] for i in range(284)]
    pooled = np.stack([part.sum(1) / 5 if kernel == "avg" else part.max(1) for part in around], axis=1)
    rows = [pooled.mean(0)] if reduce == "mean" else list(pooled)
    kept = set(range(284, 300)).union(*(best(row, 60, range(284)) for row in rows))
    policy = make_policy({"rule": "all"}, {"every": "prefill_end", "select": select})
    check(policy, head, lambda s: kept | set(range(300, 300 + s + 1)))


def test_snapkv_leaves_a_short_prompt_alone(shipped, cut):
    head = cut(tokens=500)
    check(shipped["snapkv"], head, lambda s: range(500 + s + 1))


@pytest.mark.parametrize("unit", [0, 3, 6])
@pytest.mark.parametrize("eps", [0.001, 0.01, 0.2])
def test_oracle_reads_in_order_of_exact_scores(make_policy, cut, unit, eps):
    head = cut(unit=unit)
    score = {"exact": {"charged": False}}
    read = {"rule": {"certify": eps}, "score": score, "pin": {"sinks": 4, "window": 32}}

    def expected(s):
        own, exact, _ = scores_of(head, s)
        hot = pinned(own, 4, 32)
        return hot.union(*(staged(row, row, hot, set(range(own)) - hot, eps) for row in exact))

    rows = check(make_policy(read), head, expected)
    assert not rows.needless_reads.any()
    assert (rows.oracle_reads == rows.read_tokens).all()
    assert (rows.certified_mass <= eps).all()


def quantised(head, bits, sinks, window):
    """Quantise keys as a reader of codes and fp16 norms sees them; return (keys, norms of the error, rounded up)."""
    fit = head.keys[sinks : head.context - window]
    low = fit.min(0).astype(np.float32)
    step = (fit.max(0).astype(np.float32) - low) / np.float32(2**bits - 1)
    codes = np.clip(np.rint((head.keys - low.astype(float)) / step.astype(float)), 0, 2**bits - 1)
    keys = low + codes * step.astype(float)
    rho = np.linalg.norm(head.keys - keys, axis=1)
    half = rho.astype(np.float16)
    return keys, np.where(half < rho, np.nextafter(half, np.float16(np.inf)), half).astype(float)


@pytest.mark.parametrize("softcap", [None, 20.0])
@pytest.mark.parametrize("form", ["staged", "one_pass", "flat"])
def test_ghostkv_reads_until_its_certificate_holds(make_policy, cut, form, softcap):
    head = cut(softcap=softcap)
    eps, tau = 0.01, 0.01 / 0.99
    read = {
        "rule": {"certify": eps, "form": form},
        "score": {"qkeys": {"bits": 4}},
        "pin": {"sinks": 4, "window": 32},
    }
    keys, rho = quantised(head, 4, 4, 32)

    def bound(s, j, own):
        q = head.queries[s, j]
        value = head.scale * (keys[: own + 1] @ q + np.linalg.norm(q) * rho[: own + 1])
        return value if softcap is None else softcap * np.tanh(value / softcap)

    def one_head(s, j, own, exact, hot, cold):
        u = bound(s, j, own)
        if form == "staged":
            return staged(u, exact[j], hot, cold, eps)
        z_hot = np.exp(exact[j, sorted(hot)]).sum()
        if form == "flat":
            return {i for i in cold if u[i] >= np.log(z_hot * tau / len(cold))}
        read, left = set(), np.exp(u[sorted(cold)]).sum()
        for i in sorted(cold, key=lambda i: (-u[i], i)):
            if left <= tau * z_hot * (1 + 1e-12):
                break
            read.add(i)
            left -= np.exp(u[i])
        return read

    def expected(s):
        own, exact, _ = scores_of(head, s)
        hot = pinned(own, 4, 32)
        cold = set(range(own)) - hot
        return hot.union(*(one_head(s, j, own, exact, hot, cold) for j in range(4)))

    rows = check(make_policy(read), head, expected)
    for s in range(5):
        own, exact, _ = scores_of(head, s)
        left = sorted(set(range(own + 1)) - set(rows.positions(s).tolist()))
        for j in range(4):
            u, z = np.exp(bound(s, j, own)[left]).sum(), np.exp(exact[j]).sum() - np.exp(exact[j, left]).sum()
            assert rows.certified_mass[s, j] == pytest.approx(u / (z + u), rel=1e-3)
            assert rows.certified_mass[s, j] >= rows.lost_mass[s, j]


def test_box_certifies_whole_pages(make_policy, cut):
    head = cut(unit=4)
    read = {"rule": {"certify": 0.05}, "score": {"box": {"page": 4}}, "unit": "page", "pin": {"sinks": 4, "window": 32}}
    tau, page = 0.05 / 0.95, 4

    def expected(s):
        own, exact, _ = scores_of(head, s)
        hot = pinned(own, 4, 32)
        cold = sorted(set(range(own)) - hot)
        pages = sorted({i // page for i in cold})
        chosen = set()
        for q, row in zip(head.queries[s], exact, strict=True):
            z = np.exp(row[sorted(hot)]).sum()
            mine = {p: [i for i in cold if i // page == p] for p in pages}
            part = {p: head.keys[p * page : min((p + 1) * page, own + 1)] for p in pages}
            u = {p: head.scale * np.maximum(q * part[p].min(0), q * part[p].max(0)).sum() for p in pages}
            order = sorted(pages, key=lambda p: (-u[p], p))
            for j, p in enumerate(order):
                if sum(len(mine[r]) * np.exp(u[r]) for r in order[j:]) <= tau * z:
                    break
                chosen.add(p)
                z += np.exp(row[mine[p]]).sum()
        return hot | {i for i in cold if i // page in chosen}

    check(make_policy(read), head, expected)


def test_published_compares_its_sketch_with_theta(make_policy, cut):
    head = cut()
    published = {"dims": 16, "epsilon": 0.05, "sigma": 0.05}
    policy = make_policy({"rule": {"above": 0.1}, "score": {"published": published}, "pin": {"sinks": 4, "window": 32}})
    gaussian = build_published(np.eye(128), policy.read.score.published).stored
    assert gaussian.std() == pytest.approx(0.25, rel=0.05)
    bounds = [head.queries[s] @ gaussian @ (head.keys @ gaussian).T / 4 + 0.1 for s in range(5)]

    def expected(s):
        own = head.context + s
        hot = pinned(own, 4, 32)
        return hot | {i for i in set(range(own)) - hot if (bounds[s][:, i] >= 0.1).any()}

    rows = check(policy, head, expected)
    for s in range(5):
        own = head.context + s
        cold = sorted(set(range(own)) - pinned(own, 4, 32))
        exact = head.queries[s] @ head.keys.T / 4
        sizes = np.outer(np.linalg.norm(head.queries[s], axis=1), np.linalg.norm(head.keys, axis=1))
        below = bounds[s] + 128 * 2.0**-24 * sizes / 4 < exact
        assert rows.violations[s].tolist() == below[:, cold].sum(1).tolist()


def test_top_32_runs_and_groups_are_counted(make_policy, cut):
    head = cut()
    rows = evaluate_head(make_policy({"rule": {"topk": 25}, "score": "exact", "pin": {"window": 8}}), head)
    for s in range(5):
        own, exact, _ = scores_of(head, s)
        read = set(rows.positions(s).tolist())
        cold = set(range(own - 7))
        top = [best(row, 32, range(own + 1)) & cold for row in exact]
        assert rows.top_cold[s].tolist() == [len(part) for part in top]
        assert rows.top_eliminated[s].tolist() == [len(part - read) for part in top]
        got = sorted(read & cold)
        assert rows.read_runs[s] == sum(1 for i in got if i - 1 not in read)
        assert rows.read_groups[s].tolist() == [len({i >> k for i in got}) for k in range(1, 10)]


def test_output_error_is_that_of_the_renormalised_output(make_policy, cut):
    head = cut()
    rows = evaluate_head(make_policy({"rule": {"topk": 25}, "score": "exact"}), head)
    for s in range(5):
        own, exact, _ = scores_of(head, s)
        read = rows.positions(s)
        for j, row in enumerate(exact):
            full = softmax(row) @ head.values[: own + 1]
            part = softmax(row[read]) @ head.values[read]
            assert rows.output_error[s, j] == pytest.approx(np.linalg.norm(part - full) / np.linalg.norm(full))


def test_int4_changes_the_output_but_loses_no_mass(shipped, cut):
    head = cut()
    rows = evaluate_head(shipped["int4"], head)

    def stored(x):
        low = x.min(1, keepdims=True).astype(np.float16).astype(float)
        step = ((x.max(1, keepdims=True) - low) / 15).astype(np.float16).astype(float)
        return low + np.clip(np.rint((x - low) / step), 0, 15) * step

    keys, values = stored(head.keys), stored(head.values)
    assert not rows.lost_mass.any()
    for s in range(5):
        own, exact, _ = scores_of(head, s)
        _, other, _ = scores_of(head, s, keys)
        for j in range(4):
            full, given = softmax(exact[j]) @ head.values[: own + 1], softmax(other[j]) @ values[: own + 1]
            assert rows.output_error[s, j] == pytest.approx(np.linalg.norm(given - full) / np.linalg.norm(full))
