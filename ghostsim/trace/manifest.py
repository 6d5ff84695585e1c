"""Reads ``manifest.yaml`` of a trace: strict YAML, every field checked, every complaint with its line and column."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ghostsim.errors import Location, TraceError

FORMAT = 1
_MAX_BYTES = 1 << 20
_MAX_DEPTH = 8
_MAX_NUMBER = 30  # characters; a longer plain scalar is text (a SHA-256 may consist of digits)
_SHOWN = 60
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}

Count = Annotated[int, Field(ge=1, le=2**40)]
Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class ModelFields(_Strict):
    """The recorded model, as the manifest writes it."""

    name: Text
    sha256: Hex | None
    layers: Annotated[int, Field(ge=1, le=10_000)]
    kept_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    q_heads: Annotated[int, Field(ge=1, le=100_000)]
    kv_heads: Annotated[int, Field(ge=1, le=100_000)]
    head_dim: Annotated[int, Field(ge=1, le=65_536)]
    scale: Positive
    softcap: Positive | None
    window: Count | list[Count | None] | None
    trained_context: Count


class RopeFields(_Strict):
    """Rotary positions, as the manifest writes them."""

    dims: Annotated[int, Field(ge=2, multiple_of=2)]
    pairing: Literal["half", "interleaved"]
    attention_factor: Positive


class ArrayFields(_Strict):
    """One array file."""

    dtype: Literal["float16", "float32", "float64", "int32", "uint8"]
    shape: Annotated[list[Count], Field(min_length=1, max_length=4)]
    sha256: Hex


class ArraysFields(_Strict):
    """The arrays that a format 1 trace may hold."""

    q: ArrayFields
    k: ArrayFields
    q_prompt: ArrayFields
    token_ids: ArrayFields
    inv_freq: ArrayFields | None = None
    v: ArrayFields | None = None
    q_ahead: ArrayFields | None = None
    token_class: ArrayFields | None = None
    loss: ArrayFields | None = None

    def present(self) -> dict[str, ArrayFields]:
        """Return the arrays that there are, by name."""
        return {name: spec for name, spec in self if spec is not None}


class ProvenanceFields(_Strict):
    """Where the trace comes from and under which licence its text may be passed on."""

    recorder: Text
    text: Text
    licence: Text
    seed: Annotated[int, Field(ge=0, lt=2**64)]


class Manifest(_Strict):
    """``manifest.yaml`` of format 1."""

    format: Literal[1]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    kind: Literal["recorded", "composed", "synthetic"]
    model: ModelFields
    rope: RopeFields | None
    prompt_len: Count
    steps: Count
    tokens: Count
    arrays: ArraysFields
    provenance: ProvenanceFields
    checks: dict[str, Any] | None = None


_SECTIONS: dict[str, type[BaseModel]] = {
    "": Manifest,
    "model": ModelFields,
    "rope": RopeFields,
    "arrays": ArraysFields,
    "provenance": ProvenanceFields,
    **{f"arrays.{name}": ArrayFields for name in ArraysFields.model_fields},
}


@dataclass(frozen=True)
class Node:
    """One YAML node with its place in the file."""

    value: str | list[Node] | dict[str, Node]
    plain: bool
    line: int
    column: int

    def data(self) -> object:
        """Return the plain Python value (YAML 1.2 core schema)."""
        if isinstance(self.value, dict):
            return {key: node.data() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.data() for node in self.value]
        return _scalar(self.value) if self.plain else self.value

    def find(self, path: tuple[str | int, ...]) -> Node:
        """Return the node at `path`, or the deepest one on the way there."""
        node = self
        for step in path:
            inner = node.value
            if isinstance(inner, dict) and step in inner:
                node = inner[str(step)]
            elif isinstance(inner, list) and isinstance(step, int) and step < len(inner):
                node = inner[step]
            else:
                break
        return node


def _scalar(text: str) -> object:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if len(text) > _MAX_NUMBER:
        return text
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


@dataclass(frozen=True)
class Document:
    """A parsed manifest and the places of its parts."""

    file: Path
    root: Node
    content: bytes

    def refuse(self, path: tuple[str | int, ...], message: str) -> NoReturn:
        """Raise the one-line error about `path`."""
        node = self.root.find(path)
        dotted = ".".join(map(str, path))
        raise TraceError(f"{dotted}: {message}" if dotted else message, Location(self.file, node.line, node.column))


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _place(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark else (1, 1)


class _Builder:
    """Builds nodes from YAML events; nesting is bounded, aliases, tags and duplicate keys are refused."""

    def __init__(self, file: Path, events: Iterator[yaml.Event]) -> None:
        self.file = file
        self.events = events

    def refuse(self, event: yaml.Event, message: str) -> NoReturn:
        raise TraceError(message, Location(self.file, *_place(event)))

    def document(self) -> Node:
        self._expect_document(next(self.events), next(self.events))
        node = self.node(next(self.events), 0)
        next(self.events)
        end = next(self.events)
        if not isinstance(end, yaml.StreamEndEvent):
            self.refuse(end, "found a second YAML document, expected one")
        return node

    def _expect_document(self, _start: yaml.Event, first: yaml.Event) -> None:
        if not isinstance(first, yaml.DocumentStartEvent):
            self.refuse(first, f"found an empty file, expected a trace manifest, e.g. format: {FORMAT}")

    def node(self, event: yaml.Event, depth: int) -> Node:
        if depth > _MAX_DEPTH:
            self.refuse(event, f"found more than {_MAX_DEPTH} levels of nesting, expected a flat manifest")
        if isinstance(event, yaml.AliasEvent):
            self.refuse(event, f"found the alias *{event.anchor}, expected the value itself")
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) not in {None, "!"}:
            self.refuse(event, "found a YAML tag, expected a plain value")
        if isinstance(event, yaml.MappingStartEvent):
            return Node(self.mapping(depth), False, *_place(event))
        if isinstance(event, yaml.SequenceStartEvent):
            return Node(self.sequence(depth), False, *_place(event))
        if not isinstance(event, yaml.ScalarEvent):
            self.refuse(event, "found the end of the file, expected a value")
        return Node(event.value, event.style is None, *_place(event))

    def mapping(self, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self.refuse(event, "found a collection as a key, expected a name")
            if event.value in found:
                self.refuse(event, f"{_show(event.value)}: found this key twice, expected it once")
            found[event.value] = self.node(next(self.events), depth + 1)
        return found

    def sequence(self, depth: int) -> list[Node]:
        items = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, depth + 1))
        return items


def read_bytes(file: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes."""
    try:
        if not file.is_file():
            what = "a folder" if file.is_dir() else "no such file" if not file.exists() else "a special file"
            raise TraceError(f"found {what}, expected a trace manifest", Location(file))
        if file.stat().st_size > limit:
            raise TraceError(f"found {file.stat().st_size} bytes, expected at most {limit}", Location(file))
        return file.read_bytes()
    except OSError as error:
        raise TraceError(f"found a file that cannot be read ({error.strerror})", Location(file)) from None


