"""Timing of UPMEM DRAM processing units (DPUs): MRAM DMA, instruction issue, host transfers.

Cycle counts come from measurements on real DPUs at 350 MHz: PrIM (IEEE Access 2022, arXiv 2105.03814) and
s9770652/pim-memcpy@90c69234283f; instruction names are those of the UPMEM ISA.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Op = Literal["read", "write", "copy"]
Direction = Literal["to_dpu", "from_dpu"]
Mode = Literal["serial", "parallel", "broadcast"]

PIPELINE_DEPTH = 11
"""A tasklet issues at most every 11 cycles: fewer than 11 tasklets leave the pipeline idle (PrIM)."""
DMA_MAX_BYTES = 2048
_PIECE_BYTES = 1024
"""A transfer of 2,048 B takes exactly as long as two of 1,024 B (pim-memcpy)."""
_DPUS_PER_RANK = 64


@dataclass(frozen=True)
class UpmemSpec:
    """One rank of DPUs. The defaults are measured on the 350 MHz machine."""

    dpu_hz: float = 350e6
    tasklets: int = 16
    read_setup_cycles: float = 53.5
    """MRAM read, from issue to first byte, without the loop around it."""
    write_setup_cycles: float = 64.0
    dma_bytes_per_cycle: float = 2.0
    engine_setup_cycles: float = 36.0
    """What the DMA engine, which all tasklets share, is busy per transfer besides its bytes."""
    engine_cycles_per_byte: float = 0.55
    loop_instructions: float = 4.0
    """Loop around a transfer: DMA call, pointer, compare, branch."""
    to_dpu_serial_bytes_per_s: float = 0.33e9
    to_dpu_parallel_bytes_per_s: float = 6.68e9
    from_dpu_serial_bytes_per_s: float = 0.12e9
    from_dpu_parallel_bytes_per_s: float = 4.74e9
    broadcast_bytes_per_s: float = 16.88e9
    """One rank of 64 DPUs, counting the bytes that all DPUs receive (PrIM)."""
    launch_ps: int = 50_000_000
    """Host time to boot a rank and to see it end; assumed."""


UPMEM_350MHZ = UpmemSpec()
DMA_SOURCE = (
    "setups and engine cycles fitted to 43 rows of pim-memcpy; median / p90 error 1.3 / 6.3 %, on transfer sizes not "
    "fitted to 1.4 / 7.1 %"
)


def mram_dma_cycles(spec: UpmemSpec, op: Op, nbytes: int) -> float:
    """Return the DPU cycles per loop iteration of MRAM transfers by all tasklets.

    A single tasklet waits for setup and bytes of each transfer; from about three tasklets the shared DMA engine
    is the limit, however many more there are.

    Parameters
    ----------
    spec
        The DPU; `spec.tasklets` of them transfer.
    op
        ``copy`` is a read followed by a write.
    nbytes
        Bytes per transfer, a multiple of 8 from 8 to 2,048.
    """
    setups = {"read": spec.read_setup_cycles, "write": spec.write_setup_cycles}
    setups["copy"] = setups["read"] + setups["write"]
    transfers = 2 if op == "copy" else 1
    pieces = math.ceil(nbytes / _PIECE_BYTES)
    alone = (
        spec.loop_instructions * PIPELINE_DEPTH + pieces * setups[op] + transfers * nbytes / spec.dma_bytes_per_cycle
    )
    engine = transfers * (pieces * spec.engine_setup_cycles + nbytes * spec.engine_cycles_per_byte)
    return max(alone / spec.tasklets, engine)


def mram_bytes_per_s(spec: UpmemSpec, nbytes: int = DMA_MAX_BYTES, op: Op = "read") -> float:
    """Return the MRAM bandwidth of one DPU for transfers of `nbytes`; a copy counts its bytes once."""
    return nbytes / mram_dma_cycles(spec, op, nbytes) * spec.dpu_hz


@dataclass(frozen=True)
class DotProduct:
    """Instructions per record of a quantised dot product with several query heads, by reason."""

    load_record: float
    unpack: float
    load_query: float
    multiply: float
    add: float
    per_record: float

    @property
    def total(self) -> float:
        """Instructions per record."""
        return self.load_record + self.unpack + self.load_query + self.multiply + self.add + self.per_record


def dot_product(dims: int, bits: int, q_heads: int) -> DotProduct:
    """Count the instructions of one record of `dims` codes of `bits` bits against `q_heads` queries of 8-bit codes.

    The loop over dimensions is unrolled (dims are constant), operands lie in WRAM, codes are unsigned with their zero
    point folded into a constant per query. For one bit per dimension the queries are sign bits too.

    - load_record: one ``ld`` moves 8 bytes (PrIM: one WRAM access of 8 B per cycle); shared by the query heads.
    - unpack: 8 bits need one shift per two codes, since ``mul_sl``/``mul_sh`` pick byte 0 or 1 of a register;
      fewer bits need a shift and an ``and`` per code; one bit needs nothing. Shared by the query heads.
    - load_query: one ``lw`` and one shift bring four 8-bit query codes, the multiply picks their bytes:
      a half per code and head. One bit: one ``lw`` per 32 codes and head.
    - multiply: one 8 x 8 bit multiply per code and head (the DPU has no wider one: 32 bits take about 32 ``mul_step``).
      One bit: ``xor`` and ``cao`` (count ones) per 32 codes and head.
    - add: one per code and head. One bit: one per 32 codes and head.
    - per_record: pointer, index and branch of the record loop; per head clearing the sum, and compare-and-branch
      with the threshold. Survivors are few, their stores are not counted.

    Raises
    ------
    ValueError
        If `bits` is not 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"found {bits} bits, expected 1 to 8: the DPU multiplies 8 x 8 bits")
    load, per_record = math.ceil(dims * bits / 64), 3 + 2 * q_heads
    if bits == 1:
        words = math.ceil(dims / 32) * q_heads
        return DotProduct(load, 0, words, 2 * words, words, per_record)
    codes = dims * q_heads
    return DotProduct(load, dims / 2 if bits == 8 else 2 * dims, codes / 2, codes, codes, per_record)


