"""Is every bound of policy/bounds.py above the product that it bounds, and close to it where nothing is left out?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.config.scores import Ball
from ghostsim.policy import bases, bounds, pages
from ghostsim.trace.format import Rope, open_trace
from ghostsim.trace.rope import rotate

D = 16


def labels_of(n, groups, seed=3):
    return np.random.default_rng(seed).integers(0, groups, n)


def pca(keys, m):
    return bases.principal_basis(keys, min(m, keys.shape[1]))


def rope_of(d):
    return Rope(dims=d, pairing="half", attention_factor=1.0)


def mean_of(keys):
    return keys.astype(np.float64).mean(axis=0)


def half(keys):
    """Ranges fitted on the first half only, so that later keys are clipped."""
    return keys[: max(1, len(keys) // 2)]


BUILD = {
    "residual": lambda k, m: bounds.ResidualSketch.fit(k, pca(k, m)),
    "residual_random": lambda k, m: bounds.ResidualSketch.fit(k, bases.random_basis(k.shape[1], m)),
    "residual_mean": lambda k, m: bounds.ResidualSketch.fit(k, pca(k, m), mean=mean_of(k)),
    "residual_blocked": lambda k, m: bounds.ResidualSketch.fit(k, pca(k, m), blocks=4),
    "gaussian": lambda k, m: bounds.ResidualSketch.fit(
        k, bounds.gaussian_matrix(np.random.default_rng(1), k.shape[1], m)
    ),
    "planes": lambda k, m: bounds.plane_sketch(k, rope_of(k.shape[1]), range(max(1, m // 2))),
    **{
        f"quantised_{form}{bits}": lambda k, m, form=form, bits=bits: bounds.QuantisedSketch.fit(
            k, pca(k, m), bits, form, ranges=half(k)
        )
        for form in ("one", "two", "box")
        for bits in (2, 8)
    },
    "quantised_mean": lambda k, m: bounds.QuantisedSketch.fit(k, pca(k, m), 4, "two", mean=mean_of(k)),
    "integer": lambda k, m: bounds.IntegerSketch.fit(k, pca(k, m), ranges=half(k)),
    "integer_mean": lambda k, m: bounds.IntegerSketch.fit(k, pca(k, m), 4, mean=mean_of(k)),
    "ellipsoids": lambda k, m: bounds.Ellipsoids.fit(k, bounds.page_labels(len(k), 4)),
    "anchored": lambda k, m: bounds.AnchoredSketch.fit(k, labels_of(len(k), 3), pca(k, m)),
}


def slack(queries, keys):
    return keys.shape[1] * 2.0**-24 * bounds.norms(queries)[:, None] * bounds.norms(keys)[None]


def assert_sound(index, queries, keys, dtype=np.float64):
    exact = queries.astype(np.float64) @ keys.astype(np.float64).T
    upper = index.upper(queries, dtype)
    assert np.isfinite(upper).all()
    wrong = upper < exact - slack(queries, keys)
    assert not wrong.any(), f"{wrong.sum()} of {wrong.size} bounds lie below, by up to {(exact - upper).max():.3g}"


def vectors(seed, kind, n=24, d=D):
    """Return queries and keys that are hard on one kind of bound."""
    rng = np.random.default_rng(seed)
    keys, queries = rng.standard_normal((n, d)), rng.standard_normal((6, d))
    if kind == "huge":
        keys *= 900 / np.linalg.norm(keys, axis=1, keepdims=True)
        queries *= 300
    elif kind == "tiny":
        keys *= 1e-30
        queries *= 1e-12
    elif kind == "denormal":
        keys, queries = keys * 1e-42, queries * 1e-40
    elif kind == "parallel":
        keys[:] = rng.standard_normal(d) * rng.uniform(-5, 50, (n, 1))
        queries[:3] = keys[:3] * 7
    elif kind == "orthogonal":
        frame = np.linalg.qr(rng.standard_normal((d, d)))[0]
        keys, queries = keys[:, :4] @ frame[:4] * 100, queries[:, : d - 4] @ frame[4:] * 100
    elif kind == "constant":
        keys[:, ::3] = 40.0
    elif kind == "outliers":
        keys[:, 2] *= 300
        keys[-2, 5] = 5000
        queries[:, 2] *= 20
    elif kind == "along_the_error":
        basis = bases.principal_basis(keys, 4)
        queries = (keys - keys @ basis @ basis.T)[:6] * 10
    elif kind == "zeros":
        keys[::2] = 0
        queries[::2] = 0
    return queries, keys


KINDS = ["plain", "huge", "tiny", "denormal", "parallel", "orthogonal", "constant", "outliers", "zeros"]


@pytest.mark.parametrize("name", sorted(BUILD))
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from([*KINDS, "along_the_error"]),
    m=st.sampled_from([1, 4, 8, 16]),
    stored=st.sampled_from([np.float16, np.float32, np.float64]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_no_bound_lies_below_the_product(name, seed, kind, m, stored, dtype):
    queries, keys = vectors(seed, kind)
    queries, keys = queries.astype(stored), keys.astype(stored)
    assert_sound(BUILD[name](keys, m), queries, keys, dtype)


@pytest.mark.parametrize("name", sorted(BUILD))
def test_records_beyond_fp16_are_never_ruled_out(name):
    queries, keys = vectors(1, "plain")
    keys[3], keys[4, 2] = 3e6, -1e5
    assert_sound(BUILD[name](keys, 8), queries, keys)


@pytest.fixture(scope="module")
def recorded():
    """Return queries and keys of one head of each layer, before and after rotation."""
    trace, found = open_trace("manual_4k"), []
    for layer in range(len(trace.model.kept_layers)):
        keys, queries = np.asarray(trace.k[layer, 0, 100:700]), np.asarray(trace.q[:3, layer, :4]).reshape(12, -1)
        at = np.repeat(np.arange(trace.prompt_len, trace.prompt_len + 3), 4)
        turned = rotate(keys, np.arange(100, 700), trace.inv_freq[layer], trace.rope)
        found += [(queries, keys), (rotate(queries, at, trace.inv_freq[layer], trace.rope), turned)]
    return found


@pytest.mark.parametrize("name", sorted(BUILD))
def test_no_bound_lies_below_the_product_on_recorded_vectors(name, recorded):
    for queries, keys in recorded:
        assert_sound(BUILD[name](keys, 32), queries, keys, np.float32)


@pytest.mark.parametrize("name", ["residual", "residual_random", "residual_mean", "residual_blocked", "gaussian"])
def test_all_dimensions_leave_nothing_but_rounding(name):
    queries, keys = vectors(2, "plain")
    sketch = BUILD[name](keys, D)
    room = 2.0**-10 * bounds.norms(sketch.rows(queries))[:, None] * bounds.norms(sketch.table())[None]
    assert (sketch.upper(queries) - queries @ keys.T <= room).all()


@pytest.mark.parametrize("form", ["one", "two", "box"])
def test_all_dimensions_at_8_bits_leave_half_a_step(form):
    queries, keys = vectors(2, "plain")
    index = bounds.QuantisedSketch.fit(keys, np.eye(D), 8, form)
    step = np.linalg.norm(bounds.half_steps(index.quantiser))
    excess = index.upper(queries) - queries @ keys.T
    assert (excess <= 2.1 * np.sqrt(D) * step * bounds.norms(queries)[:, None]).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_integer_scores_cost_little_more_than_exact_queries(recorded, bits):
    queries, keys = recorded[1]
    basis = bases.principal_basis(keys, 32)
    wide = bounds.QuantisedSketch.fit(keys, basis, bits).upper(queries)
    spread = np.std(queries.astype(np.float64) @ keys.T)
    assert np.mean(bounds.IntegerSketch.fit(keys, basis, bits).upper(queries) - wide) < 0.1 * spread


def test_a_group_of_one_key_is_that_key():
    queries, keys = vectors(4, "plain")
    ellipsoids = bounds.Ellipsoids.fit(keys, np.arange(len(keys)))
    balls = pages.build_ball(keys, Ball(page=1))
    for upper in (ellipsoids.upper(queries), balls.ask(queries, 1.0) @ balls.table.T):
        assert (upper - queries @ keys.T <= 2.0**-8 * slack(queries, keys) * 2.0**20).all()


def test_blocks_never_loosen_the_residual():
    queries, keys = vectors(5, "outliers")
    one, four = (bounds.ResidualSketch.fit(keys, pca(keys, 4), blocks=b).upper(queries) for b in (1, 4))
    assert (four <= one + 2.0**-9 * bounds.norms(queries)[:, None] * bounds.norms(keys)[None]).all()
    assert four.mean() < one.mean()


def test_a_gaussian_sketch_is_as_good_as_its_span():
    queries, keys = vectors(6, "plain")
    matrix = bounds.gaussian_matrix(np.random.default_rng(2), D, 6)
    as_it_is = bounds.ResidualSketch.fit(keys, matrix).upper(queries)
    orthonormal = bounds.ResidualSketch.fit(keys, np.linalg.qr(matrix)[0]).upper(queries)
    assert as_it_is == pytest.approx(orthonormal, abs=0.05)


def test_a_matrix_without_full_rank_is_refused():
    with pytest.raises(ValueError, match="condition"):
        bounds.ResidualSketch.fit(np.ones((3, 4)), np.ones((4, 2)))


def test_a_clipped_record_of_the_box_form_is_marked():
    keys = np.random.default_rng(7).standard_normal((30, D))
    keys[20:] *= 9
    index = bounds.QuantisedSketch.fit(keys, np.eye(D), 8, "box", ranges=keys[:20])
    assert (index.error[:20] == 0).all()
    assert (index.error[20:] < 0).all()


def test_a_norm_beyond_the_integer_range_is_never_ruled_out():
    queries, keys = vectors(8, "plain")
    index = bounds.IntegerSketch.fit(keys, pca(keys, 4))
    far = replace(index, error=np.full_like(index.error, 4095))
    assert (far.upper(queries) > 1e11).all()


def page_local(keys, rope, inv_freq, page, first, m, quantised, mean=False):
    local = bounds.local_frames(keys, rope, inv_freq, page, first)
    centre, basis = local.mean(axis=0) if mean else None, pca(local, m)
    inside = (
        bounds.QuantisedSketch.fit(local, basis, 4, "two", mean=centre)
        if quantised
        else bounds.ResidualSketch.fit(local, basis, mean=centre)
    )
    return bounds.PageLocalSketch(page, first, rope, inv_freq, inside)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(KINDS),
    page=st.sampled_from([1, 3, 8, 100]),
    pairing=st.sampled_from(["half", "interleaved"]),
    dims=st.sampled_from([8, 16]),
    factor=st.sampled_from([1.0, 1.3]),
    first=st.sampled_from([0, 4000, 1_000_000]),
    mean=st.booleans(),
    quantised=st.booleans(),
)
def test_page_local_frames_bound_the_rotated_product(seed, kind, page, pairing, dims, factor, first, mean, quantised):
    queries, keys = vectors(seed, kind)
    rope = Rope(dims, pairing, factor)
    inv_freq = 10000.0 ** (-np.arange(dims // 2) / (dims // 2))
    turned_q = rotate(queries, np.full(len(queries), first + 200), inv_freq, rope)
    turned_k = rotate(keys, np.arange(first, first + len(keys)), inv_freq, rope)
    index = page_local(turned_k, rope, inv_freq, page, first, 4, quantised, mean)
    assert_sound(index, turned_q, turned_k)
    assert index.bytes_per_token == (4 * 4 / 8 + 4 if quantised else 2 * 4 + 2)


def test_local_frames_are_keys_before_rotation_turned_within_their_page():
    _, keys = vectors(15, "plain")
    rope, inv_freq = rope_of(D), 100.0 ** (-np.arange(D // 2) / (D // 2))
    turned = rotate(keys, np.arange(500, 500 + len(keys)), inv_freq, rope)
    expected = rotate(keys, np.arange(len(keys)) % 5, inv_freq, rope)
    assert bounds.local_frames(turned, rope, inv_freq, 5, 500) == pytest.approx(expected, abs=1e-9)


def test_small_pages_bound_tighter_where_keys_are_of_low_rank_before_rotation():
    rng = np.random.default_rng(9)
    keys = rng.standard_normal((256, 4)) @ rng.standard_normal((4, D))
    rope, inv_freq = rope_of(D), 100.0 ** (-np.arange(D // 2) / (D // 2))
    queries = rotate(rng.standard_normal((8, D)), 300, inv_freq, rope)
    turned = rotate(keys, np.arange(256), inv_freq, rope)
    indexes = [page_local(turned, rope, inv_freq, page, 0, 4, quantised=False) for page in (1, 16, 256)]
    excess = [float(np.mean(index.upper(queries) - queries @ turned.T)) for index in indexes]
    assert excess[0] < 0.1
    assert excess == sorted(excess)
    whole = bounds.ResidualSketch.fit(turned, pca(turned, 4))
    assert indexes[2].upper(queries) == pytest.approx(whole.upper(queries), abs=1e-6)


@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_plane_norms_do_not_change_under_rotation(pairing):
    queries, keys = vectors(10, "plain")
    rope, inv_freq = Rope(12, pairing, 1.0), 10000.0 ** (-np.arange(6) / 6)
    turned = rotate(keys, np.arange(len(keys)), inv_freq, rope)
    before, after = bounds.plane_sketch(keys, rope, [0, 5]), bounds.plane_sketch(turned, rope, [0, 5])
    assert bounds.read(before.residuals) == pytest.approx(bounds.read(after.residuals), rel=2e-3)
    assert_sound(after, rotate(queries, 40, inv_freq, rope), turned)


def test_bytes_per_token_are_what_is_stored():
    _, keys = vectors(11, "plain", n=32)
    found = {name: BUILD[name](keys, 8).bytes_per_token for name in BUILD}
    assert found["residual"] == 2 * 8 + 2
    assert found["residual_blocked"] == 2 * 8 + 2 * 4
    assert found["planes"] == 4 * 4 + 2 * 4
    assert found["quantised_one8"] == 8 + 2
    assert found["quantised_two2"] == 2 + 4
    assert found["quantised_box2"] == 2 + 2
    assert found["integer"] == 8 + 2 + 2
    assert found["ellipsoids"] == (2 * D + 2) / 4
    assert found["anchored"] == 2 * 8 + 2 + 2 + 2 * D * 3 / 32


def fitted(kind, m, keys, queries, **more):
    return bases.fitted_basis(kind, keys, queries, m, **more)


@pytest.mark.parametrize("kind", ["random", "pca", "query", "symmetric", "summed"])
@pytest.mark.parametrize("centred", [False, True])
def test_bases_are_orthonormal(kind, centred):
    queries, keys = vectors(12, "outliers")
    basis = fitted(kind, 5, keys.reshape(4, 6, D), queries, centred=centred)
    assert basis.shape == (D, 5)
    assert basis.T @ basis == pytest.approx(np.eye(5), abs=1e-12)


def test_bases_find_the_directions_that_they_are_after():
    rng = np.random.default_rng(13)
    keys, queries = rng.standard_normal((500, D)) * 0.1, rng.standard_normal((500, D)) * 0.1
    keys[:, 0] *= 100
    queries[:, 1] *= 100
    keys[:, 2] *= 40
    queries[:, 2] *= 40
    axis = {
        kind: int(np.argmax(np.abs(fitted(kind, 1, keys, queries)[:, 0]))) for kind in ("pca", "query", "symmetric")
    }
    assert axis == {"pca": 0, "query": 1, "symmetric": 2}
    assert set(np.argmax(np.abs(fitted("summed", 2, keys, queries)), axis=0)) == {0, 1}


def test_centred_principal_directions_ignore_the_mean():
    keys = np.random.default_rng(14).standard_normal((300, D)) * np.linspace(1, 3, D)
    shifted = keys + 100 * np.eye(D)[0]
    assert np.abs(bases.principal_basis(shifted, 1)[0, 0]) > 0.99
    assert np.abs(bases.principal_basis(shifted, 1, centred=True)[0, 0]) < 0.5
