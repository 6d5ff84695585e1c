"""Does a synthetic trace behave like the recorded one it is fitted to, and like one it is not fitted to?"""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ghostsim.errors import TraceError, UsageError
from ghostsim.study import synth
from ghostsim.trace.compose import compose
from ghostsim.trace.format import check_trace, open_trace
from ghostsim.trace.statistics import CLASSES, TOPS, statistics

SEEDS = range(1, 6)
FITTED, HELD_OUT = "long_decode_3k", "manual_4k"
LIMIT = 0.10
# Where the text itself decides: the two recorded documents are further apart than 10 % in each of these.
TEXT_DEPENDENT = {
    ("local", "key rank"),
    ("retrieval", "top 8"),
    ("retrieval", "top 32"),
    ("retrieval", "top 128"),
    ("retrieval", "participation"),
    ("retrieval", "overlap"),
    ("semantic memory", "participation"),
    ("semantic memory", "overlap"),
}


def targets(found, classes):
    """Return the mean of every target over the heads of each class, by (class, target)."""
    heads = {f"top {count}": found.top_mass[..., i] for i, count in enumerate(TOPS)}
    group = classes.shape[1] // found.key_norm.shape[1]
    heads |= {
        "participation": found.participation,
        "overlap": found.persistence[..., 0],
        "query norm": found.query_norm,
        "key norm": np.repeat(found.key_norm, group, axis=1),
        "key rank": np.repeat(found.key_rank[..., 0], group, axis=1),
        "key rank rotated": np.repeat(found.key_rank[..., 1], group, axis=1),
    }
    named = {name: i for i, name in enumerate(CLASSES) if (classes == i).any()}
    return {(name, what): values[classes == i].mean() for name, i in named.items() for what, values in heads.items()}


def off(found, reference):
    """Return the relative difference of each target."""
    return {key: found[key] / reference[key] - 1 for key in reference}


def over(differences):
    return {key: round(float(value), 3) for key, value in differences.items() if abs(value) > LIMIT}


@pytest.fixture(scope="module")
def fitted():
    return statistics(open_trace(FITTED), 256)


