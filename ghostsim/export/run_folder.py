"""The run folder: written beside its final place and renamed when complete, so that a failed run leaves nothing."""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ghostsim
from ghostsim.config.document import dump
from ghostsim.config.load import LoadedScenario
from ghostsim.errors import UsageError
from ghostsim.export.capacities import bandwidths, platform_of
from ghostsim.export.timeline import Counter, Slice, write_timeline
from ghostsim.metrics.collect import Record, step_rows
from ghostsim.metrics.serving import Served, over_time, request_rows
from ghostsim.pipeline.program import program
from ghostsim.plan.plan import OPS, Plan
from ghostsim.policy.evaluate import content_key
from ghostsim.serving import request_files
from ghostsim.simulation import Result

_PACKAGES = ("simpy", "numpy", "pydantic", "pyyaml", "networkx", "plotly", "typer", "jinja2")
_TIMELINE_STEPS = 2
NOT_MODELLED = (
    "norms, rotary embedding, activations and sampling on the GPU; their kernels are taken to be fused",
    "the rounds of a staged certificate: what it reads is exact, but it is fetched in one round",
    "feedback of lost attention mass into later queries: traces are open loop, which flatters policies that lose mass",
    "prefill in decode steps, which start with their context in place; a serving run has it",
    "loaded latency by part: a fetch waits as one curve fitted to DRAM systems says, links and flash add idle ones",
    "page tables and TLB misses of the GPU on host memory",
    "drives that wear, heat up or collect garbage: reads are slow as often as their part states, else never",
    "link retraining, ECC retries and thermal throttling",
)
NOT_SERVED = (
    "serving: time of the host between iterations, tokenising and the network",
    "serving: requests of a batch read at the mean of their contexts, those beyond the named traces as the first ones",
    "serving: prefill is dense; the index of tokens found in the prefix cache is found with them",
    "serving: a transfer of kept blocks meets the decode's fetches, but no transfer of another tier or direction",
)
"""What a run that serves requests leaves out besides."""


@contextmanager
def staged(out: Path, *, force: bool = False, marker: str = "manifest.json") -> Iterator[Path]:
    """Yield a temporary folder beside `out` that becomes `out` if the block ends well.

    A folder is replaced only if it holds `marker`, the file that tells what wrote it.

    Raises
    ------
    UsageError
        If `out` exists and `force` is not set, or cannot be made.
    """
    try:
        _check_free(out, marker, force=force)
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise UsageError(f"--out: found {out}, expected a folder that can be written: {error.strerror}") from None
    try:
        yield temporary
        temporary.chmod(0o755)
        _swap(temporary, out)
    except OSError as error:
        error.filename = error.filename or str(out)  # a full disk names no file
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_free(out: Path, marker: str, *, force: bool) -> None:
    if not os.path.lexists(out):
        return
    if not force:
        raise UsageError(f"--out: found {out}, which exists; expected a new folder, or --force to replace it")
    if out.is_symlink() or not out.is_dir():
        raise UsageError(f"--force: found {out}, which is no folder; expected a folder that this command wrote")
    if not (out / marker).is_file() and any(out.iterdir()):
        raise UsageError(f"--force: found {out} without a {marker}; expected a folder that this command wrote")


