"""Writes out the defaults of a valid document, so that the effective form shows everything that counts."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from ghostsim.config import fields
from ghostsim.config.document import Node, make
from ghostsim.config.expand import sourced
from ghostsim.config.scenario import Run

_OPEN = ("model", "platform", "workload", "serving")


def with_defaults(node: Node, annotation: Any) -> Node:
    """Return a valid document with its defaults; a hardware number says that it is one."""
    if isinstance(node.value, tuple):
        items = (with_defaults(item, fields.child(annotation, node, i)) for i, item in enumerate(node.value))
        return Node(tuple(items), node.at)
    if not isinstance(node.value, Mapping) or "value" in node.map:
        return node
    model = fields.model_of(annotation, node)
    entries = {key: _below(node, key, annotation, model) for key in node.map}
    missing = _defaults(node, model) if model else {}
    return node.replace({**entries, **missing}, {**dict.fromkeys(missing, node.at), **node.keys})


def _below(node: Node, key: str, annotation: Any, model: type[BaseModel] | None) -> Node:
    value = node.map[key]
    partial = model is Run and key in _OPEN and "kind" not in value.map
    return value if partial else with_defaults(value, fields.child(annotation, node, key))


def _defaults(node: Node, model: type[BaseModel]) -> dict[str, Node]:
    infos = fields.fields(model).items()
    return {key: _default(node, model, key, info) for key, info in infos if key not in node.map and _says(key, info)}


def _says(key: str, info: FieldInfo) -> bool:
    return not info.is_required() and info.default is not None and key not in ("schema", "summary")


@cache
def _field_type(annotation: Any, metadata: tuple[Any, ...]) -> TypeAdapter[Any]:
    return TypeAdapter(Annotated[annotation, *metadata] if metadata else annotation)


def _written(info: FieldInfo) -> TypeAdapter[Any]:
    """Return what writes a value of a field as a document has it, with its unit."""
    annotation: Any = info.annotation
    return _field_type(annotation, tuple(info.metadata))


def _default(node: Node, model: type[BaseModel], key: str, info: FieldInfo) -> Node:
    plain = _written(info).dump_python(info.default, mode="json", by_alias=True)
    value = make(plain, node.at)
    return sourced(value, "default of ghostsim") if fields.is_quantity(model, node, key) else value
