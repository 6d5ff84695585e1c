"""Does text become the values that YAML 1.2 means, with their places, and nothing else?"""

import contextlib
import math
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.config.document import MAX_BYTES, dump, make, parse, read, resolve
from ghostsim.errors import ConfigError, Location
from ghostsim.units import BANDWIDTH, BYTES, DURATION, Dimension


def value_of(text: str) -> object:
    return parse(f"a: {text}", "f").plain()["a"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e9", 1e9),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("+3", 3),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("no", "no"),
        ("y", "y"),
        ("16:30", "16:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("'1e9'", "1e9"),
        ('"null"', "null"),
        ("=", "="),
    ],
)
def test_a_plain_scalar_means_what_the_core_schema_says(text, value):
    found = value_of(text)
    assert found == value
    assert type(found) is type(value)


def test_places_are_those_of_values_and_keys():
    root = parse("a: 1\nb:\n  - x\n  - c: {d: e}\n", "f.yaml")
    marks = dict(root.marks())
    assert marks[("a",)] == Location("f.yaml", 1, 4)
    assert marks[("b", 1, "c", "d")] == Location("f.yaml", 4, 12)
    assert root.keys["b"] == Location("f.yaml", 2, 1)


def test_an_alias_is_a_copy():
    assert parse("a: &x {n: 1}\nb: *x\n", "f").plain() == {"a": {"n": 1}, "b": {"n": 1}}


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read(file)[0].plain() == {"a": 1}


@pytest.mark.parametrize(
    ("text", "words", "place"),
    [
        ("a: 1\na: 2\n", "the key 'a' again", ":2:1"),
        ("a: {b: 1, b: 2}\n", "the key 'b' again", ":1:11"),
        ("1: a\n", "the key '1'", ":1:1"),
        ("true: a\n", "the key 'true'", ":1:1"),
        ("? [a]\n: b\n", "a list or mapping as key", ":1:3"),
        ("a: !!python/name:os.system x\n", "the tag", ":1:4"),
        ("a: !custom {}\n", "the tag", ":1:4"),
        ("a: !!float 3\n", "the tag", ":1:4"),
        ("a: .nan\n", "expected a finite number", ":1:4"),
        ("a: -.Inf\n", "expected a finite number", ":1:4"),
        ("a: 1e999\n", "expected a finite number", ":1:4"),
        ("a: " + "9" * 5000, "5000 digits", ":1:4"),
        ("a: *b\n", "alias *b", ":1:4"),
        ("a: &a [*a]\n", "no recursion", ":1:8"),
        ("a: &a {b: *a}\n", "no recursion", ":1:11"),
        ("a:\n\t- b\n", "bad YAML", ":2:1"),
        ("a: [1, 2\n", "bad YAML", ":2:1"),
        ("a: b: c\n", "bad YAML", ":1:5"),
        ("a: 'b\n", "bad YAML", ":2:1"),
        ("a: 1\n---\nb: 2\n", "a second document", ":2:1"),
        ("# nothing\n", "an empty document", ":2:1"),
        ("a: \x07\n", "U+0007", ":1:4"),
        ("[" * 200 + "]" * 200, "nesting deeper", ":1:65"),
        ("a: " + "{a: " * 5000, "nesting deeper", ":1:"),
        ("@a: 1\n", "bad YAML", ":1:1"),
        ("%FOO\n", "bad YAML", ":"),
    ],
)
def test_bad_text_is_refused_at_its_place(text, words, place):
    with pytest.raises(ConfigError) as caught:
        parse(text, "f.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"f.yaml{place}")
    assert "\n" not in str(caught.value)


def test_an_alias_bomb_is_refused_before_it_unfolds():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="values when unfolded"):
        parse("\n".join(lines), "f.yaml")


def test_files_that_hold_no_text_are_refused(tmp_path):
    cases = {
        "empty.yaml": (b"", "an empty file"),
        "spaces.yaml": (b" \n\n", "an empty file"),
        "binary.yaml": (b"\x7fELF\x00\x01\xff\xfe", "expected"),
        "latin.yaml": ("a: 1\nb: é".encode("latin-1"), "not UTF-8"),
        "utf16.yaml": ("a: 1".encode("utf-16"), "not UTF-8"),
        "large.yaml": (b"a: 1\n" + b"#" * MAX_BYTES, "expected a smaller one"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=words) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}:")


def test_a_line_of_bad_bytes_is_named(tmp_path):
    file = tmp_path / "latin.yaml"
    file.write_bytes("a: 1\nb: é".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml:2:4:"):
        read(file)


@pytest.mark.parametrize("name", ["missing.yaml", "", "a" * 300 + ".yaml", "nul\0.yaml"])
def test_what_is_no_file_is_refused(tmp_path, name):
    with pytest.raises(ConfigError):
        read(tmp_path / name)


def test_a_device_file_is_refused_without_reading_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        read(tmp_path / "pipe.yaml")


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=20),
    st.sampled_from(
        ["1e9", "017", "0x1", "on", "no", "null", "~", "", "16:30", "1_0", ".nan", ".inf", "a: b", "# c", "-"]
    ),
)
_TREES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab1.e-_ ", max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["a", "b c", "1", "true", "1e3", "~"]), _TREES, min_size=1, max_size=4))
def test_what_is_dumped_is_read_back_equal(tree):
    assert parse(dump(tree), "f").plain() == tree


@given(st.text("abc: \n-[]{},&*!#'\"|>%@`1.e\t", max_size=60))
def test_any_text_is_a_document_or_a_config_error(text):
    with contextlib.suppress(ConfigError):
        parse(text, "f")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_resolved_exactly(number):
    assert resolve(repr(number)) == number


def test_not_a_number_is_no_string():
    assert math.isnan(float(resolve(".nan")))


def test_dumps_are_safe_yaml_to_others():
    tree = {"a": ["1e9", "on", None, 1.5], "b": {"c": {}}}
    assert yaml.safe_load(dump(tree)) == tree


def test_nodes_of_plain_data_are_that_data():
    tree = {"a": [1, {"b": None}], "c": "x"}
    assert make(tree, Location("f")).plain() == tree


@pytest.mark.parametrize("dimension", [BYTES, BANDWIDTH, DURATION])
@given(st.integers(0, 10**15))
def test_a_formatted_quantity_parses_to_itself(dimension: Dimension, value: int):
    within = value if value == 0 else max(value, int(dimension.least))
    assert dimension.parse(dimension.format(within)) == within
