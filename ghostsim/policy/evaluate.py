"""Policy x workload -> Selection: heads spread over processes, results cached by content."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt

from ghostsim import cache, seeding
from ghostsim import policy as policy_package
from ghostsim.config import formats, policy, rules, scores
from ghostsim.config.policy import Policy
from ghostsim.errors import InvariantError
from ghostsim.plan import selection as selection_module
from ghostsim.plan import store
from ghostsim.plan.selection import Selection
from ghostsim.policy import variants
from ghostsim.policy.costs import index_stages, streams_of
from ghostsim.policy.head import evaluate_group
from ghostsim.policy.needs import check_served
from ghostsim.policy.rows import HeadRows, absent
from ghostsim.trace.compose import Predictor, Shape, Workload, compose
from ghostsim.trace.format import open_trace
from ghostsim.trace.statistics import CLASSES

Progress = Callable[[int, int], None]

_MAX_JOBS = 4
_WORKER = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
    # glibc would give every large temporary back to the system and have it zeroed again: a fifth of the time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}
_APART = ("needs", "placement", "output")
"""Modules of this package that a Selection does not depend on."""


def select(
    policies: Mapping[str, Policy],
    workload: Workload,
    *,
    jobs: int = 0,
    progress: Progress | None = None,
) -> dict[str, Selection]:
    """Evaluate policies on a workload; only what the cache lacks is computed.

    Heads are always evaluated in worker processes with single-threaded linear algebra, because float products change
    their last bits with the number of threads: the result is the same for any `jobs`.

    Parameters
    ----------
    policies
        By the name that the Selection bears.
    jobs
        Worker processes; 0 takes the number of processors, at most 4.
    progress
        Called with (heads done, heads in all).

    Raises
    ------
    TraceError
        If the workload lacks what a policy needs.
    """
    for each in policies.values():
        check_served(each, workload)
    keys = {name: content_key(policy, workload) for name, policy in policies.items()}
    found = {name: store.cached(key, name) for name, key in keys.items()}
    missing = {keys[name]: policies[name] for name, selection in found.items() if selection is None}
    fresh = _compute(missing, workload, jobs, progress) if missing else {}
    return {name: selection or _renamed(fresh[keys[name]], name) for name, selection in found.items()}


def _renamed(selection: Selection, name: str) -> Selection:
    return Selection(**{item.name: getattr(selection, item.name) for item in fields(selection)} | {"policy": name})


def content_key(policy: Policy, workload: Workload) -> str:
    """Return the hash of everything a Selection depends on: clauses, workload, and the code that makes it."""
    clauses = policy.model_dump(mode="json", by_alias=True, exclude={"name", "summary", "paper"})
    parts = {"policy": clauses, "workload": workload.content_hash, "code": cache.code_hash(*_code())}
    return cache.digest(json.dumps(parts, sort_keys=True))


@functools.cache
def _code() -> tuple[ModuleType, ...]:
    """Return the modules that make a Selection."""
    names = sorted(info.name for info in pkgutil.iter_modules(policy_package.__path__) if info.name not in _APART)
    inside = [importlib.import_module(f"{policy_package.__name__}.{name}") for name in names]
    return (selection_module, seeding, store, formats, policy, rules, scores, *inside)


# --- what differs between layers and heads ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Layout:
    """The rows of a Selection: which unit and which variant of the policy each one is."""

    variants: tuple[Policy, ...]
    rows: tuple[tuple[int, int], ...]
    """(unit, variant) of each row."""
    unit_of: npt.NDArray[np.int32]
    """[requests, layers, kv_heads] row."""


def layout(policy: Policy, workload: Workload) -> Layout:
    """Lay out the rows: one per distinct (head, variant of the policy)."""
    found: list[Policy] = []
    number = np.empty(workload.unit_of.shape, dtype=np.int64)
    depth = workload.shape.layers
    layers = [variants.specialised(policy, layer, depth, workload.context) for layer in range(depth)]
    if variants.by_head(policy):
        full, classes = variants.head_profiles(policy, workload)
        kinds = np.stack([np.indices(number.shape)[1], full, classes], axis=-1)
        distinct, kind_of = np.unique(kinds.reshape(-1, 3), axis=0, return_inverse=True)
        each = [variants.for_head(layers[l], full=bool(f), head_class=CLASSES[c]) for l, f, c in distinct.tolist()]
        number[...] = np.array([_numbered(found, one) for one in each])[kind_of].reshape(number.shape)
    else:
        number[...] = np.array([_numbered(found, each) for each in layers])[None, :, None]
    code = workload.unit_of.astype(np.int64) * len(found) + number
    distinct, row_of = np.unique(code, return_inverse=True)
    rows = tuple((c // len(found), c % len(found)) for c in distinct.tolist())
    return Layout(tuple(found), rows, row_of.reshape(code.shape).astype(np.int32))


def _numbered(found: list[Policy], variant: Policy) -> int:
    if variant not in found:
        found.append(variant)
    return found.index(variant)


# --- computing ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to build the workload again: memory maps do not travel between processes."""

    folders: tuple[Path, ...]
    shape: Shape
    requests: int
    steps: int
    context: int | None
    seed: int
    predictor: Predictor | None
    content_hash: str


def _recipe(workload: Workload) -> Recipe:
    return Recipe(
        folders=tuple(trace.path.resolve() for trace in workload.traces),
        shape=workload.shape,
        requests=workload.requests,
        steps=workload.steps,
        context=workload.context if workload.dtype is np.float32 else None,
        seed=workload.seed,
        predictor=workload.predictor,
        content_hash=workload.content_hash,
    )


