"""Strict YAML: text to a tree of nodes that know where they were written, and back.

Scalars follow the YAML 1.2 core schema (``1e9`` is a float; ``on``, ``16:30`` and ``2024-01-01`` are strings).
Tags, duplicate keys, keys that are not strings, several documents and numbers that are not finite are refused.
Aliases are allowed, but the document they unfold into is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from ghostsim.errors import ConfigError, Location

try:
    from yaml import CSafeDumper as _Dumper
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeDumper as _Dumper  # type: ignore[assignment]
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

Scalar = str | int | float | bool | None
TreePath = tuple[str | int, ...]

MAX_BYTES = 4 * 2**20
MAX_DEPTH = 64
MAX_NODES = 500_000
_MAX_DIGITS = 40

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: dict[str, Scalar] = {
    "": None,
    **dict.fromkeys(("~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufeff\uff00-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A value of a document and where it stands; shared and never changed."""

    value: Scalar | Mapping[str, Node] | tuple[Node, ...]
    at: Location
    keys: Mapping[str, Location] = field(default_factory=dict)
    """Where each key of a mapping stands."""
    size: int = field(init=False)
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        below = tuple(self._children())
        object.__setattr__(self, "size", 1 + sum(child.size for child in below))
        object.__setattr__(self, "depth", 1 + max((child.depth for child in below), default=0))
        if self.size > MAX_NODES:
            raise ConfigError(f"found more than {MAX_NODES} values when unfolded, expected a smaller document", self.at)
        if self.depth > MAX_DEPTH:
            raise ConfigError(f"found a nesting deeper than {MAX_DEPTH}, expected a flatter document", self.at)

    def _children(self) -> Iterator[Node]:
        if isinstance(self.value, Mapping):
            yield from self.value.values()
        elif isinstance(self.value, tuple):
            yield from self.value

    @property
    def map(self) -> Mapping[str, Node]:
        """The entries of a mapping; none for anything else."""
        return self.value if isinstance(self.value, Mapping) else {}

    def step(self, key: str | int) -> Node | None:
        """Return the child at `key`, if there is one."""
        if isinstance(self.value, Mapping):
            return self.value.get(str(key))
        if isinstance(self.value, tuple) and isinstance(key, int) and 0 <= key < len(self.value):
            return self.value[key]
        return None

    def plain(self) -> Any:
        """Return the value as dicts, lists and scalars."""
        if isinstance(self.value, Mapping):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, tuple):
            return [child.plain() for child in self.value]
        return self.value

    def replace(self, entries: Mapping[str, Node], keys: Mapping[str, Location] | None = None) -> Node:
        """Return this mapping with other entries."""
        return Node(entries, self.at, self.keys if keys is None else keys)

    def marks(self, path: TreePath = ()) -> Iterator[tuple[TreePath, Location]]:
        """Yield the place of every value below, by its path."""
        yield path, self.at
        if isinstance(self.value, Mapping):
            for key, child in self.value.items():
                yield from child.marks((*path, key))
        elif isinstance(self.value, tuple):
            for index, child in enumerate(self.value):
                yield from child.marks((*path, index))


def make(value: Any, at: Location) -> Node:
    """Return plain data as nodes that all stand at one place."""
    if isinstance(value, Mapping):
        return Node({key: make(entry, at) for key, entry in value.items()}, at, dict.fromkeys(value, at))
    if isinstance(value, list | tuple):
        return Node(tuple(make(entry, at) for entry in value), at)
    return Node(value, at)


# --- text to nodes -------------------------------------------------------------------------------------------


