"""What holds the models against measurements, and what measures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostsim.cli.common import (
    AsJson,
    Force,
    Jobs,
    Out,
    Quiet,
    app,
    calibrate_app,
    clear_progress,
    print_json,
    progress,
    tell,
)

if TYPE_CHECKING:
    from ghostsim.accuracy.report import AccuracyResult


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

    say = progress(quiet=quiet)
    parts = [load_gpu(name) for name in part]
    found = replay(tables or None, parts, jobs=jobs, progress=lambda done, of: say(f"predict {done} of {of}"))
    clear_progress(quiet=quiet)
    if out is not None:
        with staged(out, force=force, marker="predictions.csv") as temporary:
            found.write_predictions(temporary)
            write_text(temporary / "accuracy.html", render_accuracy(found))
    _print_accuracy(found, as_json=as_json)
    if out is not None:
        tell(str(out))


def _print_accuracy(found: AccuracyResult, *, as_json: bool) -> None:
    if as_json:
        print_json(found.as_json())
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
        found = calibrate(clock, machine, temporary, part, progress(quiet=quiet))
        clear_progress(quiet=quiet)
    _print_accuracy(found, as_json=as_json)
    tell(str(folder))
