"""Attention traces, format 1: a folder with ``manifest.yaml`` and one memory-mapped ``.npy`` file per array."""

from __future__ import annotations

import difflib
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ghostsim import bundled
from ghostsim.config.catalogue import exists
from ghostsim.errors import Location, TraceError
from ghostsim.trace.manifest import ArrayFields, ArraysFields, Manifest, Provenance, read_manifest

MANIFEST = "manifest.yaml"
VERIFY_BELOW_BYTES = 256 << 20
_BLOCK = 1 << 20
_MOST_OPEN = 16
_ROUNDING = 1e-4  # a certain token's loss may come out as a few rounding errors below 0
_NPY_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    OverflowError,
    TypeError,
    MemoryError,
    RecursionError,
    SyntaxError,
    Warning,
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TraceModel:
    """The model that was recorded; `window` holds one entry per kept layer."""

    name: str
    sha256: str | None
    layers: int
    kept_layers: tuple[int, ...]
    q_heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    window: tuple[int | None, ...]
    trained_context: int

    @property
    def q_per_kv(self) -> int:
        """Query heads per KV head."""
        return self.q_heads // self.kv_heads


@dataclass(frozen=True)
class Rope:
    """How positions are put into queries and keys."""

    dims: int
    pairing: Literal["half", "interleaved"]
    attention_factor: float


