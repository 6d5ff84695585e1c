"""A `Selection` on disk: one ``.npy`` per array and one JSON header; loaded arrays are memory-mapped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim import cache
from ghostsim.plan.selection import GROUPS, IndexStage, Selection, Stream

KIND = "selections"
MAX_BYTES = 8 << 30
_HEADER = "selection.json"
_PLAIN = ("policy", "workload_hash", "stages", "streams")
_BY_ROW = ("scanned", "scan_bytes", "stream_tokens", "stream_bytes")
"""Arrays whose first axis is not U."""

_FURTHER = (
    "archive_tokens",
    "archive_runs",
    "state_bytes",
    "refit_bytes",
    "rewritten_bytes",
    "needless_reads",
    "oracle_reads",
)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes: U rows, S steps, g query heads, C stages, K streams, and the positions of a set."""

    units: int
    steps: int
    q_per_kv: int
    stages: int
    streams: int
    tokens: int


def _axes(sizes: Sizes) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
    """Return shape and dtype of every array that has the axis U."""
    step = (sizes.units, sizes.steps)
    query = (*step, sizes.q_per_kv)
    whole, mass = np.dtype(np.int64), np.dtype(np.float64)
    per_step = ("attended", "hot_tokens", "cold_tokens", "stored_tokens", "read_tokens", "read_runs")
    return {
        **dict.fromkeys((*per_step, *_FURTHER), (step, whole)),
        **dict.fromkeys(("violations", "bound_checks", "top_cold", "top_eliminated"), (query, whole)),
        **dict.fromkeys(("lost_mass", "certified_mass", "violated_mass", "output_error"), (query, mass)),
        **dict.fromkeys(("scanned", "scan_bytes"), ((sizes.stages, *step), whole)),
        **dict.fromkeys(("stream_tokens", "stream_bytes"), ((sizes.streams, *step), whole)),
        "read_groups": ((*step, GROUPS), whole),
        "sets": ((*step, (sizes.tokens + 7) // 8), np.dtype(np.uint8)),
    }


def _mapped(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
    """Return a new array in a file, whose room on disk is taken now: later a full disk would end the process."""
    array: Array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


class Writer:
    """Fills the arrays of a Selection row by row."""

    def __init__(self, folder: Path, sizes: Sizes, absent: frozenset[str]) -> None:
        self._arrays = {
            name: _mapped(folder / f"{name}.npy", dtype, shape) if 0 not in shape else np.zeros(shape, dtype=dtype)
            for name, (shape, dtype) in _axes(sizes).items()
            if name not in absent
        }
        self._folder = folder

    def put(self, unit: int, rows: Mapping[str, Array | None]) -> None:
        """Store the rows of one unit: fields of a Selection without their axis U; zero where a row has none.

        A variant of a policy that takes everything in some layers has fewer index stages there.
        """
        for name, array in self._arrays.items():
            row = rows[name]
            if row is not None:
                array[(slice(len(row)), unit) if name in _BY_ROW else unit] = row

    def close(
        self,
        workload_hash: str,
        stages: tuple[IndexStage, ...],
        streams: tuple[Stream, ...],
        unit_of: npt.NDArray[np.int32],
    ) -> None:
        """Write what has no axis U, and the header that makes the folder complete."""
        for name, array in self._arrays.items():
            if isinstance(array, np.memmap):
                array.flush()
            else:
                np.save(self._folder / f"{name}.npy", array, allow_pickle=False)
        np.save(self._folder / "unit_of.npy", unit_of, allow_pickle=False)
        _write_header(self._folder, workload_hash, stages, streams)


def save(selection: Selection, folder: Path) -> None:
    """Write a Selection into an existing folder."""
    for name in _array_names():
        array = getattr(selection, name)
        if array is not None:
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    _write_header(folder, selection.workload_hash, selection.stages, selection.streams)


def _write_header(
    folder: Path, workload_hash: str, stages: tuple[IndexStage, ...], streams: tuple[Stream, ...]
) -> None:
    lists = {"stages": [asdict(stage) for stage in stages], "streams": [asdict(stream) for stream in streams]}
    (folder / _HEADER).write_text(json.dumps({"workload_hash": workload_hash, **lists}, sort_keys=True))


def load(folder: Path, policy: str) -> Selection:
    """Read a Selection; `policy` is the name it goes by.

    Raises
    ------
    OSError, ValueError, KeyError, TypeError
        If the folder is incomplete or damaged.
    """
    header = json.loads((folder / _HEADER).read_text())
    arrays = {name: _array(folder / f"{name}.npy") for name in _array_names()}
    selection = Selection(
        policy=policy,
        workload_hash=header["workload_hash"],
        stages=tuple(IndexStage(**stage) for stage in header["stages"]),
        streams=tuple(Stream(**stream) for stream in header["streams"]),
        **arrays,  # type: ignore[arg-type]
    )
    _check(selection)
    return selection


def _check(selection: Selection) -> None:
    units, steps, g = selection.lost_mass.shape
    sizes = Sizes(units, steps, g, len(selection.stages), len(selection.streams), selection.sets.shape[-1] * 8)
    for name, (shape, dtype) in _axes(sizes).items():
        array = getattr(selection, name)
        if array is not None and (array.shape != shape or array.dtype != dtype):
            raise ValueError(f"found {name} of {array.dtype} {array.shape}, expected {dtype} {shape}")


def _array_names() -> tuple[str, ...]:
    return tuple(item.name for item in fields(Selection) if item.name not in _PLAIN)


_OPTIONAL = frozenset({"certified_mass", "violations", "violated_mass", "output_error"})


def _array(path: Path) -> Array | None:
    if not path.exists() and path.stem in _OPTIONAL:
        return None
    array: Array = np.load(path, mmap_mode="r" if path.stem == "sets" else None, allow_pickle=False)
    return array


def cached(key: str, policy: str) -> Selection | None:
    """Return the Selection stored under a content hash, or None; a damaged entry is removed."""
    folder = cache.entry(KIND, key)
    if folder is None:
        return None
    try:
        return load(folder, policy)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        cache.discard(KIND, key)
        return None


def publish(key: str, filled: Path, policy: str) -> Selection:
    """Move a filled folder into the cache, or copy it to another disk, and return the Selection in it."""

    def build(folder: Path) -> None:
        for file in sorted(filled.iterdir()):
            try:
                file.rename(folder / file.name)
            except OSError:
                shutil.copyfile(file, folder / file.name)

    folder = cache.publish(KIND, key, build)
    cache.trim(KIND, MAX_BYTES)
    return load(folder, policy)
