"""Hardware parts and the platforms that wire them.

Every number carries a unit, a source and a confidence (`ghostsim.config.base.Block`). DRAM timing parameters
keep their JEDEC names and are written as durations or as clock cycles (``"8 nCK"``).
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, get_args

import networkx as nx
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

from ghostsim.config.base import Block, Count, Fraction, MisfitError, Number, Text
from ghostsim.units import (
    DURATION,
    Bandwidth,
    Bytes,
    Cost,
    Duration,
    Energy,
    EnergyPerBit,
    FlopRate,
    Frequency,
    MacRate,
    Power,
    TransferRate,
)

Tier = Literal["hbm", "dram", "cxl", "pim", "ssd"]
TIERS: tuple[Tier, ...] = get_args(Tier)


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError(f"found {value:g}, expected a value above zero")
    return value


def _not_negative(value: float) -> float:
    if value < 0:
        raise ValueError(f"found {value:g}, expected a value of at least zero")
    return value


Few = Annotated[Count, Field(le=1_000)]
Many = Annotated[Count, Field(le=100_000)]
Positive = Annotated[Number, Field(gt=0)]
PositiveBandwidth = Annotated[Bandwidth, AfterValidator(_positive)]
PositiveBytes = Annotated[Bytes, AfterValidator(_positive)]
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
Delay = Annotated[Duration, AfterValidator(_not_negative)]
PositiveFrequency = Annotated[Frequency, AfterValidator(_positive)]
PositiveRate = Annotated[TransferRate, AfterValidator(_positive)]
PositiveMacs = Annotated[MacRate, AfterValidator(_positive)]
PositiveFlops = Annotated[FlopRate, AfterValidator(_positive)]
BitEnergy = Annotated[EnergyPerBit, AfterValidator(_not_negative)]
OpEnergy = Annotated[Energy, AfterValidator(_not_negative)]
Watts = Annotated[Power, AfterValidator(_not_negative)]
Dollars = Annotated[Cost, AfterValidator(_not_negative)]

_MOST_BANKS = 4096
_CYCLES = re.compile(r"^([0-9]{1,6}) nCK$")


def _jedec(value: Any) -> tuple[str, int]:
    """Read a timing parameter: cycles as ("nCK", n), a duration as ("ps", n)."""
    found = _CYCLES.match(value) if isinstance(value, str) else None
    if found:
        return ("nCK", int(found[1]))
    if isinstance(value, tuple):
        return value
    try:
        picoseconds = int(DURATION.parse(value))
    except ValueError:
        message = f"found {value!r}, expected a duration or clock cycles up to 999999, e.g. '14.16 ns' or '8 nCK'"
        raise ValueError(message) from None
    return ("ps", int(_not_negative(picoseconds)))


def _jedec_text(value: tuple[str, int]) -> str:
    return f"{value[1]} nCK" if value[0] == "nCK" else DURATION.format(value[1])


Jedec = Annotated[
    tuple[str, int],
    BeforeValidator(_jedec),
    PlainSerializer(_jedec_text, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["14.16 ns", "8 nCK"]}),
]
"""A JEDEC timing parameter: a duration in ps or a number of clock cycles."""


class Part(Block):
    """What every catalogue file has."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Text
    summary: Text = "part"
    cost: Dollars | None = None


# --- memories ------------------------------------------------------------------------------------------------


class DramTimings(Block):
    """The JEDEC timing set of one channel."""

    tCK: PositiveDuration | None = None
    """Clock; none takes two transfers per clock at the data rate."""
    nBL: Annotated[Count, Field(le=64)]
    tCL: Jedec
    tCWL: Jedec
    tRCD: Jedec
    tRCD_WR: Jedec | None = None
    tRP: Jedec
    tRAS: Jedec
    tRC: Jedec
    tWR: Jedec
    tRTP: Jedec
    tCCD_S: Jedec
    tCCD_L: Jedec
    tCCD_S_WR: Jedec | None = None
    tCCD_L_WR: Jedec | None = None
    tCCD_R: Jedec | None = None
    tRRD_S: Jedec
    tRRD_L: Jedec
    tWTR_S: Jedec
    tWTR_L: Jedec
    tRTW: Jedec | None = None
    tFAW: Jedec
    tPPD: Jedec | None = None
    tCS: Jedec | None = None
    tRFC: Jedec
    tREFI: Jedec


