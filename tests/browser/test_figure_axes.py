"""Can a logarithmic axis be read, however narrow its range?"""

import math

from hypothesis import given
from hypothesis import strategies as st

from ghostsim.report.figure import log_axis


@given(st.floats(1e-6, 1e12), st.floats(1, 300))
def test_ticks_are_few_distinct_and_on_the_axis(low, span):
    axis = log_axis("x", [low, low * span])
    begin, end = axis["range"]
    assert 2 <= len(axis["tickvals"]) <= 10
    assert all(begin - 1e-9 <= math.log10(tick) <= end + 1e-9 for tick in axis["tickvals"])
    assert len(set(axis["ticktext"])) == len(axis["ticktext"])


def test_axis_without_values_still_has_a_range():
    begin, end = log_axis("x", [None, 0.0])["range"]
    assert begin < 0 < end
