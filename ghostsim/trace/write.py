"""Writes traces in format 1: array by array into a hidden folder that takes its name when the trace is complete."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ghostsim.config import document
from ghostsim.errors import ConfigError, UsageError
from ghostsim.trace.compose import Workload
from ghostsim.trace.format import MANIFEST, Trace, check_trace, file_sha256
from ghostsim.trace.manifest import FORMAT

Array = npt.NDArray[Any]


class TraceWriter:
    """A trace under construction; use it in a ``with`` block and call `finish` last."""

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        if folder.exists() and not force:
            raise UsageError(f"--out: found {folder}, which exists, expected a new folder; --force replaces a trace")
        if folder.exists() and not (folder / MANIFEST).is_file():
            raise UsageError(f"--out: found {folder}, which is no trace, expected a new folder or a trace to replace")
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        self._arrays: dict[str, Array] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._work, ignore_errors=True)

    def array(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
        """Return a writable, memory-mapped array that becomes NAME.npy."""
        self._arrays[name] = np.lib.format.open_memmap(self._work / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)
        return self._arrays[name]

    def parts(self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Yield (layer, head) and the writable part of NAME.npy that is theirs, mapped one at a time.

        A mapping of the whole array would hold every page that was written in memory.
        """
        self.array(name, dtype, shape)
        for at in np.ndindex(shape[:2]):
            yield at, np.lib.format.open_memmap(self._work / f"{name}.npy", mode="r+")[at]

    def put(self, name: str, values: npt.ArrayLike) -> None:
        """Write a whole array."""
        found = np.asarray(values)
        self.array(name, found.dtype, found.shape)[...] = found

    def finish(self, fields: Mapping[str, Any]) -> Trace:
        """Write the manifest (`fields` without format and arrays), check the trace, move it to its place, open it."""
        arrays = {name: self._describe(name, array) for name, array in self._arrays.items()}
        manifest = {"format": FORMAT, **fields, "arrays": arrays}
        (self._work / MANIFEST).write_text(document.dump(manifest), encoding="utf-8")
        check_trace(self._work)
        self._work.chmod(0o777 & ~_umask())
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self._work.rename(self.folder)
        return check_trace(self.folder)

    def _describe(self, name: str, array: Array) -> dict[str, Any]:
        if isinstance(array, np.memmap):
            array.flush()
        digest = file_sha256(self._work / f"{name}.npy")
        return {"dtype": array.dtype.name, "shape": list(array.shape), "sha256": digest}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def model_fields(trace: Trace) -> dict[str, Any]:
    """Return the `model` mapping of a manifest."""
    windows = list(trace.model.window)
    window = windows[0] if len(set(windows)) == 1 else windows
    return asdict(trace.model) | {"kept_layers": list(trace.model.kept_layers), "window": window}


def compose_to_folder(workload: Workload, folder: Path, request: int = 0, *, force: bool = False) -> Trace:
    """Write one request of a composed workload as a trace of kind `composed`, streamed per layer and head.

    The trace keeps the recorded layers and heads; opened without a context it gives the request's keys and queries.

    Raises
    ------
    ConfigError
        If the workload is not composed.
    UsageError
        If the folder exists and `force` is not set.
    """
    if workload.dtype is np.float64:
        raise ConfigError("workload.context: found none, expected the length to compose to, e.g. 131072")
    with TraceWriter(folder, force=force) as writer:
        _write_keys(writer, workload, request, "k")
        if workload.holds(request, "v"):
            _write_keys(writer, workload, request, "v")
        _write_queries(writer, workload, request)
        return writer.finish(_manifest_fields(workload, request, folder.name))


def _write_keys(writer: TraceWriter, workload: Workload, request: int, name: str) -> None:
    model, pieces = workload.trace_of(request).model, workload.sequences[request].pieces
    dtype = np.result_type(*{getattr(workload.traces[piece.trace], name).dtype for piece in pieces})
    tokens = workload.context + workload.steps
    shape = (len(model.kept_layers), model.kv_heads, tokens, model.head_dim)
    for (layer, kv_head), out in writer.parts(name, dtype, shape):
        workload.gather(request, name, layer, kv_head, out)


def _write_queries(writer: TraceWriter, workload: Workload, request: int) -> None:
    own, offset = workload.trace_of(request), workload.sequences[request].offset
    steps = slice(offset, offset + workload.steps)
    layers = range(len(own.model.kept_layers))
    writer.put("q", own.q[steps])
    writer.put("q_prompt", np.stack([workload.prompt_rows(request, layer, slice(None)) for layer in layers]))
    writer.put("token_ids", workload.token_ids(request))
    for name, values in (("inv_freq", own.inv_freq), ("q_ahead", own.q_ahead), ("loss", own.loss)):
        if values is not None:
            writer.put(name, values if name == "inv_freq" else values[steps])


def _manifest_fields(workload: Workload, request: int, name: str) -> dict[str, Any]:
    own = workload.trace_of(request)
    used = sorted({piece.trace for piece in workload.sequences[request].pieces})
    origins = [workload.traces[i].provenance for i in used]
    return {
        "name": name,
        "kind": "synthetic" if workload.kind == "synthetic" else "composed",
        "model": model_fields(own),
        "rope": asdict(own.rope) if own.rope else None,
        "prompt_len": workload.context,
        "steps": workload.steps,
        "tokens": workload.context + workload.steps,
        "provenance": {
            "recorder": f"ghostsim trace compose, request {request}",
            "text": "; ".join(dict.fromkeys(origin.text for origin in origins))[:1000],
            "licence": " AND ".join(dict.fromkeys(origin.licence for origin in origins)),
            "seed": workload.seed,
        },
    }