def parse(file: Path) -> Document:
    """Parse a manifest without interpreting it; raises TraceError with line and column."""
    content = read_bytes(file, _MAX_BYTES)
    try:
        text = content.decode()
        return Document(file, _Builder(file, yaml.parse(text, Loader=yaml.SafeLoader)).document(), content)
    except UnicodeDecodeError as error:
        raise TraceError(
            f"found a byte that is not UTF-8 at offset {error.start}, expected text", Location(file)
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Location(file, mark.line + 1, mark.column + 1) if mark else Location(file)
        raise TraceError(f"found invalid YAML ({error.problem}), expected a trace manifest", at) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise TraceError(
            f"found invalid YAML ({_show(str(error))}), expected a trace manifest", Location(file)
        ) from None


def _complain(document: Document, error: ValidationError) -> NoReturn:
    # A misspelt key is both unknown and missing; the unknown one says more.
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    path = _real_path(document, first["loc"], missing=first["type"] == "missing")
    if first["type"] == "extra_forbidden":
        known = list(_SECTIONS[".".join(map(str, path[:-1]))].model_fields)
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        document.refuse(path, f"found an unknown key, {hint}")
    if first["type"] == "missing":
        document.refuse(path, "found nothing, expected this field")
    document.refuse(path, f"found {_show(first['input'])}, expected {_expected(first['msg'])}")


def _real_path(document: Document, loc: tuple[str | int, ...], *, missing: bool) -> tuple[str | int, ...]:
    """Drop what pydantic puts into the path to say which branch of a union it tried."""
    path: tuple[str | int, ...] = ()
    for part in loc[:-1] if missing else loc:
        if document.root.find(path) is not document.root.find((*path, part)):
            path = (*path, part)
    return (*path, loc[-1]) if missing else path


def _expected(message: str) -> str:
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


def read_manifest(file: Path) -> tuple[Manifest, Document]:
    """Read and check one manifest.

    Raises
    ------
    TraceError
        One line with file, line, column, the field's path, what was found and what was expected.
    """
    document = parse(file)
    data = document.root.data()
    if not isinstance(data, dict):
        document.refuse((), "found no mapping, expected a trace manifest, e.g. format: 1")
    if data.get("format") != FORMAT or isinstance(data.get("format"), bool):
        document.refuse(
            ("format",), f"found {_show(data.get('format'))}, expected {FORMAT}, the one this version reads"
        )
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        _complain(document, error)
    check_consistency(manifest, document)
    return manifest, document


def check_consistency(manifest: Manifest, document: Document) -> None:
    """Check the fields of a manifest against each other."""
    for path, found, fine, expected in _relations(manifest):
        if not fine:
            document.refuse(path, f"found {_show(found)}, expected {expected}")


Relation = tuple[tuple[str | int, ...], object, bool, str]


def _relations(m: Manifest) -> Iterator[Relation]:
    model, kept = m.model, m.model.kept_layers
    yield ("tokens",), m.tokens, m.tokens == m.prompt_len + m.steps, f"prompt_len + steps = {m.prompt_len + m.steps}"
    yield ("model", "kept_layers"), kept, kept == sorted(set(kept)), "ascending layers"
    yield ("model", "kept_layers"), kept, kept[-1] < model.layers, f"layers below layers = {model.layers}"
    heads = f"a multiple of kv_heads = {model.kv_heads}"
    yield ("model", "q_heads"), model.q_heads, model.q_heads % model.kv_heads == 0, heads
    has_hash = model.sha256 is not None or m.kind != "recorded"
    yield ("model", "sha256"), model.sha256, has_hash, "the SHA-256 of the weights file"
    if isinstance(model.window, list):
        yield ("model", "window"), model.window, len(model.window) == len(kept), f"one per kept layer ({len(kept)})"
    if m.rope is not None:
        fits = f"at most head_dim = {model.head_dim}"
        yield ("rope", "dims"), m.rope.dims, m.rope.dims <= model.head_dim, fits
    spec = m.arrays.inv_freq
    want = "an array (rope is set)" if m.rope else "no array (rope is null)"
    yield ("arrays", "inv_freq"), spec and spec.shape, (spec is None) == (m.rope is None), want
    yield from _array_relations(m)


def _array_relations(m: Manifest) -> Iterator[Relation]:
    window = m.arrays.q_prompt.shape[2] if len(m.arrays.q_prompt.shape) == 4 else 0
    for name, spec in m.arrays.present().items():
        dtypes, shape = expected_array(m, name, window)
        yield ("arrays", name, "dtype"), spec.dtype, spec.dtype in dtypes, " or ".join(dtypes)
        yield ("arrays", name, "shape"), spec.shape, spec.shape == shape, str(shape)
    fine = 64 <= window <= m.prompt_len
    yield ("arrays", "q_prompt", "shape"), window, fine, f"64 to prompt_len = {m.prompt_len} queries"


def expected_array(m: Manifest, name: str, window: int) -> tuple[tuple[str, ...], list[int]]:
    """Return the data types and the shape that array `name` must have."""
    kept, model = len(m.model.kept_layers), m.model
    floats = ("float16", "float32")
    per_step = floats, [m.steps, kept, model.q_heads, model.head_dim]
    per_token = floats, [kept, model.kv_heads, m.tokens, model.head_dim]
    return {
        "q": per_step,
        "q_ahead": per_step,
        "k": per_token,
        "v": per_token,
        "q_prompt": (floats, [kept, model.q_heads, window, model.head_dim]),
        "inv_freq": (("float64", "float32"), [kept, m.rope.dims // 2 if m.rope else 0]),
        "token_ids": (("int32",), [m.tokens]),
        "token_class": (("uint8",), [m.tokens]),
        "loss": (("float32",), [m.steps]),
    }[name]