class DramGeometry(Block):
    """How one channel is divided."""

    access_bytes: Annotated[Count, Field(le=4096)]
    subchannels: Few = 1
    ranks: Few
    pseudochannels: Few = 1
    stack_ids: Few = 1
    bankgroups: Few
    banks_per_group: Few
    rows: Annotated[Count, Field(le=2**32)]
    row_bytes: Annotated[Count, Field(le=2**20)]
    read_queue: Annotated[Count, Field(le=4096)] = 32
    write_queue: Annotated[Count, Field(le=4096)] = 32

    @model_validator(mode="after")
    def _rows_hold_accesses(self) -> DramGeometry:
        if self.row_bytes % self.access_bytes:
            message = f"found {self.row_bytes}, expected a multiple of access_bytes = {self.access_bytes}"
            raise MisfitError(message, "row_bytes")
        if self.banks > _MOST_BANKS:
            raise ValueError(f"found {self.banks} banks behind one controller, expected at most {_MOST_BANKS}")
        return self

    @property
    def banks(self) -> int:
        """Banks of all units of one channel."""
        return (
            self.subchannels * self.ranks * self.pseudochannels * self.stack_ids
            * self.bankgroups * self.banks_per_group
        )  # fmt: skip


class Dram(Part):
    """A DRAM channel: standard, speed bin, timing set and geometry."""

    kind: Literal["dram"]
    standard: Literal[
        "DDR4", "DDR5", "LPDDR5", "LPDDR5X", "GDDR6", "GDDR6X", "HBM2", "HBM2E", "HBM3", "HBM3E", "HBM4"
    ]  # fmt: skip
    data_rate: PositiveRate
    timing: DramTimings
    geometry: DramGeometry
    energy: BitEnergy | None = None
    """Energy per bit moved, device and PHY."""

    @property
    def clock_ps(self) -> float:
        """The clock period in ps."""
        return self.timing.tCK or 2e12 / self.data_rate

    @model_validator(mode="after")
    def _timings_fit(self) -> Dram:
        row, open_ = (cycles(value, self.clock_ps) for value in (self.timing.tRC, self.timing.tRAS))
        if row < open_:
            raise MisfitError(f"found {row} cycles, expected at least tRAS, {open_} cycles", "timing", "tRC")
        return self

    @model_validator(mode="after")
    def _refresh_leaves_time(self) -> Dram:
        units = self.geometry.ranks * self.geometry.pseudochannels
        timing, clock = self.timing, self.clock_ps
        busy = cycles(timing.tRFC, clock) + units * cycles(timing.tRP, clock) + cycles(timing.tRC, clock)
        interval = cycles(timing.tREFI, clock)
        if interval <= busy:
            expected = f"more than one refresh takes (tRFC, tRP of each rank and tRC), {busy} cycles"
            raise MisfitError(f"found {interval} cycles, expected {expected}", "timing", "tREFI")
        return self


class Memory(Block):
    """Channels of one DRAM part behind one controller."""

    dram: Dram
    channels: Many
    """Channels of the DRAM part; a pseudo-channel belongs to its channel."""
    capacity: PositiveBytes
    efficiency: Annotated[Fraction, Field(gt=0)] = 1.0
    """Share of the DRAM's own bandwidth that the controller and its fabric pass on."""
    latency: Delay
    """From the requester to the DRAM controller and back, without the DRAM's own time."""
    standby: Watts | None = None
    """Power of the memory devices without traffic, where the power of their requester does not hold it."""


# --- processors ----------------------------------------------------------------------------------------------


