"""The near-memory filter: serves one request at a time, through its own port to the media."""

from __future__ import annotations

from functools import cache

import simpy

from ghostsim.config.hardware import Filter
from ghostsim.devices.dram import DramMedia
from ghostsim.devices.job import Job, Part
from ghostsim.engine.network import FlowClass, Network
from ghostsim.engine.server import FifoServer


class SketchFilter:
    """A filter engine in front of DRAM media: `NAME.filter_port` bytes/s, `NAME.filter_macs` MAC/s.

    Requests are served first come, first served: a request that is done lets its fetches start while the next
    one is scanned.
    """

    def __init__(self, env: simpy.Environment, network: Network, name: str, part: Filter, media: DramMedia) -> None:
        self.network, self.part, self.media = network, part, media
        self.port = network.resource(f"{name}.filter_port", part.media_bandwidth)
        self.macs = network.resource(f"{name}.filter_macs", part.macs)
        self.server = FifoServer(env)
        self._scan_class = cache(self._new_scan_class)

    def scan(self, nbytes: int, macs_per_byte: float) -> Job:
        """Stream index records from the media and score them."""
        flow_class = self._scan_class(macs_per_byte)
        return Job(self.part.start + self.media.latency_ps, (Part(flow_class, nbytes, self.server),))

    def _new_scan_class(self, macs_per_byte: float) -> FlowClass:
        route = (*self.media.stream().costs, (self.port, 1.0), (self.macs, macs_per_byte))
        return self.network.flow_class(route, float(self.part.sram))
