"""Do the JSON Schemas accept what is bundled as it is written, and refuse what is misspelt?"""

import json
import re

import pytest

from ghostsim.config import catalogue
from ghostsim.config.catalogue import FOLDERS
from ghostsim.config.document import read
from ghostsim.config.schema import schemas, write_schemas

SCHEMAS = schemas()
DOCUMENTS = [(kind, name) for kind in FOLDERS for name in catalogue.files(kind)]
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "null": type(None),
    "number": (int, float),
    "integer": int,
}
IGNORED = {"$schema", "$defs", "title", "description", "default", "examples", "format"}


def accepts(schema, value, root):
    """Tell whether a schema accepts a value; a keyword that is not known here is an error."""
    if schema is True:
        return True
    return all(RULES[key](given, value, schema, root) for key, given in schema.items() if key not in IGNORED)


def type_fits(name, value):
    return isinstance(value, TYPES[name]) and not (isinstance(value, bool) and name in ("number", "integer"))


def properties_fit(schema, value, root):
    if not isinstance(value, dict):
        return True
    known, rest = dict(schema.get("properties", {})), schema.get("additionalProperties", True)
    for pattern, given in schema.get("patternProperties", {}).items():
        known.update({key: given for key in value if re.search(pattern, key)})
    fits = (
        accepts(known[key], entry, root) if key in known else rest and accepts(rest, entry, root)
        for key, entry in value.items()
    )
    return all(fits)


def items_fit(schema, value, root):
    if not isinstance(value, list):
        return True
    first = schema.get("prefixItems", [])
    rest = schema.get("items", True)
    return all(accepts(first[i] if i < len(first) else rest, entry, root) for i, entry in enumerate(value))


def is_number(value):
    return type_fits("number", value)


RULES = {
    "$ref": lambda given, value, _, root: accepts(root["$defs"][given.rpartition("/")[2]], value, root),
    "anyOf": lambda given, value, _, root: any(accepts(option, value, root) for option in given),
    "type": lambda given, value, *_: type_fits(given, value),
    "enum": lambda given, value, *_: value in given,
    "const": lambda given, value, *_: value == given,
    "pattern": lambda given, value, *_: not isinstance(value, str) or re.search(given, value) is not None,
    "minLength": lambda given, value, *_: not isinstance(value, str) or len(value) >= given,
    "maxLength": lambda given, value, *_: not isinstance(value, str) or len(value) <= given,
    "minItems": lambda given, value, *_: not isinstance(value, list) or len(value) >= given,
    "maxItems": lambda given, value, *_: not isinstance(value, list) or len(value) <= given,
    "minProperties": lambda given, value, *_: not isinstance(value, dict) or len(value) >= given,
    "minimum": lambda given, value, *_: not is_number(value) or value >= given,
    "maximum": lambda given, value, *_: not is_number(value) or value <= given,
    "exclusiveMinimum": lambda given, value, *_: not is_number(value) or value > given,
    "exclusiveMaximum": lambda given, value, *_: not is_number(value) or value < given,
    "required": lambda given, value, *_: not isinstance(value, dict) or set(given) <= set(value),
    "properties": lambda _, value, schema, root: properties_fit(schema, value, root),
    "additionalProperties": lambda _, value, schema, root: properties_fit(schema, value, root),
    "patternProperties": lambda _, value, schema, root: properties_fit(schema, value, root),
    "propertyNames": lambda given, value, _, root: (
        not isinstance(value, dict) or all(accepts(given, key, root) for key in value)
    ),
    "items": lambda _, value, schema, root: items_fit(schema, value, root),
    "prefixItems": lambda _, value, schema, root: items_fit(schema, value, root),
}


def written(kind, name):
    return read(catalogue.files(kind)[name])[0].plain()


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_what_is_bundled_is_accepted_as_it_is_written(kind, name):
    assert accepts(SCHEMAS[kind], written(kind, name), SCHEMAS[kind])


@pytest.mark.parametrize(("kind", "name"), DOCUMENTS)
def test_an_unknown_key_is_refused(kind, name):
    assert not accepts(SCHEMAS[kind], {**written(kind, name), "no_such_key": 1}, SCHEMAS[kind])


@pytest.mark.parametrize("text", ["80 ns", {"value": "80 ns", "source": "s", "confidence": "assumed"}])
def test_a_number_may_be_bare_or_sourced(text):
    part = {**written("part", "cxl3_expander_filter"), "controller": text}
    assert accepts(SCHEMAS["part"], part, SCHEMAS["part"])


@pytest.mark.parametrize(
    "text", ["80", 80, "80 GB", {"value": "80 ns", "unit": "ns"}, {"value": "80 ns", "confidence": "sure"}]
)
def test_a_number_with_a_wrong_unit_or_a_wrong_form_is_refused(text):
    part = {**written("part", "cxl3_expander_filter"), "controller": text}
    assert not accepts(SCHEMAS["part"], part, SCHEMAS["part"])


@pytest.mark.parametrize("extends", ["h100_sxm", ["h100_sxm", "./mine.yaml"]])
def test_what_extends_another_may_leave_keys_out(extends):
    assert accepts(SCHEMAS["part"], {"extends": extends, "name": "mine"}, SCHEMAS["part"])
    assert not accepts(SCHEMAS["part"], {"kind": "gpu", "name": "mine"}, SCHEMAS["part"])


def test_a_run_may_override_a_piece_of_the_platform():
    scenario = written("scenario", "cxl_pim")
    run = {"policy": "full", "platform": {"links": {"cxl0": {"width": 4}}}}
    assert accepts(SCHEMAS["scenario"], {**scenario, "runs": {"a": run}}, SCHEMAS["scenario"])
    run["platform"]["links"]["cxl0"]["widht"] = 4
    assert not accepts(SCHEMAS["scenario"], {**scenario, "runs": {"a": run}}, SCHEMAS["scenario"])


def test_schemas_are_written_one_file_a_kind(tmp_path):
    paths = write_schemas(tmp_path / "schemas")
    assert sorted(path.name for path in paths) == sorted(f"{kind}.schema.json" for kind in SCHEMAS)
    assert all(json.loads(path.read_text(encoding="utf-8"))["$defs"] for path in paths)