class CopyEngines(Block):
    """DMA engines of a GPU."""

    count: Few
    bandwidth: PositiveBandwidth
    """What one engine moves at most."""
    start: Delay
    """From doorbell to first byte."""
    descriptor: Delay
    """Issue interval of one fragment of a gather, per engine."""
    window: PositiveBytes
    """Bytes that all engines keep outstanding."""
    energy: BitEnergy | None = None
    """Energy per bit copied, besides both memories and the links."""


class AttentionKernel(Block):
    """Constants of a family of decode-attention kernels; `ghostsim.timing.gpu_kernels` says what each means."""

    floor: Delay
    floor_per_doubling: Delay
    start: Delay
    combine: Delay
    wave: Delay
    cold: Delay
    hbm_efficiency: Annotated[Fraction, Field(gt=0)]
    l2_bandwidth_per_sm: PositiveBandwidth
    l2_share: Positive
    slots_per_sm: Many
    split_rule: Literal["one_wave", "occupancy"]
    max_splits: Many


class GemmKernel(Block):
    """Constants of the dense GEMM; `ghostsim.timing.gpu_kernels` says what each means."""

    launch: Delay
    hbm_efficiency: Annotated[Fraction, Field(gt=0)]
    flop_efficiency: Annotated[Fraction, Field(gt=0)]
    wave_weight: Annotated[Number, Field(ge=0)]
    panel_weight: Annotated[Number, Field(ge=0)]


class Filter(Block):
    """A near-memory engine that scores index records and returns what survives.

    It sits in the base dies of HBM stacks, in the buffers of DIMMs, in the controller of an expander or of a drive.
    """

    macs: PositiveMacs
    sram: PositiveBytes
    window: PositiveBytes | None = None
    """Reads of the media that it keeps outstanding, which is its weight against others' reads; none: all its SRAM."""
    media_bandwidth: PositiveBandwidth
    """Its own port to the media."""
    start: Delay
    """From the arrival of a query to the first record read."""
    order: Literal["fifo", "fair"] = "fifo"
    """Whether requests are scanned one after the other, as they arrive, or side by side."""
    energy: OpEnergy
    """Energy of one multiply-accumulate."""


class GpuArch(Part):
    """Kernel constants of a GPU architecture, by kernel family."""

    kind: Literal["gpu_arch"]
    attention: Annotated[dict[Text, AttentionKernel], Field(min_length=1)]
    gemm: Annotated[dict[Text, GemmKernel], Field(min_length=1)]


class Gpu(Part):
    """A GPU with its HBM."""

    kind: Literal["gpu"]
    aliases: tuple[Text, ...] = ()
    """Further names under which tables of measurements know this GPU."""
    architecture: GpuArch
    sms: Many
    tensor: PositiveFlops
    """Dense bf16 rate."""
    vector_macs: PositiveMacs
    """Rate at which the SMs score sketches and quantised keys."""
    l2: PositiveBytes
    l2_bandwidth: PositiveBandwidth | None = None
    """Reads of a working set that stays in the L2; unknown, no index is kept there."""
    memory: Memory
    launch: Delay
    """Launch to launch time of a small kernel inside a graph."""
    attention_kernels: Text
    """Family of `architecture.attention` whose constants hold."""
    copy_engines: CopyEngines
    read_window: PositiveBytes
    """Bytes of reads of other memories that the SMs keep outstanding."""
    select: PositiveMacs
    """Scores per second that the selection kernel (histogram, threshold, compaction) passes."""
    filter: Filter | None = None
    """In the base dies of the HBM stacks."""
    static: Watts
    compute_energy: OpEnergy
    """Energy of one bf16 floating-point operation of the tensor cores."""
    vector_energy: OpEnergy | None = None
    """Energy of one multiply-accumulate, or one score selected, of the vector units."""
    onchip_energy: BitEnergy | None = None
    """Energy per bit from the memory's port through the L2 into the registers of an SM."""

    @model_validator(mode="after")
    def _kernels_are_known(self) -> Gpu:
        if self.attention_kernels not in self.architecture.attention:
            known = ", ".join(self.architecture.attention)
            raise MisfitError(f"found {self.attention_kernels!r}, expected one of {known}", "attention_kernels")
        return self

    @property
    def capacity(self) -> int:
        """Bytes of HBM."""
        return self.memory.capacity


