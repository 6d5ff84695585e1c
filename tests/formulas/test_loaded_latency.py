"""The fitted loaded-latency shapes of whole memory systems."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.timing.loaded import CXL_THROTTLED, DRAM, latency_ns

SHAPES = [DRAM, CXL_THROTTLED]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_idle_system_has_its_idle_latency(shape):
    assert latency_ns(122.4, 0.0, 0.5, shape) == pytest.approx(122.4)


@given(
    loads=st.lists(st.floats(0, 1.5), min_size=2, max_size=6),
    reads=st.floats(0, 1),
    shape=st.sampled_from(SHAPES),
)
def test_more_load_never_shortens_latency(loads, reads, shape):
    latencies = [latency_ns(100, load, reads, shape) for load in sorted(loads)]
    assert latencies == sorted(latencies)


@given(load=st.floats(0, 1), fractions=st.tuples(st.floats(0, 1), st.floats(0, 1)), shape=st.sampled_from(SHAPES))
def test_more_writes_never_shorten_latency(load, fractions, shape):
    fewer, more = sorted(fractions)
    assert latency_ns(100, load, fewer, shape) >= latency_ns(100, load, more, shape)


def test_a_throttled_requester_never_sees_the_knee_of_a_full_medium():
    assert latency_ns(100, 0.95, 1.0, CXL_THROTTLED) < 1.2 * 100 < 1.6 * 100 < latency_ns(100, 0.95, 1.0, DRAM)
