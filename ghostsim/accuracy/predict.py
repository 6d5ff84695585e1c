"""Predictions for measured rows: what a row may hold, which model answers it, and the processes that do the work."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

from ghostsim.accuracy import dram, gpu_memory, kernels
from ghostsim.accuracy.table import Measurement, Row, schemas
from ghostsim.config.hardware import Gpu
from ghostsim.errors import TableError
from ghostsim.timing.dram_table import load_timings

Progress = Callable[[int, int], None]
"""Told how many questions are answered, and of how many."""

_PREDICTORS: Mapping[str, Callable[[Row], float]] = {**dram.PROBES, **kernels.PROBES}
_GPU_PREDICTORS: Mapping[str, Callable[[Gpu, Row], float]] = {**kernels.GPU_PROBES, **gpu_memory.GPU_PROBES}
_LABEL_ONLY = ("memory_system_latency", "cxl_latency_model")
"""Probes whose part is a label."""
SCHEMAS = schemas(
    {**dram.COLUMNS, **kernels.COLUMNS, **gpu_memory.COLUMNS},
    {**dram.UNITS, **kernels.UNITS, **gpu_memory.UNITS},
    _LABEL_ONLY,
)

_RANGES = {
    "read_fraction": (0, 1),
    "dram_latency_mean.read_fraction": (0.01, 1),
    "dram_latency_p95.read_fraction": (0.01, 1),
    "record_bytes": (1, 65536),
    "n_records": (1, 1_000_000),
    "gpu_gather.n_records": (1, 1e9),
    "gpu_sketch_score.n_records": (1, 1e9),
    "outstanding": (1, 65536),
    "read_queue": (1, 65536),
    "write_queue": (1, 65536),
    "max_GBps": (0.001, 1e6),
}
"""What the memory models accept of conditions, of all probes or of one; a latency needs reads."""
_PARTS: Mapping[str, Callable[[], Collection[str]]] = {
    **dict.fromkeys(_GPU_PREDICTORS, kernels.gpu_names),
    "upmem_mram_dma": lambda: kernels.DPUS,
    **dict.fromkeys(dram.PROBES, load_timings),
}
"""The parts that the model of each probe knows."""
_MAX_JOBS = 4
_FEW = 16
"""So few questions are answered in less time than processes take to start."""

Answer = float | Exception
Group = Sequence[Row]


def predict(
    rows: Sequence[Measurement], jobs: int = 1, progress: Progress | None = None, parts: Sequence[Gpu] = ()
) -> list[float | None]:
    """Return what the models say of each row; none where its controller's settings are not modelled.

    Parameters
    ----------
    rows
        Checked rows.
    jobs
        Processes; 0 takes one per core, at most 4. The answers are the same for any.
    progress
        Called after every question; rows that differ in the probe only are one.
    parts
        GPUs that rows may name besides those of the catalogue.

    Raises
    ------
    TableError
        If a row names what no model knows; the message names row and column.
    """
    for row in rows:
        _check_range(row)
        _check_known(row)
        if _is_channel(row) and row.part not in load_timings():
            _settled(row, KeyError(row.part))
    asked: dict[tuple[str, ...], list[int]] = {}
    for at, row in enumerate(rows):
        if not _is_channel(row) or dram.modelled(row.row):
            asked.setdefault(_question(row), []).append(at)
    answers: list[float | None] = [None] * len(rows)
    groups = list(asked.values())
    given = {part.name: part for part in parts}
    found = _answers([[rows[at].row for at in group] for group in groups], jobs, given)
    for done, (group, some) in enumerate(zip(groups, found, strict=True), start=1):
        for at, answer in zip(group, some, strict=True):
            answers[at] = _settled(rows[at], answer)
        if progress is not None:
            progress(done, len(groups))
    return answers


def _question(row: Measurement) -> tuple[str, ...]:
    """Return what rows of one simulation agree in: mean and p95 of a latency are two readings of the same."""
    kind = row.probe.removesuffix("_mean").removesuffix("_p95")
    return (kind, row.part, *(row.row[name] for name in SCHEMAS[row.probe].columns))


def _answers(groups: Sequence[Group], jobs: int, given: Mapping[str, Gpu]) -> Iterator[list[Answer]]:
    workers = min(jobs or min(os.cpu_count() or 1, _MAX_JOBS), len(groups))
    if workers < 2 or sum(group[0]["probe"].startswith("dram") for group in groups) < _FEW:
        yield from map(partial(_answer, given), groups)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(partial(_answer, given), groups, chunksize=4)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _answer(given: Mapping[str, Gpu], group: Group) -> list[Answer]:
    return [_attempt(row, given) for row in group]


def _attempt(row: Row, given: Mapping[str, Gpu]) -> Answer:
    try:
        if row["probe"] in _GPU_PREDICTORS:
            return _GPU_PREDICTORS[row["probe"]](given.get(row["part"]) or kernels.gpu(row["part"]), row)
        return _PREDICTORS[row["probe"]](row)
    except (KeyError, ValueError, ArithmeticError) as error:
        return error


def _is_channel(row: Measurement) -> bool:
    """Say whether the row is about one channel of DRAM and its controller."""
    return "mapping" in SCHEMAS[row.probe].columns


def _settled(row: Measurement, answer: Answer) -> float:
    """Return the answer, or raise what went wrong as a line that names row and column."""
    match answer:
        case float():
            return answer
        case KeyError():
            column, expected = "part", f"a part that the models know, e.g. {_nearest_part(row)!r}"
        case kernels.FieldError():
            column, expected = answer.column, answer.expected
        case ArithmeticError():
            raise TableError("row: found numbers too large to calculate with, expected a real shape", row.at)
        case _:
            raise TableError(f"row: {answer}", row.at)
    raise TableError(f"{column}: found {row.row[column]!r}, expected {expected}", row.column(column))


def _nearest_part(row: Measurement) -> str:
    """Return the name most like that of the row's part; capitals and hyphens count for nothing."""
    plain = {name.lower().replace("-", "_"): name for name in sorted(_PARTS[row.probe]())}
    (found,) = difflib.get_close_matches(row.part.lower().replace("-", "_"), plain, 1, 0.0)
    return plain[found]


def _check_range(row: Measurement) -> None:
    for name in SCHEMAS[row.probe].columns:
        limits = _RANGES.get(f"{row.probe}.{name}") or _RANGES.get(name)
        if limits and not limits[0] <= float(row.row[name]) <= limits[1]:
            message = f"{name}: found {row.row[name]!r}, expected a number from {limits[0]:g} to {limits[1]:g}"
            raise TableError(message, row.column(name))


def _check_known(row: Measurement) -> None:
    for name, known in dram.KNOWN.items():
        if name in SCHEMAS[row.probe].columns and row.row[name] not in known:
            message = f"{name}: found {row.row[name]!r}, expected {' or '.join(known)}"
            raise TableError(message, row.column(name))
