"""An NVMe drive: commands, dies, channels and pages."""

from __future__ import annotations

import math

from ghostsim.config.hardware import Nvme
from ghostsim.devices.leg import Leg, join
from ghostsim.devices.sketch_filter import in_silicon
from ghostsim.devices.units import whole
from ghostsim.engine.network import Network
from ghostsim.timing import dram
from ghostsim.timing.nvme import channel_bytes, slow_share

_PS_PER_S = 1e12
_LARGEST_COMMAND = 128 * 1024
_MANY = 1 << 17
"""Pages from which on the dies are even."""
_LEAST = 1e-3


class NvmeDevice:
    """A drive that moves its data by its own DMA.

    Resources: `NAME.commands` commands/s, `NAME.dies` dies, `NAME.channels` bytes/s, `NAME.queue` commands.
    """

    def __init__(self, network: Network, name: str, part: Nvme) -> None:
        self.part = part
        self.commands = network.resource(f"{name}.commands", float(part.command_rate))
        self.dies = network.resource(f"{name}.dies", float(part.channels * part.dies_per_channel))
        self.channels = network.resource(f"{name}.channels", part.channels * part.channel_bandwidth)
        self.queue = network.resource(f"{name}.queue", float(part.queue_pairs * part.queue_depth))
        self.filter = in_silicon(network, name, part.filter, self.stream) if part.filter else None

    @property
    def window(self) -> float:
        """Bytes that one queue pair keeps outstanding."""
        return float(self.part.queue_depth * self.part.page)

    def read(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of reading scattered pieces: each takes whole pages of the array, and a command.

        What is asked of one page is one piece, wherever it lies there; what nobody asked for stays in the drive (NVMe's
        bit buckets; that a drive has them is assumed). A gather ends with its fullest die, and with the slowest of its
        reads, if the part says that some are slow.
        """
        part, pages = self.part, records * math.ceil(piece_bytes / self.part.page)
        collisions = 1.0
        if pages < _MANY:
            dies = part.channels * part.dies_per_channel
            collisions = max(_LEAST, dram.channel_imbalance(pages, dies) - dies / pages)
        waits_ps = part.slow_reads.delay * slow_share(part.slow_reads.share, records) if part.slow_reads else 0.0
        leg = self._access(piece_bytes, part.read, collisions)
        return join([leg, Leg((), round(waits_ps))])

    def write(self, piece_bytes: float, records: int) -> Leg:  # noqa: ARG002  (the queue is a resource, not a count)
        """Return the cost of writing pieces: each takes whole pages, on dies that the drive chooses in turn."""
        return self._access(piece_bytes, self.part.program)

    def stream(self) -> Leg:
        """Return the cost of consecutive bytes for an engine in the controller: arrays and channels, no commands."""
        part = self.part
        latency_ps = part.read + self._channel_ps(part.page)
        return Leg(((self.dies, part.read / _PS_PER_S / part.page), (self.channels, 1.0)), latency_ps)

    def pass_on(self, piece_bytes: float, units: int, *, write: bool = False) -> Leg:  # noqa: ARG002  (one signature)
        """Return the cost of a query to the controller, or of what it found on the way back: half a command."""
        return Leg(((self.commands, 0.5 / piece_bytes),), self.part.overhead // 2)

    def _channel_ps(self, nbytes: float) -> int:
        return round(nbytes / self.part.channel_bandwidth * _PS_PER_S)

    def _access(self, piece_bytes: float, array_ps: int, collisions: float = 1.0) -> Leg:
        pages = whole(piece_bytes, self.part.page) / self.part.page / piece_bytes
        carried = channel_bytes(piece_bytes, self.part.page)
        commands = max(1.0, piece_bytes / _LARGEST_COMMAND) / piece_bytes
        latency_ps = array_ps + self._channel_ps(min(carried, self.part.page)) + self.part.overhead
        costs = (
            (self.commands, commands),
            (self.dies, collisions * pages * array_ps / _PS_PER_S),
            (self.channels, carried / piece_bytes),
            (self.queue, commands * latency_ps / _PS_PER_S),
        )
        return Leg(costs, latency_ps)
