"""Are points drawn from the ranges that were asked for, and the same ones each time?"""

import math

import pytest

from ghostsim.config.ranges import Range, Sample, value_at
from ghostsim.config.search import number_at, parse_bound
from ghostsim.config.sweep import Sweep

RATE = "10 GB/s"


def sample(n, seed=1, **fields):
    return Sample(n=n, seed=seed, fields=fields)


@pytest.mark.parametrize(
    ("low", "high", "scale", "middle"),
    [
        (1, 5, "linear", 3),
        (0.5, 1.5, "linear", 1.0),
        (1.0, 100.0, "log", 10.0),
        (RATE, "1 TB/s", "log", "100 GB/s"),
        ("1 GiB", "3 GiB", "linear", "2 GiB"),
        ("100 ns", "1 us", "linear", "550 ns"),
    ],
)
def test_the_middle_of_a_range_is_in_the_unit_of_its_lower_end(low, high, scale, middle):
    assert Range(**{"from": low, "to": high, "scale": scale}).at(0.5) == middle


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_both_ends_of_a_whole_range_are_drawn(scale):
    drawn = sample(200, a=Range(**{"from": 1, "to": 4, "scale": scale})).points(stratified=False)
    assert {point["a"] for point in drawn} == {1, 2, 3, 4}


def test_a_quantity_stays_inside_its_range():
    axis = Range(**{"from": "1.0000001 GB/s", "to": "1.0000002 GB/s"})
    values = [float(str(value_at(axis, i / 10)).split()[0]) for i in range(10)]
    assert all(1 <= value <= 1.0000003 for value in values)


def test_a_latin_hypercube_puts_one_point_into_each_part_of_each_range():
    axes = {"a": Range(**{"from": 0.0, "to": 8.0}), "b": Range(**{"from": 1.0, "to": 256.0, "scale": "log"})}
    points = sample(8, **axes).points(stratified=True)
    assert sorted(int(point["a"]) for point in points) == list(range(8))
    assert sorted(int(math.log2(point["b"])) for point in points) == list(range(8))


def test_choices_are_drawn_evenly_by_a_latin_hypercube():
    points = sample(9, a=["x", "y", "z"]).points(stratified=True)
    assert sorted(point["a"] for point in points) == ["x"] * 3 + ["y"] * 3 + ["z"] * 3


def test_a_seed_draws_the_same_points_and_another_seed_others():
    axis = Range(**{"from": 0.0, "to": 1.0})
    one, again, other = (sample(5, seed, a=axis).points(stratified=False) for seed in (1, 1, 2))
    assert one == again != other


def test_another_field_moves_no_field():
    axis = Range(**{"from": 0.0, "to": 1.0})
    alone, beside = sample(5, a=axis).points(stratified=True), sample(5, a=axis, b=axis).points(stratified=True)
    assert [point["a"] for point in alone] == [point["a"] for point in beside]
    assert [point["a"] for point in beside] != [point["b"] for point in beside]


def test_paths_of_one_key_change_together():
    points = sample(5, **{"a.x, b.x": Range(**{"from": 0.0, "to": 1.0})}).points(stratified=False)
    assert all(point["a.x"] == point["b.x"] for point in points)


def test_what_is_drawn_is_crossed_with_the_other_axes():
    drawn = {"n": 3, "fields": {"b": [1, 2]}}
    sweep = Sweep(scenario="s", grid={"a": (1, 2)}, random=drawn, latin_hypercube={"n": 2, "fields": {"c": [5]}})
    assert sweep.size == len(sweep.expand()) == 12
    assert list(sweep.expand()[0]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "sign", "factor", "other"),
    [
        ("a.step_ms.p95 <= 1.1 * b.step_ms.p95", "<=", 1.1, "b.step_ms.p95"),
        ("a.tokens_per_s>b.tokens_per_s", ">", 1.0, "b.tokens_per_s"),
        ("a.batch >= 1e3", ">=", 1000.0, None),
        ("platform.devices.x.macs < 2 TMAC/s", "<", 2e12, None),
    ],
)
def test_a_bound_is_read(text, sign, factor, other):
    bound = parse_bound(text)
    assert (bound.sign, bound.factor, bound.other) == (sign, factor, other)


@pytest.mark.parametrize("text", ["a.b", "a.b <= ", "a.b == c", "a.b <= 2 furlongs", "a.b <= c * 2", "<= 3"])
def test_a_text_that_is_no_bound_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        parse_bound(text)


def test_a_number_of_a_document_is_in_base_units():
    document = {"a": {"rate": {"value": "2 GB/s", "source": "s"}, "list": [{"b": 3}], "word": "x"}}
    assert [number_at(document, path) for path in ("a.rate", "a.list.0.b", "a.word", "a.no.such")] == [
        2e9, 3.0, None, None]  # fmt: skip
