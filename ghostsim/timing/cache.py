"""Remembers evaluations of timing models: in the process, and on disk for the next process and for sweep workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from functools import lru_cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ghostsim import cache

P = ParamSpec("P")
Result = TypeVar("Result", float, tuple[float, float])

_KIND = "timing"
_MAX_BYTES = 64 << 20
_MAX_ENTRIES = 100_000


def cached(key: Mapping[str, object], compute: Callable[[], Result], code: str | None = None) -> Result:
    """Return what `compute` returned for this key and this hash of its source, computing it once per cache.

    Without `code` the hash is that of the module of `compute` and of all timing models. An entry that can't be read
    or doesn't hold numbers is computed again; none of it is ever an error.
    """
    full = {"key": key, "code": code or _code_behind(compute.__module__), "numpy": np.__version__}
    stored = _numbers(cache.load_bytes(_KIND, full))
    if stored is not None:
        return stored  # type: ignore[return-value]  # the code hash in the key fixes the shape of the result
    result = compute()
    cache.store_bytes(_KIND, full, json.dumps(result).encode())
    if cache.digest(full).startswith("00"):  # listing the folder is slow: at one store in 256
        cache.trim(_KIND, _MAX_BYTES, max_entries=_MAX_ENTRIES)
    return result


@lru_cache
def _code_behind(module: str) -> str:
    models = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))
    return cache.digest(cache.code_hash(sys.modules[module]) + models)


def _numbers(data: bytes | None) -> float | tuple[float, ...] | None:
    try:
        value = json.loads(data) if data is not None else None
    except ValueError:
        return None
    return tuple(value) if isinstance(value, list) else value


def remembered(*modules: ModuleType) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Return a decorator: `cached` by the arguments of a function, with a memory of the process in front.

    Arguments must be hashable: numbers, strings and frozen dataclasses of these. `modules` are those whose source
    makes the result.
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        def evaluate(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            key = {"function": function.__qualname__, "args": _plain(args), "kwargs": _plain(kwargs)}
            return cached(key, lambda: function(*args, **kwargs), cache.code_hash(*modules))

        return wraps(function)(lru_cache(maxsize=1 << 16)(evaluate))  # type: ignore[return-value]

    return decorate


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