class Cores(Block):
    """What one core of a host processor does when it works on KV or on an index."""

    macs: PositiveMacs
    """Multiply-accumulates on 8-bit codes."""
    flops: PositiveFlops
    """Floating-point rate in attention."""
    bandwidth: PositiveBandwidth
    """What it reads from memory by itself."""
    copy_bandwidth: PositiveBandwidth
    """What it copies from memory to memory, bytes copied."""
    start: Delay
    """From work in its queue to the first record read."""


class HostCpu(Part):
    """A host processor with its memory and root complex."""

    kind: Literal["host_cpu"]
    cores: Many
    core: Cores | None = None
    memory: Memory
    filter: Filter | None = None
    """In the buffers of the DIMMs."""
    root_complex: PositiveBandwidth
    """What the root complex passes between two devices below it, in each direction."""
    forward: Delay
    """What the root complex adds to a device-to-device read."""
    static: Watts

    @property
    def capacity(self) -> int:
        """Bytes of host memory."""
        return self.memory.capacity


class Pool(Block):
    """Other hosts that use an expander over ports of their own."""

    hosts: Few
    load: PositiveBandwidth | None = None
    """What each of them reads, if it can. None: they do at every instant what this host does, so each gets an equal
    share of the expander, of its filter, of the switch before it and of the link from there, and of its capacity."""
    window: PositiveBytes = 65_536
    """Bytes that each keeps outstanding: its weight where it meets other traffic; for hosts with a `load`."""

    @property
    def sharers(self) -> int:
        """Hosts that have equal shares, this one included."""
        return 1 if self.load is not None else 1 + self.hosts


class CxlExpander(Part):
    """A CXL Type-3 memory expander."""

    kind: Literal["cxl_expander"]
    controller: Delay
    """Round trip through port and controller, without link and media."""
    memory: Memory
    filter: Filter | None = None
    pool: Pool | None = None
    static: Watts

    @property
    def capacity(self) -> int:
        """Bytes of expander memory that are this host's."""
        return self.memory.capacity // (self.pool.sharers if self.pool else 1)


class MramDma(Block):
    """The DMA engine between MRAM and WRAM, in DPU cycles."""

    read_setup: Positive
    """From issue to first byte of a read."""
    write_setup: Positive
    bytes_per_cycle: Positive
    engine_setup: Positive
    """What the engine, shared by all tasklets, is busy per transfer besides its bytes."""
    engine_per_byte: Positive


class Upmem(Part):
    """UPMEM DIMMs: DRAM processing units beside 64 MiB of MRAM each."""

    kind: Literal["upmem"]
    ranks: Many
    dpus_per_rank: Many
    clock: PositiveFrequency
    tasklets: Few
    mram: PositiveBytes
    """MRAM of one DPU."""
    wram: PositiveBytes
    dma: MramDma
    launch: Delay
    """Host time to start a kernel on all ranks and to see it end."""
    parallel_to_dpu: PositiveBandwidth
    """Host to all DPUs of one rank, different data."""
    parallel_from_dpu: PositiveBandwidth
    broadcast: PositiveBandwidth
    """Host to all DPUs of one rank, the same data."""
    dpu_power: Watts
    """Power of one rank while its DPUs run, above `static`."""
    static: Watts

    @property
    def capacity(self) -> int:
        """Bytes of MRAM over all ranks."""
        return self.ranks * self.dpus_per_rank * self.mram


