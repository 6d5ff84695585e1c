"""A CXL Type-3 expander: port and controller, DRAM behind it, and perhaps a filter beside the media."""

from __future__ import annotations

from ghostsim.config.hardware import CxlExpander
from ghostsim.devices.dram import DramMedia
from ghostsim.devices.leg import Leg, join
from ghostsim.devices.sketch_filter import in_silicon
from ghostsim.engine.network import Network


class CxlExpanderDevice:
    """Memory behind a CXL port; its media are `NAME.bus` and `NAME.activations`."""

    def __init__(self, network: Network, name: str, part: CxlExpander) -> None:
        self.part = part
        self.media = DramMedia(network, name, part.memory)
        self.filter = in_silicon(network, name, part.filter, self.media.stream) if part.filter else None

    def read(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of reading scattered pieces, up to the port."""
        return self._through_controller(self.media.gather(piece_bytes, records))

    def write(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of writing scattered pieces, from the port on."""
        return self._through_controller(self.media.gather(piece_bytes, records, write=True))

    def pass_on(self, piece_bytes: float, units: int, *, write: bool = False) -> Leg:  # noqa: ARG002  (one signature)
        """Return the cost of a query to the filter, or of what it found on the way back: half the controller."""
        return Leg((), self.part.controller // 2)

    def _through_controller(self, leg: Leg) -> Leg:
        return join([leg, Leg((), self.part.controller)])
