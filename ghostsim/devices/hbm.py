"""HBM stacks as the kernels of their GPU see them."""

from __future__ import annotations

from ghostsim.devices.dram import DramMedia
from ghostsim.devices.leg import Leg


class Hbm(DramMedia):
    """The GPU's own memory: a kernel reaches what was measured for its family, not what the bank model allows."""

    def kernel(self, bytes_per_s: float) -> Leg:
        """Return the cost of a kernel that alone reads `bytes_per_s`."""
        return Leg(((self.bus, max(1.0, self.peak / bytes_per_s)),))

    def scattered(self, bytes_per_s: float, piece_bytes: float, records: int) -> Leg:
        """Return the cost of a kernel that reads scattered pieces: the worse of kernel and gather on the bus."""
        (bus, gathered), *activations = self.gather(piece_bytes, records).costs
        return Leg(((bus, max(gathered, self.peak / bytes_per_s)), *activations))
