"""The program, the options that commands share, and how they speak."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from ghostsim.errors import UsageError

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


def tell(text: str) -> None:
    """Say something on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(data: object) -> None:
    """Print a result on stdout."""
    print(json.dumps(data, indent=1, allow_nan=False))


def progress(*, quiet: bool) -> Callable[[str], None]:
    """Show what is being done on a terminal, nothing elsewhere."""
    if quiet or not sys.stderr.isatty():
        return lambda _: None
    return lambda text: print(f"\r\033[K{text} ...", end="", file=sys.stderr, flush=True)


def clear_progress(*, quiet: bool) -> None:
    """Remove the line of `progress`."""
    if not quiet and sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def check_new(flag: str, path: Path, *, force: bool) -> None:
    """Refuse a file to write that is there or cannot be, and make its folder."""
    if path.exists() and not (force and path.is_file()):
        raise UsageError(f"{flag}: found {path}, which exists; expected a new file, or --force to replace a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{flag}: found {path}, expected a file that can be written: {error.strerror}") from None


def check_all_new(*, force: bool, **files: Path | None) -> None:
    """Refuse each file to write, by the option that names it, as `check_new` does."""
    for option, path in files.items():
        if path is not None:
            check_new(f"--{option}", path, force=force)


def base_of(name: str) -> Path | None:
    """Return the folder that a scenario file's relative names start from."""
    path = Path(name)
    return path.resolve().parent if path.is_file() else None


def fraction(
    *, quiet: bool, doing: str = "evaluate", what: str = "attention head"
) -> Callable[[int, int], None] | None:
    """Show how many of how many are done, as `progress` does."""
    say = progress(quiet=quiet)
    return lambda done, of: say(f"{doing} {what} {done} of {of}")
