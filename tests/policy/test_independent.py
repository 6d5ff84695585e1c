"""Do published systems, written again as plain loops over tokens, read what the library's files read?

Budgets are those of the files cut down to short recorded heads; random choices (hash planes, clusters) are shared.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from loops import assert_reads, best, library, observed, pages, pins, prompt_rows, scores, softmax
from loops import received as of_prompt

from ghostsim.policy.head import evaluate_group, evaluate_head
from ghostsim.policy.orders import build_lsh
from ghostsim.policy.variants import for_head

N, STEPS, GROUP = 300, 4, 4


@pytest.fixture
def head(cut):
    return cut(unit=3, tokens=N, steps=STEPS)


@pytest.fixture
def pair(cut):
    return [cut(unit=unit, tokens=N, steps=STEPS) for unit in (4, 5)]


# --- everything is read ---------------------------------------------------------------------------------------


def quantised(group, bits):
    """Quantise the last axis with an fp16 minimum and scale."""
    low = group.min(-1, keepdims=True).astype(np.float16).astype(float)
    step = ((group.max(-1, keepdims=True) - low) / (2**bits - 1)).astype(np.float16).astype(float)
    return low + np.clip(np.rint((group - low) / step), 0, 2**bits - 1) * step


def output_errors(head, s, keys, values):
    exact = scores(head, s)
    for j in range(GROUP):
        full = softmax(exact[j]) @ head.values[: N + s + 1]
        given = softmax(head.scale * keys @ head.queries[s, j]) @ values
        yield np.linalg.norm(given - full) / np.linalg.norm(full)


@pytest.mark.parametrize("tokens_more", [0, 20])
def test_kivi_flushes_keys_in_groups_and_values_one_by_one(cut, tokens_more):
    head = cut(unit=3, tokens=N + tokens_more, steps=STEPS)
    rows = evaluate_head(library("kivi"), head)
    for s in range(STEPS):
        n = N + tokens_more + s + 1
        whole = (n - 1) // 32 * 32
        keys, values = np.array(head.keys[:n]), np.array(head.values[:n])
        for g in range(0, whole, 32):
            keys[g : g + 32] = quantised(keys[g : g + 32].T, 2).T
        for i in range(n - 32):
            values[i] = quantised(values[i].reshape(-1, 32), 2).ravel()
        nbytes = whole * 48 + (n - whole) * 256 + (n - 32) * 48 + 32 * 256
        assert rows.stream_bytes[:, s].sum() == nbytes
        exact = head.scale * head.queries[s] @ head.keys[:n].T
        for j in range(GROUP):
            full = softmax(exact[j]) @ head.values[:n]
            given = softmax(head.scale * keys @ head.queries[s, j]) @ values
            error = np.linalg.norm(given - full) / np.linalg.norm(full)
            assert rows.output_error[s, j] == pytest.approx(error, rel=1e-9)


def test_wkvquant_keeps_the_current_token_exact(head):
    rows = evaluate_head(library("wkvquant"), head)
    for s in range(STEPS):
        n = N + s + 1
        assert rows.stream_bytes[:, s].sum() == (n - 1) * 136 + 512
        keys, values = quantised(head.keys[:n], 4), quantised(head.values[:n], 4)
        keys[-1], values[-1] = head.keys[n - 1], head.values[n - 1]
        assert rows.output_error[s] == pytest.approx(list(output_errors(head, s, keys, values)), rel=1e-9)
    assert_reads(rows, lambda s: range(N + s + 1))


# --- tokens are evicted -----------------------------------------------------------------------------------------


def test_streaming_llm(head):
    policy = library("streaming_llm", ("window: 2000", "window: 50"))
    assert_reads(evaluate_head(policy, head), lambda s: pins(N + s, 4, 50))


def evicting(head, received, heavy, recent):
    """H2O: renormalised attention accumulates over what is kept; the best of the rest stay beside the recent."""
    kept, sets = set(range(N)), []
    for s in range(STEPS):
        own = N + s
        window = set(range(own - recent + 1, own + 1))
        kept = window | best(received.sum(0), heavy, kept - window)
        order = sorted(kept)
        for j, row in enumerate(scores(head, s)):
            received[j, order] += softmax(row[order])
        sets.append(kept)
    return sets


def test_h2o(head):
    policy = library("h2o", ("topk: 1024", "topk: 40"), ("window: 1024", "window: 30"))
    received = of_prompt(head)
    sets = evicting(head, received, 40, 30)
    assert_reads(evaluate_head(policy, head), lambda s: sets[s])


def test_scissorhands_drops_half_on_overflow(head):
    w, r, buffer = 40, 10, 292
    policy = library("scissorhands", ("window: 400", f"window: {w}"), ("topk: 2048", f"topk: {buffer}"))
    low = []
    for age, row in zip(range(w, 0, -1), prompt_rows(head, w), strict=True):
        count = N - age + 1
        mine = np.zeros((GROUP, N + STEPS), dtype=int)
        mine[:, :count] = row[:, :count] < 1 / count
        low.append(mine)
    kept, sets = set(range(N)), []
    for s in range(STEPS):
        own = N + s
        recent = set(range(own - r + 1, own + 1))
        rest = (kept | {own}) - recent
        if len(rest) > buffer:
            worth = -sum(low[-w:]).mean(0)
            rest = best(worth, buffer // 2, rest)
        kept = rest | recent
        order = sorted(kept)
        mine = np.zeros((GROUP, N + STEPS), dtype=int)
        for j, row in enumerate(scores(head, s)):
            mine[j, order] = softmax(row[order]) < 1 / len(order)
        low.append(mine)
        sets.append(kept)
    assert len(sets[0]) == N + 1
    assert len(sets[-1]) < N
    assert_reads(evaluate_head(policy, head), lambda s: sets[s])


def snapped(head, w, kernel, mean):
    """Return the pooled sums of the observation window, one row per selection."""
    pooled = observed(head, w, kernel)
    return [pooled.mean(0)] if mean else list(pooled)


@pytest.mark.parametrize(("name", "mean"), [("snapkv", True), ("snapkv_per_head", False)])
def test_snapkv_and_its_generated_tokens(head, name, mean):
    policy = library(name, ("topk: 2016", "topk: 50"))
    kept = set(range(N - 32, N)).union(*(best(row, 50, range(N - 32)) for row in snapped(head, 32, "avg", mean)))
    assert_reads(evaluate_head(policy, head), lambda s: kept | set(range(N, N + s + 1)))


@pytest.mark.parametrize("mean", [60, 140, 200])
def test_pyramidkv_by_layer(head, mean):
    """A plain budget, one clipped to the prompt, and a prompt too short for a pyramid."""
    layers, w, beta = 8, 32, 20
    for layer in (0, 3, 7):
        policy = library("pyramidkv", ("tokens: 2016", f"tokens: {mean}"), layer=layer, layers=layers, prompt=N)
        least, most = mean // beta, 2 * mean - mean // beta
        if most >= N - w:
            most = N - w
            least = 2 * mean - most
        k = mean if 2 * mean > N else most - layer * ((most - least) // (layers - 1))
        kept = set(range(N - w, N)) | best(snapped(head, w, "avg", True)[0], k, range(N - w))
        assert_reads(evaluate_head(policy, head), lambda s, kept=kept: kept | set(range(N, N + s + 1)))


def test_duoattention_splits_heads(head):
    policy = library("duoattention", ("sinks: 64, window: 256", "sinks: 20, window: 40"))
    full, streaming = (for_head(policy, full=full, head_class="local") for full in (True, False))
    assert_reads(evaluate_head(full, head), lambda s: range(N + s + 1))
    assert_reads(evaluate_head(streaming, head), lambda s: pins(N + s, 20, 40))


# --- what is read is selected -----------------------------------------------------------------------------------


def test_quest_per_query_head_and_its_dense_layers(head):
    changes = [("topk: 2048", "topk: 112")]

    def expected(s):
        own = N + s
        last, chosen = own // 16, {own // 16}
        for q in head.queries[s]:
            parts = [head.keys[p * 16 : (p + 1) * 16] for p in range(last)]
            value = [sum(max(q[c] * k.min(0)[c], q[c] * k.max(0)[c]) for c in range(len(q))) for k in parts]
            chosen |= best(value, 7 - 1, range(last))
        return pages(chosen, 16, own)

    assert_reads(evaluate_head(library("quest", *changes), head), expected)
    for layer in (0, 1):
        assert_reads(evaluate_head(library("quest", *changes, layer=layer), head), lambda s: range(N + s + 1))


def test_arkvale_chooses_one_set_for_a_layer(pair):
    policy = library("arkvale", ("topk: 1024", "topk: 96"), ("page: 32", "page: 16"), ("4096", "320"))

    def expected(s):
        own = N + s
        last = own // 16
        total = np.zeros(last + 1)
        for head in pair:
            for p in range(2, last - 1):
                k = head.keys[p * 16 : (p + 1) * 16]
                centre = (k.max(0) + k.min(0)) / 2
                away = np.abs(k - centre).mean(0)
                for q in head.queries[s]:
                    total[p] += np.maximum(q * (centre + away), q * (centre - away)).sum()
        return pages({0, 1, last - 1, last} | best(total, 6, range(2, last - 1)), 16, own)

    for rows in evaluate_group([policy], pair)[0]:
        assert_reads(rows, expected)


def test_infinigen_takes_one_count_in_all_heads(pair):
    rng = np.random.default_rng(3)
    pair = [replace(h, q_ahead=h.queries + 0.1 * rng.standard_normal(h.queries.shape)) for h in pair]
    for alpha, most in ((2.0, 0.2), (5.0, 0.2), (1.0, 0.9)):
        policy = library("infinigen", ("margin: 5.0, most: 0.2", f"margin: {alpha}, most: {most}"))
        rows = evaluate_group([policy], pair)[0]
        for s in range(STEPS):
            own, table = N + s, []
            for head in pair:
                width = int(0.2 * head.keys.shape[1])
                weight = np.abs(head.prompt_queries).sum((0, 1))
                channels = sorted(sorted(range(len(weight)), key=lambda c, w=weight: (-w[c], c))[:width])
                part = head.keys[:own][:, channels].astype(np.float16).astype(float)
                table.append([head.scale * part @ q[channels] for q in head.q_ahead[s]])
            counts = [sum(row >= row.max() - alpha) for mine in table for row in mine]
            count = min(int(np.mean(counts)), int(most * (own + 1)) - 1)
            for mine, found in zip(table, rows, strict=True):
                wanted = {own}.union(*(best(row, count, range(own)) for row in mine))
                assert found.positions(s).tolist() == sorted(wanted)
    dense = library("infinigen", layer=0)
    assert_reads(evaluate_head(dense, pair[0]), lambda s: range(N + s + 1))


def test_retroinfer_reads_the_best_clusters_and_estimates_the_next(head, monkeypatch):
    labels = np.random.default_rng(1).permutation(N) % 19
    monkeypatch.setattr("ghostsim.policy.clusters.spherical_kmeans", lambda *_: labels)
    policy = library("retroinfer", ("topfrac: 0.018", "topfrac: 0.16"), ("window: 64", "window: 20"))
    rows = evaluate_head(policy, head)
    centres = np.stack([head.keys[:N][labels == c].mean(0) for c in range(19)])
    for s in range(STEPS):
        own = N + s
        value = (head.scale * head.queries[s] @ centres.T).mean(0)
        static = pins(own, 4, 20)
        retrieved = best(value, int(0.16 * 19), range(19))
        estimated = best(value, int(0.232 * 19), set(range(19)) - retrieved)
        wanted = sorted(static | {i for i in range(N) if labels[i] in retrieved})
        assert rows.positions(s).tolist() == wanted
        exact = scores(head, s)
        for j in range(GROUP):
            weight = np.exp(exact[j] - exact[j].max())
            total = weight[wanted].sum()
            out = weight[wanted] @ head.values[wanted]
            for c in estimated:
                alike = np.exp(head.scale * head.queries[s, j] @ centres[c] - exact[j].max())
                for i in range(N):
                    if labels[i] == c and i not in static:
                        total += alike
                        out = out + alike * head.values[i]
            full = softmax(exact[j]) @ head.values[: own + 1]
            error = np.linalg.norm(out / total - full) / np.linalg.norm(full)
            assert rows.output_error[s, j] == pytest.approx(error, rel=1e-6)


def test_shadowkv_keeps_outliers_and_local_chunks(head):
    policy = library("shadowkv", ("topk: 2048", "topk: 64"), ("outliers: 48", "outliers: 5"))
    chunks = N // 8 - 4
    alike = []
    for c in range(chunks):
        k = head.keys[c * 8 : c * 8 + 8]
        mean = k.mean(0)
        alike.append(min(x @ mean / np.linalg.norm(x) / np.linalg.norm(mean) for x in k))
    outliers = set(sorted(range(chunks), key=lambda c: (alike[c], c))[:5])

    def expected(s):
        own = N + s
        local = {own // 8 - i for i in range(4)}
        there = [c for c in range(own // 8 + 1) if c not in local | outliers]
        means = np.stack([head.keys[c * 8 : c * 8 + 8].mean(0) for c in there])
        value = np.stack([softmax(head.scale * means @ q) for q in head.queries[s]]).max(0)
        chosen = {there[i] for i in best(value, 8, range(len(there)))}
        return pages(chosen | local | outliers, 8, own)

    assert_reads(evaluate_head(policy, head), expected)


def test_magicpig_samples_what_matches_in_two_tables(head):
    policy = library("magicpig", ("bits: 10, tables: 150", "bits: 8, tables: 20"))
    planes = build_lsh(head, slice(0, N), policy.read.score.lsh).planes
    mean = head.keys[4 : N - 64].mean(0)
    rows = evaluate_head(policy, head)

    def signs(x):
        return [tuple((planes[t] @ x > 0).tolist()) for t in range(20)]

    def chance(cosine):
        p = (1 - np.arccos(cosine) / np.pi) ** 8
        return 1 - (1 - p) ** 20 - 20 * p * (1 - p) ** 19

    theirs = [signs(k - mean) for k in head.keys]
    for s in range(STEPS):
        own = N + s
        static, mine = pins(own, 4, 64), [signs(q) for q in head.queries[s]]
        hit = [{i for i in range(own) if sum(a == b for a, b in zip(theirs[i], m, strict=True)) >= 2} for m in mine]
        wanted = sorted(static.union(*hit))
        assert rows.positions(s).tolist() == wanted
        for j, q in enumerate(head.queries[s]):
            row = scores(head, s)[j]
            total, out = 0.0, 0.0
            for i in wanted:
                k = head.keys[i] - mean
                w = 1.0 if i in static else chance(q @ k / np.linalg.norm(q) / np.linalg.norm(k))
                weight = np.exp(row[i] - row.max()) / max(w, 1e-6)
                total, out = total + weight, out + weight * head.values[i]
            full = softmax(row) @ head.values[: own + 1]
            error = np.linalg.norm(out / total - full) / np.linalg.norm(full)
            assert rows.output_error[s, j] == pytest.approx(error, rel=1e-6)
    for layer in (0, 16):
        assert_reads(evaluate_head(library("magicpig", layer=layer), head), lambda s: range(N + s + 1))


def test_retrievalattention(head):
    policy = library(
        "retrievalattention", ("topk: 100", "topk: 20"), ("sinks: 128, window: 512", "sinks: 8, window: 32")
    )

    def expected(s):
        static = pins(N + s, 8, 32)
        rest = set(range(N + s)) - static
        return static.union(*(best(row, 20, rest) for row in scores(head, s)))

    assert_reads(evaluate_head(policy, head), expected)


@pytest.mark.parametrize("theta", [1.0, 4.0])
def test_louver_gates_by_balls_then_by_scores(head, theta):
    policy = library("louver", ("above: 4.0", f"above: {theta}"), ("window: 256", "window: 40"))

    def expected(s):
        static = pins(N + s, 0, 40)
        return static | {i for i in range(N + s) if (scores(head, s)[:, i] >= theta).any()}

    assert_reads(evaluate_head(policy, head), expected)


def test_dsa_takes_one_set_for_a_layer(pair):
    policy = library("dsa", ("topk: 2048", "topk: 30"))

    def expected(s):
        own = N + s
        value = sum(softmax(row[:own]) for head in pair for row in scores(head, s))
        return {own} | best(value, 30, range(own))

    for rows in evaluate_group([policy], pair)[0]:
        assert_reads(rows, expected)
        assert rows.scan_bytes[0].tolist() == [int(66 * (N + s + 1)) for s in range(STEPS)]


def test_triattention_chooses_every_so_many_steps(head):
    changes = [("topk: 2048", "topk: 50"), ("window: 128", "window: 20"), ("steps: 128", "steps: 2")]
    half, freq, factor = len(head.inv_freq), head.inv_freq, head.rope.attention_factor

    def turned(x, position):
        out, angle = np.array(x), position * freq
        for f in range(half):
            a, b = (f, f + half) if head.rope.pairing == "half" else (2 * f, 2 * f + 1)
            out[a] = x[a] * np.cos(angle[f]) - x[b] * np.sin(angle[f])
            out[b] = x[a] * np.sin(angle[f]) + x[b] * np.cos(angle[f])
        return out

    assert factor == 1.0
    worth = np.zeros(N + STEPS)
    for j in range(GROUP):
        w = len(head.prompt_queries)
        centre = np.mean([turned(head.prompt_queries[i, j], -(N - w + i)) for i in range(w)], axis=0)
        asked = np.mean([turned(centre, N + 2**p) for p in range(17)], axis=0)
        value = head.keys @ asked
        worth += (value - value[:N].mean()) / value[:N].std() / GROUP
    kept, sets = set(range(N)), []
    for s in range(STEPS):
        own = N + s
        recent = set(range(own - 19, own + 1))
        rest = (kept | {own}) - recent
        kept = recent | (best(worth, 50, rest) if s % 2 == 0 else rest)
        sets.append(kept)
    assert_reads(evaluate_head(library("triattention", *changes), head), lambda s: sets[s])


@pytest.mark.parametrize("least", [0.05, 0.5, 0.8, 0.93, 0.999999])
def test_fastgen_takes_the_first_that_recovers_enough(head, least):
    classes = np.random.default_rng(2).choice([0, 0, 0, 1, 2], N + STEPS).astype(np.uint8)
    head = replace(head, token_class=classes)
    policy = library("fastgen", ("recover: 0.9", f"recover: {least}"))
    received = of_prompt(head)
    share = int(0.3 * (N + STEPS))

    def held(strategy, end, kept):
        """Return what a strategy keeps of `end` tokens, of which `kept` and the newest are still there."""
        fixed = [{1}, {1, 2}, {1, 2}, {1, 2}][strategy]
        mine = {i for i in range(end) if i < 4 or classes[i] in fixed}
        if strategy == 3:
            mine |= set(range(end - share, end))
        if end > N or strategy < 2:
            mine.add(end - 1)
        return mine if strategy < 2 else mine | best(received.mean(0), share, kept - mine)

    mass = received.mean(0)[:N] / received.mean(0)[:N].sum()
    recovered = [sum(mass[sorted(held(n, N, set(range(N))))]) for n in range(4)]
    found = next((n for n, part in enumerate(recovered) if part >= least), None)
    kept, sets = set(range(N)), []
    for s in range(STEPS):
        own = N + s
        if found is not None:
            kept = held(found, own + 1, kept) & (kept | {own} | held(min(found, 1), own + 1, kept))
            order = sorted(kept)
            for j, row in enumerate(scores(head, s)):
                received[j, order] += softmax(row[order])
        sets.append(kept if found is not None else set(range(own + 1)))
    assert_reads(evaluate_head(policy, head), lambda s: sets[s])