def resolve(text: str) -> Scalar:
    """Return the value of a plain scalar under the YAML 1.2 core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return math.nan if _NOT_FINITE.fullmatch(text) else text


class _Builder:
    """Builds nodes from the events of one YAML text."""

    def __init__(self, text: str, file: Path | str, line: bool = True) -> None:
        self.file = file
        self.line = line
        self.events = iter(yaml.parse(text, Loader=_Loader))
        self.anchors: dict[str, Node | None] = {}

    def at(self, mark: Any) -> Location:
        return Location(self.file, mark.line + 1, mark.column + 1) if self.line else Location(self.file)

    def document(self) -> Node:
        next(self.events)
        start = next(self.events)
        if isinstance(start, yaml.StreamEndEvent):
            raise ConfigError("found an empty document, expected a mapping, e.g. schema: 1", self.at(start.start_mark))
        root = self.node(next(self.events), 1)
        next(self.events)
        more = next(self.events)
        if isinstance(more, yaml.DocumentStartEvent):
            raise ConfigError("found a second document, expected one per file", self.at(more.start_mark))
        return root

    def node(self, event: Any, depth: int) -> Node:
        at = self.at(event.start_mark)
        if depth > MAX_DEPTH:
            raise ConfigError(f"found a nesting deeper than {MAX_DEPTH}, expected a flatter document", at)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(str(event.anchor), at)
        if event.tag is not None:
            raise ConfigError(f"found the tag {event.tag!r}, expected no tags (quotes make a string)", at)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        built = self.value(event, at, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = built
        return built

    def alias(self, name: str, at: Location) -> Node:
        if name not in self.anchors:
            raise ConfigError(f"found the alias *{name} to an anchor that is not there, expected &{name} before it", at)
        target = self.anchors[name]
        if target is None:
            raise ConfigError(f"found the alias *{name} inside its own anchor, expected no recursion", at)
        return target

    def value(self, event: Any, at: Location, depth: int) -> Node:
        if isinstance(event, yaml.ScalarEvent):
            return Node(self.scalar(event, at), at)
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(tuple(self.sequence(depth)), at)
        return self.mapping(at, depth)

    def scalar(self, event: Any, at: Location) -> Scalar:
        if event.style:
            return str(event.value)
        if _INT.fullmatch(event.value) and len(event.value) > _MAX_DIGITS:
            raise ConfigError(f"found a number of {len(event.value)} digits, expected at most {_MAX_DIGITS}", at)
        value = resolve(event.value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"found {event.value}, expected a finite number, e.g. 0.5", at)
        return value

    def sequence(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            yield self.node(event, depth + 1)

    def mapping(self, at: Location, depth: int) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Location] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            place = self.at(event.start_mark)
            key = self.key(event, place, depth)
            if key in entries:
                raise ConfigError(
                    f"found the key {key[:80]!r} again (first on line {keys[key].line}), expected it once", place
                )
            keys[key] = place
            entries[key] = self.node(next(self.events), depth + 1)
        return Node(entries, at, keys)

    def key(self, event: Any, at: Location, depth: int) -> str:
        key = self.node(event, depth + 1).value if not isinstance(event, yaml.CollectionStartEvent) else None
        if not isinstance(key, str):
            found = (
                f"the key {event.value[:80]!r}" if isinstance(event, yaml.ScalarEvent) else "a list or mapping as key"
            )
            raise ConfigError(f"found {found}, expected a string, e.g. '1': in quotes", at)
        return key


def _check_text(text: str, file: Path | str) -> None:
    found = _UNPRINTABLE.search(text)
    if found:
        before = text[: found.start()]
        at = Location(file, before.count("\n") + 1, found.start() - before.rfind("\n"))
        raise ConfigError(f"found the character U+{ord(found[0]):04X}, expected printable text", at)


def parse(text: str, file: Path | str, line: bool = True) -> Node:
    """Return the one document in `text`; `file` (with `line`: and line and column) is what errors point to.

    Raises
    ------
    ConfigError
        If the text is not one strict YAML document.
    """
    _check_text(text, file)
    builder = _Builder(text, file, line)
    try:
        return builder.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = builder.at(mark) if mark else Location(file)
        if "nesting depth" in str(error.problem):  # libyaml looks ahead for a key, past our own limit
            raise ConfigError(f"found a nesting deeper than {MAX_DEPTH}, expected a flatter document", at) from None
        raise ConfigError(f"found bad YAML ({error.problem}), expected e.g. name: value", at) from None
    except yaml.YAMLError as error:
        raise ConfigError(f"found bad YAML ({error}), expected e.g. name: value", Location(file)) from None


def read_bytes(path: Path, at: Location | None = None) -> bytes:
    """Return the bytes of a configuration file; `at` is where it is named (none: on the command line)."""
    at = at or Location(path)
    try:
        if path.is_dir():
            raise ConfigError(f"found the folder {path}, expected a YAML file", at)
        if not path.exists():
            raise ConfigError(f"found no file {path}, expected a YAML file or a bundled name", at)
        if not path.is_file():
            raise ConfigError(f"found {path}, which is no regular file, expected a YAML file", at)
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"found that {str(path)!r} cannot be read ({reason}), expected a YAML file", at) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"found a file above {MAX_BYTES} bytes, expected a smaller one", Location(path))
    return data


def read(path: Path, at: Location | None = None) -> tuple[Node, str]:
    """Return the document in a file and the sha256 of its bytes; `at` is where the file is named."""
    data = read_bytes(path, at)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        place = Location(path, before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
        raise ConfigError("found bytes that are not UTF-8, expected a text file", place) from None
    if not text.strip():
        raise ConfigError("found an empty file, expected a mapping, e.g. schema: 1", Location(path, 1, 1))
    return parse(text, path), sha256(data).hexdigest()


# --- plain data to text --------------------------------------------------------------------------------------


_SHORT = 100


class _Plain(_Dumper):
    """Writes strings so that they read back as strings under YAML 1.2, and short collections on one line."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        node = super().represent_mapping(tag, mapping, flow_style)
        node.flow_style = _fits_a_line([part for pair in node.value for part in pair])
        return node

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        node = super().represent_sequence(tag, sequence, flow_style)
        node.flow_style = _fits_a_line(node.value)
        return node

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (its name is given by the dumper)
        return True

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode or not implicit[0]:
            return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
        name = {bool: "bool", int: "int", float: "float", type(None): "null"}.get(type(resolve(value)))
        if name is None:  # quotes also what YAML 1.1 readers would take for something else
            return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]
        return f"tag:yaml.org,2002:{name}"


def _fits_a_line(parts: list[yaml.Node]) -> bool:
    if not all(isinstance(part, yaml.ScalarNode) or not part.value for part in parts):
        return False
    return sum(len(str(part.value)) + 3 for part in parts) <= _SHORT


def dump(document: Any) -> str:
    """Return `document` (dicts, lists, scalars) as YAML; keys keep their order."""
    return str(yaml.dump(document, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=2**30))
