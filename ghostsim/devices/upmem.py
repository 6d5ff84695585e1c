"""UPMEM ranks: DPUs that scan an index in their own MRAM, and a host that moves every byte in and out."""

from __future__ import annotations

import simpy

from ghostsim.config.hardware import Upmem
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Leg
from ghostsim.devices.units import MRAM_BYTES, whole
from ghostsim.engine.network import Network
from ghostsim.engine.server import FifoServer
from ghostsim.plan.selection import IndexStage
from ghostsim.timing.upmem import Direction, UpmemSpec, dot_product, host_bytes_per_s, scan_cycles_per_record

MOST_BITS = 8
"""Widest operand that a DPU multiplies in one instruction."""


def spec_of(part: Upmem) -> UpmemSpec:
    """Convert a catalogue part to what the timing functions take, for one rank."""
    return UpmemSpec(
        dpu_hz=part.clock,
        tasklets=part.tasklets,
        read_setup_cycles=part.dma.read_setup,
        write_setup_cycles=part.dma.write_setup,
        dma_bytes_per_cycle=part.dma.bytes_per_cycle,
        engine_setup_cycles=part.dma.engine_setup,
        engine_cycles_per_byte=part.dma.engine_per_byte,
        to_dpu_parallel_bytes_per_s=part.parallel_to_dpu,
        from_dpu_parallel_bytes_per_s=part.parallel_from_dpu,
        broadcast_bytes_per_s=part.broadcast,
        launch_ps=part.launch,
    )


class UpmemDevice:
    """Ranks of DPUs: `NAME.dpus` cycles/s, `NAME.to_dpu` and `NAME.from_dpu` bytes/s of the host's transfers.

    While DPUs run they own their MRAM: a kernel and a host transfer exclude each other, in order of arrival.
    """

    def __init__(self, env: simpy.Environment, network: Network, name: str, part: Upmem) -> None:
        self.network, self.part, self.spec = network, part, spec_of(part)
        self.dpus = network.resource(f"{name}.dpus", part.ranks * part.dpus_per_rank * part.clock)
        self.to_dpu = network.resource(f"{name}.to_dpu", part.ranks * part.parallel_to_dpu)
        self.from_dpu = network.resource(f"{name}.from_dpu", part.ranks * part.parallel_from_dpu)
        self.mram = FifoServer(env)

    def scan(self, stage: IndexStage, q_per_kv: int, nbytes: int) -> Job:
        """Run one kernel on all ranks that scores `nbytes` of index records, spread evenly over the DPUs."""
        work = dot_product(stage.macs, stage.operand_bits, q_per_kv)
        cycles = scan_cycles_per_record(self.spec, work, stage.record_bytes)
        flow_class = self.network.flow_class(((self.dpus, cycles / stage.record_bytes),), float(self.part.wram))
        return Job(self.part.launch, (Part(flow_class, nbytes, self.mram),))

    def pass_on(self, piece_bytes: float, units: int, *, write: bool = False) -> Leg:  # noqa: ARG002  (one loop)
        """Return the cost of queries to the DPUs, or of what they found on the way back: host transfers.

        The index of each of `units` (request, KV head) lies on an equal share of the DPUs. A query goes to its own
        DPUs in a parallel transfer, or all queries go to all DPUs in a broadcast, whichever takes less time.
        """
        if not write:
            return Leg(((self.from_dpu, 1.0),))
        dpus = self.part.ranks * self.part.dpus_per_rank
        parallel = max(1.0, dpus / units)
        broadcast = dpus * self.part.parallel_to_dpu / self.part.broadcast
        return Leg(((self.to_dpu, min(parallel, broadcast)),))

    def read(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of bringing records from MRAM to the host, in whole granules."""
        granules = whole(piece_bytes, MRAM_BYTES) / piece_bytes
        return Leg(((self.from_dpu, granules / self._share("from_dpu", records)),))

    def write(self, piece_bytes: float, records: int) -> Leg:
        """Return the cost of bringing records from the host to MRAM, in whole granules."""
        granules = whole(piece_bytes, MRAM_BYTES) / piece_bytes
        return Leg(((self.to_dpu, granules / self._share("to_dpu", records)),))

    def _share(self, direction: Direction, records: int) -> float:
        """Return the rate of a transfer over that of all DPUs: records on few DPUs leave the others out.

        Records are dealt out to ranks first; one record a rank is a serial transfer.
        """
        ranks = min(self.part.ranks, max(1, records))
        dpus = min(self.part.dpus_per_rank, max(1, records // self.part.ranks))
        reached = host_bytes_per_s(self.spec, direction, "parallel", dpus)
        most = host_bytes_per_s(self.spec, direction, "parallel", self.part.dpus_per_rank)
        return ranks * reached / (self.part.ranks * most)
