"""Is a composed context made as the format says, and is it the same everywhere?"""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.errors import ConfigError, UsageError
from ghostsim.trace import info as trace_info
from ghostsim.trace.compose import MIN_CONTEXT, SEGMENT, SINKS, Shape, compose
from ghostsim.trace.format import open_trace
from ghostsim.trace.write import compose_to_folder

NATURAL, MANUAL, LONG = (open_trace(name) for name in ("natural_4k", "manual_4k", "facts_4k"))
LLAMA = Shape(layers=32, kv_heads=8, q_per_kv=4, head_dim=128)


def composed(traces=(NATURAL, MANUAL), shape=LLAMA, *, requests=2, steps=16, context=12_000, seed=7):
    return compose(list(traces), shape, requests=requests, steps=steps, context=context, seed=seed)


def turned(x, position, inv_freq):
    """R(position) x by complex numbers, half pairing: written apart from the code under test."""
    half = x.shape[-1] // 2
    pairs = (x[..., :half].astype(float) + 1j * x[..., half:]) * np.exp(1j * np.multiply.outer(position, inv_freq))
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def softmax(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def token_origins(workload, request):
    """(trace, recorded index) of every position."""
    pieces = workload.sequences[request].pieces
    return [(piece.trace, piece.start + i) for piece in pieces for i in range(piece.length)]


def test_recorded_attention_is_the_trace_as_it_is():
    workload = compose([NATURAL], None, requests=1, steps=None, context=None, seed=0)
    assert (workload.context, workload.steps, workload.kind) == (3968, 128, "recorded")
    assert workload.heads == tuple((0, layer, head) for layer in range(4) for head in range(2))
    np.testing.assert_array_equal(workload.unit_of[0], np.arange(8).reshape(4, 2))
    head = workload.head(5)
    freq = NATURAL.inv_freq[2]
    assert head.keys.dtype == head.queries.dtype == np.float64
    np.testing.assert_allclose(head.keys, turned(NATURAL.k[2, 1], np.arange(4096), freq), atol=1e-10)
    np.testing.assert_allclose(head.queries[9], turned(NATURAL.q[9, 2, 4:8], np.full(4, 3977), freq), atol=1e-10)
    np.testing.assert_allclose(head.q_ahead[9], turned(NATURAL.q_ahead[9, 2, 4:8], np.full(4, 3977), freq), atol=1e-10)
    np.testing.assert_allclose(
        head.prompt_queries[-1], turned(NATURAL.q_prompt[2, 4:8, -1], np.full(4, 3967), freq), atol=1e-10
    )
    np.testing.assert_array_equal(head.values, NATURAL.v[2, 1])


def test_recorded_requests_of_one_trace_share_their_units():
    workload = compose([NATURAL, MANUAL], LLAMA, requests=5, steps=8, context=None, seed=0)
    assert len(workload.heads) == 16
    assert {request for request, _, _ in workload.heads} == {0, 1}
    for same in (2, 4):
        np.testing.assert_array_equal(workload.unit_of[0], workload.unit_of[same])
    assert set(workload.unit_of[0].flat).isdisjoint(workload.unit_of[1].flat)


def test_target_layers_and_heads_take_the_recorded_ones_by_the_rule():
    workload = composed(requests=1)
    for layer in (0, 7, 8, 19, 31):
        for head in range(8):
            request, kept, recorded = workload.heads[workload.unit_of[0, layer, head]]
            assert (request, kept, recorded) == (0, layer * 4 // 32, (head + layer) % 2)
    assert len(workload.heads) == 8


def test_own_first_tokens_and_own_prompt_keep_their_places():
    workload = composed(requests=4)
    for request in range(4):
        own, offset = request % 2, workload.sequences[request].offset
        origin = token_origins(workload, request)
        assert len(origin) == workload.context + workload.steps
        assert origin[:SINKS] == [(own, i) for i in range(SINKS)]
        end = workload.trace_of(request).prompt_len + offset
        own_part = range(SINKS, end + workload.steps)
        assert origin[-len(own_part) :] == [(own, i) for i in own_part]
        assert origin[workload.context - 1] == (own, end - 1)


def test_no_foreign_sink_stands_in_a_context():
    workload = composed(requests=6, context=40_000)
    for request in range(6):
        assert all(index >= SINKS for _, index in token_origins(workload, request)[SINKS:])


def test_segments_take_other_documents_first_and_without_replacement():
    workload = composed(requests=1, context=SINKS + 3968 - SINKS + 128 + 9000)
    segments = workload.sequences[0].pieces[1:-1]
    assert all(piece.length == SEGMENT for piece in segments[:-1])
    others = [piece for piece in segments if piece.trace == 1]
    assert segments[:7] == tuple(others[:7])  # the other document holds 7 whole segments
    assert {piece.trace for piece in segments[7:14]} == {0}
    first_round = Counter(i for piece in segments[:14] for i in [(piece.trace, piece.start)])
    assert set(first_round.values()) == {1}
    assert all(piece.start + piece.length <= NATURAL.prompt_len for piece in segments if piece.trace == 0)


def test_two_recordings_of_one_text_are_one_document():
    workload = composed((NATURAL, replace(NATURAL), MANUAL), requests=1, context=30_000)
    assert {piece.trace for piece in workload.sequences[0].pieces} == {0, 2}


def test_a_context_shorter_than_the_prompt_keeps_its_beginning_and_its_end():
    workload = composed((NATURAL,), requests=1, context=1000, steps=8)
    end = NATURAL.prompt_len + workload.sequences[0].offset
    expected = [*range(SINKS), *range(end - 996, end + 8)]
    assert [index for _, index in token_origins(workload, 0)] == expected
    shortest = composed((NATURAL,), requests=1, context=MIN_CONTEXT).head(0)
    assert shortest.prompt_queries.shape == (64, 4, 128)


def test_composed_keys_and_queries_stand_at_their_positions():
    workload = composed(requests=2)
    unit = workload.heads.index((1, 3, 0))
    head, origin = workload.head(unit), token_origins(workload, 1)
    freq, offset = MANUAL.inv_freq[3], workload.sequences[1].offset
    recorded = np.stack([workload.traces[trace].k[3, 0, index] for trace, index in origin])
    assert head.keys.dtype == np.float32
    np.testing.assert_allclose(head.keys, turned(recorded, np.arange(len(origin)), freq), atol=2e-5)
    expected = turned(MANUAL.q[offset + 5, 3, :4], np.full(4, 12_005), freq)
    np.testing.assert_allclose(head.queries[5], expected, atol=2e-5)
    assert head.values is None  # manual_4k has none


def test_composed_prompt_queries_run_up_to_the_last_token():
    workload = composed((NATURAL,), requests=8, steps=8)
    request = max(range(8), key=lambda r: workload.sequences[r].offset)
    offset = workload.sequences[request].offset
    assert 4 < offset <= 120
    head = workload.head(workload.heads.index((request, 1, 1)))
    freq = NATURAL.inv_freq[1]
    assert len(head.prompt_queries) == NATURAL.prompt_queries
    last = turned(NATURAL.q[offset - 1, 1, 4:], np.full(4, 11_999), freq)
    np.testing.assert_allclose(head.prompt_queries[-1], last, atol=2e-5)
    before = turned(NATURAL.q_prompt[1, 4:, -1], np.full(4, 11_999 - offset), freq)
    np.testing.assert_allclose(head.prompt_queries[-1 - offset], before, atol=2e-5)


def test_distances_inside_the_own_document_give_the_recorded_probabilities():
    workload = composed((NATURAL, MANUAL), None, requests=1, steps=16, context=20_000)
    recorded = compose([NATURAL], None, requests=1, steps=None, context=None, seed=0)
    offset = workload.sequences[0].offset
    own = NATURAL.prompt_len + offset - SINKS
    for unit in range(8):
        _, layer, kv_head = workload.heads[unit]
        long, short = workload.head(unit), recorded.head(recorded.heads.index((0, layer, kv_head)))
        for step in (0, 15):
            tail = own + step + 1
            a = long.keys[20_000 + step + 1 - tail : 20_000 + step + 1] @ long.queries[step, 0] * long.scale
            b = short.keys[SINKS : SINKS + tail] @ short.queries[offset + step, 0] * short.scale
            np.testing.assert_allclose(softmax(a.astype(float)), softmax(b), atol=1e-4)


def test_every_layer_and_head_of_a_request_has_the_same_tokens():
    workload = composed((NATURAL,), requests=1)
    ids = workload.token_ids(0)
    origin = [index for _, index in token_origins(workload, 0)]
    np.testing.assert_array_equal(ids, NATURAL.token_ids[origin])
    for unit in range(len(workload.heads)):
        _, layer, kv_head = workload.heads[unit]
        np.testing.assert_array_equal(workload.head(unit).values, NATURAL.v[layer, kv_head][origin].astype(np.float32))


def test_repeats_count_how_often_a_token_stands_in_a_context():
    assert compose([NATURAL], None, requests=2, steps=8, context=None, seed=0).token_repeats() == 1.0
    workload = composed(requests=2, context=50_000)
    expected = [len(origin) / len(set(origin)) for origin in (token_origins(workload, r) for r in range(2))]
    assert workload.token_repeats() == pytest.approx(np.mean(expected))
    assert workload.token_repeats() > 5


@settings(deadline=None, max_examples=40)
@given(st.integers(MIN_CONTEXT, 60_000), st.integers(1, 128), st.integers(0, 2**32))
def test_any_context_is_filled_exactly(context, steps, seed):
    workload = composed(requests=2, context=context, steps=steps, seed=seed)
    for request in workload.sequences:
        ends = [piece.position + piece.length for piece in request.pieces]
        assert [0, *ends[:-1]] == [piece.position for piece in request.pieces]
        assert ends[-1] == context + steps
        assert 0 <= request.offset <= 128 - steps
        assert all(piece.length > 0 for piece in request.pieces)
        tokens = [workload.traces[piece.trace].tokens for piece in request.pieces]
        assert all(piece.start + piece.length <= n for piece, n in zip(request.pieces, tokens, strict=True))


def test_a_request_does_not_depend_on_how_many_there_are():
    assert composed(requests=2).sequences == composed(requests=6).sequences[:2]


def test_seeds_and_requests_draw_differently():
    drawn = {r.pieces for seed in range(3) for r in composed((NATURAL,), requests=3, seed=seed).sequences}
    assert len(drawn) == 9


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"steps": 15}, {"context": 12_001}, {"requests": 3}, {"traces": (NATURAL,)}, {"shape": None}],
)
def test_the_content_hash_covers_what_defines_the_workload(change):
    assert composed(**change).content_hash != composed().content_hash


