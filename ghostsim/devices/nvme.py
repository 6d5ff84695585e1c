"""An NVMe drive: commands, dies, channels and pages."""

from __future__ import annotations

import math

from ghostsim.config.hardware import Nvme
from ghostsim.devices.leg import Leg
from ghostsim.devices.sketch_filter import in_silicon
from ghostsim.engine.network import Network

_PS_PER_S = 1e12
_LARGEST_COMMAND = 128 * 1024


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

    def read(self, piece_bytes: float, records: int) -> Leg:  # noqa: ARG002  (the queue is a resource, not a count)
        """Return the cost of reading pieces: each takes whole pages."""
        return self._access(piece_bytes, self.part.read)

    def write(self, piece_bytes: float, records: int) -> Leg:  # noqa: ARG002  (the queue is a resource, not a count)
        """Return the cost of writing pieces: each takes whole pages."""
        return self._access(piece_bytes, self.part.program)

    def stream(self) -> Leg:
        """Return the cost of consecutive bytes for an engine in the controller: arrays and channels, no commands."""
        part = self.part
        latency_ps = part.read + self._channel_ps
        return Leg(((self.dies, part.read / _PS_PER_S / part.page), (self.channels, 1.0)), latency_ps)

    def pass_on(self, piece_bytes: float, *, write: bool = False) -> Leg:  # noqa: ARG002  (commands of both ways)
        """Return the cost of a query to the controller, or of what it found on the way back: half a command."""
        return Leg(((self.commands, 0.5 / piece_bytes),), self.part.overhead // 2)

    @property
    def _channel_ps(self) -> int:
        """Time of one page on its channel."""
        return round(self.part.page / self.part.channel_bandwidth * _PS_PER_S)

    def _access(self, piece_bytes: float, array_ps: int) -> Leg:
        pages = math.ceil(piece_bytes / self.part.page) / piece_bytes
        commands = max(1.0, piece_bytes / _LARGEST_COMMAND) / piece_bytes
        latency_ps = array_ps + self._channel_ps + self.part.overhead
        costs = (
            (self.commands, commands),
            (self.dies, pages * array_ps / _PS_PER_S),
            (self.channels, pages * self.part.page),
            (self.queue, commands * latency_ps / _PS_PER_S),
        )
        return Leg(costs, latency_ps)
