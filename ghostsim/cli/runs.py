"""What runs a scenario, and what is done with its folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ghostsim.cli.common import (
    AsJson,
    Force,
    Jobs,
    Out,
    Quiet,
    Seed,
    Sets,
    app,
    base_of,
    check_new,
    clear_progress,
    print_json,
    progress,
    tell,
)
from ghostsim.errors import ConfigError, GhostsimError, RequirementError, StoreError


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
    say = progress(quiet=quiet)
    with staged(folder, force=force) as temporary:
        result = simulate(loaded.scenario, base_of(scenario), jobs, say, loaded.at, ask_what_if=True)
        say("write the report")
        write_run(temporary, result, loaded, sys.argv)
        write_report(temporary)
        clear_progress(quiet=quiet)
    if as_json:
        print_json(result.metrics | {"simulator": simulator(result)})
    if not quiet:
        tell(summary_text(folder))
    try:
        _check_requirements(loaded.scenario.require, result.metrics)
    except GhostsimError as error:  # the folder is the last line, whatever ends the run
        tell(f"error: {error}")
        raise typer.Exit(error.exit_code) from None
    finally:
        tell(str(folder))


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

        tell(str(write_sweep_report(folder)))
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
                check_new(f"--{form}", target / f"{name}.{form}", force=force)
            write_tables(target, tables, form)
            tell(str(target))


def _render_run(folder: Path, *, quiet: bool) -> None:
    from ghostsim.config.load import load_scenario
    from ghostsim.export.run_folder import write_run_timeline
    from ghostsim.report.page import write_report
    from ghostsim.report.store import check_run
    from ghostsim.simulation import simulate

    check_run(folder)
    if not (folder / "timeline.json.gz").is_file():
        say = progress(quiet=quiet)
        try:
            loaded = load_scenario(folder / "config.yaml")
        except ConfigError as error:
            raise StoreError(str(error)) from None
        result = simulate(loaded.scenario, folder, 0, say)
        write_run_timeline(folder / "timeline.json.gz", result, loaded.document)
        clear_progress(quiet=quiet)
    tell(str(write_report(folder)))


@app.command()
def compare(folders: list[Path], as_json: AsJson = False, out: Out = None, force: Force = False) -> None:
    """Set run folders side by side.

    Key figures, their ratios to the first folder, and the configuration that differs; --out writes a page.
    """
    from ghostsim.sweep.compare import compare_runs, comparison_text

    found = compare_runs(folders)
    if out is not None:
        from ghostsim.report.page import render_compare, write_text

        check_new("--out", out, force=force)
        write_text(out, render_compare(folders))
        tell(str(out))
    if as_json:
        print_json(found)
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
        print_json(found)
    else:
        print(diff_text(found))
