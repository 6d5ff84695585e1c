"""The host: its memory, and the root complex that device-to-device traffic crosses."""

from __future__ import annotations

from ghostsim.config.hardware import HostCpu
from ghostsim.devices.dram import DramMedia
from ghostsim.devices.leg import Leg
from ghostsim.engine.network import Network


class HostCpuDevice:
    """Host memory as `NAME.bus` and `NAME.activations`, and `NAME.root_complex` for what passes through."""

    def __init__(self, network: Network, name: str, part: HostCpu) -> None:
        self.part = part
        self.media = DramMedia(network, name, part.memory)
        self.root_complex = network.resource(f"{name}.root_complex", part.root_complex)

    def read(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of reading scattered pieces of host memory."""
        return self.media.gather(piece_bytes, records)

    def write(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of writing scattered pieces of host memory."""
        return self.media.gather(piece_bytes, records, write=True)

    def carry(self) -> Leg:
        """Return the cost of passing from one device to another below the root complex, one way."""
        return Leg(((self.root_complex, 1.0),), self.part.forward // 2)
