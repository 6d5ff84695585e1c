"""Is a rotation recognised from its input and output, and are wrong probabilities caught? (Without torch.)"""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.errors import InvariantError, UsageError
from ghostsim.trace.format import Rope
from ghostsim.trace.record import Recording, layer_numbers, query_count, record
from ghostsim.trace.record_check import PROBABILITY, LayerRule, Replay, band
from ghostsim.trace.record_rope import frequencies, identify, undo
from ghostsim.trace.rope import angles, rotate

TOKENS, HEAD_DIM = 40, 16
RULE = LayerRule(scale=0.25, softcap=None, window=None, rope=None, inv_freq=None)


def vectors(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("table", ["twice", "repeated", "once"])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
@pytest.mark.parametrize("dims", [4, 8, 16])
def test_rotation_is_identified_from_its_effect(dims, pairing, table):
    inv_freq, before = 100.0 ** -(np.arange(dims // 2) / dims), vectors(1, 2, TOKENS, HEAD_DIM)
    cos, sin = angles(np.arange(TOKENS), inv_freq, np.float32)
    after = rotate(before, np.arange(TOKENS), inv_freq, Rope(dims, pairing, 1.0)).astype(np.float32)
    widen = {"twice": lambda x: np.tile(x, 2), "repeated": lambda x: x.repeat(2, 1), "once": lambda x: x}[table]
    found = identify(before, after, widen(cos), widen(sin))
    assert (found.dims, found.pairing) == (dims, pairing)
    assert np.array_equal(found.pick(widen(cos)), cos)


def test_unknown_rotation_is_not_identified():
    cos, sin = angles(np.arange(TOKENS), [1.0, 0.1], np.float32)
    before = vectors(1, 2, TOKENS, HEAD_DIM)
    after = rotate(before[..., ::-1], np.arange(TOKENS), [1.0, 0.1], Rope(4, "half", 1.0))[..., ::-1]
    assert identify(before, after, cos, sin) is None


@settings(max_examples=40, deadline=None)
@given(
    inv_freq=st.lists(st.floats(1e-7, 1.0), min_size=1, max_size=6),
    factor=st.floats(0.5, 2.0),
    tokens=st.integers(64, 4096),
)
def test_frequencies_come_back_from_float32_tables(inv_freq, factor, tokens):
    cos, sin = angles(np.arange(tokens), inv_freq)
    found, length = frequencies((factor * cos).astype(np.float32), (factor * sin).astype(np.float32))
    assert np.allclose(found, inv_freq, rtol=1e-5, atol=1e-9)
    assert length == pytest.approx(factor, rel=2e-6)


def test_angles_that_bend_are_refused():
    turn = np.outer(np.arange(100.0) ** 1.1, [0.3])
    with pytest.raises(InvariantError, match="off a constant rate"):
        frequencies(np.cos(turn), np.sin(turn))


def softmax(scores):
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(q, k, v, window, extra=0.0):
    scores = 0.25 * np.einsum("hsd,htd->hst", q, k.repeat(2, 0)).astype(np.float64) + extra
    scores[:, ~band(np.arange(TOKENS - 5, TOKENS), TOKENS, window)] = -np.inf
    p = softmax(scores)
    return p, np.einsum("hst,htd->hsd", p, v.repeat(2, 0))


@pytest.mark.parametrize("window", [None, 7])
def test_proof_accepts_what_the_rule_says(window):
    q, k, v = vectors(1, 4, 5, HEAD_DIM), vectors(2, 2, TOKENS, HEAD_DIM), vectors(3, 2, TOKENS, HEAD_DIM)
    p, outputs = attention(q, k, v, window)
    rule = LayerRule(0.25, None, window, None, None)
    assert max(Replay(k, v, rule, np.float32).errors(q, TOKENS - 5, p, outputs)) < 1e-6


def test_proof_catches_a_bias_on_scores():
    q, k, v = vectors(1, 4, 5, HEAD_DIM), vectors(2, 2, TOKENS, HEAD_DIM), vectors(3, 2, TOKENS, HEAD_DIM)
    p, outputs = attention(q, k, v, None, extra=0.05 * np.arange(TOKENS))
    assert Replay(k, v, RULE, np.float32).errors(q, TOKENS - 5, p, outputs)[0] > PROBABILITY


def test_proof_catches_keys_that_float16_cannot_hold():
    q, k, v = vectors(1, 4, 5, HEAD_DIM), vectors(2, 2, TOKENS, HEAD_DIM), vectors(3, 2, TOKENS, HEAD_DIM)
    q[..., 0], k[..., 0] = 0.0, 1e5
    p, outputs = attention(q, k, v, None)
    assert Replay(k, v, RULE, np.float16).errors(q, TOKENS - 5, p, outputs) == (np.inf, np.inf)
    assert Replay(k, v, RULE, np.float32).errors(q, TOKENS - 5, p, outputs)[0] < 1e-6


def test_proof_is_not_passed_by_a_model_that_gives_nan():
    q, k, v = vectors(1, 4, 5, HEAD_DIM), vectors(2, 2, TOKENS, HEAD_DIM), vectors(3, 2, TOKENS, HEAD_DIM)
    p, outputs = attention(q, k, v, None)
    assert Replay(k, v, RULE, np.float32).errors(q, TOKENS - 5, np.full_like(p, np.nan), outputs)[0] == np.inf


@pytest.mark.parametrize(("text", "layers"), [("all", None), ("3", (3,)), ("0,2-4", (0, 2, 3, 4)), ("2,2", (2,))])
def test_layer_lists_are_read(text, layers):
    assert layer_numbers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "1,,2", "-1"])
def test_other_layer_lists_are_refused(text):
    with pytest.raises(UsageError, match="--layers: found"):
        layer_numbers(text)


def test_query_counts_are_read():
    assert (query_count("all"), query_count("64")) == (None, 64)
    with pytest.raises(UsageError, match="--q-prompt"):
        query_count("many")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"prompt_len": 10}, "--prompt 10"), ({"steps": 0}, "--steps 0"), ({"q_prompt": 5}, "--q-prompt: found 5")],
)
def test_impossible_sizes_are_refused(changes, message, tmp_path):
    fields = {"prompt_len": 128, "steps": 4} | changes
    with pytest.raises(UsageError, match=message):
        record(Recording("model", tmp_path / "text", tmp_path / "out", **fields))


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_missing_torch_is_named_with_the_way_to_get_it(tmp_path):
    with pytest.raises(UsageError, match=r"found no torch.*pip install 'ghostsim\[record\]'"):
        record(Recording("model", tmp_path / "text", tmp_path / "out", 128, 4))


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_undone_rotation_turns_back_to_what_the_model_had(pairing):
    rope, inv_freq, after = Rope(8, pairing, 1.3), np.asarray([1.0, 0.3, 0.01, 0.0]), vectors(1, 2, TOKENS, HEAD_DIM)
    before = undo(after, inv_freq, rope)
    assert np.abs(rotate(before, np.arange(TOKENS), inv_freq, rope) - after).max() < 1e-6
