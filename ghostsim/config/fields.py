"""Walks the models beside a document: which model describes which mapping, and what a field holds."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ghostsim.config.base import Block, holds_number
from ghostsim.config.document import Node
from ghostsim.config.finding import Finding
from ghostsim.config.hardware import AnyPart, Part, Platform
from ghostsim.config.model import Model
from ghostsim.config.outside import Outside
from ghostsim.config.policy import Policy
from ghostsim.config.scenario import Scenario
from ghostsim.config.search import Search
from ghostsim.config.sweep import Sweep

ROOTS: Mapping[str, Any] = {
    "scenario": Scenario,
    "policy": Policy,
    "platform": Platform,
    "part": AnyPart,
    "model": Model,
    "sweep": Sweep,
    "search": Search,
    "finding": Finding,
    "outside": Outside,
}
"""The model of each kind of document."""


def options(annotation: Any) -> Iterator[Any]:
    """Yield the alternatives of a type without `Annotated` and `None`."""
    if get_origin(annotation) is Annotated:
        yield from options(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from options(part)
    elif annotation is not type(None) and annotation is not None:
        yield annotation


def models(annotation: Any) -> list[type[BaseModel]]:
    """Return the models among the alternatives of a type."""
    known = _MODELS.get(id(annotation))
    if known is None:
        found = [part for part in options(annotation) if isinstance(part, type) and issubclass(part, BaseModel)]
        known = _MODELS[id(annotation)] = annotation, found
    return known[1]


_MODELS: dict[int, tuple[Any, list[type[BaseModel]]]] = {}
"""What `models` found, by the identity of the type, which lives on here: not every type has a hash."""


@cache
def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a model by the name they have in a document."""
    return {info.alias or name: info for name, info in model.model_fields.items()}


def document_kind(annotation: Any) -> str | None:
    """Say which kind of document a name in this field refers to, if it may be a name."""
    for kind, root in ROOTS.items():
        if kind != "part" and root in models(annotation):
            return kind
    return "part" if any(issubclass(model, Part) for model in models(annotation)) else None


def model_of(annotation: Any, node: Node) -> type[BaseModel] | None:
    """Choose the model of a mapping: by `kind`, else by the first key that is one's own."""
    found = models(annotation)
    if len(found) < 2:
        return found[0] if found else None
    kind = node.map.get("kind")
    if kind is not None:
        return next((model for model in found if _is_kind(model, kind.value)), None)
    first = next(iter(node.map), None)
    return next((model for model in found if first is not None and next(iter(fields(model)), None) == first), None)


def tags(annotation: Any) -> list[str]:
    """Return what tells the members of a choice apart: ``kind: NAME``, or the first key."""
    return [_tag(model) for model in models(annotation)]


def _tag(model: type[BaseModel]) -> str:
    known = fields(model)
    return f"kind: {get_args(known['kind'].annotation)[0]}" if "kind" in known else next(iter(known), "")


def _is_kind(model: type[BaseModel], kind: object) -> bool:
    info = model.model_fields.get("kind")
    return info is not None and kind in get_args(info.annotation)


def child(annotation: Any, node: Node, key: str | int) -> Any:
    """Return the type of ``node[key]``, none if nothing is known."""
    model = model_of(annotation, node)
    if model is not None:
        info = fields(model).get(str(key))
        return info.annotation if info else None
    for part in options(annotation):
        arguments = get_args(part)
        if get_origin(part) is dict:
            return arguments[1]
        if get_origin(part) is tuple and isinstance(key, int) and arguments:
            return arguments[0] if arguments[-1] is Ellipsis or key >= len(arguments) else arguments[key]
    return None


def is_table(annotation: Any) -> bool:
    """Tell whether a field is a mapping from names that the writer chooses."""
    return any(get_origin(part) is dict for part in options(annotation))


def is_quantity(annotation: Any, node: Node, key: str) -> bool:
    """Tell whether ``node[key]`` is a hardware number, which must name its source."""
    model = model_of(annotation, node)
    return model is not None and holds_hardware_number(model, key)


def holds_hardware_number(model: type[BaseModel], key: str) -> bool:
    """Tell whether a field of a model is a hardware number."""
    info = fields(model).get(key)
    return issubclass(model, Block) and info is not None and key != "schema" and holds_number(info.annotation)


def example(info: FieldInfo | None) -> str | None:
    """Return a value that a field would take, as it is written."""
    if info is None:
        return None
    for note in (*info.metadata, *_notes(info.annotation)):
        shown = (getattr(note, "json_schema", None) or {}).get("examples")
        if shown:
            return repr(shown[0])
    return next((text for text in map(_sample, options(info.annotation)) if text), None)


def _notes(annotation: Any) -> Iterator[Any]:
    """Yield the metadata of the alternatives of a type."""
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    elif get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _notes(part)


def _sample(part: Any) -> str | None:
    if get_origin(part) is Literal:
        return str(get_args(part)[0])
    if get_origin(part) is Annotated:
        return _sample(get_args(part)[0])
    if get_origin(part) is tuple:
        inner = _sample(get_args(part)[0])
        return f"[{inner}]" if inner else None
    return {int: "8", float: "0.5", bool: "true", str: "some_name"}.get(part)