def _swap(temporary: Path, out: Path) -> None:
    """Put the new folder in place; the old one goes only when the new one is complete."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent)) / "old"
        out.rename(old)
        temporary.rename(out)
        shutil.rmtree(old.parent, ignore_errors=True)
    else:
        temporary.rename(out)


def default_out(name: str) -> Path:
    """Return the first free of runs/NAME, runs/NAME-2, ..."""
    first = Path("runs") / name.replace("/", "_")[:100]
    return next(path for path in _numbered(first) if not path.exists())


def _numbered(first: Path) -> Iterator[Path]:
    yield first
    number = 2
    while True:
        yield first.with_name(f"{first.name}-{number}")
        number += 1


def write_run(
    folder: Path, result: Result, loaded: LoadedScenario, argv: Sequence[str], *, timeline: bool = True
) -> None:
    """Write everything but the report: manifest, config, metrics, steps and, if wanted, the timeline."""
    _write_json(folder / "metrics.json", result.metrics)
    _write_json(folder / "manifest.json", manifest(result, loaded, argv))
    (folder / "config.yaml").write_text(dump(loaded.document), encoding="utf-8")
    write_steps(folder / "steps.csv", result.records.values())
    if result.served:
        write_served(folder, result.served)
    if timeline:
        write_run_timeline(folder / "timeline.json.gz", result, loaded.document)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def simulator(result: Result) -> dict[str, Any]:
    """Return the `simulator` block: what the simulation itself cost."""
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in vars(result.counters).items()}


_version = cache(version)


def manifest(result: Result, loaded: LoadedScenario, argv: Sequence[str]) -> dict[str, Any]:
    """Return what is needed to repeat and to trust a run."""
    first = next(iter(result.workloads.values()))
    contexts = [trace.model.trained_context for trace in first.traces]
    return {
        "schema": 1,
        "ghostsim": ghostsim.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "seed": loaded.scenario.seed,
        "argv": list(argv),
        "inputs": dict(loaded.inputs)
        | {f"trace {t.name}": t.manifest_sha256 for t in first.traces}
        | {f"requests {name}": digest for name, digest in request_files(loaded.scenario).items()},
        "selections": {
            label: content_key(loaded.scenario.runs[label].policy, result.workloads[label]) for label in result.records
        },
        "plans": {label: record.plan.content_hash for label, record in result.records.items()},
        "simulator": simulator(result),
        "workload": {
            "trace": [trace.name for trace in first.traces],
            "kind": first.kind,
            "context_tokens": first.context,
            "steps": first.steps,
            "trained_context": min(contexts),
            "recorded_tokens": min(trace.tokens for trace in first.traces),
            "scored_heads": len(first.heads),
            "token_repeats": first.token_repeats(),
            "batch": {label: record.batch for label, record in result.records.items()},
            "lossless": {label: loaded.scenario.runs[label].policy.lossless for label in result.records},
        },
        "programs": {
            label: [vars(stage) for stage in program(record.plan, record.bound)]
            for label, record in result.records.items()
        },
        "lost_mass_by_context": _lost_mass_by_context(result),
        "what_if": what_if_table(result),
        "notes": result.notes,
        "not_modelled": [*NOT_MODELLED, *(NOT_SERVED if result.served else ())],
    }


def what_if_table(result: Result) -> dict[str, dict[str, float]]:
    """Return by run and resource how the mean step changes if that resource is twice as fast."""
    return {label: {each.resource: each.change for each in asked} for label, asked in result.what_if.items()}


def _lost_mass_by_context(result: Result) -> dict[str, list[dict[str, float]]]:
    """Return the lost mass of each composed run at the recorded length and at its own."""
    return {
        label: [
            {"context_tokens": result.workloads[label].traces[0].prompt_len, **recorded},
            {
                "context_tokens": result.workloads[label].context,
                **result.metrics["runs"][label]["quality"]["lost_mass"],
            },
        ]
        for label, recorded in result.recorded.items()
    }


def write_steps(path: Path, records: Iterable[Record]) -> None:
    """Write steps.csv: one row per run and step; a column that a run does not have is empty."""
    _write_rows(path, [row for record in records for row in step_rows(record)])


def write_served(folder: Path, served: Mapping[str, Served]) -> None:
    """Write requests.csv, one row per run and request, and serving.csv, queues and memory over time."""
    _write_rows(folder / "requests.csv", [row for label, each in served.items() for row in request_rows(label, each)])
    rows: list[Mapping[str, Any]] = []
    for label, each in served.items():
        columns = {name: values.tolist() for name, values in over_time(each).items()}
        rows += [
            {"label": label, **dict(zip(columns, row, strict=True))} for row in zip(*columns.values(), strict=True)
        ]
    _write_rows(folder / "serving.csv", rows)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_run_timeline(path: Path, result: Result, document: Mapping[str, Any]) -> None:
    """Write the timeline of a scenario's document.

    It has every row of the first steps with what it waited for, and the utilisation and bandwidth of each resource
    over the whole run.
    """
    counters = [
        counter
        for record in result.records.values()
        for counter in _counters(record, bandwidths(platform_of(document, record.label)))
    ]
    slices = (each for record in result.records.values() for each in _slices(record))
    note = f"rows of the first {_TIMELINE_STEPS} steps of each run; utilisation over the whole run"
    write_timeline(path, slices, counters, {"scenario": result.metrics["scenario"], "covers": note})


def _counters(record: Record, known: Mapping[str, float]) -> Iterator[Counter]:
    for name, values in record.series.items():
        yield Counter(record.label, name, record.bin_ps, values, "utilisation")
        if name in known:
            rates = [value * known[name] / 1e9 for value in values]
            yield Counter(record.label, f"{name} GB/s", record.bin_ps, rates, "GB/s")


def _slices(record: Record) -> Iterator[Slice]:
    plan, times = record.plan, record.times
    width = len(plan.names)
    rows = width * plan.layers * min(_TIMELINE_STEPS, plan.steps)
    took = [
        finish - start for start, finish in zip(times.start[:rows].tolist(), times.finish[:rows].tolist(), strict=True)
    ]
    awaited = _awaited(plan, took)
    for row, duration in enumerate(took):
        if duration:
            name, op = plan.names[row % width], OPS[plan.op[row]]
            start, lane = int(times.start[row]), record.bound[row % width].lane
            args = _args(record, row, duration)
            yield Slice(record.label, lane, name, op, start, start + duration, args, row, awaited[row])


def _args(record: Record, row: int, duration_ps: int) -> dict[str, Any]:
    plan, times = record.plan, record.times
    queue_ps = max(0, duration_ps - int(times.delay[row]) - int(times.service[row]))
    sizes = {"nbytes": int(plan.nbytes[row]), "flops": int(plan.flops[row])}
    place = {"step": int(plan.step[row]), "layer": int(plan.layer[row]), "request": int(plan.request[row])}
    return (
        place | {name: size for name, size in sizes.items() if size or name == "nbytes"} | {"queue_us": queue_ps / 1e6}
    )


def _awaited(plan: Plan, took: Sequence[int]) -> list[tuple[int, ...]]:
    """Return by row the rows it waited for; one that took no time stands for those that it waited for itself."""
    offsets, after = plan.offsets[: len(took) + 1].tolist(), plan.after.tolist()
    found: list[tuple[int, ...]] = []
    for row in range(len(took)):
        before = after[offsets[row] : offsets[row + 1]]
        chain = (each for one in before for each in ((one,) if took[one] else found[one]))
        found.append(tuple(dict.fromkeys(chain)))
    return found
