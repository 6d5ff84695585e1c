"""Is every figure that `trace info` prints what plain NumPy finds in the arrays, over all heads?"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from ghostsim.trace.format import open_trace
from ghostsim.trace.statistics import CLASSES
from ghostsim.trace.write import TraceWriter

DIGITS = 5e-4  # three digits
PROMPT, STEPS, D, DIMS, FACTOR, SCALE, CAP = 600, 24, 16, 12, 1.1, 0.3, 25.0
TOKENS, WINDOWS = PROMPT + STEPS, (None, 450)
LAYERS, HEADS = range(2), range(4)


def invent():
    """Return arrays of two layers, two KV heads and four query heads, one of each class, and noise all over.

    The last four dimensions do not turn with the position, so they can say what a head looks at: the first token, the
    recent ones, or one far away.
    """
    rng = np.random.default_rng(3)
    k, q = rng.standard_normal((2, 2, TOKENS, D)), rng.standard_normal((STEPS, 2, 4, D))
    k[..., DIMS:] = q[..., DIMS:] = 0
    k[:, :, 0, DIMS] = k[:, :, 300, DIMS + 2] = 6
    k[..., DIMS + 1] = np.linspace(0, 60, TOKENS)
    q[:, :, 0, DIMS], q[:, :, 1, DIMS + 1] = 14, 1
    q[:, 0, 2, DIMS + 2] = 4
    return {
        "q": q.astype(np.float32),
        "k": k.astype(np.float32),
        "q_prompt": rng.standard_normal((2, 4, 64, D)).astype(np.float32),
        "inv_freq": np.stack([10.0 ** -np.linspace(0, 3, DIMS // 2), 2.0 ** -np.arange(1.0, 1 + DIMS // 2)]),
        "token_ids": rng.integers(0, 50, TOKENS).astype(np.int32),
        "loss": rng.random(STEPS).astype(np.float32),
    }


def fields():
    model = {"name": "invented", "sha256": None, "layers": 5, "kept_layers": [1, 3], "q_heads": 4, "kv_heads": 2}
    model |= {"head_dim": D, "scale": SCALE, "softcap": CAP, "window": list(WINDOWS), "trained_context": 700}
    return {
        "name": "invented",
        "kind": "synthetic",
        "model": model,
        "rope": {"dims": DIMS, "pairing": "interleaved", "attention_factor": FACTOR},
        "prompt_len": PROMPT,
        "steps": STEPS,
        "tokens": TOKENS,
        "provenance": {"recorder": "test", "text": "none", "licence": "CC0-1.0", "seed": 3},
    }


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    with TraceWriter(tmp_path_factory.mktemp("info") / "invented") as writer:
        for name, values in invent().items():
            writer.put(name, values)
        return writer.finish(fields())


@pytest.fixture(scope="module")
def printed(trace):
    """Return what the command prints."""
    command = [sys.executable, "-m", "ghostsim", "trace", "info", str(trace.path), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def turned(x, position, freq):
    z = (x[..., :DIMS:2].astype(float) + 1j * x[..., 1:DIMS:2]) * np.exp(1j * np.multiply.outer(position, freq))
    out = x.astype(float)
    out[..., :DIMS:2], out[..., 1:DIMS:2] = FACTOR * z.real, FACTOR * z.imag
    return out


@pytest.fixture(scope="module")
def keys(trace):
    """Return rotated keys by (layer, KV head)."""
    every = np.arange(TOKENS)
    return {(n, h): turned(trace.k[n, h], every, trace.inv_freq[n]) for n in LAYERS for h in (0, 1)}


@pytest.fixture(scope="module")
def p(trace, keys):
    """Return the probabilities over all tokens, [layers, heads, steps, tokens]."""
    out = np.zeros((2, 4, STEPS, TOKENS))
    for layer, head, step in np.ndindex(2, 4, STEPS):
        own = PROMPT + step
        first = 0 if WINDOWS[layer] is None else own - WINDOWS[layer] + 1
        query = turned(trace.q[step, layer, head], own, trace.inv_freq[layer])
        scores = np.array([SCALE * sum(query * keys[layer, head // 2][i]) for i in range(first, own + 1)])
        weights = np.exp(CAP * np.tanh(scores / CAP))
        out[layer, head, step, first : own + 1] = weights / sum(weights)
    return out


def same(value, expected):
    assert value == pytest.approx(expected, rel=DIGITS, abs=1e-9)


def over_steps(p, layer, head, measure):
    """Return the mean over steps of `measure(probabilities up to the own token)`."""
    return np.mean([measure(p[layer, head, s, : PROMPT + s + 1]) for s in range(STEPS)])


def over_heads(p, measure):
    return np.mean([over_steps(p, layer, head, measure) for layer in LAYERS for head in HEADS])


def count_for(share):
    def measure(row):
        mass, count = 0.0, 0
        for value in sorted(row, reverse=True):
            mass, count = mass + value, count + 1
            if mass >= share:
                break
        return count

    return measure


def kind_of(p, layer, head):
    """Return the class by the published rule."""
    quiet = over_steps(p, layer, head, lambda row: sum(row[:4]) + row[-1])
    held = over_steps(p, layer, head, lambda row: sum(row[:4]) + sum(row[-256:]))
    spikes = over_steps(p, layer, head, lambda row: max(row[4:-256]) >= 0.1)
    return "dormant" if quiet >= 0.9 else "local" if held >= 0.9 else "retrieval" if spikes >= 0.1 else CLASSES[3]


def top(row):
    return set(np.argsort(row)[-32:].tolist())


SHARES = {"50%": 0.5, "90%": 0.9, "95%": 0.95, "99%": 0.99}
MASSES = {
    "sink_mass": lambda row: sum(row[:4]),
    "local_mass": lambda row: sum(row[-256:]),
    "top32_mass": lambda row: sum(sorted(row)[-32:]),
}


def test_rows_of_all_heads(printed, p):
    assert [(row["layer"], row["kv_head"], row["q_head"]) for row in printed["heads"]] == [
        (layer, head // 2, head) for layer in (1, 3) for head in HEADS
    ]
    for row in printed["heads"]:
        at = (1, 3).index(row["layer"]), row["q_head"]
        assert row["class"] == kind_of(p, *at)
        for name, measure in MASSES.items():
            same(row[name], over_steps(p, *at, measure))
        for name, share in SHARES.items():
            same(row["tokens_for"][name], over_steps(p, *at, count_for(share)))


def test_induction_mass_is_on_what_followed_the_same_token(printed, trace, p):
    ids = trace.token_ids.tolist()
    for row in printed["heads"]:
        at, masses = ((1, 3).index(row["layer"]), row["q_head"]), []
        for s in range(STEPS):
            own = PROMPT + s
            after = [i + 1 for i in range(own - 1) if ids[i] == ids[own]]
            if after:
                masses.append(sum(p[(*at, s)][i] for i in after))
        same(row["induction_mass"], np.mean(masses) if masses else 0.0)


def test_all_classes_stand_in_the_trace_and_their_shares_are_counted(printed, p):
    kinds = [kind_of(p, layer, head) for layer in LAYERS for head in HEADS]
    assert set(kinds) == set(CLASSES)
    same(printed["statistics"]["classes"], {name: kinds.count(name) / len(kinds) for name in CLASSES})


def test_means_over_heads(printed, p):
    found = printed["statistics"]
    same(found["tokens_for"], {name: over_heads(p, count_for(share)) for name, share in SHARES.items()})
    best = {str(n): over_heads(p, lambda row, n=n: sum(sorted(row)[-n:])) for n in (8, 32, 128)}
    same(found["top_mass"], best)
    same(found["first_mass"], over_heads(p, lambda row: row[0]))
    same(found["sink_mass"], over_heads(p, MASSES["sink_mass"]))
    same(found["local_mass"], over_heads(p, MASSES["local_mass"]))
    same(found["participation"], over_heads(p, lambda row: 1 / sum(x * x for x in row)))
    same(found["entropy_nats"], over_heads(p, lambda row: -sum(x * np.log(x) for x in row if x > 0)))


def test_persistence_over_steps_and_layers(printed, p):
    found, sets = printed["statistics"], {at: top(p[at]) for at in np.ndindex(2, 4, STEPS)}
    for lag in (1, 4, 16):
        kept = [
            np.mean([len(sets[n, h, s] & sets[n, h, s + lag]) / 32 for s in range(STEPS - lag)])
            for n in LAYERS
            for h in HEADS
        ]
        same(found["persistence"][str(lag)], np.mean(kept))
    layers = [[top(sum(p[n, h, s] for h in HEADS)) for s in range(STEPS)] for n in LAYERS]
    same(found["layer_overlap"], [np.mean([len(a & b) / 32 for a, b in zip(*layers, strict=True)])])


def rank(rows):
    shares = np.linalg.svd(rows, compute_uv=False) ** 2
    return next(n for n in range(1, D + 1) if sum(shares[:n]) >= 0.9 * sum(shares))


def test_norms_and_key_ranks(printed, trace, keys):
    found, units = printed["statistics"], [(n, h) for n in LAYERS for h in (0, 1)]
    before = {at: trace.k[at].astype(float) for at in units}
    same(found["key_norm"], np.mean([np.sqrt(sum(row * row)) for rows in before.values() for row in rows]))
    same(found["query_norm"], np.mean([np.sqrt(sum(x * x)) for x in trace.q.reshape(-1, D).astype(float)]))
    same(found["key_rank"]["before_rope"], np.mean([rank(rows) for rows in before.values()]))
    same(found["key_rank"]["after_rope"], np.mean([rank(rows) for rows in keys.values()]))
    centred = [np.mean([rank(r - r.mean(axis=0)) for r in each.values()]) for each in (before, keys)]
    same(list(found["key_rank_centred"].values()), centred)


def test_what_stands_beside_published_figures(printed, trace, p):
    measured = {row["name"]: row["measured"] for row in printed["statistics"]["published"]}
    attended = np.mean([min(PROMPT + s + 1, WINDOWS[n] or TOKENS) for n in LAYERS for s in range(STEPS)])
    same(measured["share of tokens that hold half the mass, mean over heads"], over_heads(p, count_for(0.5)) / attended)
    above = [np.mean([sum(x > 1 / window_of(n, s) for x in p[n, h, s]) / window_of(n, s) for s in range(STEPS)])
             for n in LAYERS for h in HEADS]  # fmt: skip
    same(measured["share of tokens above uniform, mean over heads"], np.mean(above))
    first = sorted(over_steps(p, n, h, lambda row: row[0]) for n in LAYERS for h in HEADS)
    same(measured["mass of the first token, upper quartile of heads"], first[5] + 0.25 * (first[6] - first[5]))
    q = trace.q.astype(float)
    cosines = [
        q[s, n, h] @ q[s + 1, n, h] / np.sqrt((q[s, n, h] @ q[s, n, h]) * (q[s + 1, n, h] @ q[s + 1, n, h]))
        for s, n, h in np.ndindex(STEPS - 1, 2, 4)
    ]
    same(measured["cosine of consecutive queries, mean over heads"], np.mean(cosines))
    lengths = [np.sqrt((trace.k[n].astype(float) ** 2).sum(axis=-1)).mean() for n in LAYERS]
    same(measured["largest ratio of mean key norms between layers"], max(lengths) / min(lengths))
    assert len(measured) == 14


def window_of(layer, step):
    return WINDOWS[layer] or PROMPT + step + 1


def test_figures_of_the_text(printed, trace):
    same(printed["mean_loss_nats"], np.mean(trace.loss.astype(float)))
    assert printed["distinct_tokens"] == len(set(trace.token_ids.tolist()))
    assert printed["steps_looked_at"] == STEPS
    assert open_trace(trace.path).name == printed["name"]
