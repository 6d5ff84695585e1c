"""Policy x workload -> Selection: heads spread over processes, results cached by content."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ghostsim import cache, seeding
from ghostsim.config import policy as policy_models
from ghostsim.config.policy import AllRule, Certify, Keep, Policy
from ghostsim.errors import InvariantError
from ghostsim.plan import selection as selection_module
from ghostsim.plan import store
from ghostsim.plan.selection import Selection
from ghostsim.policy import attended, cold, costs, exact, formats, indexes, keep, rows, rules
from ghostsim.policy import head as head_module
from ghostsim.policy.costs import index_stages
from ghostsim.policy.head import evaluate_heads
from ghostsim.policy.rows import HeadRows, claims
from ghostsim.trace.compose import Shape, Workload, compose
from ghostsim.trace.format import open_trace

Progress = Callable[[int, int], None]

_MAX_JOBS = 4
_WORKER = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"),
    # glibc would give every large temporary back to the system and have it zeroed again: a fifth of the time.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}
_POLICY_CODE = (attended, cold, costs, exact, formats, head_module, indexes, keep, rows, rules)
_CODE = (selection_module, policy_models, seeding, store, *_POLICY_CODE)


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
    """
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
    parts = {"policy": clauses, "workload": workload.content_hash, "code": cache.code_hash(*_CODE)}
    return cache.digest(json.dumps(parts, sort_keys=True))


# --- layers that are treated apart --------------------------------------------------------------------------


def specialised(policy: Policy, layer: int) -> Policy:
    """Return the policy as it is in one layer of the target model: a dense layer takes everything."""
    keeps = tuple(_dense_keep(clause) if layer in clause.select.layers.dense else clause for clause in policy.keep)
    read = policy.read.model_copy(update={"rule": _ALL}) if layer in policy.read.layers.dense else policy.read
    return policy.model_copy(update={"keep": keeps, "read": read})


_ALL = AllRule.model_validate({"all": {}})


def _dense_keep(clause: Keep) -> Keep:
    return clause.model_copy(update={"select": clause.select.model_copy(update={"rule": _ALL})})


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
    variants: list[Policy] = []
    of_layer = []
    for layer in range(workload.shape.layers):
        variant = specialised(policy, layer)
        if variant not in variants:
            variants.append(variant)
        of_layer.append(variants.index(variant))
    code = workload.unit_of.astype(np.int64) * len(variants) + np.array(of_layer)[None, :, None]
    distinct, row_of = np.unique(code, return_inverse=True)
    rows = tuple((c // len(variants), c % len(variants)) for c in distinct.tolist())
    return Layout(tuple(variants), rows, row_of.reshape(code.shape).astype(np.int32))


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
    content_hash: str


def _recipe(workload: Workload) -> Recipe:
    return Recipe(
        folders=tuple(trace.path.resolve() for trace in workload.traces),
        shape=workload.shape,
        requests=workload.requests,
        steps=workload.steps,
        context=workload.context if workload.dtype is np.float32 else None,
        seed=workload.seed,
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
    if workload.content_hash != recipe.content_hash:
        raise InvariantError("workload: found other traces in a worker process than in the program, expected the same")
    return workload


Task = tuple[Recipe, int, tuple[Policy, ...]]


def _evaluate_unit(task: Task) -> list[HeadRows]:
    recipe, unit, policies = task
    return evaluate_heads(policies, _workload(recipe).head(unit))


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


def _evaluated(tasks: Sequence[Task], jobs: int) -> Iterator[list[HeadRows]]:
    """Yield the results of tasks in order."""
    workers = min(jobs or min(os.cpu_count() or 1, _MAX_JOBS), len(tasks))
    with _worker_environment(), ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_evaluate_unit, tasks)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _compute(
    policies: Mapping[str, Policy], workload: Workload, jobs: int, progress: Progress | None
) -> dict[str, Selection]:
    layouts = {key: layout(policy, workload) for key, policy in policies.items()}
    wanted = [_wanted(layouts, unit) for unit in range(len(workload.heads))]
    recipe = _recipe(workload)
    tasks = [
        (recipe, unit, tuple(layouts[key].variants[v] for key, _, v in jobs_)) for unit, jobs_ in enumerate(wanted)
    ]
    with tempfile.TemporaryDirectory(prefix="ghostsim-selection-") as scratch:
        writers = {}
        for done, rows in enumerate(_evaluated(tasks, jobs)):
            for (key, row, _), result in zip(wanted[done], rows, strict=True):
                if key not in writers:
                    folder = Path(scratch) / key
                    writers[key] = _writer(folder, policies[key], workload, layouts[key], result)
                writers[key].put(row, _row(result))
            if progress is not None:
                progress(done + 1, len(tasks))
        return {
            key: _finish(key, writer, Path(scratch) / key, policies[key], workload, layouts[key])
            for key, writer in writers.items()
        }


def _wanted(layouts: Mapping[str, Layout], unit: int) -> list[tuple[str, int, int]]:
    """Return (policy key, row, variant) of everything to be evaluated on a unit."""
    return [
        (key, row, variant)
        for key, plan in layouts.items()
        for row, (of, variant) in enumerate(plan.rows)
        if of == unit
    ]


def _row(rows: HeadRows) -> dict[str, npt.NDArray[np.generic] | None]:
    return {item.name: getattr(rows, item.name) for item in fields(rows)}


def _writer(folder: Path, policy: Policy, workload: Workload, plan: Layout, sample: HeadRows) -> store.Writer:
    folder.mkdir()
    sizes = store.Sizes(
        units=len(plan.rows),
        steps=workload.steps,
        q_per_kv=sample.lost_mass.shape[1],
        stages=len(sample.scanned),
        tokens=workload.context + workload.steps,
    )
    return store.Writer(folder, sizes, _absent(policy, sample))


def _absent(policy: Policy, sample: HeadRows) -> frozenset[str]:
    present = {
        "certified_mass": isinstance(policy.read.rule, Certify),
        "violations": claims(policy),
        "violated_mass": claims(policy),
        "output_error": sample.output_error is not None,
    }
    return frozenset(name for name, there in present.items() if not there)


def _finish(
    key: str, writer: store.Writer, folder: Path, policy: Policy, workload: Workload, plan: Layout
) -> Selection:
    writer.close(workload.content_hash, index_stages(policy, workload.shape.head_dim), plan.unit_of)
    return store.publish(key, folder, policy.name)
