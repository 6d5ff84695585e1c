"""The exceptions of ghostsim and the exit code each one ends the program with.

::

    GhostsimError            1   a run failed
    ├── InvariantError       1   a conservation law or another invariant broke
    ├── UsageError           2   wrong flags, an output folder that exists
    ├── ConfigError          3   scenario, part, platform, model, policy, sweep or ``--set``
    ├── InputError           4   data that was given is invalid or missing
    │   ├── TraceError       4   attention trace
    │   ├── TableError       4   reference table
    │   └── StoreError       4   run folder or sweep store
    └── RequirementError    5   a ``require:`` bound does not hold

Every message is one line: ``FILE:LINE:COL: path: what was found, what was expected``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Location:
    """Where in which file something was found; line and column count from 1."""

    file: Path | str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        parts = [str(self.file), self.line, self.column]
        return ":".join(str(part) for part in parts if part is not None)


class GhostsimError(Exception):
    """Base of every error that is reported as one line instead of a traceback."""

    exit_code = 1

    def __init__(self, message: str, at: Location | None = None) -> None:
        text = f"{at}: {message}" if at else message
        super().__init__(" ".join(text.split()))


class InvariantError(GhostsimError):
    """A conservation law or another internal promise did not hold."""


class UsageError(GhostsimError):
    """The command line asks for something that cannot be done as asked."""

    exit_code = 2


class ConfigError(GhostsimError):
    """A configuration file or a ``--set`` is invalid or missing."""

    exit_code = 3


class InputError(GhostsimError):
    """Data given to the program is invalid or missing."""

    exit_code = 4


class TraceError(InputError):
    """An attention trace is invalid or missing."""


class TableError(InputError):
    """A reference table is invalid or missing."""


class StoreError(InputError):
    """A run folder or a sweep store is invalid or missing."""


class RequirementError(GhostsimError):
    """A bound of the scenario's ``require:`` does not hold."""

    exit_code = 5
