"""A CXL Type-3 expander: port and controller, DRAM behind it, and perhaps a filter beside the media."""

from __future__ import annotations

import simpy

from ghostsim.config.hardware import CxlExpander
from ghostsim.devices.dram import DramMedia
from ghostsim.devices.leg import Leg
from ghostsim.devices.sketch_filter import SketchFilter
from ghostsim.engine.network import Network


class CxlExpanderDevice:
    """Memory behind a CXL port; its media are `NAME.bus` and `NAME.activations`."""

    def __init__(self, env: simpy.Environment, network: Network, name: str, part: CxlExpander) -> None:
        self.part = part
        self.media = DramMedia(network, name, part.memory)
        self.filter = SketchFilter(env, network, name, part.filter, self.media) if part.filter else None

    def read(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of reading scattered pieces, up to the port."""
        return self._through_controller(self.media.gather(piece_bytes, records))

    def write(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of writing scattered pieces, from the port on."""
        return self._through_controller(self.media.gather(piece_bytes, records, write=True))

    def _through_controller(self, leg: Leg) -> Leg:
        return Leg(leg.costs, leg.latency_ps + self.part.controller)
