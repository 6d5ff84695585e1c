"""Runs a sweep: its points in processes, into a store."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ghostsim.errors import GhostsimError
from ghostsim.sweep import store, worker
from ghostsim.sweep.cluster import WorkerLostError, cluster
from ghostsim.sweep.pace import Pace
from ghostsim.sweep.points import EffectiveSweep, Point, effective_sweep, resolve
from ghostsim.sweep.worker import Outcome, Task

Progress = Callable[[str], None]

_MAX_JOBS = 4
_FEW_POINTS = 32
"""So few are resolved in less time than processes take to start."""
_MOST_PACKED = 5000
"""Points whose scenarios are kept, at 20 to 100 KB each; those of a larger sweep are loaded twice."""
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
DIED = "found that the process of this point died (killed, or out of memory), expected it to end by itself"


@dataclass(frozen=True)
class SweepResult:
    """How many points of a sweep are done and how many failed, and where its store is."""

    done: int
    failed: int
    folder: Path
    missed: int = 0
    """Points done that miss a `require:` bound."""


def run_sweep(
    sweep: str | Path,
    sets: Iterable[str] = (),
    out: Path = Path("sweep"),
    *,
    jobs: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
    reports: bool = False,
    scheduler: str | None = None,
) -> SweepResult:
    """Run every point of a sweep into a store; a point that fails is a row of its table.

    Parameters
    ----------
    sweep
        A file or a bundled name.
    sets
        ``PATH=VALUE`` changes of the scenario.
    out
        Folder of the store: a new one, or with `resume` one of this sweep.
    jobs
        Points at once, 1 in this process; 0 takes the number of processors, at most 4. The store is the same for any.
    resume
        Compute only what is not finished; points that failed are tried again.
    progress
        Called with a line about what is being done.
    reports
        Write timeline and report of every point that is computed.
    scheduler
        Address of a Dask scheduler, whose workers compute the points instead; they see `out` under the same path.

    Raises
    ------
    ConfigError
        If the sweep, a set, or the first point is invalid.
    UsageError
        If `out` exists (without `resume`) or is the store of another sweep.
    StoreError
        If `resume` finds no valid store.
    """
    effective = effective_sweep(sweep, sets)
    crew = Crew(jobs, scheduler)
    crew.check()
    open_store(out, effective.document, store.SWEEP, resume=resume)
    return run_points(out, effective, crew, progress, reports=reports)


def open_store(out: Path, document: Mapping[str, Any], name: str, *, resume: bool) -> None:
    """Make the store of `document`, or see that `out` is one and remove what killed processes left in it."""
    if resume:
        store.check(out, document, name)
        store.clean(out)
    else:
        store.create(out, document, name)


def run_points(
    out: Path, effective: EffectiveSweep, crew: Crew, progress: Progress | None = None, *, reports: bool = False
) -> SweepResult:
    """Run every point of a sweep into a store that is there."""
    say = progress or (lambda _: None)
    points = _resolve(effective, crew.jobs, say)
    return _Run(out.resolve(), effective, points, crew, reports, say).run(out)


def _resolve(effective: EffectiveSweep, jobs: int, say: Progress) -> list[Point]:
    settings, source = effective.settings(), effective.source
    say(f"resolve {len(settings)} points")
    tasks = [(source, each, len(settings) <= _MOST_PACKED) for each in settings]
    if jobs == 1 or len(settings) <= _FEW_POINTS:
        return [resolve(*task) for task in tasks]
    with processes(jobs) as pool:
        try:
            return list(pool.map(worker.resolve_task, tasks, chunksize=8))
        except BrokenProcessPool:
            raise GhostsimError("found that a process died while it read the points of the sweep") from None


# --- processes ---------------------------------------------------------------------------------------------------


class _Here(Executor):
    """Runs what is submitted at once, in this process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401
        """Return what is already done."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """Yield an executor of processes with one thread each; an exception ends them and what they started at once."""
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    others = set(multiprocessing.active_children())
    os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=worker.start_worker)
    try:
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - others:
            _kill(process.pid)
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _kill(pid: int | None) -> None:
    """Kill a worker and what it started, or a worker that does not head a group yet."""
    if pid is not None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def _here() -> Iterator[Executor]:
    yield _Here()


class Crew:
    """Who computes points: this process, `jobs` processes (0: one per processor, at most 4), or a Dask cluster."""

    def __init__(self, jobs: int, scheduler: str | None = None) -> None:
        self.jobs = jobs or min(os.cpu_count() or 1, _MAX_JOBS)
        self.scheduler = scheduler

    def check(self) -> None:
        """Refuse a cluster that does not answer, before anything is written.

        Raises
        ------
        UsageError
            If Dask is not installed, or nothing answers at the address.
        """
        if self.scheduler is not None:
            with self.executor():
                pass

    def executor(self) -> AbstractContextManager[Executor]:
        """Return the executor, which ends with the context."""
        if self.scheduler is not None:
            return cluster(self.scheduler)
        return _here() if self.jobs == 1 else processes(self.jobs)


# --- the sweep ---------------------------------------------------------------------------------------------------


class _Queue:
    """Points that wait, held back while a Selection they need is being computed for another point."""

    def __init__(self, needs: Mapping[str, frozenset[str]]) -> None:
        self._needs = needs
        self._waiting = deque(needs)
        self._known: set[str] = set()
        self._coming: dict[str, frozenset[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self) -> str | None:
        """Return the first point that may start, if there is one."""
        coming = frozenset().union(*self._coming.values())
        for point in self._waiting:
            fresh = self._needs[point] - self._known
            if coming.isdisjoint(fresh):
                self._waiting.remove(point)
                self._coming[point] = fresh
                return point
        return None

    def ended(self, point: str, *, again: bool) -> None:
        """Take note that a point ended; `again` puts it back."""
        fresh = self._coming.pop(point)
        if again:
            self._waiting.append(point)
        else:
            self._known |= fresh


class _Run:
    """The state of one sweep while it runs."""

    def __init__(
        self, folder: Path, effective: EffectiveSweep, points: Sequence[Point], crew: Crew, reports: bool, say: Progress
    ) -> None:
        settings = effective.settings()
        self._say, self._crew = say, crew
        bounds = {point.name: point.require for point in points}
        self._table = store.Table(folder, [point.name for point in points], effective.fields, settings, bounds)
        broken = {point.name: point.error for point in points if point.error is not None}
        whole = [(point, each) for point, each in zip(points, settings, strict=True) if point.error is None]
        for point in points:
            if point.name in broken or store.is_done(folder, point.name):
                self._table.put(point.name, broken.get(point.name))
        missing = {point.name: (point, each) for point, each in whole if not store.is_done(folder, point.name)}
        keys = frozenset().union(*(point.selections for point, _ in missing.values()))
        inner = crew.jobs if len({point.selections for point, _ in missing.values()}) < crew.jobs else 1
        inner = inner if crew.scheduler is None else 1
        self._tasks = {
            name: Task(folder, effective.source, each, name, inner, reports, point.packed)
            for name, (point, each) in missing.items()
        }
        self._queue = _Queue({name: point.selections & keys for name, (point, _) in missing.items()})
        self._pace = Pace(len(missing))

    def run(self, out: Path) -> SweepResult:
        """Compute everything that is missing; whatever ends it, the table says what is there."""
        try:
            self._table.write(last=True)
            while self._queue:
                self._run_until_a_process_dies()
        finally:
            self._table.write(last=True)
        worker.trim()
        return SweepResult(self._table.count("done"), self._table.count("failed"), out, self._table.missed)

    def _run_until_a_process_dies(self) -> None:
        running: dict[Future[Outcome], str] = {}
        lost: list[str] = []
        with self._crew.executor() as pool:
            while not lost and (self._fill(pool, running) or running):
                ended = wait(running, return_when=FIRST_COMPLETED).done
                lost = [point for future in ended if (point := self._end(future, running.pop(future))) is not None]
                self._table.write()
        for point in [*lost, *(self._end(future, point) for future, point in running.items())]:
            if point is not None:
                self._run_alone(point)

    def _fill(self, pool: Executor, running: dict[Future[Outcome], str]) -> bool:
        """Start points until every process has one; tell whether one was started."""
        started = False
        room = getattr(pool, "room", self._crew.jobs)
        while len(running) < room and (point := self._queue.take()) is not None:
            running[submit(pool, self._tasks[point])] = point
            started = True
        return started

    def _end(self, future: Future[Outcome], point: str) -> str | None:
        """Take note of how a point ended; return it if its process died, or one beside it."""
        try:
            outcome = future.result()
        except BrokenProcessPool:
            return point
        except WorkerLostError:
            outcome = Outcome(error=DIED)
        self._note(point, outcome)
        return None

    def _note(self, point: str, outcome: Outcome) -> None:
        if outcome.unwritable:
            raise store.unwritable(outcome.error)
        self._queue.ended(point, again=outcome.busy)
        if outcome.busy:
            self._tasks[point] = replace(self._tasks[point], wait=True)
            return
        self._table.put(point, outcome.error)
        counts = f"{self._table.count('done')} points done, {self._table.count('failed')} failed"
        self._say(f"{counts}, {self._table.count('pending')} to come{self._pace.after_one()}")

    def _run_alone(self, point: str) -> None:
        """Compute a point in a process of its own: of those that ran when one died, this tells which one it was."""
        with processes(1) as pool:
            try:
                outcome = submit(pool, self._tasks[point]).result()
            except BrokenProcessPool:
                outcome = Outcome(error=DIED)
        self._note(point, outcome)
        self._table.write()


def submit(pool: Executor, task: Task) -> Future[Outcome]:
    """Submit a task; a pool that broke in the meantime breaks its future."""
    try:
        return pool.submit(worker.compute, task)
    except BrokenProcessPool as error:
        future: Future[Outcome] = Future()
        future.set_exception(error)
        return future
