"""The disk cache: ``$GHOSTSIM_CACHE``, else ``ghostsim`` in the user's cache folder (XDG).

An entry is a file or a folder named by the sha256 of its key, one subfolder per kind of content. Entries appear by
rename, so that several processes may write at once. A cache that is missing, read-only or corrupt only costs time:
nothing here raises because of it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from multiprocessing.util import Finalize  # of a worker process too, unlike `atexit`
from pathlib import Path
from types import ModuleType

_DIGEST_BYTES = 32
_TEMPORARY = ".tmp-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def root() -> Path:
    """Return the cache folder, which need not exist."""
    named = os.environ.get("GHOSTSIM_CACHE")
    if named:
        return Path(named)
    xdg = os.environ.get("XDG_CACHE_HOME")
    base = Path(xdg) if xdg and Path(xdg).is_absolute() else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111
    return base / "ghostsim"


def digest(key: str | Mapping[str, object]) -> str:
    """Return the sha256 of a key; a mapping counts by content, whatever its order."""
    text = key if isinstance(key, str) else json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _source_hash(file: str) -> str:
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return digest(file)


def code_hash(*modules: ModuleType) -> str:
    """Return a hash of the source of modules, part of every key whose content they compute.

    A module without a readable source, such as one typed in, counts by its name.
    """
    return digest("".join(_source_hash(getattr(module, "__file__", None) or module.__name__) for module in modules))


def _path(kind: str, key: str | Mapping[str, object]) -> Path:
    return root() / kind / digest(key)


def load_bytes(kind: str, key: str | Mapping[str, object]) -> bytes | None:
    """Return what was stored under `key`, or None where it is missing, unreadable or damaged."""
    try:
        raw = _path(kind, key).read_bytes()
    except OSError:
        return None
    data = raw[_DIGEST_BYTES:]
    return data if hashlib.sha256(data).digest() == raw[:_DIGEST_BYTES] else None


def store_bytes(kind: str, key: str | Mapping[str, object], data: bytes) -> None:
    """Store `data` under `key`, or do nothing where the cache can't be written."""
    final = _path(kind, key)
    temporary = ""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=final.parent, prefix=_TEMPORARY)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        Path(temporary).replace(final)
    except OSError:
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()


def entry(kind: str, key: str | Mapping[str, object]) -> Path | None:
    """Return the folder published under `key`, or None; its use counts as recent for `trim`."""
    folder = _path(kind, key)
    if not folder.is_dir():
        return None
    with suppress(OSError):
        os.utime(folder)
    return folder


def discard(kind: str, key: str | Mapping[str, object]) -> None:
    """Remove an entry, for instance a folder whose reader found it damaged."""
    _remove(_path(kind, key))


def publish(kind: str, key: str | Mapping[str, object], build: Callable[[Path], None]) -> Path:
    """Build a folder entry and return where it lies.

    `build` fills an empty folder, which is then renamed into place; where another process was faster, its entry is
    returned. Where the cache cannot be written or is full, the folder lies in the system's temporary folder until
    this process ends; `build` may be called again for it. What `build` raises is raised, and leaves nothing behind.
    """
    final = _path(kind, key)
    temporary = _workspace(final.parent)
    try:
        build(temporary)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.parent != final.parent or not (isinstance(error, OSError) and error.errno in _FULL):
            raise
        temporary = _elsewhere()
        build(temporary)
    if temporary.parent != final.parent:
        return temporary
    try:
        temporary.rename(final)
    except OSError:
        if not final.is_dir():
            return temporary
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _workspace(parent: Path) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=parent, prefix=_TEMPORARY))
    except OSError:
        return _elsewhere()


def _elsewhere() -> Path:
    """Return an empty folder outside the cache, which goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="ghostsim-"))
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
    return folder


def trim(kind: str, max_bytes: int, *, max_entries: int | None = None) -> None:
    """Remove the oldest entries of a kind until the rest fits; leftovers of killed writers age like entries."""
    try:
        items = sorted((item.stat().st_mtime_ns, item.name, _nbytes(item), item) for item in (root() / kind).iterdir())
    except OSError:
        return
    total, count = sum(item[2] for item in items), len(items)
    for _, _, nbytes, path in items:
        if total <= max_bytes and (max_entries is None or count <= max_entries):
            return
        _remove(path)
        total, count = total - nbytes, count - 1


def _nbytes(path: Path) -> int:
    files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
    return sum(file.stat().st_size for file in files)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()