def issue_cycles(instructions: float, tasklets: int) -> float:
    """Return the cycles in which a DPU issues `instructions` spread over its tasklets: one per cycle from 11 on."""
    return instructions * max(1.0, PIPELINE_DEPTH / tasklets)


def scan_cycles_per_record(
    spec: UpmemSpec, work: DotProduct, record_bytes: float, transfer_bytes: int = DMA_MAX_BYTES
) -> float:
    """Return the DPU cycles per record of an index scan: instruction issue or DMA engine, whichever is busier.

    Records of `record_bytes` stream from MRAM in transfers of `transfer_bytes` while other tasklets compute.
    """
    records = transfer_bytes / record_bytes
    instructions = work.total + spec.loop_instructions / records
    return max(issue_cycles(instructions, spec.tasklets), mram_dma_cycles(spec, "read", transfer_bytes) / records)


def host_bytes_per_s(spec: UpmemSpec, direction: Direction, mode: Mode, dpus: int = _DPUS_PER_RANK) -> float:
    """Return the bandwidth between host and `dpus` DPUs of one rank, summed over them.

    ``parallel`` grows as a power of the DPUs between the two measured ends, 1 and 64; ``serial`` does not grow.
    """
    if mode == "broadcast":
        return spec.broadcast_bytes_per_s * dpus / _DPUS_PER_RANK
    serial = spec.to_dpu_serial_bytes_per_s if direction == "to_dpu" else spec.from_dpu_serial_bytes_per_s
    parallel = spec.to_dpu_parallel_bytes_per_s if direction == "to_dpu" else spec.from_dpu_parallel_bytes_per_s
    if mode == "serial":
        return serial
    return float(serial * (parallel / serial) ** (math.log(dpus) / math.log(_DPUS_PER_RANK)))


def host_transfer_ps(spec: UpmemSpec, direction: Direction, mode: Mode, bytes_per_dpu: int, dpus: int) -> int:
    """Return the picoseconds of a host transfer of `bytes_per_dpu` to or from each of `dpus` DPUs of one rank."""
    return round(bytes_per_dpu * dpus / host_bytes_per_s(spec, direction, mode, dpus) * 1e12)