@dataclass(frozen=True, eq=False)
class Trace:
    """A recorded decode: queries and keys before rotation, memory-mapped, read-only.

    Shapes: `q`, `q_ahead` [steps, kept, q_heads, d]; `k`, `v` [kept, kv_heads, tokens, d]; `q_prompt` [kept, q_heads,
    W, d]; `inv_freq` [kept, dims/2]; `token_ids`, `token_class` [tokens]; `loss` [steps] in nats. Absent: None.
    """

    path: Path
    name: str
    kind: Literal["recorded", "composed", "synthetic"]
    model: TraceModel
    rope: Rope | None
    prompt_len: int
    steps: int
    tokens: int
    provenance: Provenance
    manifest_sha256: str
    q: Array
    k: Array
    q_prompt: Array
    token_ids: Array
    inv_freq: Array | None = None
    v: Array | None = None
    q_ahead: Array | None = None
    token_class: Array | None = None
    loss: Array | None = None

    @property
    def prompt_queries(self) -> int:
        """W, the number of last prompt tokens whose queries are recorded."""
        return int(self.q_prompt.shape[2])

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that there are, by name."""
        named = {name: getattr(self, name) for name in ARRAY_NAMES}
        return {name: array for name, array in named.items() if array is not None}


ARRAY_NAMES = tuple(ArraysFields.model_fields)


def bundled_names() -> list[str]:
    """Return the names of the traces that ship with ghostsim, sorted."""
    return sorted(file.parent.name for file in bundled.folder("traces").glob(f"*/{MANIFEST}"))


def find_trace(name_or_path: str | Path, base: Path | None = None) -> Path:
    """Return the folder of a trace given by path (relative to `base`, then to the current folder) or by bundled name.

    Raises
    ------
    TraceError
        If there is neither; the message lists the bundled names.
    """
    given = Path(name_or_path)
    tried = [folder / given for folder in ([base] if base else []) + [Path()]]
    found = [path for path in tried if exists(path / MANIFEST)]
    if found:
        return found[0]
    names = bundled_names()
    if str(name_or_path) in names:
        return bundled.folder("traces") / given
    raise _unknown(given, [path for path in tried if exists(path)], names)


def _unknown(given: Path, there: list[Path], names: list[str]) -> TraceError:
    if there:
        what = f"a folder without {MANIFEST}" if there[0].is_dir() else "a file"
        return TraceError(f"found {what}, expected the folder of a trace", Location(there[0]))
    close = difflib.get_close_matches(given.name, names, 1)
    hint = f"did you mean {close[0]}? " if close else ""
    return TraceError(
        f"trace: found {str(given)[:200]!r}, which is neither a folder nor a bundled trace; {hint}expected a folder "
        f"with {MANIFEST} or one of {', '.join(names) or '(none)'}"
    )


def open_trace(name_or_path: str | Path, base: Path | None = None) -> Trace:
    """Open a trace by folder or by bundled name and check its manifest and its array headers.

    The values too are checked (as by `check_trace`) where all arrays together are below `VERIFY_BELOW_BYTES`. A trace
    whose files have not changed since this process opened it is the one that was opened.

    Raises
    ------
    TraceError
        If the trace is missing or invalid.
    """
    folder = find_trace(name_or_path, base)
    return _opened(folder, _stamps(folder))


def _stamps(folder: Path) -> tuple[tuple[int, ...], ...]:
    """Return what changes when a file of a trace does."""
    return tuple(_stamp(folder / name) for name in (MANIFEST, *(f"{array}.npy" for array in ARRAY_NAMES)))


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        stat = file.stat()
    except OSError:
        return ()
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


@lru_cache(maxsize=_MOST_OPEN)
def _opened(folder: Path, _: tuple[tuple[int, ...], ...]) -> Trace:
    trace, manifest = _open(folder)
    if sum(array.nbytes for array in trace.arrays().values()) < VERIFY_BELOW_BYTES:
        _check_values(trace, manifest)
    return trace


def check_trace(name_or_path: str | Path, base: Path | None = None) -> Trace:
    """Open a trace and check everything: also the SHA-256, finiteness and range of all arrays."""
    trace, manifest = _open(find_trace(name_or_path, base))
    _check_values(trace, manifest)
    return trace


def _open(folder: Path) -> tuple[Trace, Manifest]:
    manifest, sha256 = read_manifest(_file_in(folder, MANIFEST))
    arrays = {name: _open_array(folder, name, spec) for name, spec in manifest.arrays.present().items()}
    trace = Trace(
        path=folder,
        name=manifest.name,
        kind=manifest.kind,
        model=_model(manifest),
        rope=Rope(**manifest.rope.model_dump()) if manifest.rope else None,
        prompt_len=manifest.prompt_len,
        steps=manifest.steps,
        tokens=manifest.tokens,
        provenance=manifest.provenance,
        manifest_sha256=sha256,
        **arrays,
    )
    return trace, manifest


def _model(manifest: Manifest) -> TraceModel:
    fields: dict[str, Any] = manifest.model.model_dump()
    window, kept = fields["window"], tuple(fields["kept_layers"])
    per_layer = tuple(window) if isinstance(window, list) else (window,) * len(kept)
    return TraceModel(**fields | {"kept_layers": kept, "window": per_layer})


def _file_in(folder: Path, name: str, field: str = "") -> Path:
    """Return the regular file folder/name, which must not lead out of the folder; `field` names it in errors."""
    file = folder / name
    try:
        outside = not file.resolve().is_relative_to(folder.resolve())
        fine = file.is_file()
    except (OSError, RuntimeError):  # a loop of links
        outside = True
    if outside:
        raise TraceError("found a link that leads out of the trace's folder, expected a file in it", Location(file))
    if not fine:
        what = "a folder" if file.is_dir() else "a special file" if file.exists() else "no such file"
        raise TraceError(f"{field}found {what}, expected a regular file", Location(file))
    return file


def _open_array(folder: Path, name: str, spec: ArrayFields) -> Array:
    file = _file_in(folder, f"{name}.npy", f"arrays.{name}: ")
    array = _memory_map(file, name)
    if array.dtype != np.dtype(spec.dtype).newbyteorder("<"):
        raise TraceError(f"arrays.{name}: found dtype {array.dtype.str}, expected {spec.dtype}", Location(file))
    if not array.flags.c_contiguous:
        raise TraceError(f"arrays.{name}: found Fortran order, expected C order (rows first)", Location(file))
    if list(array.shape) != spec.shape:
        raise TraceError(f"arrays.{name}: found shape {list(array.shape)}, expected {spec.shape}", Location(file))
    return array


def _memory_map(file: Path, name: str) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mapped = np.lib.format.open_memmap(file, mode="r")
    except _NPY_ERRORS as error:
        reason = " ".join(str(error).split())[:120]
        raise TraceError(
            f"arrays.{name}: found no valid array ({reason}), expected a .npy file", Location(file)
        ) from None
    size, expected = file.stat().st_size, mapped.offset + mapped.nbytes
    if size != expected:
        raise TraceError(f"arrays.{name}: found {size} bytes, expected {expected}", Location(file))
    return np.asarray(mapped)


def _check_values(trace: Trace, manifest: Manifest) -> None:
    specs: Mapping[str, ArrayFields] = manifest.arrays.present()
    for name, array in trace.arrays().items():
        file = trace.path / f"{name}.npy"
        found = file_sha256(file)
        if found != specs[name].sha256:
            raise TraceError(f"arrays.{name}.sha256: found {found}, expected {specs[name].sha256}", Location(file))
        _check_finite(array, name, file)
    lowest = int(trace.token_ids.min())
    if lowest < 0:
        raise TraceError(
            f"arrays.token_ids: found {lowest}, expected ids of 0 or more", Location(trace.path / "token_ids.npy")
        )
    if trace.inv_freq is not None and trace.inv_freq.min() < 0:
        raise TraceError("arrays.inv_freq: found a negative frequency", Location(trace.path / "inv_freq.npy"))
    if trace.loss is not None and trace.loss.min() < -_ROUNDING:
        found = f"found {trace.loss.min():g}, expected nats of 0 or more"
        raise TraceError(f"arrays.loss: {found}", Location(trace.path / "loss.npy"))


def _check_finite(array: Array, name: str, file: Path) -> None:
    if array.dtype.kind != "f":
        return
    for start, values in _values(array, file):
        finite = np.isfinite(values)
        if not finite.all():
            where = np.unravel_index(start + int(np.argmin(finite)), array.shape)
            at = ", ".join(str(int(i)) for i in where)
            raise TraceError(f"arrays.{name}: found {array[where]} at [{at}], expected finite numbers", Location(file))


def _values(array: Array, file: Path) -> Iterator[tuple[int, Array]]:
    """Yield (start, values) of consecutive blocks, read rather than mapped: mapped pages stay in memory."""
    with file.open("rb") as stream:
        stream.seek(-array.nbytes, os.SEEK_END)
        for start in range(0, array.size, _BLOCK):
            yield start, np.frombuffer(stream.read(_BLOCK * array.itemsize), array.dtype)


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