@functools.lru_cache(maxsize=1)
def _workload(recipe: Recipe) -> Workload:
    workload = compose(
        [open_trace(folder) for folder in recipe.folders],
        recipe.shape,
        requests=recipe.requests,
        steps=recipe.steps,
        context=recipe.context,
        seed=recipe.seed,
        trace_shape=True,
    )
    if recipe.predictor is not None:
        workload = workload.predicting(recipe.predictor)
    if workload.content_hash != recipe.content_hash:
        raise InvariantError("workload: found other traces in a worker process than in the program, expected the same")
    return workload


@dataclass(frozen=True)
class Task:
    """Units of one request that are evaluated together, and the policies to evaluate on them."""

    recipe: Recipe
    units: tuple[int, ...]
    policies: tuple[Policy, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    """Per policy its key and the row of each unit; -1 where the row is not wanted."""


def _evaluate_task(task: Task) -> list[list[HeadRows]]:
    workload = _workload(task.recipe)
    return evaluate_group(task.policies, [workload.head(unit) for unit in task.units])


@contextmanager
def _worker_environment() -> Iterator[None]:
    """Let processes started inside compute on one thread each, with an allocator that keeps what it has."""
    before = {name: os.environ.get(name) for name in _WORKER}
    os.environ.update(_WORKER)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _evaluated(tasks: Sequence[Task], jobs: int) -> Iterator[list[list[HeadRows]]]:
    """Yield the results of tasks in order."""
    workers = min(jobs or min(os.cpu_count() or 1, _MAX_JOBS), len(tasks))
    with _worker_environment(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_evaluate_task, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _named(folder: str) -> Iterator[None]:
    """Let what finds no room in a folder say so."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or folder
        raise


def _compute(
    policies: Mapping[str, Policy], workload: Workload, jobs: int, progress: Progress | None
) -> dict[str, Selection]:
    layouts = {key: layout(policy, workload) for key, policy in policies.items()}
    tasks = _tasks(policies, workload, layouts)
    with tempfile.TemporaryDirectory(prefix="ghostsim-selection-") as scratch, _named(scratch):
        writers: dict[str, store.Writer] = {}
        for done, found in enumerate(_evaluated(tasks, jobs)):
            for (key, rows), results in zip(tasks[done].rows, found, strict=True):
                for row, result in zip(rows, results, strict=True):
                    if key not in writers:
                        writers[key] = _writer(Path(scratch) / key, policies[key], workload, layouts[key], result)
                    if row >= 0:
                        writers[key].put(row, _row(result))
            if progress is not None:
                progress(done + 1, len(tasks))
        return {
            key: _finish(key, writer, Path(scratch) / key, policies[key], workload, layouts[key])
            for key, writer in writers.items()
        }


def _tasks(policies: Mapping[str, Policy], workload: Workload, layouts: Mapping[str, Layout]) -> list[Task]:
    """Return what is to be evaluated: heads alone, and together where a policy's selectors reach further."""
    recipe, tasks = _recipe(workload), list[Task]()
    for scope in ("head", "layer", "model"):
        keys = [key for key, policy in policies.items() if _scope(policy) == scope]
        for units in _groups(workload, scope) if keys else ():
            wanted = [each for key in keys for each in _wanted(key, layouts[key], units)]
            if wanted:
                chosen = tuple(variant for _, variant in wanted)
                tasks.append(Task(recipe, units, chosen, tuple(rows for rows, _ in wanted)))
    return tasks


def _scope(policy: Policy) -> str:
    """Return the widest scope of a policy's selectors."""
    scopes = {selector.scope for selector in policy.selectors()}
    return next(scope for scope in ("model", "layer", "head") if scope in scopes)


def _groups(workload: Workload, scope: str) -> list[tuple[int, ...]]:
    """Return the units that may choose together."""
    width = {"head": 3, "layer": 2, "model": 1}[scope]
    groups: dict[tuple[int, ...], list[int]] = {}
    for unit, place in enumerate(workload.heads):
        groups.setdefault(place[:width], []).append(unit)
    return [tuple(units) for units in groups.values()]


def _wanted(key: str, plan: Layout, units: tuple[int, ...]) -> list[tuple[tuple[str, tuple[int, ...]], Policy]]:
    """Return the rows of a policy on some units, variant by variant."""
    row_of = {place: row for row, place in enumerate(plan.rows)}
    found = []
    for number, variant in enumerate(plan.variants):
        rows = tuple(row_of.get((unit, number), -1) for unit in units)
        if max(rows) >= 0:
            found.append(((key, rows), variant))
    return found


def _row(rows: HeadRows) -> dict[str, npt.NDArray[np.generic] | None]:
    return {item.name: getattr(rows, item.name) for item in fields(rows)}


def _writer(folder: Path, policy: Policy, workload: Workload, plan: Layout, sample: HeadRows) -> store.Writer:
    folder.mkdir()
    sizes = store.Sizes(
        units=len(plan.rows),
        steps=workload.steps,
        q_per_kv=sample.lost_mass.shape[1],
        stages=len(index_stages(policy, workload.shape.head_dim)),
        streams=len(sample.stream_tokens),
        tokens=workload.context + workload.steps,
    )
    return store.Writer(folder, sizes, absent(policy, values=sample.output_error is not None))


def _finish(
    key: str, writer: store.Writer, folder: Path, policy: Policy, workload: Workload, plan: Layout
) -> Selection:
    d = workload.shape.head_dim
    stages = index_stages(policy, d, workload.shape.kv_heads)
    writer.close(workload.content_hash, stages, streams_of(policy, d), plan.unit_of)
    return store.publish(key, folder, policy.name)
