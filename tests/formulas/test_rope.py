"""Does rotation follow the published formula, in both pairings?"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.trace.format import Rope
from ghostsim.trace.rope import BLOCK, Turner, angles, rotate

D = 16
FREQ = 10_000.0 ** (-np.arange(D // 2) / (D // 2))
positions = st.integers(0, 1 << 20)
pairings = st.sampled_from(["half", "interleaved"])


def vectors(seed, n=2, d=D):
    return np.random.default_rng(seed).standard_normal((n, d))


def as_complex(x, rope):
    """The pairs of x as complex numbers; rotation by an angle is then a product with exp(i angle)."""
    part = x[..., : rope.dims]
    if rope.pairing == "half":
        return part[..., : rope.dims // 2] + 1j * part[..., rope.dims // 2 :]
    return part[..., ::2] + 1j * part[..., 1::2]


@given(positions, pairings, st.integers(0, 99))
def test_rotation_is_a_complex_product(position, pairing, seed):
    rope = Rope(D, pairing, 1.0)
    x = vectors(seed)
    turned = rotate(x, position, FREQ, rope)
    expected = as_complex(x, rope) * np.exp(1j * position * FREQ)
    np.testing.assert_allclose(as_complex(turned, rope), expected, atol=1e-12)


@given(positions, positions, st.integers(0, 5000), pairings, st.integers(0, 99))
def test_score_depends_on_the_distance_only(a, b, distance, pairing, seed):
    rope = Rope(D, pairing, 1.0)
    q, k = vectors(seed)
    scores = [rotate(q, p + distance, FREQ, rope) @ rotate(k, p, FREQ, rope) for p in (a, b)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-8)


@given(positions, pairings, st.sampled_from([2, 8, D]))
def test_only_the_first_dims_turn_and_norms_stay(position, pairing, dims):
    rope = Rope(dims, pairing, 1.0)
    x = vectors(position)
    turned = rotate(x, position, FREQ[: dims // 2], rope)
    np.testing.assert_array_equal(turned[:, dims:], x[:, dims:])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(x, axis=1), rtol=1e-12)


def test_attention_factor_scales_the_turned_dimensions_only():
    x = vectors(3)
    plain = rotate(x, 7, FREQ[:4], Rope(8, "half", 1.0))
    scaled = rotate(x, 7, FREQ[:4], Rope(8, "half", 1.5))
    np.testing.assert_allclose(scaled[:, :8], 1.5 * plain[:, :8], rtol=1e-15)
    np.testing.assert_array_equal(scaled[:, 8:], x[:, 8:])


def test_quarter_turn_by_hand():
    half = rotate(np.array([1.0, 2.0, 3.0, 4.0]), 1, [np.pi / 2, 0.0], Rope(4, "half", 1.0))
    np.testing.assert_allclose(half, [-3, 2, 1, 4], atol=1e-15)
    interleaved = rotate(np.array([1.0, 2.0, 3.0, 4.0]), 1, [np.pi / 2, 0.0], Rope(4, "interleaved", 1.0))
    np.testing.assert_allclose(interleaved, [-2, 1, 3, 4], atol=1e-15)


def test_without_rope_nothing_turns_and_the_input_is_copied():
    x = vectors(1)
    same = rotate(x, 5, None, None)
    np.testing.assert_array_equal(same, x)
    assert not np.shares_memory(same, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_result_has_the_type_asked_for(dtype):
    x = vectors(2).astype(np.float16)
    assert rotate(x, np.arange(2), FREQ, Rope(D, "half", 1.0), dtype).dtype == dtype
    assert angles([0, 1], FREQ, dtype)[0].dtype == dtype


@pytest.mark.parametrize("base", [0, 5, 131_071, (1 << 20) - 700])
@pytest.mark.parametrize("pairing", ["half", "interleaved"])
def test_runs_without_a_table_agree_with_the_reference(base, pairing):
    rope = Rope(D, pairing, 1.0)
    x = vectors(base, n=BLOCK + 133)
    exact = rotate(x, base + np.arange(len(x)), FREQ, rope)
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 2e-6)):
        run = x.astype(dtype)
        Turner(FREQ, rope).turn_run(run, base)
        np.testing.assert_allclose(run, exact, atol=tolerance)
