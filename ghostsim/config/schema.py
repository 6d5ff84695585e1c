"""JSON Schemas of the written form, for editors: names, `extends`, sourced numbers and short forms included."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, TypeAdapter

from ghostsim.config import fields
from ghostsim.config.base import Confidence
from ghostsim.config.formats import Format
from ghostsim.config.policy import Keep
from ghostsim.config.scenario import Run, Workload
from ghostsim.config.settings import SHARED
from ghostsim.errors import UsageError

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAME: Schema = {"type": "string", "minLength": 1, "description": "file or bundled name"}
_EXTENDS: Schema = {"anyOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1}]}
_OVERRIDE = "Override"
_SIDES = [kind.__name__ for kind in fields.models(Format.model_fields["k"].annotation)]
_SHORT_FORMS: Mapping[tuple[type[BaseModel], str], Schema] = {
    (Keep, "select"): {"const": "all"},
    (Keep, "format"): {"anyOf": [{"const": "fp16"}, *({"$ref": f"#/$defs/{name}"} for name in _SIDES)]},
    (Workload, "trace"): {"type": "string"},
}
"""What validators accept besides the type of a field."""


def schemas() -> dict[str, Schema]:
    """Return the JSON Schema of each kind of document by its name."""
    return {kind: _schema(kind, root) for kind, root in fields.ROOTS.items()}


def write_schemas(folder: Path) -> list[Path]:
    """Write ``KIND.schema.json`` for each kind of document; return the files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: found {folder}, expected a folder that can be written: {error.strerror}") from None
    paths = []
    for kind, schema in schemas().items():
        path = folder / f"{kind}.schema.json"
        path.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def _schema(kind: str, root: Any) -> Schema:
    generated = TypeAdapter(root).json_schema(by_alias=True)
    reached = {model.__name__: model for model in _reachable(root)}
    top = fields.models(root)
    inner = generated.pop("$defs", {})
    if len(top) == 1:
        inner[top[0].__name__] = generated
    whole = {name: _written(schema, reached[name]) for name, schema in inner.items()}
    parts = {f"{name}Override": _override(schema) for name, schema in whole.items()}
    choices = [{"$ref": f"#/$defs/{model.__name__}"} for model in top]
    start: Schema = choices[0] if len(choices) == 1 else {"anyOf": choices}
    known = {**{name: _whole_or_extended(name, schema) for name, schema in whole.items()}, **parts}
    return {"$schema": _DIALECT, "title": f"ghostsim {kind}", **start, "$defs": _used(start, known)}


def _reachable(annotation: Any, seen: set[type[BaseModel]] | None = None) -> Iterator[type[BaseModel]]:
    seen = set() if seen is None else seen
    for part in fields.options(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel) and part not in seen:
            seen.add(part)
            yield part
            for info in part.model_fields.values():
                yield from _reachable(info.annotation, seen)
        elif get_origin(part) in (dict, tuple):
            for argument in get_args(part):
                yield from _reachable(argument, seen)


def _written(schema: Schema, model: type[BaseModel]) -> Schema:
    infos = fields.fields(model)
    properties = {key: _field(model, key, infos[key].annotation, value) for key, value in schema["properties"].items()}
    return {**schema, "properties": {**properties, "extends": _EXTENDS}}


def _field(model: type[BaseModel], key: str, annotation: Any, schema: Schema) -> Schema:
    written = _any_of(schema)
    if model is Run and key in SHARED:
        return _either(_NAME, _renamed(written))
    if (model, key) in _SHORT_FORMS:
        return _either(_SHORT_FORMS[(model, key)], written)
    if fields.holds_hardware_number(model, key):
        return _either(written, _sourced(written))
    if fields.is_table(annotation):
        values = get_args(next(fields.options(annotation)))[1]
        entry = written.get("additionalProperties")
        return {**written, "additionalProperties": _named(values, entry)} if isinstance(entry, dict) else written
    return _named(annotation, written)


def _named(annotation: Any, schema: Schema) -> Schema:
    """Add the short forms of a choice or of a document."""
    if fields.document_kind(annotation):
        return _either(_NAME, schema)
    tags = fields.tags(annotation)
    return _either({"enum": tags}, schema) if len(tags) > 1 else schema


def _either(one: Schema, two: Schema) -> Schema:
    return {"anyOf": [one, *(two["anyOf"] if set(two) == {"anyOf"} else [two])]}


def _sourced(schema: Schema) -> Schema:
    text = {"type": "string", "minLength": 1}
    properties = {"value": schema, "source": text, "confidence": {"enum": list(get_args(Confidence))}}
    return {"type": "object", "properties": properties, "required": ["value"], "additionalProperties": False}


def _any_of(schema: Any) -> Any:
    """Let several members of a choice fit: what tells them apart may come from `extends`."""
    if isinstance(schema, list):
        return [_any_of(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {("anyOf" if key == "oneOf" else key): _any_of(value) for key, value in schema.items()}
    return {key: value for key, value in kept.items() if key not in ("discriminator", "title")}


def _renamed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_renamed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"{value.removesuffix(_OVERRIDE)}{_OVERRIDE}" if key == "$ref" else _renamed(value)
        for key, value in schema.items()
    }


def _override(schema: Schema) -> Schema:
    kept = {key: value for key, value in schema.items() if key != "required"}
    renamed: Schema = _renamed(kept)
    return renamed


def _whole_or_extended(name: str, schema: Schema) -> Schema:
    """A mapping has all that is required, or it extends another and holds what differs."""
    shared = SHARED if name == Run.__name__ else ()
    required = [key for key in schema.get("required", ()) if key not in shared]
    whole = {**schema, "required": required}
    return {"anyOf": [whole, {"$ref": f"#/$defs/{name}Override", "required": ["extends"]}]} if required else schema


def _used(start: Any, known: Mapping[str, Schema]) -> dict[str, Schema]:
    used: dict[str, Schema] = {}
    waiting = list(_references(start))
    while waiting:
        name = waiting.pop().rpartition("/")[2]
        if name not in used:
            used[name] = known[name]
            waiting.extend(_references(known[name]))
    return dict(sorted(used.items()))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for entry in schema:
            yield from _references(entry)