class NearBankPim(Part):
    """DRAM with multipliers beside its banks, as HBM-PIM and GDDR6-AiM: all units work at once, in all-bank mode."""

    kind: Literal["near_bank_pim"]
    chips: Many
    """Stacks or chips, each with its own interface."""
    chip_capacity: PositiveBytes
    bandwidth: PositiveBandwidth
    """What the interface of one chip gives the host."""
    access: PositiveBytes
    """Bytes of one access."""
    latency: Delay
    """A host read, from the requester through controller and DRAM and back."""
    units: Many
    """Units of one chip."""
    unit_bandwidth: PositiveBandwidth
    """What one unit reads from its banks."""
    unit_macs: PositiveMacs
    operand_bits: Annotated[Count, Field(le=64)]
    """Width of the operands that a unit multiplies."""
    switch: Delay
    """From host accesses to all-bank mode, or back."""
    launch: Delay
    """Host time to start a kernel and to see it end."""
    static: Watts

    @property
    def capacity(self) -> int:
        """Bytes over all chips."""
        return self.chips * self.chip_capacity


class SlowReads(Block):
    """Reads that take longer than the others: a second try of the array, or garbage collection on their die."""

    share: Fraction
    delay: Delay


class Nvme(Part):
    """An NVMe solid-state drive."""

    kind: Literal["nvme"]
    flash: PositiveBytes
    channels: Many
    dies_per_channel: Many
    page: PositiveBytes
    read: PositiveDuration
    """Array read time of one page (tR)."""
    program: PositiveDuration
    """Array program time of one page (tPROG)."""
    slow_reads: SlowReads | None = None
    channel_bandwidth: PositiveBandwidth
    command_rate: Count
    """Commands per second that the controller accepts."""
    overhead: Delay
    """Host software, doorbell and completion of one command."""
    queue_pairs: Many
    queue_depth: Annotated[Count, Field(le=65_536)]
    filter: Filter | None = None
    """In the controller."""
    active: Watts
    """Power at full load, above `static`; it falls with the load of the busiest stage."""
    static: Watts

    @property
    def capacity(self) -> int:
        """Bytes of flash."""
        return self.flash


class Switch(Part):
    """A CXL or PCIe switch: a hop that adds latency."""

    kind: Literal["switch"]
    ports: Many
    hop: Delay
    """One way through the switch."""
    bandwidth: PositiveBandwidth
    """What its fabric passes in one direction."""
    static: Watts


# --- links ---------------------------------------------------------------------------------------------------


class Link(Part):
    """A point-to-point link of `width` lanes."""

    kind: Literal["link"]
    protocol: Literal["pcie", "cxl", "nvlink", "on_package", "ddr"]
    rate: PositiveRate
    """Transfers per second and lane."""
    width: Annotated[Count, Field(le=65_536)]
    """Lanes (bits per transfer and direction)."""
    encoding: Annotated[Fraction, Field(gt=0)]
    """Share of the raw rate left by line coding, FEC and CRC."""
    flit: Literal["none", "68B", "256B"] = "none"
    mps: Bytes | None = None
    """Maximum payload of a TLP (PCIe)."""
    mrrs: Bytes | None = None
    """Maximum read request of a TLP (PCIe)."""
    bandwidth: PositiveBandwidth | None = None
    """Measured data bandwidth per direction, if it is known; must not exceed the raw rate."""
    latency: Delay
    """One way through PHY, link and port."""
    energy: BitEnergy | None = None

    @property
    def raw(self) -> float:
        """Raw bytes per second and direction."""
        return self.rate * self.width / 8

    @model_validator(mode="after")
    def _within_raw_rate(self) -> Link:
        if self.bandwidth is not None and self.bandwidth > self.raw:
            raise MisfitError(
                f"found a bandwidth of {self.bandwidth / 1e9:g} GB/s, expected at most the raw rate of the link, "
                f"{self.raw / 1e9:g} GB/s ({self.width} lanes)",
                "bandwidth",
            )
        if self.protocol == "pcie" and (self.mps is None or self.mrrs is None):
            raise ValueError("found a PCIe link without mps and mrrs, expected both, e.g. mps: 256 B, mrrs: 512 B")
        return self


class PlatformLink(Link):
    """A link between two devices of a platform."""

    between: tuple[Text, Text]


