"""Reads ``manifest.yaml`` of a trace: strict YAML, every field checked, every complaint with its line and column."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self

from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator, model_validator

from ghostsim.config import document
from ghostsim.config.base import Count, MisfitError, Strict, Text
from ghostsim.config.document import Node, TreePath
from ghostsim.errors import ConfigError, TraceError

FORMAT = 1
_SHOWN = 60
_MORE = {"too_short": "more", "too_long": "fewer"}

Hex = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
"""What a scale, a cap or a factor of scores may be; beyond it their sums overflow or vanish."""


class _Fields(Strict, strict=True):
    """A mapping of the manifest; nothing is converted."""


class ModelFields(_Fields):
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


class RopeFields(_Fields):
    """Rotary positions, as the manifest writes them."""

    dims: Annotated[int, Field(ge=2, multiple_of=2)]
    pairing: Literal["half", "interleaved"]
    attention_factor: Positive


class ArrayFields(_Fields):
    """One array file."""

    dtype: Literal["float16", "float32", "float64", "int32", "uint8"]
    shape: Annotated[list[Count], Field(min_length=1, max_length=4)]
    sha256: Hex


class ArraysFields(_Fields):
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


class Provenance(_Fields):
    """Where the trace comes from and under which licence its text may be passed on."""

    recorder: Text
    text: Text
    licence: Text
    seed: Annotated[int, Field(ge=0, lt=2**64)]


class Manifest(_Fields):
    """``manifest.yaml`` of format 1."""

    format: int
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    kind: Literal["recorded", "composed", "synthetic"]
    model: ModelFields
    rope: RopeFields | None
    prompt_len: Count
    steps: Count
    tokens: Count
    arrays: ArraysFields
    provenance: Provenance
    checks: dict[str, Any] | None = None

    @field_validator("format", mode="before")
    @classmethod
    def _check_format(cls, value: object) -> object:
        if type(value) is not int or value != FORMAT:
            raise MisfitError(f"found {_show(value)}, expected {FORMAT}, the one this version reads", "format")
        return value

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        for path, found, fine, expected in _relations(self):
            if not fine:
                raise MisfitError(f"found {_show(found)}, expected {expected}", *path)
        return self


_SECTIONS: dict[str, type[BaseModel]] = {
    "": Manifest,
    "model": ModelFields,
    "rope": RopeFields,
    "arrays": ArraysFields,
    "provenance": Provenance,
    **{f"arrays.{name}": ArrayFields for name in ArraysFields.model_fields},
}


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _refuse(root: Node, path: TreePath, message: str) -> NoReturn:
    """Raise the one-line error about the value at `path`, or about the nearest one above it."""
    marks = dict(root.marks())
    near = next(marks[path[:length]] for length in range(len(path), -1, -1) if path[:length] in marks)
    dotted = ".".join(map(str, path))
    raise TraceError(f"{dotted}: {message}" if dotted else message, near)


def _complain(root: Node, error: ValidationError) -> NoReturn:
    """Raise one error of those found: that of the format before those it explains, a misspelt key before a missing."""
    first = min(error.errors(), key=lambda e: (e["loc"] != ("format",), e["type"] != "extra_forbidden"))
    kind, found = first["type"], first["input"]
    path = _real_path(root, first["loc"], missing=kind == "missing")
    if kind == "value_error" and isinstance(misfit := first["ctx"]["error"], MisfitError):
        _refuse(root, misfit.path, str(misfit))
    if kind == "extra_forbidden":
        known = list(_SECTIONS[".".join(map(str, path[:-1]))].model_fields)
        close = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"
        _refuse(root, path, f"found an unknown key, {hint}")
    if kind == "missing":
        _refuse(root, path, "found nothing, expected this field")
    _refuse(root, path, f"found {_show(found)}, expected {_expected(kind, first.get('ctx', {}), first['msg'])}")


def _expected(kind: str, limits: Mapping[str, Any], message: str) -> str:
    """Say what pydantic expected, in the manifest's words."""
    match kind:
        case "too_short" | "too_long":
            return f"{limits.get('min_length', limits.get('max_length'))} or {_MORE[kind]} items"
        case "string_pattern_mismatch":
            return f"text that matches {limits['pattern']}"
        case "model_type":
            return "a mapping"
    return message.removeprefix("Input should be ")


def _real_path(root: Node, loc: TreePath, *, missing: bool) -> TreePath:
    """Drop what pydantic puts into the path to say which branch of a union it tried."""
    marks = dict(root.marks())
    path: TreePath = ()
    for part in loc[:-1] if missing else loc:
        path = (*path, part) if (*path, part) in marks else path
    return (*path, loc[-1]) if missing else path


def read_manifest(file: Path) -> tuple[Manifest, str]:
    """Read and check one manifest; return it and the SHA-256 of the file.

    Raises
    ------
    TraceError
        One line with file, line, column, the field's path, what was found and what was expected.
    """
    try:
        root, sha256 = document.read(file)
    except ConfigError as error:
        raise TraceError(str(error)) from None
    if not isinstance(root.value, Mapping):
        _refuse(root, (), f"found no mapping, expected a trace manifest, e.g. format: {FORMAT}")
    try:
        return Manifest.model_validate(root.plain()), sha256
    except ValidationError as error:
        _complain(root, error)


Relation = tuple[TreePath, object, bool, str]


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
