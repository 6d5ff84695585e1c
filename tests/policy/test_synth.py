"""Does a synthetic trace behave like the recorded one it is fitted to, and like one it is not fitted to?"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from held_out import (
    CURVE_SEEDS,
    LENGTH,
    LIMIT,
    POINTS,
    STEPS,
    Cell,
    compare,
    curves,
    curves_apart,
    draws,
    mean_curves,
    pooled_classes,
)

from ghostsim.errors import TraceError, UsageError
from ghostsim.study import synth
from ghostsim.trace.compose import compose
from ghostsim.trace.format import check_trace, open_trace
from ghostsim.trace.statistics import statistics

FITTED, HELD_OUT = ("manual_4k", "facts_4k", "code_4k"), "natural_4k"
# Where the text itself decides: the fitted documents are further than 10 % from the one left out in each of these.
TEXT_DEPENDENT = {
    ("dormant", "overlap"),
    ("local", "participation"),
    ("retrieval", "overlap"),
    ("semantic memory", "participation"),
}

DOCUMENTS = (*FITTED, HELD_OUT)
# Source code repeats itself: the two KV heads of the last layer find their tokens again and attend a third of the width
# that they need elsewhere. No draw of the other documents can know; they are as far from it themselves.
TEXT_DEPENDENT_CURVES = {"code_4k": {"qkeys 4", "qkeys 8"}}
OWN_POINTS = 0.02


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a draw for each of five seeds."""
    return draws([open_trace(name) for name in FITTED], tmp_path_factory.mktemp("synth"), (4096, 128))


@pytest.fixture(scope="module")
def cells(made):
    """Return how far the draws are from a document that is not fitted."""
    fitted = [statistics(open_trace(name), STEPS) for name in FITTED]
    return compare(fitted, [statistics(each, STEPS) for each in made], statistics(open_trace(HELD_OUT), STEPS))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a short draw of natural_4k, which has values and predicted queries."""
    return synth.synthesise(open_trace("natural_4k"), tmp_path_factory.mktemp("s") / "small", tokens=600, steps=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["natural_4k", "manual_4k"])
def test_targets_of_the_fitted_document_hold_within_ten_percent(name, tmp_path):
    one = open_trace(name)
    fitted = statistics(one, STEPS)
    drawn = [statistics(each, STEPS) for each in draws([one], tmp_path, (4096, 128))]
    assert [key for key, cell in compare([fitted], drawn, fitted).items() if cell.misses] == []


@pytest.mark.slow
def test_targets_of_a_document_not_fitted_hold_unless_the_text_decides(cells):
    assert {key for key, cell in cells.items() if cell.misses} <= TEXT_DEPENDENT


@pytest.mark.slow
def test_text_decides_where_recorded_documents_differ_themselves(cells):
    assert {key for key, cell in cells.items() if abs(cell.recorded) > LIMIT} >= TEXT_DEPENDENT


@pytest.mark.slow
def test_draws_are_no_further_from_another_document_than_the_fitted_one_is(cells):
    assert [key for key, cell in cells.items() if cell.own_fault] == []


@pytest.fixture(scope="module")
def shares(tmp_path_factory):
    """Return the certified shares of each document, and of draws fitted to it."""
    recorded = {name: curves(open_trace(name)) for name in DOCUMENTS}
    folder = tmp_path_factory.mktemp("curves")
    drawn = {name: mean_curves(open_trace(name), folder / name, CURVE_SEEDS, LENGTH) for name in DOCUMENTS}
    return recorded, drawn


@pytest.mark.slow
@pytest.mark.parametrize("left_out", DOCUMENTS)
def test_certified_elimination_of_a_document_not_fitted_is_within_five_points_unless_the_text_decides(shares, left_out):
    apart = curves_apart(*shares, left_out)
    assert {index for index, at in apart.items() if abs(at.drawn) > POINTS} == TEXT_DEPENDENT_CURVES.get(
        left_out, set()
    )


@pytest.mark.slow
def test_text_decides_the_curves_in_which_fitted_documents_are_no_nearer_themselves(shares):
    for left_out, indexes in TEXT_DEPENDENT_CURVES.items():
        apart = curves_apart(*shares, left_out)
        assert all(abs(apart[index].recorded) > POINTS for index in indexes)


@pytest.mark.slow
@pytest.mark.parametrize("left_out", DOCUMENTS)
def test_draws_certify_what_the_documents_they_are_fitted_to_do_within_two_points(shares, left_out):
    apart = curves_apart(*shares, left_out)
    assert {index: at for index, at in apart.items() if abs(at.drawn - at.recorded) > OWN_POINTS} == {}


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
    like = open_trace("facts_4k")
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


def test_seeds_draw_from_several_documents_in_turn(tmp_path):
    likes = [open_trace("natural_4k"), open_trace("manual_4k")]
    for seed in (1, 2):
        made, alone = (
            synth.synthesise(like, tmp_path / f"{name}{seed}", tokens=300, steps=4, seed=seed)
            for name, like in (("of_both", likes), ("alone", likes[seed % 2]))
        )
        assert made.provenance.recorder == f"ghostsim trace synth --like {likes[seed % 2].name}"
        np.testing.assert_array_equal(made.k, alone.k)
        np.testing.assert_array_equal(made.q, alone.q)
        assert made.arrays().keys() == alone.arrays().keys()


def test_documents_of_different_models_are_refused(small, tmp_path):
    other = replace(small, model=replace(small.model, name="another"))
    with pytest.raises(
        TraceError, match="found another model, rotation or shape than in small, expected traces of one"
    ):
        synth.synthesise([small, other], tmp_path / "t")


def test_two_recordings_of_one_text_are_refused(tmp_path):
    """What one of them decodes would stand in the prompt of the other."""
    with pytest.raises(TraceError, match="text: found that of natural_4k again, expected another document"):
        synth.synthesise([open_trace("natural_4k"), replace(open_trace("natural_4k"))], tmp_path / "t")


def test_cells_tell_the_generator_from_the_text():
    assert not Cell(0.09, 0.5, 0.5).misses
    assert Cell(-0.3, -0.4, -0.25).misses
    assert not Cell(-0.3, -0.4, -0.25).own_fault
    assert Cell(-0.3, -0.4, 0.15).own_fault


def test_classes_of_several_documents_are_those_of_their_mean_masses(small):
    found = statistics(small, 8)
    np.testing.assert_array_equal(pooled_classes([found, found]), found.classes)
    other = replace(found, quiet_mass=np.ones_like(found.quiet_mass))
    assert (pooled_classes([found, other, other, other, other, other, other, other, other, other, other]) == 0).all()


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
    command += ["--like", "natural_4k", "--tokens", "200", "--steps", "3", "--seed", "7"]
    assert subprocess.run(command, check=False).returncode == 0
    assert open_trace(tmp_path / "s").provenance.seed == 7
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode == 2
    assert "which exists" in again.stderr
