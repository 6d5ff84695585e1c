"""The command line. Heavy imports live inside the commands, so that help and errors come at once.

Exit codes: 0 done; 1 a run failed; 2 usage; 3 invalid configuration; 4 invalid or missing data; 5 a `require:`
bound was missed; 130 interrupted; 143 terminated.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import typer

from ghostsim.cli.common import app, tell
from ghostsim.errors import GhostsimError, UsageError
from ghostsim.cli import runs, sweeps, studies, checks, documents, traces

__all__ = ["app", "checks", "documents", "main", "runs", "studies", "sweeps", "traces"]


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
        tell(_usage_text(error))
        sys.exit(UsageError.exit_code)
    except GhostsimError as error:
        tell(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        tell("error: interrupted")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        tell(f"error: {error.filename or 'input/output'}: {error.strerror or error}")
        sys.exit(1)
