"""Computes one point: what a process of a sweep does, and what it takes to end with the sweep."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache as once
from importlib.metadata import version
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import Any

import ghostsim
from ghostsim import cache
from ghostsim.config.load import LoadedScenario
from ghostsim.config.sweep import as_sets
from ghostsim.errors import GhostsimError, StoreError
from ghostsim.export.run_folder import write_run
from ghostsim.simulation import simulate
from ghostsim.sweep import store
from ghostsim.sweep.points import Point, Source, family, named, resolve, unpacked

_KIND = "points"
_MAX_BYTES = 1 << 30
_FILES = ("manifest.json", "config.yaml", "metrics.json", "steps.csv")
_SERVED = ("requests.csv", "serving.csv")
"""Files of scenarios that serve requests."""


@dataclass(frozen=True)
class Task:
    """One point to be computed into the store `folder`."""

    folder: Path
    source: Source
    settings: Mapping[str, Any]
    point: str
    jobs: int
    """Processes for policy evaluation."""
    reports: bool
    packed: bytes | None = None
    """The scenario of the point, if it was kept when the point was resolved."""
    wait: bool = False
    """Whether to wait for another program that computes the same point."""


@dataclass(frozen=True)
class Outcome:
    """How a task ended: well, with an error, or not at all because another program has the point."""

    error: str | None = None
    busy: bool = False
    unwritable: bool = False
    """Whether the store cannot be written, which no other point will survive either."""


def start_worker() -> None:
    """Make this process the head of a group that ends when the program that started it does, however that ends."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_group)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_group(*_: object) -> None:
    os.killpg(0, signal.SIGKILL)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        _end_group()


def resolve_task(task: tuple[Source, Mapping[str, Any], bool]) -> Point:
    """Resolve the point of (source, settings) and, if the third says so, pack it."""
    return resolve(*task)


def compute(task: Task) -> Outcome:
    """Compute a point unless its folder is there; whatever is wrong becomes the error of the outcome."""
    try:
        with store.claimed(task.folder, task.point, wait=task.wait) as mine:
            if not mine:
                return Outcome(busy=True)
            if not store.is_done(task.folder, task.point):
                _compute(task)
    except GhostsimError as error:
        return Outcome(error=str(error))
    except OSError as error:
        return Outcome(error=f"{error.filename or task.folder}: {error.strerror or error}", unwritable=_is_full(error))
    except Exception as error:  # noqa: BLE001  (a point that meets a defect is a row)
        return Outcome(error=" ".join(f"{type(error).__name__}: {error}".split()))
    return Outcome()


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def _compute(task: Task) -> None:
    with store.new_point(task.folder, task.point) as folder:
        if not task.reports and _recall(task, folder):
            return
        loaded = _loaded(task)
        result = simulate(loaded.scenario, task.source.base, task.jobs, where=loaded.at)
        write_run(folder, result, loaded, sys.argv, timeline=task.reports)
        with suppress(OSError):  # the memory of points is a convenience
            _remember(task.point, folder)
        if task.reports:
            from ghostsim.report.page import write_report  # noqa: PLC0415  (slow, and seldom asked for)

            write_report(folder, "directory")


def _loaded(task: Task) -> LoadedScenario:
    """Return the scenario of a task, which must be what it was when the point got its name."""
    loaded = unpacked(task.packed) if task.packed else family(task.source).load(as_sets(task.settings))
    if named(loaded, task.source.base) != task.point:
        family.cache_clear()
        loaded = family(task.source).load(as_sets(task.settings))
    if named(loaded, task.source.base) != task.point:
        raise StoreError("found a scenario or trace that changed while the sweep ran; run the sweep again")
    return loaded


# --- points of other sweeps --------------------------------------------------------------------------------------


_SHOWN_ONLY = ("report", "findings", "calibrate", "cli")
"""What changes pages and commands, but no figure."""


@once
def code(*, pages: bool = False) -> str:
    """Hash everything that makes figures: the source of ghostsim and the libraries it counts with; or `pages` too."""
    root = Path(str(ghostsim.__file__)).parent
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    counted = {name: path for name, path in files.items() if pages or name.partition("/")[0] not in _SHOWN_ONLY}
    text = {name: path.read_text(encoding="utf-8") for name, path in counted.items()}
    return cache.digest(text | {name: version(name) for name in ("numpy", "simpy")})


def _key(point: str) -> dict[str, object]:
    return {"point": point, "code": code()}


def _remember(point: str, folder: Path) -> None:
    """Keep a finished point for other sweeps."""

    def copy(entry: Path) -> None:
        for name in _present(folder):
            shutil.copyfile(folder / name, entry / name)

    cache.publish(_KIND, _key(point), copy)


def _present(folder: Path) -> tuple[str, ...]:
    return _FILES + tuple(name for name in _SERVED if (folder / name).exists())


def _recall(task: Task, folder: Path) -> bool:
    """Fill `folder` with a point that another sweep finished, perhaps of other files; tell whether there is one."""
    entry = cache.entry(_KIND, _key(task.point))
    try:
        if entry is None:
            return False
        for name in _present(entry):
            shutil.copyfile(entry / name, folder / name)
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and _is_full(error):
            raise
        cache.discard(_KIND, _key(task.point))
        return False
    data = {name: sha for name, sha in manifest["inputs"].items() if name.startswith(("trace ", "requests "))}
    own = {"argv": list(sys.argv), "inputs": dict(_loaded(task).inputs) | data}
    text = json.dumps(manifest | own, indent=1, allow_nan=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return True


def trim() -> None:
    """Bound the memory of finished points."""
    cache.trim(_KIND, _MAX_BYTES)
