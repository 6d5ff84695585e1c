"""``--set a.b.c=VALUE``: changes one value of an unfolded document, by its dotted path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ghostsim.config import fields
from ghostsim.config.document import Node, make, parse
from ghostsim.config.expand import Library, is_bare, merge, sourced
from ghostsim.config.problems import Problem, shown, unknown_key
from ghostsim.errors import ConfigError, Location

SHARED = ("model", "platform", "workload", "serving")
"""What the runs of a scenario share unless they say otherwise."""


@dataclass(frozen=True)
class Setting:
    """A value for a path, and where it was asked for."""

    path: tuple[str, ...]
    value: Node

    @property
    def at(self) -> Location:
        """Where the value stands."""
        return self.value.at


def parse_setting(text: str) -> Setting:
    """Read ``a.b.c=VALUE``; VALUE is a YAML scalar or flow value and is never evaluated.

    Raises
    ------
    ConfigError
        If there is no ``=``, a name in the path is empty, or VALUE is not one YAML value.
    """
    at = Location(f"--set {text[:200]!r}")
    path, equals, value = text.partition("=")
    keys = tuple(key.strip() for key in path.split("."))
    if not equals:
        raise ConfigError("found no '=', expected PATH=VALUE, e.g. --set workload.batch=8", at)
    if not all(keys):
        raise ConfigError("found an empty name in the path, expected PATH=VALUE, e.g. --set workload.batch=8", at)
    return Setting(keys, _value(value, at))


def _value(text: str, at: Location) -> Node:
    if not text.strip():
        return make(None, at)
    node = parse(text.strip(), at.file, line=False)
    block = isinstance(node.value, Mapping | tuple) and text.strip()[0] not in "[{"
    if block:
        raise ConfigError("found a block value, expected a scalar or a flow value, e.g. {topk: 64} or [a, b]", at)
    return node


def apply(root: Node, settings: Iterable[Setting], kind: str, library: Library) -> Node:
    """Return a document with settings applied in their order, names in the new values unfolded."""
    for setting in settings:
        shadow = _shared(root, setting.path) if kind == "scenario" else None
        root = _put(root, shadow, setting, 0, fields.ROOTS[kind])
        root = library.unfold(root, fields.ROOTS[kind], kind, root=True)
    return root


def _shared(root: Node, path: tuple[str, ...]) -> Node | None:
    """Return what a run's overrides are merged over, in the place of the runs."""
    if len(path) < 4 or path[0] != "runs" or path[2] not in SHARED:
        return None
    common = Node({key: root.map[key] for key in SHARED if key in root.map}, root.at)
    return Node({"runs": Node({path[1]: common}, root.at)}, root.at)


def _put(node: Node | None, shadow: Node | None, setting: Setting, depth: int, annotation: Any) -> Node:
    seen = merge(shadow, node, annotation, force=depth < 3)
    if isinstance(seen.value, tuple):
        return _put_item(seen, setting, depth, annotation)
    key = setting.path[depth]
    if not isinstance(seen.value, Mapping) and seen.value is not None:
        raise _problem(setting, depth, f"found {shown(seen.value)} here, expected a mapping or a list").error()
    _check_key(seen, setting, depth, annotation)
    below = fields.child(annotation, seen, key)
    own = node if node is not None and isinstance(node.value, Mapping) else Node({}, setting.at)
    if depth == len(setting.path) - 1:
        if key == "value" and key in seen.map:
            return sourced(setting.value, "set by the user")
        bare = is_bare(setting.value) and fields.is_quantity(annotation, seen, key)
        value = sourced(setting.value, "set by the user") if bare else setting.value
    else:
        value = _put(own.map.get(key), shadow.map.get(key) if shadow else None, setting, depth + 1, below)
    return Node({**own.map, key: value}, own.at, {key: setting.at, **own.keys})


def _put_item(seen: Node, setting: Setting, depth: int, annotation: Any) -> Node:
    items = list(seen.value) if isinstance(seen.value, tuple) else []
    text = setting.path[depth]
    index = int(text) if text.isdecimal() and len(text) < 10 else -1
    if not 0 <= index < len(items):
        raise _problem(setting, depth, f"found {text!r}, expected an index from 0 to {len(items) - 1}").error()
    last = depth == len(setting.path) - 1
    below = fields.child(annotation, seen, index)
    items[index] = setting.value if last else _put(items[index], None, setting, depth + 1, below)
    return Node(tuple(items), seen.at)


def _check_key(seen: Node, setting: Setting, depth: int, annotation: Any) -> None:
    key = setting.path[depth]
    model = fields.model_of(annotation, seen)
    last = depth == len(setting.path) - 1
    if model is not None and key not in fields.fields(model):
        raise _problem(setting, depth, unknown_key(key, list(fields.fields(model)), model)).error()
    if model is None and fields.is_table(annotation) and key not in seen.map and not last:
        raise _problem(setting, depth, unknown_key(key, list(seen.map))).error()


def _problem(setting: Setting, depth: int, message: str) -> Problem:
    return Problem(setting.at, setting.path[: depth + 1], message)
