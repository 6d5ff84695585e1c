"""A row of a program with its device: what makes its job, and the links that its bytes cross."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ghostsim.devices.job import Job


class Row(NamedTuple):
    """The sizes of one row of the plan."""

    nbytes: int
    records: int
    runs: int
    flops: int


Maker = Callable[[Row], Job]


@dataclass(frozen=True)
class Bound:
    """A row of the program with its device.

    `links` says which share of the row's bytes crosses each link; `lane` names where a timeline shows it. `copies`
    says how often a byte of the row is written to or read from the memory of a host on its way.
    """

    make: Maker
    lane: str
    links: tuple[tuple[str, float], ...] = ()
    copies: tuple[tuple[str, float], ...] = ()