def test_without_a_context_the_seed_changes_nothing():
    a, b = (compose([NATURAL], None, requests=1, steps=4, context=None, seed=seed) for seed in (1, 2))
    assert a.content_hash == b.content_hash


FINGERPRINT = """
import hashlib
from ghostsim.trace.compose import Shape, compose
from ghostsim.trace.format import open_trace
traces = [open_trace("natural_4k"), open_trace("manual_4k")]
w = compose(traces, Shape(8, 2, 4, 128), requests=2, steps=4, context=6000, seed=3)
head = w.head(3)
arrays = b"".join(a.tobytes() for a in (head.keys, head.queries, head.prompt_queries, w.unit_of))
print(w.content_hash, repr(w.sequences), hashlib.sha256(arrays).hexdigest())
"""


def test_the_workload_is_the_same_in_every_process():
    seen = set()
    for hash_seed in ("0", "1", "random"):
        env = os.environ | {"PYTHONHASHSEED": hash_seed}
        seen.add(subprocess.run([sys.executable, "-c", FINGERPRINT], env=env, capture_output=True, check=True).stdout)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"steps": 129}, "found 129, expected at most the 128 recorded in natural_4k"),
        ({"steps": 0}, "workload.steps: found 0"),
        ({"requests": 0}, "workload.batch: found 0"),
        ({"context": 10}, "expected at least 68"),
        ({"traces": ()}, "found no trace"),
        ({"shape": Shape(32, 8, 8, 128)}, "4 query heads per KV head, expected the model's 128 and 8"),
        ({"shape": Shape(32, 8, 4, 64)}, "workload.shape: trace"),
        ({"traces": (NATURAL, LONG), "context": None}, "set workload.context"),
    ],
)
def test_what_cannot_be_composed_is_a_configuration_error(arguments, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        composed(**arguments)
    assert caught.value.exit_code == 3


def test_the_trace_shape_is_kept_only_when_asked_for_and_said():
    shape = Shape(layers=80, kv_heads=8, q_per_kv=8, head_dim=64)
    workload = compose([NATURAL], shape, requests=1, steps=4, context=6000, seed=0, trace_shape=True)
    assert workload.shape == Shape(80, 8, 4, 128)
    assert workload.reshaped
    assert workload.unit_of.shape == (1, 80, 8)
    agreeing = compose([NATURAL], LLAMA, requests=1, steps=4, context=6000, seed=0, trace_shape=True)
    assert not agreeing.reshaped


def test_a_composed_folder_opens_as_the_same_context(tmp_path):
    workload = composed((NATURAL,), None, requests=2, steps=8, context=5000)
    trace = compose_to_folder(workload, tmp_path / "long", request=1)
    assert (trace.kind, trace.prompt_len, trace.steps, trace.tokens) == ("composed", 5000, 8, 5008)
    again = compose([trace], None, requests=1, steps=None, context=None, seed=0)
    assert again.kind == "composed"
    for unit in range(8):
        a, b = workload.head(workload.heads.index((1, *again.heads[unit][1:]))), again.head(unit)
        for name in ("keys", "queries", "prompt_queries", "values", "q_ahead"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=2e-5)
    np.testing.assert_array_equal(trace.token_ids, workload.token_ids(1))
    with pytest.raises(UsageError, match="exists"):
        compose_to_folder(workload, tmp_path / "long")


def test_only_a_composed_workload_is_written(tmp_path):
    recorded = compose([NATURAL], None, requests=1, steps=8, context=None, seed=0)
    with pytest.raises(ConfigError, match=r"workload\.context"):
        compose_to_folder(recorded, tmp_path / "x")


def test_info_measures_what_the_keys_say():
    found = trace_info.info(MANUAL)
    assert found["steps_looked_at"] == 64
    row = next(row for row in found["heads"] if (row["layer"], row["q_head"]) == (3, 5))
    keys = turned(MANUAL.k[3, 1], np.arange(4096), MANUAL.inv_freq[3])
    masses = []
    for step in np.linspace(0, 127, 64).astype(int):
        query = turned(MANUAL.q[step, 3, 5], 3968 + step, MANUAL.inv_freq[3])
        p = softmax(keys[: 3969 + step] @ query * MANUAL.model.scale)
        falling = np.sort(p)[::-1]
        n95 = next(n for n in range(1, len(p) + 1) if falling[:n].sum() >= 0.95)
        masses.append((p[:4].sum(), p[-256:].sum(), falling[:32].sum(), n95))
    sink, local, top, n95 = np.mean(masses, axis=0)
    assert row["sink_mass"] == pytest.approx(sink, abs=1e-9)
    assert row["local_mass"] == pytest.approx(local, abs=1e-9)
    assert row["top32_mass"] == pytest.approx(top, abs=1e-9)
    assert row["tokens_for"]["95%"] == pytest.approx(n95, abs=0.05)
    text = trace_info.format_info(found)
    assert "PostgreSQL" in text
    assert len(text.splitlines()) == 12 + 32


def test_probabilities_obey_window_and_softcap():
    head = compose([NATURAL], None, requests=1, steps=1, context=None, seed=0).head(0)
    plain = trace_info.probabilities(head, 0)
    np.testing.assert_allclose(plain.sum(axis=1), 1.0)
    changed = type(head)(
        **{name: getattr(head, name) for name in head.__dataclass_fields__} | {"window": 100, "softcap": 2.0}
    )
    p = trace_info.probabilities(changed, 0)
    assert not p[:, :-100].any()
    scores = 2.0 * np.tanh(head.scale * (head.keys[3869:3969] @ head.queries[0, 1]) / 2.0)
    np.testing.assert_allclose(p[1, -100:], softmax(scores), atol=1e-12)
