"""Jobs: what a device makes of a piece of work, ready for the flow network."""

from __future__ import annotations

from typing import NamedTuple

from ghostsim.devices.leg import Load
from ghostsim.engine.network import FlowClass
from ghostsim.engine.server import Server


class Part(NamedTuple):
    """A flow of `nbytes` units; with a server it waits its turn there and holds it while it flows."""

    flow_class: FlowClass
    nbytes: int
    server: Server | None = None


class Job(NamedTuple):
    """Flows that start together after a delay; the job ends with the last of them.

    The delay is that of idle media; `loads` are the media whose load when the flows start makes it longer.
    """

    delay_ps: int = 0
    parts: tuple[Part, ...] = ()
    loads: tuple[Load, ...] = ()
