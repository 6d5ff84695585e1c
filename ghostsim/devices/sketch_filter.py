"""The engine that scores an index where it lies: in a memory controller, a DIMM buffer, a base die, on host cores."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, TypeAlias

from ghostsim.config.hardware import Filter
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Costs, Leg
from ghostsim.engine.network import FlowClass, Network
from ghostsim.engine.server import FifoServer

Work: TypeAlias = Callable[[float], Costs]
"""What a byte costs the engine itself, by the multiply-accumulates that it takes."""


class SketchFilter:
    """An engine in front of media.

    In `fifo` order requests are served first come, first served: a request that is done lets its fetches start
    while the next one is scanned. In `fair` order requests share the engine, each with one scan at a time.
    """

    def __init__(
        self,
        network: Network,
        media: Callable[[], Leg],
        work: Work,
        *,
        start_ps: int,
        window: float,
        order: Literal["fifo", "fair"] = "fifo",
    ) -> None:
        self.network, self.media, self.work = network, media, work
        self.start_ps, self.window = start_ps, window
        self.server = FifoServer(network.env)
        self._server_of = cache(lambda _: self.server if order == "fifo" else FifoServer(network.env))
        self._scan_class = cache(self._new_scan_class)

    def scan(self, nbytes: int, macs_per_byte: float, request: int = 0) -> Job:
        """Stream index records of a request from the media and score them."""
        part = Part(self._scan_class(macs_per_byte), nbytes, self._server_of(request))
        media = self.media()
        return Job(self.start_ps + media.latency_ps, (part,), media.loads)

    def _new_scan_class(self, macs_per_byte: float) -> FlowClass:
        return self.network.flow_class((*self.media().costs, *self.work(macs_per_byte)), self.window)


def in_silicon(network: Network, name: str, part: Filter, media: Callable[[], Leg]) -> SketchFilter:
    """Make the filter of a part: `NAME.filter_port` bytes/s, its own way to the media, `NAME.filter_macs` MAC/s."""
    port = network.resource(f"{name}.filter_port", part.media_bandwidth)
    macs = network.resource(f"{name}.filter_macs", part.macs)

    def work(macs_per_byte: float) -> Costs:
        return ((port, 1.0), (macs, macs_per_byte))

    window = float(part.window or part.sram)
    return SketchFilter(network, media, work, start_ps=part.start, window=window, order=part.order)
