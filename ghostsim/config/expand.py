"""Names and `extends`: unfolds a document into one that stands by itself.

A string where a document belongs (``platform: h100_cxl_pim``) is short for ``{extends: STRING}``. A mapping with
`extends` is merged over the documents it names, in their order: mappings merge, everything else replaces. A
mapping that names its own `kind` or `extends`, a number with its source, and another member of a choice (``topk``
for ``certify``) stand by themselves and replace. A bare number merged over a part is marked as set by that file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ghostsim.config import catalogue, fields
from ghostsim.config.document import Node, Scalar, make, read
from ghostsim.errors import ConfigError, Location

_LONGEST_CHAIN = 32


def sourced(value: Node, source: str) -> Node:
    """Return a bare number as one that names its source."""
    entries = {"value": value, **make({"source": source, "confidence": "assumed"}, value.at).map}
    return Node(entries, value.at, dict.fromkeys(entries, value.at))


def is_bare(value: Node) -> bool:
    """Tell whether a value is a scalar that says something."""
    return isinstance(value.value, Scalar) and value.value is not None


def merge(base: Node | None, over: Node | None, annotation: Any, *, force: bool = False) -> Node:
    """Return `over` merged over `base`; `force` merges even a mapping that names its kind."""
    if base is None or over is None:
        return over or base or make({}, Location("nowhere"))
    if not isinstance(over.value, Mapping) or not isinstance(base.value, Mapping):
        return over
    if not force and _stands_alone(base, over, annotation):
        return over
    if not over.map:
        return Node(base.value, over.at, base.keys) if force else base
    typed = over if "kind" in over.map else base
    entries = dict(base.map)
    for key, value in over.map.items():
        below = fields.child(annotation, typed, key)
        merged = merge(entries[key], value, below) if key in entries else value
        entries[key] = _with_source(merged, over, fields.is_quantity(annotation, typed, key))
    return Node(entries, over.at, {**base.keys, **over.keys})


def _stands_alone(base: Node, over: Node, annotation: Any) -> bool:
    if not {"kind", "extends", "value"}.isdisjoint(over.map):
        return True
    chosen = fields.model_of(annotation, over)
    several = len(fields.models(annotation)) > 1
    return several and chosen is not None and chosen is not fields.model_of(annotation, base)


def _with_source(value: Node, block: Node, quantity: bool) -> Node:
    if not quantity or not is_bare(value) or "source" in block.map:
        return value
    return sourced(value, f"set in {Path(str(value.at.file)).name}")


class Library:
    """Reads each document once and unfolds it; `inputs` holds the sha256 of every file that was read."""

    def __init__(self) -> None:
        self.inputs: dict[str, str] = {}
        self._raw: dict[Path, Node] = {}
        self._whole: dict[tuple[Path, str, bool], Node] = {}
        self._chain: list[Path] = []
        self._unfolded: dict[int, Node] = {}

    def copy(self) -> Library:
        """Return a library that has read what this one has, and does not tell it what else it reads."""
        other = Library()
        other.inputs, other._raw, other._whole = dict(self.inputs), dict(self._raw), dict(self._whole)
        other._unfolded = dict(self._unfolded)
        return other

    def raw(self, path: Path, at: Location | None = None) -> Node:
        """Return a document as it is written."""
        key = _real(path, at)
        if key not in self._raw:
            node, digest = read(path, at)
            if not isinstance(node.value, Mapping):
                raise ConfigError("found no mapping, expected one, e.g. schema: 1", node.at)
            self._raw[key] = node
            self.inputs[catalogue.label(path)] = digest
        return self._raw[key]

    def document(self, path: Path, kind: str, at: Location | None = None) -> Node:
        """Return a document unfolded."""
        return self._document(path, kind, at, nested=False)

    def _document(self, path: Path, kind: str, at: Location | None, *, nested: bool) -> Node:
        key = (_real(path, at), kind, nested)
        if key not in self._whole:
            self._enter(path, at)
            node = self.unfold(self.raw(path, at), fields.ROOTS[kind], kind, root=True)
            self._chain.pop()
            self._whole[key] = self._done(_without(node, "schema") if nested else node)
        return self._whole[key]

    def _enter(self, path: Path, at: Location | None) -> None:
        chain = [entry.resolve() for entry in self._chain]
        if path.resolve() in chain:
            cycle = [*self._chain[chain.index(path.resolve()) :], path]
            text = " extends ".join(entry.stem for entry in cycle)
            raise ConfigError(f"found a cycle ({text}), expected extends to end", at)
        if len(chain) >= _LONGEST_CHAIN:
            raise ConfigError(f"found more than {_LONGEST_CHAIN} documents that extend one another, expected fewer", at)
        self._chain.append(path)

    def _done(self, node: Node) -> Node:
        self._unfolded[id(node)] = node
        return node

    def unfold(self, node: Node, annotation: Any, kind: str, *, root: bool = False) -> Node:
        """Return `node`, of a type and inside a document of a kind, with every name and `extends` unfolded."""
        if id(node) in self._unfolded:
            return node
        slot = fields.document_kind(annotation)
        if slot and not root and isinstance(node.value, str):
            return self._named(node, slot)
        if isinstance(node.value, Mapping):
            return self._done(self._unfold_mapping(node, annotation, slot or kind))
        if isinstance(node.value, tuple):
            return self._done(self._unfold_list(node, annotation, kind))
        return node

    def _unfold_mapping(self, node: Node, annotation: Any, kind: str) -> Node:
        node = self._extend(node, annotation, kind)
        entries = {
            key: self.unfold(value, fields.child(annotation, node, key), kind) for key, value in node.map.items()
        }
        return node.replace(entries)

    def _unfold_list(self, node: Node, annotation: Any, kind: str) -> Node:
        items = node.value if isinstance(node.value, tuple) else ()
        unfolded = (self.unfold(item, fields.child(annotation, node, i), kind) for i, item in enumerate(items))
        return Node(tuple(unfolded), node.at)

    def _extend(self, node: Node, annotation: Any, kind: str) -> Node:
        listed = node.map.get("extends")
        if listed is None:
            return node
        base: Node | None = None
        for name in listed.value if isinstance(listed.value, tuple) else (listed,):
            base = merge(base, self._named(name, kind), annotation, force=True)
        return merge(base, _without(node, "extends", always=True), annotation, force=True)

    def _named(self, name: Node, kind: str) -> Node:
        if not isinstance(name.value, str):
            raise ConfigError("found extends that is not a name, expected a file or a bundled name", name.at)
        near = Path(name.at.file).parent if isinstance(name.at.file, Path) else None
        path = catalogue.find(kind, name.value, near, name.at)
        return self._document(path, kind, name.at, nested=True)


def _real(path: Path, at: Location | None) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"found the file name {str(path)!r} ({error}), expected a YAML file", at) from None


def _without(node: Node, key: str, *, always: bool = False) -> Node:
    """Return a mapping without `key` (a schema only if it is the one there is)."""
    if key not in node.map or not (always or node.map[key].value == 1):
        return node
    return node.replace({name: value for name, value in node.map.items() if name != key})
