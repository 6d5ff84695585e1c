"""The command line. Heavy imports live inside the commands, so that help and errors come at once.

Exit codes: 0 done; 1 a run failed; 2 usage; 3 invalid configuration; 4 invalid or missing data; 5 a `require:`
bound was missed; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from ghostsim.errors import ConfigError, GhostsimError, RequirementError, StoreError, UsageError

if TYPE_CHECKING:
    from ghostsim.accuracy.report import AccuracyResult
    from ghostsim.config.catalogue import Entry
    from ghostsim.trace.requests import Requests

_HELP = """Simulates the memory system behind long-context LLM decoding.

Start with `ghostsim run cxl_pim`; `ghostsim list scenarios` names what else is bundled.

Exit codes: 0 done; 1 a run failed; 2 usage; 3 invalid configuration; 4 invalid or missing data; 5 a `require:`
bound was missed; 130 interrupted; 143 terminated.
"""

app = typer.Typer(
    help=_HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
trace_app = typer.Typer(help="Recorded attention and request workloads.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(trace_app, name="trace")
calibrate_app = typer.Typer(help="Measure this machine's hardware.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(calibrate_app, name="calibrate")

Sets = Annotated[list[str], typer.Option("--set", metavar="PATH=VALUE", help="Change a field, e.g. a.b.c='180 ns'.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Replace the scenario's seed.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write; a new one.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the folder that --out names.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no progress.")]
Jobs = Annotated[int, typer.Option("--jobs", min=0, help="Processes; 0 takes one per core, at most 4.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the store that --out names.")]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler", help="Dask scheduler, e.g. tcp://HOST:8786; its workers see --out under the same path."
    ),
]
OutFile = Annotated[Path | None, typer.Option("--out", help="CSV file to write; a new one.")]
ForceFile = Annotated[bool, typer.Option("--force", help="Replace the file that --out names.")]
Form = Literal["auto", "mooncake", "azure", "burstgpt", "ghostsim"]
Kinds = Literal["parts", "platforms", "models", "policies", "traces", "scenarios", "sweeps", "searches", "findings"]
_MOST_TOKENS = 2**24


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=1, allow_nan=False))


def _progress(*, quiet: bool) -> Callable[[str], None]:
    """Show what is being done on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)


def _clear_progress(*, quiet: bool) -> None:
    if not quiet and sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _check_new(flag: str, path: Path, *, force: bool) -> None:
    """Refuse a file to write that is there or cannot be, and make its folder."""
    if path.exists() and not (force and path.is_file()):
        raise UsageError(f"{flag}: found {path}, which exists; expected a new file, or --force to replace a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag}: found {path}, expected a file that can be written: {error.strerror}") from None


def _check_all_new(*, force: bool, **files: Path | None) -> None:
    """Refuse each file to write, by the option that names it, as `_check_new` does."""
    for option, path in files.items():
        if path is not None:
            _check_new(f"--{option}", path, force=force)


def _base_of(name: str) -> Path | None:
    """Return the folder that a scenario file's relative names start from."""
    path = Path(name)
    return path.resolve().parent if path.is_file() else None


# --- run and its results -------------------------------------------------------------------------------------


@app.command()
def run(
    scenario: str,
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    seed: Seed = None,
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 0,
) -> None:
    """Run a scenario and write its run folder.

    SCENARIO is a file or a bundled name; without --out the folder is runs/NAME, runs/NAME-2, ...
    """
    from ghostsim.config.load import load_scenario
    from ghostsim.export.run_folder import default_out, simulator, staged, write_run
    from ghostsim.report.page import write_report
    from ghostsim.report.text import summary_text
    from ghostsim.simulation import simulate

    loaded = load_scenario(scenario, sets, seed)
    folder = out or default_out(loaded.scenario.name)
    say = _progress(quiet=quiet)
    with staged(folder, force=force) as temporary:
        result = simulate(loaded.scenario, _base_of(scenario), jobs, say, loaded.at, ask_what_if=True)
        say("write the report")
        write_run(temporary, result, loaded, sys.argv)
        write_report(temporary)
        _clear_progress(quiet=quiet)
    if as_json:
        _print_json(result.metrics | {"simulator": simulator(result)})
    if not quiet:
        _tell(summary_text(folder))
    try:
        _check_requirements(loaded.scenario.require, result.metrics)
    except GhostsimError as error:  # the folder is the last line, whatever ends the run
        _tell(f"error: {error}")
        raise typer.Exit(error.exit_code) from None
    finally:
        _tell(str(folder))