Device = Annotated[
    Gpu | HostCpu | CxlExpander | Upmem | NearBankPim | Nvme | Switch,
    Field(discriminator="kind"),
]
AnyPart = Annotated[
    Gpu | GpuArch | HostCpu | CxlExpander | Upmem | NearBankPim | Nvme | Switch | Dram | Link,
    Field(discriminator="kind"),
]

_TIER_KINDS = {
    "hbm": ("gpu",), "dram": ("host_cpu",), "cxl": ("cxl_expander",), "pim": ("upmem", "near_bank_pim"),
    "ssd": ("nvme",),
}  # fmt: skip


class Platform(Block):
    """Devices, the links between them, and which device serves which tier."""

    schema_: Literal[1] = Field(1, alias="schema")
    kind: Literal["platform"]
    name: Text
    summary: Text = "platform"
    devices: dict[Text, Device]
    links: dict[Text, PlatformLink]
    tiers: dict[Tier, tuple[Text, ...]]

    @model_validator(mode="after")
    def _wired(self) -> Platform:
        self._check_names()
        self._check_twins()
        graph = self.graph()
        if "hbm" not in self.tiers:
            raise MisfitError("found no hbm tier, expected one, e.g. tiers: {hbm: [gpu0]}", "tiers")
        gpu = self.tiers["hbm"][0]
        for tier, names in self.tiers.items():
            for index, name in enumerate(names):
                if not nx.has_path(graph, gpu, name):
                    message = f"found tier {tier} on {name}, which no link reaches from {gpu}, expected a path"
                    raise MisfitError(message, "tiers", tier, index)
        return self

    def _check_twins(self) -> None:
        joined: dict[frozenset[str], str] = {}
        for name, link in self.links.items():
            twin = joined.setdefault(frozenset(link.between), name)
            if twin != name:
                message = f"found a second link between {' and '.join(link.between)}, expected {twin} alone, made wider"
                raise MisfitError(message, "links", name, "between")

    def _check_names(self) -> None:
        for name, link in self.links.items():
            if name in TIERS:
                message = f"found a link named {name}, expected a name that is not a tier ({', '.join(TIERS)})"
                raise MisfitError(message, "links", name)
            for index, end in enumerate(link.between):
                if end not in self.devices:
                    message = f"found {end!r}, expected a device: {', '.join(self.devices)}"
                    raise MisfitError(message, "links", name, "between", index)
        for tier, names in self.tiers.items():
            kinds = _TIER_KINDS[tier]
            kind, fitting = " or ".join(kinds), [name for name, part in self.devices.items() if part.kind in kinds]
            if not names:
                raise MisfitError(f"found no device, expected at least one of kind {kind}", "tiers", tier)
            for index, name in enumerate(names):
                if name in names[:index]:
                    raise MisfitError(f"found {name!r} again, expected each device once", "tiers", tier, index)
                if name not in fitting:
                    choice = ", ".join(fitting) or "none is here"
                    message = f"found {name!r}, expected a device of kind {kind}: {choice}"
                    raise MisfitError(message, "tiers", tier, index)

    def graph(self) -> nx.Graph[str]:
        """Return devices as nodes and links as edges with their name and one-way latency in ps."""
        graph: nx.Graph[str] = nx.Graph()
        graph.add_nodes_from(self.devices)
        for name, link in self.links.items():
            graph.add_edge(*link.between, link=name, latency_ps=link.latency)
        return graph

    def tier_capacity(self, tier: Tier) -> int:
        """Bytes of a tier over all its devices."""
        devices = (self.devices[name] for name in self.tiers.get(tier, ()))
        return sum(device.capacity for device in devices if not isinstance(device, Switch))


def cycles(value: tuple[str, int], clock_ps: float) -> int:
    """Convert a JEDEC timing parameter to clock cycles, rounding up as JEDEC does (a 1 % rounding tolerance)."""
    unit, number = value
    return number if unit == "nCK" else max(0, math.ceil(number / clock_ps - 0.01))