@pytest.fixture(scope="module")
def drawn(fitted, tmp_path_factory):
    """Return the targets over five seeds, mean."""
    folder = tmp_path_factory.mktemp("synth")
    like = open_trace(FITTED)
    made = [statistics(synth.synthesise(like, folder / f"seed{seed}", seed=seed), 128) for seed in SEEDS]
    every = [targets(each, fitted.classes) for each in made]
    return {key: float(np.mean([each[key] for each in every])) for key in every[0]}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a short draw of natural_4k, which has values and predicted queries."""
    return synth.synthesise(open_trace("natural_4k"), tmp_path_factory.mktemp("s") / "small", tokens=600, steps=20)


@pytest.mark.slow
def test_targets_of_the_fitted_document_hold_within_ten_percent(drawn, fitted):
    assert over(off(drawn, targets(fitted, fitted.classes))) == {}


@pytest.mark.slow
def test_targets_of_a_document_not_fitted_hold_unless_the_text_decides(drawn, fitted):
    held_out = targets(statistics(open_trace(HELD_OUT), 128), fitted.classes)
    assert over(off(drawn, held_out)).keys() <= TEXT_DEPENDENT


@pytest.mark.slow
def test_text_decides_where_recorded_documents_differ_themselves(fitted):
    held_out = targets(statistics(open_trace(HELD_OUT), 128), fitted.classes)
    assert over(off(targets(fitted, fitted.classes), held_out)).keys() >= TEXT_DEPENDENT


@pytest.mark.slow
def test_draws_are_no_further_from_another_document_than_the_fitted_one_is(drawn, fitted):
    held_out = targets(statistics(open_trace(HELD_OUT), 128), fitted.classes)
    apart, found = off(targets(fitted, fitted.classes), held_out), off(drawn, held_out)
    assert {key: value for key, value in found.items() if abs(value) > abs(apart[key]) + LIMIT} == {}


def test_key_spectrum_and_norms_of_one_draw_are_the_recorded_ones(tmp_path):
    like = open_trace("manual_4k")
    made_trace = synth.synthesise(like, tmp_path / "one", seed=3)
    recorded, made = statistics(like, 8), statistics(made_trace, 8)
    assert np.abs(np.cumsum(made.key_energy - recorded.key_energy, axis=-1)).max() < 0.02
    for name in ("key_norm", "key_norm_cv", "first_key_norm"):
        np.testing.assert_allclose(getattr(made, name), getattr(recorded, name), rtol=0.1, err_msg=name)
    queries = [np.linalg.norm(trace.q.astype(float), axis=-1).mean(axis=0) for trace in (made_trace, like)]
    np.testing.assert_allclose(*queries, rtol=0.1)


def test_draw_is_a_valid_trace_of_its_own_kind(small):
    assert check_trace(small.path).kind == "synthetic"
    assert (small.tokens, small.steps, small.prompt_len, small.prompt_queries) == (600, 20, 580, 256)
    assert set(small.arrays()) == {"q", "k", "v", "q_ahead", "q_prompt", "token_ids", "inv_freq"}
    assert small.provenance.text.startswith("none; fitted to")


def test_draw_keeps_sinks_and_exact_predictions_of_layer_zero(small):
    like = open_trace("natural_4k")
    np.testing.assert_array_equal(small.k[:, :, :4], like.k[:, :, :4])
    np.testing.assert_array_equal(small.q_ahead[:, 0], small.q[:, 0])
    assert not np.array_equal(small.q_ahead[:, 2], small.q[:, 2])


def test_draw_can_be_composed_to_a_longer_context(small):
    workload = compose([small], None, requests=1, steps=4, context=1000, seed=0)
    assert workload.kind == "synthetic"
    assert np.isfinite(workload.head(5).keys).all()


def test_prompts_of_64_queries_are_drawn(tmp_path):
    made = synth.synthesise(open_trace("manual_4k"), tmp_path / "t", tokens=70, steps=2)
    assert made.prompt_queries == 64


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    like = open_trace("manual_4k")
    a, b, c = (synth.synthesise(like, tmp_path / str(i), tokens=300, steps=4, seed=s) for i, s in enumerate((1, 1, 2)))
    assert (a.path / "k.npy").read_bytes() == (b.path / "k.npy").read_bytes()
    assert (a.path / "q.npy").read_bytes() == (b.path / "q.npy").read_bytes()
    assert not np.array_equal(a.k, c.k)


def test_no_recorded_step_stands_in_the_prompt():
    like = open_trace("long_decode_3k")
    source = synth._source(like, 9000, 64, np.random.default_rng(0))
    assert source[:9000].max() < like.prompt_len
    assert source[9000:].min() > like.prompt_len


def test_topics_use_every_position_once_before_any_again():
    found = synth.runs(10, 1010, 2500, np.random.default_rng(1))
    assert sorted(found[:1000]) == list(range(10, 1010))
    assert sorted(found[1000:2000]) == list(range(10, 1010))
    assert 1000 / 64 / 2 < (np.diff(found[:1000]) != 1).sum() < 2 * 1000 / 64


def test_path_is_the_autoregression_written_out():
    rng = np.random.default_rng(2)
    process = synth.fit(np.cumsum(rng.standard_normal((50, 2, 3)), axis=0))
    rows = rng.integers(1, 50, 40)
    ((where, values),) = process.path(rows)
    state = process.deviation[rows[0]]
    for t, row in enumerate(rows):
        if t:
            state = process.phi * state + process.deviation[row] - process.phi * process.deviation[row - 1]
        np.testing.assert_allclose(values[t], process.mean + state, atol=1e-9)
    assert where == slice(0, 40)


def test_path_of_many_blocks_is_that_of_one(monkeypatch):
    rng = np.random.default_rng(3)
    process, rows = synth.fit(rng.standard_normal((60, 1, 4))), rng.integers(1, 60, 100)
    whole = np.concatenate([values for _, values in process.path(rows)])
    monkeypatch.setattr(synth, "_BLOCK", 7)
    np.testing.assert_allclose(np.concatenate([values for _, values in process.path(rows)]), whole, atol=1e-9)


def test_recorded_order_gives_the_recorded_rows():
    recorded = np.random.default_rng(4).standard_normal((30, 2, 5))
    np.testing.assert_allclose(synth._whole(recorded, np.arange(1, 30)), recorded[1:], atol=1e-9)


def test_fit_finds_the_autocorrelation_it_was_given():
    rng, walk = np.random.default_rng(5), np.zeros((4000, 1, 8))
    for t in range(1, 4000):
        walk[t] = 0.6 * walk[t - 1] + rng.standard_normal((1, 8))
    assert synth.fit(walk).phi[0, 0] == pytest.approx(0.6, abs=0.02)


def test_too_short_a_prompt_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--tokens: found 70 with 20 steps, expected at least 88"):
        synth.synthesise(open_trace("manual_4k"), tmp_path / "t", tokens=70, steps=20)
    assert list(tmp_path.iterdir()) == []


def test_trace_of_one_step_is_refused(small, tmp_path):
    one = synth.synthesise(small, tmp_path / "one", tokens=100, steps=1)
    with pytest.raises(TraceError, match="steps: found 1, expected at least 2"):
        synth.synthesise(one, tmp_path / "t")


def test_synth_command_writes_a_trace_and_refuses_to_replace_it(tmp_path):
    command = [sys.executable, "-m", "ghostsim", "trace", "synth", "--like", "manual_4k", "--out", str(tmp_path / "s")]
    command += ["--tokens", "200", "--steps", "3", "--seed", "7"]
    assert subprocess.run(command, check=False).returncode == 0
    assert open_trace(tmp_path / "s").provenance.seed == 7
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 2
    assert "which exists" in again.stderr
