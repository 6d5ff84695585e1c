"""The host: its memory, its cores, and the root complex that device-to-device traffic crosses."""

from __future__ import annotations

from ghostsim.config.hardware import Cores, HostCpu
from ghostsim.devices.dram import DramMedia
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Costs, Leg, join
from ghostsim.devices.sketch_filter import SketchFilter, in_silicon
from ghostsim.engine.network import Network, Resource
from ghostsim.errors import ConfigError

_WINDOW_PER_CORE = 4096
"""Bytes that one core keeps outstanding; only its ratio to other requesters' windows matters."""
STAGED_PASSES = 2
"""A staged byte is written to the buffer of the copy engine, and read from there."""
LANDED_PASSES = 2
"""One that lands in memory first is written there, and read by the core, before that."""


class HostCpuDevice:
    """Host memory as `NAME.bus` and `NAME.activations`; `NAME.root_complex` and `.down` for what passes through.

    `NAME.cores`, if the part says what a core does, is the time of its cores, in core seconds per second.
    """

    def __init__(self, network: Network, name: str, part: HostCpu) -> None:
        self.network, self.name, self.part = network, name, part
        self.media = DramMedia(network, name, part.memory)
        self.filter = in_silicon(network, name, part.filter, self.media.stream) if part.filter else None
        self.cores = network.resource(f"{name}.cores", float(part.cores)) if part.core else None
        self.scorer = self._scorer(network)
        self.root_complex = network.resource(f"{name}.root_complex", part.root_complex)
        self.root_complex_down = network.resource(f"{name}.root_complex.down", part.root_complex)

    def read(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of reading scattered pieces of host memory."""
        return self.media.gather(piece_bytes, records)

    def write(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of writing scattered pieces of host memory."""
        return self.media.gather(piece_bytes, records, write=True)

    def _scorer(self, network: Network) -> SketchFilter | None:
        """Make the filter that runs on the cores: each scores what it reads, at the slower of both rates."""
        cores, core = self.cores, self.part.core
        if cores is None or core is None:
            return None

        def work(macs_per_byte: float) -> Costs:
            return ((cores, max(1 / core.bandwidth, macs_per_byte / core.macs)),)

        window = float(self.part.cores * _WINDOW_PER_CORE)
        return SketchFilter(network, self.media.stream, work, start_ps=core.start, window=window)

    def stage(self, *, lands: bool) -> Leg:
        """Return the cost of a copy by a core into the buffer that copy engines take it from.

        What no load of a core reaches lands in memory first. The buffer is written by the core and read by the engine.
        """
        cores, core = self.working()
        read, write = self.media.stream().bulk, self.media.stream(write=True).bulk
        landing = (write, read) if lands else ()
        return join([*landing, write, read, Leg(((cores, 1 / core.copy_bandwidth),), core.start)])

    def attend(self, piece_bytes: float, records: int, flops_per_byte: float) -> Job:
        """Attend over a byte of KV that lies here: the cores read and multiply at the slower of both rates."""
        cores, core = self.working()
        media = self.media.gather(piece_bytes, records)
        work = (cores, max(1 / core.bandwidth, flops_per_byte / core.flops))
        flow_class = self.network.flow_class((*media.costs, work), float(self.part.cores * _WINDOW_PER_CORE))
        return Job(core.start + media.latency_ps, (Part(flow_class, 1),), media.loads)

    def working(self) -> tuple[Resource, Cores]:
        """Return the time of the cores and what one does.

        Raises
        ------
        ConfigError
            If the part does not say what a core does.
        """
        if self.cores is None or self.part.core is None:
            raise ConfigError(
                f"found work for the cores of {self.name}, expected a core: block that says what one does"
            )
        return self.cores, self.part.core

    def pass_on(self, piece_bytes: float, units: int, *, write: bool = False) -> Leg:  # noqa: ARG002  (one signature)
        """Return the cost of a query to what scans host memory, or of what it found on the way back."""
        return self.media.command()

    def carry(self, piece_bytes: float, *, write: bool = False) -> Leg:  # noqa: ARG002  (no packets inside)
        """Return the cost of passing between two devices below the root complex, towards the GPU or away from it."""
        return Leg(((self.root_complex_down if write else self.root_complex, 1.0),), self.part.forward // 2)