def _check_requirements(bounds: Sequence[str], metrics: dict[str, Any]) -> None:
    from ghostsim.metrics.require import missed

    found = missed(bounds, metrics)
    if found:
        raise RequirementError("; ".join(found))


@app.command()
def report(
    folder: Path,
    csv: Annotated[Path | None, typer.Option("--csv", help="Folder to write tables to, as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="The same as Parquet; needs pyarrow.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the tables that are there.")] = False,
    quiet: Quiet = False,
) -> None:
    """Render the page of a run or a sweep again, or tables of it.

    A folder without a timeline, such as a point of a sweep, is simulated again first. With --csv or --parquet only
    tables are written: steps, metrics, waits and what_if, with units in their columns.
    """
    if csv is not None or parquet is not None:
        _write_tables(folder, {"csv": csv, "parquet": parquet}, force=force)
        return
    if (folder / "points.csv").is_file():
        from ghostsim.report.sweep_page import write_sweep_report

        _tell(str(write_sweep_report(folder)))
        return
    _render_run(folder, quiet=quiet)


def _write_tables(folder: Path, targets: dict[Literal["csv", "parquet"], Path | None], *, force: bool) -> None:
    from ghostsim.export.tables import write_tables
    from ghostsim.report.run_tables import run_tables
    from ghostsim.report.store import load_run

    tables = run_tables(load_run(folder))
    for form, target in targets.items():
        if target is not None:
            for name in tables:
                _check_new(f"--{form}", target / f"{name}.{form}", force=force)
            write_tables(target, tables, form)
            _tell(str(target))


def _render_run(folder: Path, *, quiet: bool) -> None:
    from ghostsim.config.load import load_scenario
    from ghostsim.export.run_folder import write_run_timeline
    from ghostsim.report.page import write_report
    from ghostsim.report.store import check_run
    from ghostsim.simulation import simulate

    check_run(folder)
    if not (folder / "timeline.json.gz").is_file():
        say = _progress(quiet=quiet)
        try:
            loaded = load_scenario(folder / "config.yaml")
        except ConfigError as error:
            raise StoreError(str(error)) from None
        result = simulate(loaded.scenario, folder, 0, say)
        write_run_timeline(folder / "timeline.json.gz", result, loaded.document)
        _clear_progress(quiet=quiet)
    _tell(str(write_report(folder)))


@app.command()
def compare(folders: list[Path], as_json: AsJson = False, out: Out = None, force: Force = False) -> None:
    """Set run folders side by side.

    Key figures, their ratios to the first folder, and the configuration that differs; --out writes a page.
    """
    from ghostsim.sweep.compare import compare_runs, comparison_text

    found = compare_runs(folders)
    if out is not None:
        from ghostsim.report.page import render_compare, write_text

        _check_new("--out", out, force=force)
        write_text(out, render_compare(folders))
        _tell(str(out))
    if as_json:
        _print_json(found)
    else:
        print(comparison_text(found))


@app.command()
def diff(
    before: Path,
    after: Path,
    above: Annotated[
        float, typer.Option("--above", min=0, help="Leave out changes up to this share, e.g. 0.01.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Say what moved between two run folders.

    The figures by relative change, and the inputs that explain it: settings, seeds, versions, hashes of files,
    Selections and Plans. Ends with 0 whether they differ or not.
    """
    from ghostsim.sweep.diff import diff_runs, diff_text

    found = diff_runs(before, after, above)
    if as_json:
        _print_json(found)
    else:
        print(diff_text(found))


@app.command()
def sweep(
    sweep: str,
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    out: Out = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Points that run at once.")] = 1,
    resume: Resume = False,
    reports: Annotated[
        bool, typer.Option("--reports", help="Write a page of the sweep, and reports of its points.")
    ] = False,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run every point of a sweep.

    A point that fails is a row of points.csv, and ends the command with 1. A point that misses a bound of `require:`
    is done; the column `missed` says which.
    """
    from ghostsim.export.run_folder import default_out
    from ghostsim.sweep.executor import run_sweep

    if resume and out is None:
        raise UsageError("--resume: found no --out, expected the store to continue, e.g. --out runs/cxl_link")
    folder = out or default_out(Path(sweep).stem)
    done = run_sweep(
        sweep,
        sets,
        folder,
        jobs=jobs,
        resume=resume,
        progress=_progress(quiet=quiet),
        reports=reports,
        scheduler=scheduler,
    )
    if reports and done.done:
        from ghostsim.report.sweep_page import write_sweep_report

        write_sweep_report(folder)
    _clear_progress(quiet=quiet)
    if as_json:
        counts = {"done": done.done, "failed": done.failed, "missed": done.missed}
        _print_json({"schema": 1, **counts, "folder": str(done.folder)})
    _tell(f"{done.done} points done, {done.failed} failed" + (f", {done.missed} miss a bound" if done.missed else ""))
    _tell(str(done.folder))
    if done.failed:
        raise typer.Exit(1)


@app.command()
def search(
    spec: str,
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    out: Out = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Points that run at once; 1 is deterministic.")] = 1,
    resume: Resume = False,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search for the hardware or policy that serves best.

    SPEC names a scenario, its fields, objectives and bounds; no point that meets the bounds ends the command with 5.
    With `sensitivity:` instead of objectives: which assumed number would turn the verdict. Either way the store ends
    with a page, sweep.html.
    """
    from ghostsim.export.run_folder import default_out
    from ghostsim.report.sweep_page import write_sweep_report
    from ghostsim.sweep import search as trials
    from ghostsim.sweep import sensitivity
    from ghostsim.sweep.executor import Crew

    if resume and out is None:
        raise UsageError("--resume: found no --out, expected the store to continue, e.g. --out runs/cxl_filter")
    effective = trials.effective_search(spec, sets)
    folder, crew, say = out or default_out(Path(spec).stem), Crew(jobs, scheduler), _progress(quiet=quiet)
    if effective.search.sensitivity is not None:
        turned = sensitivity.run_sensitivity(effective, folder, crew, resume=resume, progress=say)
        data, text, found = sensitivity.as_data(turned), sensitivity.sensitivity_text(turned), True
    else:
        tried = trials.run_search(effective, folder, crew, resume=resume, progress=say)
        data, text, found = trials.as_data(tried), trials.search_text(tried), bool(tried.best)
    _clear_progress(quiet=quiet)
    if as_json:
        _print_json(data)
    else:
        print(text)
    if data.get("failed") != data.get("trials", 1):
        _tell(str(write_sweep_report(folder)))
    if not found:
        _tell("error: found no point that meets the bounds, expected one; see points.csv")
    _tell(str(folder))
    if not found:
        raise typer.Exit(RequirementError.exit_code)


@app.command()
def findings(
    names: Annotated[list[str] | None, typer.Argument(help="Finding files or bundled names; none takes all.")] = None,
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 0,
) -> None:
    """Answer questions by simulation, each on a page.

    Gathers evidence and holds claims against it. Evidence that was computed before is taken from the cache: a command
    that was stopped goes on where it was.
    """
    from ghostsim.export.run_folder import default_out
    from ghostsim.findings.page import as_data
    from ghostsim.findings.run import findings_text, run_findings

    folder = out or default_out("findings")
    answers = run_findings(names or (), folder, jobs=jobs, force=force, progress=_progress(quiet=quiet))
    _clear_progress(quiet=quiet)
    if as_json:
        _print_json(as_data(answers))
    else:
        print(findings_text(answers))
    _tell(str(folder))


@app.command()
def evaluate(
    policy: str,
    trace: Annotated[str, typer.Option("--trace", help="A recorded trace: folder or bundled name.")],
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 0,
) -> None:
    """Say what a policy reads and loses on a trace."""
    from ghostsim.config.load import load_policy
    from ghostsim.export.run_folder import default_out, staged
    from ghostsim.metrics.quality import quality
    from ghostsim.metrics.quality_depth import depth, write_depth
    from ghostsim.policy.evaluate import select
    from ghostsim.policy.output import write_evaluation
    from ghostsim.trace.compose import compose
    from ghostsim.trace.format import open_trace

    chosen, recorded = load_policy(policy, sets).value, open_trace(trace)
    folder = out or default_out(f"evaluate-{chosen.name}-{recorded.name}")
    with staged(folder, force=force, marker="quality.csv") as temporary:
        workload = compose([recorded], None, requests=1, steps=None, context=None, seed=1)
        selection = select({chosen.name: chosen}, workload, jobs=jobs, progress=_fraction(quiet=quiet))[chosen.name]
        write_evaluation(chosen, workload, selection, temporary)
        deep = depth(chosen, workload, selection)
        write_depth(deep, temporary)
        _clear_progress(quiet=quiet)
    found = {"schema": 1, "policy": chosen.name, "trace": recorded.name, "quality": quality(selection, 1)}
    if as_json:
        _print_json(found | {"depth": deep})
    elif not quiet:
        _tell(json.dumps(found["quality"], indent=1))
    _tell(str(folder))


def _fraction(
    *, quiet: bool, doing: str = "evaluate", what: str = "attention head"
) -> Callable[[int, int], None] | None:
    say = _progress(quiet=quiet)
    return lambda done, of: say(f"{doing} {what} {done} of {of}")


@app.command()
def audit(
    trace: str,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Decode steps looked at, evenly spaced.")] = 32,
    drift: Annotated[
        bool, typer.Option("--drift", help="Also how indexes age over the steps, refitted or not.")
    ] = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="Also the nodes visited in trees above 32K to 1M tokens.")
    ] = False,
    out: OutFile = None,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write; a new file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that --out and --report name.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Audit on a trace what small sketches may rule out.

    Rank preservation, false elimination against elimination by each published definition, and a verdict.
    """
    from ghostsim.study.audit import audit as audited
    from ghostsim.study.audit_output import as_json as laid_out
    from ghostsim.study.audit_output import audit_text, write_csv
    from ghostsim.study.drift import drift as drifted
    from ghostsim.study.tree import tree as walked
    from ghostsim.trace.format import open_trace

    _check_all_new(out=out, report=report, force=force)
    recorded = open_trace(trace)
    ageing = drifted(recorded, _fraction(quiet=quiet, doing="drift on")) if drift else None
    trees = walked(recorded, progress=_fraction(quiet=quiet, doing="tree above", what="context")) if tree else None
    found = audited(recorded, steps, _fraction(quiet=quiet, doing="audit"))
    _clear_progress(quiet=quiet)
    if as_json:
        _print_json(laid_out(found, ageing, trees))
    else:
        print(audit_text(found, ageing, trees))
    if out is not None:
        write_csv(found, out)
        _tell(str(out))
    if report is not None:
        from ghostsim.report.audit_page import render_audit
        from ghostsim.report.page import write_text

        write_text(report, render_audit(found, ageing, trees))
        _tell(str(report))


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="Folder or name of a causal LM that transformers loads.")],
    text: Annotated[Path, typer.Argument(help="Text file, or token ids: .npy or .json.")],
    policy: Annotated[list[str], typer.Option("--policy", help="A policy file or bundled name; may be repeated.")],
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens before the first step.")] = 3968,
    steps: Annotated[int, typer.Option("--steps", help="Decode steps over the text.")] = 128,
    facts: Annotated[int, typer.Option("--facts", help="Facts to plant in the prompt and to ask for.")] = 0,
    q_prompt: Annotated[str, typer.Option("--q-prompt", help="Last prompt queries that policies see, or all.")] = "all",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the facts.")] = 1,
    device: Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda.")] = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decode a model that attends to a policy's reads only.

    Perplexity against full attention, lost mass in open and closed loop, recall of planted facts.
    """
    from ghostsim.config.load import load_policy
    from ghostsim.export.run_folder import staged
    from ghostsim.study.perplexity import Decode, figures, perplexity_text, write_perplexity
    from ghostsim.study.perplexity import perplexity as decode
    from ghostsim.trace.record import query_count

    asked = Decode(
        model=model,
        text=text,
        policies=tuple(load_policy(name).value for name in policy),
        prompt_len=prompt,
        steps=steps,
        facts=facts,
        q_prompt=query_count(q_prompt),
        seed=seed,
        device=device,
    )
    with nullcontext() if out is None else staged(out, force=force, marker="perplexity.json") as folder:
        found = decode(asked, _progress(quiet=quiet))
        if folder is not None:
            write_perplexity(found, folder)
        _clear_progress(quiet=quiet)
    if as_json:
        _print_json(figures(found))
    else:
        print(perplexity_text(found))
    if out is not None:
        _tell(str(out))


@app.command()
def frontier(
    trace: Annotated[str, typer.Argument(help="A recorded trace: folder or bundled name.")],
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="A policy, again for more; the whole library by default.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Decode steps, at most those recorded.")] = 64,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write; a new file.")] = None,
    out: OutFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that --report and --out name.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 0,
) -> None:
    """Set what policies lose against what they move.

    Every policy of the library on one recorded trace, each at several budgets, beside an oracle.
    """
    from ghostsim.config.catalogue import files
    from ghostsim.config.load import load_policy
    from ghostsim.report.frontier_page import frontier_text, heading, render_frontier
    from ghostsim.report.page import write_text
    from ghostsim.study.frontier import as_data, write_csv
    from ghostsim.study.frontier import frontier as measure
    from ghostsim.trace.format import open_trace

    _check_all_new(force=force, report=report, out=out)
    chosen = [load_policy(name).value for name in policy or files("policy")]
    found = measure(open_trace(trace), chosen, steps=steps, jobs=jobs, progress=_fraction(quiet=quiet))
    _clear_progress(quiet=quiet)
    if out is not None:
        write_csv(found, out)
    if report is not None:
        write_text(report, render_frontier(found))
    if as_json:
        _print_json(as_data(found) | {"verdict": heading(found)})
    else:
        print(frontier_text(found))
    for path in (out, report):
        if path is not None:
            _tell(str(path))


@app.command()
def accuracy(
    tables: Annotated[list[Path] | None, typer.Argument(help="CSV tables; none takes the bundled ones.")] = None,
    part: Annotated[list[str], typer.Option("--part", help="A GPU that tables name: a part file.")] = [],  # noqa: B006  (typer copies the default)
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 0,
) -> None:
    """Replay measurements through the models.

    Prints the errors of each probe and part, and the worst rows; --out also writes predictions.csv and accuracy.html.
    """
    from ghostsim.accuracy.report import accuracy as replay
    from ghostsim.config.load import load_gpu
    from ghostsim.export.run_folder import staged
    from ghostsim.report.accuracy_page import render_accuracy
    from ghostsim.report.page import write_text

    say = _progress(quiet=quiet)
    parts = [load_gpu(name) for name in part]
    found = replay(tables or None, parts, jobs=jobs, progress=lambda done, of: say(f"predict {done} of {of}"))
    _clear_progress(quiet=quiet)
    if out is not None:
        with staged(out, force=force, marker="predictions.csv") as temporary:
            found.write_predictions(temporary)
            write_text(temporary / "accuracy.html", render_accuracy(found))
    _print_accuracy(found, as_json=as_json)
    if out is not None:
        _tell(str(out))


def _print_accuracy(found: AccuracyResult, *, as_json: bool) -> None:
    if as_json:
        _print_json(found.as_json())
        return
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(found.table())
    console.print(found.worst_table())


@calibrate_app.callback()
def calibrate() -> None:
    """Measure this machine's hardware."""


@calibrate_app.command("gpu")
def calibrate_gpu(
    name: Annotated[str | None, typer.Option("--name", help="Name of the part; by default the GPU's own.")] = None,
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure the GPU: a table of probes and a part.

    Takes some minutes on an idle NVIDIA GPU, and a CUDA build of torch: pip install "ghostsim[record]". Ends with 1
    where there is none. What is printed is how well the written part predicts the written table.
    """
    from ghostsim.calibrate.gpu import calibrate, find_gpu
    from ghostsim.export.run_folder import default_out, staged

    clock, machine = find_gpu()
    part = name or machine.part
    folder = out or default_out(f"calibrate-{part}")
    with staged(folder, force=force, marker="gpu.yaml") as temporary:
        found = calibrate(clock, machine, temporary, part, _progress(quiet=quiet))
        _clear_progress(quiet=quiet)
    _print_accuracy(found, as_json=as_json)
    _tell(str(folder))


# --- configuration ---------------------------------------------------------------------------------------------


@app.command()
def validate(
    files: list[str],
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    quiet: Quiet = False,
) -> None:
    """Check files or bundled names of any kind.

    Scenarios are checked down to the capacities of tiers and the values of traces.
    """
    from ghostsim.config.load import load_any
    from ghostsim.simulation import prepare

    errors: list[GhostsimError] = []
    for name in files:
        try:
            loaded = load_any(name, sets)
            if loaded.kind == "scenario":
                prepare(loaded.value, _base_of(name), loaded.at)
        except GhostsimError as error:
            errors.append(error)
            _tell(str(error))
        else:
            if not quiet:
                _tell(f"{name}: {loaded.kind} is valid")
    if errors:
        raise typer.Exit(errors[0].exit_code)


@app.command()
def show(
    file: str,
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Print the effective configuration.

    FILE is a file or a bundled name; what is printed is after extends, --set and defaults.
    """
    from ghostsim.config.cost import cost_text, platform_cost
    from ghostsim.config.document import dump
    from ghostsim.config.load import load_any

    loaded = load_any(file, [*sets, *([] if seed is None else [f"seed={seed}"])])
    platform = loaded.document if loaded.kind == "platform" else loaded.document.get("platform") or {}
    cost = platform_cost(platform)
    if cost is not None:
        _tell(f"cost: {cost_text(cost)}")
    if as_json:
        _print_json(loaded.document)
    else:
        print(dump(loaded.document), end="")


@app.command("list")
def list_(
    kind: Kinds,
    all_: Annotated[bool, typer.Option("--all", help="Also systems that no policy file can express, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what is bundled.

    Policies with their family and how close they are to the published system.
    """
    from ghostsim.config.catalogue import names

    entries = names(kind) + (_outside() if all_ and kind == "policies" else [])
    if as_json:
        _print_json([{"name": e.name, "kind": e.kind, "path": str(e.path), "summary": e.summary} for e in entries])
        return
    rows = [(entry.name, *entry.marks, entry.summary) for entry in entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _outside() -> list[Entry]:
    """Return the systems outside the algebra as entries of a list."""
    from ghostsim.config.catalogue import Entry
    from ghostsim.config.load import load_outside

    found = load_outside()
    path = str(found.marks[()].file)
    return [Entry(name, "outside", path, why, ("outside", "-")) for name, why in found.value.systems.items()]


@app.command()
def schema(out: Annotated[Path | None, typer.Option("--out", help="Folder for one file per kind.")] = None) -> None:
    """Print or write the JSON Schemas for editors."""
    from ghostsim.config.schema import schemas, write_schemas

    if out is None:
        _print_json(schemas())
        return
    for path in write_schemas(out):
        _tell(str(path))


# --- traces ----------------------------------------------------------------------------------------------------


@trace_app.command("info")
def trace_info(
    trace: str,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write; a new file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that --report names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a trace is and how its attention spreads."""
    from ghostsim.trace.format import open_trace
    from ghostsim.trace.info import format_info, format_summary, info

    opened = open_trace(trace)
    if report is not None:
        from ghostsim.report.page import write_text
        from ghostsim.report.trace_page import render_trace

        _check_new("--report", report, force=force)
        write_text(report, render_trace(opened))
        _tell(str(report))
    found = info(opened)
    if as_json:
        _print_json(found)
    else:
        print(f"{format_info(found)}\n\n{format_summary(found)}")


@trace_app.command("check")
def trace_check(trace: str, quiet: Quiet = False) -> None:
    """Check a trace: shapes, checksums, values."""
    from ghostsim.trace.format import check_trace

    checked = check_trace(trace)
    if not quiet:
        _tell(f"{checked.path}: a valid trace of {checked.tokens} tokens and {checked.steps} steps")


@trace_app.command("record")
def trace_record(
    model: Annotated[str, typer.Argument(help="Folder or name of a causal LM that transformers loads.")],
    text: Annotated[Path, typer.Argument(help="Text file, or token ids: .npy or .json.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; its name is the trace's.")],
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens before the first step.")] = 3968,
    steps: Annotated[int, typer.Option("--steps", help="Decode steps.")] = 128,
    generate: Annotated[bool, typer.Option("--generate", help="Decode greedily; else follow the text.")] = False,
    layers: Annotated[str, typer.Option("--layers", help="Layers to keep, e.g. 0,2-5.")] = "all",
    v: Annotated[bool, typer.Option("--v", help="Record values.")] = False,
    q_ahead: Annotated[bool, typer.Option("--q-ahead", help="Record queries made one layer early.")] = False,
    classes: Annotated[bool, typer.Option("--classes", help="Record token classes: special, punctuation.")] = False,
    q_prompt: Annotated[str, typer.Option("--q-prompt", help="Last prompt queries to record, or all.")] = "256",
    title: Annotated[str | None, typer.Option("--title", help="Title or URL of the text, for the provenance.")] = None,
    licence: Annotated[str, typer.Option("--licence", help="SPDX identifier of the text's licence.")] = "NOASSERTION",
    device: Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda.")] = "cpu",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Record a model's attention over a text.

    The recording is proved against the model; asked again after a break, it goes on.
    """
    from ghostsim.trace.record import Recording, layer_numbers, query_count, record, recorded_text

    asked = Recording(
        model=model,
        text=text,
        out=out,
        prompt_len=prompt,
        steps=steps,
        generate=generate,
        layers=layer_numbers(layers),
        values=v,
        ahead=q_ahead,
        classes=classes,
        q_prompt=query_count(q_prompt),
        title=title,
        licence=licence,
        device=device,
        force=force,
    )
    trace = record(asked, _progress(quiet=quiet))
    _clear_progress(quiet=quiet)
    if not quiet:
        _tell(recorded_text(trace))
    _tell(str(out))


@trace_app.command("compose")
def trace_compose(
    traces: list[str],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one.")],
    context: Annotated[
        int, typer.Option("--context", min=1, max=_MOST_TOKENS, help="Tokens in the cache before step 0.")
    ],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Decode steps; all by default.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    force: Force = False,
) -> None:
    """Compose a longer trace from recorded ones."""
    from ghostsim.trace.compose import compose
    from ghostsim.trace.format import open_trace
    from ghostsim.trace.write import compose_to_folder

    opened = [open_trace(name) for name in traces]
    workload = compose(opened, None, requests=1, steps=steps, context=context, seed=seed)
    compose_to_folder(workload, out, force=force)
    _tell(str(out))


@trace_app.command("import")
def trace_import(
    file: str,
    form: Annotated[Form, typer.Option("--form", help="Form of the file; auto looks at its first line.")] = "auto",
    out: OutFile = None,
    force: ForceFile = False,
    as_json: AsJson = False,
) -> None:
    """Read a published request trace.

    FILE is a file or a bundled name; what it holds is said, and written as CSV with --out.
    """
    from ghostsim.trace.request_forms import import_requests

    _requests_out(import_requests(file, form), out, force=force, as_json=as_json)


@trace_app.command("sessions")
def trace_sessions(
    sessions: Annotated[int, typer.Option("--sessions", min=1)] = 100,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Requests of each session.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    out: OutFile = None,
    force: ForceFile = False,
    as_json: AsJson = False,
) -> None:
    """Make requests of multi-turn agent sessions."""
    from ghostsim.trace.agent_sessions import agent_sessions

    _requests_out(agent_sessions(seed, sessions, turns), out, force=force, as_json=as_json)


def _requests_out(requests: Requests, out: Path | None, *, force: bool, as_json: bool) -> None:
    from ghostsim.trace.request_forms import write_requests
    from ghostsim.trace.requests import format_summary, summary

    found = summary(requests)
    if out is not None:
        write_requests(requests, out, force=force)
    if as_json:
        _print_json({"schema": 1, **found})
    else:
        print(format_summary(found))
    if out is not None:
        _tell(str(out))


@trace_app.command("synth")
def trace_synth(
    like: Annotated[
        list[str], typer.Option("--like", help="A trace to fit: folder or bundled name; again for more of its model.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one.")],
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, max=_MOST_TOKENS, help="All; as LIKE by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Decode steps; as LIKE by default.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    force: Force = False,
) -> None:
    """Write a synthetic trace like recorded ones.

    Of several documents, like one of them, by the seed.
    """
    from ghostsim.study.synth import synthesise
    from ghostsim.trace.format import open_trace

    synthesise([open_trace(each) for each in like], out, tokens, steps, seed, force=force)
    _tell(str(out))


# --- entry -----------------------------------------------------------------------------------------------------


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(143)


_WrongUsage: Any = typer.BadParameter.__base__  # typer brings a click of its own, or takes the one beside it


def _usage_text(error: Any) -> str:  # noqa: ANN401  (click's error)
    """Return what is wrong with the arguments in one line; the help where there are none."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    text = " ".join(error.format_message().replace("Value error, ", "").split()).removesuffix(".")
    return f"error: {text}; see {error.ctx.command_path if error.ctx else 'ghostsim'} --help"


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every foreseen error ends in one line and the exit code of its kind."""
    signal.signal(signal.SIGTERM, _terminate)
    for library in ("OPENBLAS", "OMP", "MKL"):  # before NumPy comes in: products change bits with the thread count
        os.environ[f"{library}_NUM_THREADS"] = "1"
    try:
        sys.exit(app(args=argv, standalone_mode=False))
    except _WrongUsage as error:
        _tell(_usage_text(error))
        sys.exit(UsageError.exit_code)
    except GhostsimError as error:
        _tell(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _tell("error: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _tell(f"error: {error.filename or 'input/output'}: {error.strerror or error}")
        sys.exit(1)
