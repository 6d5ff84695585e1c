"""Do expressions say what they seem to, and nothing else?"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.config.expressions import Columns, evaluate, names, parse

SCOPE = {
    "grid": Columns({"a.step_ms.p95": [1.0, 4.0, 9.0], "b.step_ms.p95": [2.0, 2.0, 3.0], "size": [8.0, 16.0, 32.0],
                     "kind": ["x", "y", "x"], "b.lost": [None, 1.0, 2.0]}),
    "run": {"runs": {"a": {"p50": 3.5}}, "a key": {"points": [{"n": 1, "at": None}, {"n": 5, "at": 2}]}},
    "ratio": np.array([1.0, 2.0]),
}  # fmt: skip


def of(text):
    return evaluate(parse(text), SCOPE)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("131072 * 32 * 2 * 128 * 2 / 1e9", 131072 * 32 * 2 * 128 * 2 / 1e9),
        ("max(grid.a.step_ms.p95 / grid.b.step_ms.p95)", 3.0),
        ("max(grid.a.step_ms.p95[grid.size >= 16] / grid.b.step_ms.p95[grid.size >= 16])", 3.0),
        ("sum(grid.a.step_ms.p95[(grid.size < 32) & (grid.kind == 'x')])", 1.0),
        ("len(grid.size[(grid.size < 9) | (grid.size > 30)])", 2),
        ("grid.size[-1] - grid.size[0]", 24.0),
        ("run.runs.a.p50", 3.5),
        ('run["a key"].points.n[1]', 5),
        ('max(run["a key"].points.n)', 5),
        ("min(3, 2, 7)", 2),
        ("min(max(ratio), 1.5)", 1.5),
        ("8 < grid.size[1] <= 16", True),
        ("not (1 > 2) and 2 ** 3 == 8", True),
        ("any(grid.size > 31) and all(grid.size > 7)", True),
        ("grid.size[argmax(grid.a.step_ms.p95)]", 32.0),
        ("median(grid.a.step_ms.p95)", 4.0),
    ],
)
def test_the_value_is_that_of_numpy(text, value):
    assert of(text) == value


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "open('x')", "(lambda: 1)()", "[x for x in grid]", "grid.size.__class__()", "f'{ratio}'",
     "max(ratio, key=len)", "", "1 +", "max()", "1 if ratio else 2", "None", "x := 3", "*ratio", "a" * 3000],
)  # fmt: skip
def test_nothing_else_is_an_expression(text):
    with pytest.raises(ValueError, match="expected"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid.c.step_ms.p95", r"no column 'c.step_ms.p95' in grid, expected e.g. a.step_ms.p95"),
        ("run.runs.b.p50", r"no 'b' in run.runs, expected a"),
        ("grid.size[7]", "does not fit"),
        ("grid.kind + 1", "does not fit"),
        ("max(grid.size[grid.size > 99])", "nothing is left"),
        ("1 / 0", "does not fit"),
        ("ratio.__class__", "no '__class__'"),
    ],
)
def test_a_path_or_an_operation_that_fails_says_which(text, told):
    with pytest.raises(ValueError, match=told):
        of(text)


def test_a_missing_number_is_not_left_out_silently():
    assert math.isnan(of("max(grid.b.lost)"))


def test_names_are_those_from_outside():
    assert names(parse("max(grid.size) + run.x + min(a, b)")) == {"grid", "run", "a", "b"}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(-1e6, 1e6))
def test_a_mask_keeps_what_a_loop_keeps(values, limit):
    found = evaluate(parse("t.x[t.x >= limit]"), {"t": Columns(x=values), "limit": limit})
    assert list(found) == [value for value in values if value >= limit]
