"""The working folder of a recording: float32 arrays filled layer by layer, and what is needed to go on later."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_STATE = "state.json"


@dataclass(frozen=True)
class LayerRecord:
    """What is known about one recorded layer beside its arrays; errors are [as float16, as float32]."""

    window: int | None
    inv_freq: list[float] | None
    probability_errors: list[float]
    output_errors: list[float]


class Store:
    """Arrays and progress of an unfinished recording; opened again with the same key, it goes on."""

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        state = self._read()
        self.resumed = state.get("key") == key
        if not self.resumed:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            state = {"key": key, "done": 0, "layers": {}}
        self._state = state

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads((self.folder / _STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        self._replace(_STATE, lambda path: path.write_text(json.dumps(self._state), encoding="utf-8"))

    def _replace(self, name: str, write: Any) -> None:  # noqa: ANN401
        temporary = self.folder / f".{name}"
        write(temporary)
        os.replace(temporary, self.folder / name)  # noqa: PTH105  (atomic)

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        """Return the array `name`, float32, memory-mapped for writing; made when it is not there yet."""
        path = self.folder / f"{name}.npy"
        mode = "r+" if path.exists() else "w+"
        return np.lib.format.open_memmap(path, mode=mode, dtype=np.float32, shape=shape)

    def load(self, name: str) -> Array | None:
        """Return a whole array that `save` wrote, if it is there."""
        path = self.folder / f"{name}.npy"
        return np.asarray(np.load(path, allow_pickle=False)) if path.exists() else None

    def save(self, name: str, values: Array) -> None:
        """Write a whole array in one piece."""

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                np.save(stream, values, allow_pickle=False)

        self._replace(f"{name}.npy", write)

    @property
    def done(self) -> int:
        """Layers whose output is at hand, counted from the first."""
        return int(self._state["done"])

    def reached(self, done: int) -> None:
        """Note that the layers before `done` need not run again."""
        self._state["done"] = done
        self._write()

    def keep(self, layer: int, record: LayerRecord) -> None:
        """Note what is known about a layer."""
        self._state["layers"][str(layer)] = asdict(record)
        self._write()

    def layers(self) -> Mapping[int, LayerRecord]:
        """Return what is known, by layer."""
        return {int(layer): LayerRecord(**fields) for layer, fields in self._state["layers"].items()}

    def remove(self, name: str) -> None:
        """Remove an array, if it is there."""
        (self.folder / f"{name}.npy").unlink(missing_ok=True)

    def drop(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
