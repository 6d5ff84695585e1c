"""What runs many points, and what holds claims against them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ghostsim.cli.common import (
    AsJson,
    Force,
    Jobs,
    Out,
    Quiet,
    Resume,
    Scheduler,
    Sets,
    app,
    clear_progress,
    print_json,
    progress,
    tell,
)
from ghostsim.errors import RequirementError, UsageError


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
        progress=progress(quiet=quiet),
        reports=reports,
        scheduler=scheduler,
    )
    if reports and done.done:
        from ghostsim.report.sweep_page import write_sweep_report

        write_sweep_report(folder)
    clear_progress(quiet=quiet)
    if as_json:
        counts = {"done": done.done, "failed": done.failed, "missed": done.missed}
        print_json({"schema": 1, **counts, "folder": str(done.folder)})
    tell(f"{done.done} points done, {done.failed} failed" + (f", {done.missed} miss a bound" if done.missed else ""))
    tell(str(done.folder))
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
    folder, crew, say = out or default_out(Path(spec).stem), Crew(jobs, scheduler), progress(quiet=quiet)
    if effective.search.sensitivity is not None:
        turned = sensitivity.run_sensitivity(effective, folder, crew, resume=resume, progress=say)
        data, text, found = sensitivity.as_data(turned), sensitivity.sensitivity_text(turned), True
    else:
        tried = trials.run_search(effective, folder, crew, resume=resume, progress=say)
        data, text, found = trials.as_data(tried), trials.search_text(tried), bool(tried.best)
    clear_progress(quiet=quiet)
    if as_json:
        print_json(data)
    else:
        print(text)
    if data.get("failed") != data.get("trials", 1):
        tell(str(write_sweep_report(folder)))
    if not found:
        tell("error: found no point that meets the bounds, expected one; see points.csv")
    tell(str(folder))
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
    answers = run_findings(names or (), folder, jobs=jobs, force=force, progress=progress(quiet=quiet))
    clear_progress(quiet=quiet)
    if as_json:
        print_json(as_data(answers))
    else:
        print(findings_text(answers))
    tell(str(folder))
