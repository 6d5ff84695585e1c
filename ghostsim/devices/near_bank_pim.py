"""Near-bank PIM: units beside the banks scan an index in all-bank mode, in which the host cannot reach the memory."""

from __future__ import annotations

from ghostsim.config.hardware import NearBankPim
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Leg
from ghostsim.devices.units import whole
from ghostsim.engine.network import Network
from ghostsim.engine.server import ModeServer
from ghostsim.plan.selection import IndexStage

_WINDOW_PER_UNIT = 1024
"""Bytes that one unit keeps under way; only its ratio to other requesters' windows matters."""


class NearBankPimDevice:
    """Chips as `NAME.bus`, bytes/s of their interfaces, and `NAME.units`, unit seconds per second.

    The host reads and writes side by side, or a kernel has all banks to itself; each waits for what came before it.
    """

    def __init__(self, network: Network, name: str, part: NearBankPim) -> None:
        self.network, self.part = network, part
        self.bus = network.resource(f"{name}.bus", part.chips * part.bandwidth)
        self.units = network.resource(f"{name}.units", float(part.chips * part.units))
        self.mode = ModeServer()

    def scan(self, stage: IndexStage, q_per_kv: int, nbytes: int) -> Job:
        """Run one kernel on all units that scores `nbytes` of index records, spread evenly over the banks.

        A multiply command reads its operand from the bank, so every query head reads the records again.
        """
        part = self.part
        unit_s = q_per_kv * max(1 / part.unit_bandwidth, stage.macs / stage.record_bytes / part.unit_macs)
        weight = float(part.chips * part.units * _WINDOW_PER_UNIT)
        flow_class = self.network.flow_class(((self.units, unit_s),), weight)
        return Job(part.launch + 2 * part.switch, (Part(flow_class, nbytes, self.mode.exclusive),))

    def pass_on(self, piece_bytes: float, units: int, *, write: bool = False) -> Leg:  # noqa: ARG002  (one signature)
        """Return the cost of queries to the units, or of what they found on the way back: host accesses."""
        return Leg(((self.bus, 1.0),), self.part.latency // 2)

    def read(self, piece_bytes: float, records: int) -> Leg:  # noqa: ARG002  (interleaved over all chips)
        """Return the cost of reading scattered pieces in whole accesses."""
        return Leg(((self.bus, whole(piece_bytes, self.part.access) / piece_bytes),), self.part.latency)

    def write(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of writing scattered pieces in whole accesses."""
        return self.read(piece_bytes, records)
