"""Binding: which device does which row of the plan, over which route.

The result is one function per row of the program, from the sizes of a row to the job that a device makes of
it, and the links that the row's bytes cross.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

from ghostsim.config.model import Model
from ghostsim.devices.cxl_expander import CxlExpanderDevice
from ghostsim.devices.dram import octave
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Leg, join, rounded
from ghostsim.devices.machine import Machine, Route, Store
from ghostsim.devices.upmem import MOST_BITS, UpmemDevice
from ghostsim.engine.network import FlowClass
from ghostsim.errors import ConfigError
from ghostsim.plan.plan import OPS, ROLES, Op, Plan, Role
from ghostsim.plan.selection import IndexStage
from ghostsim.policy.placement import Placement


@dataclass(frozen=True)
class Row:
    """The sizes of one row of the plan."""

    nbytes: int
    records: int
    runs: int
    flops: int


Maker = Callable[[Row], Job]


@dataclass(frozen=True)
class Bound:
    """A row of the program with its device.

    `links` says which share of the row's bytes crosses each link; `lane` names where a timeline shows it.
    """

    make: Maker
    lane: str
    links: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class _Site:
    """A device of a tier with its share of the tier's bytes and the way to it."""

    name: str
    device: Store
    route: Route
    part: int
    parts: int

    def share(self, size: int) -> int:
        """Return this device's share; the shares of all devices sum to the whole."""
        return size * (self.part + 1) // self.parts - size * self.part // self.parts


class Binder:
    """Binds the program of one run to a machine.

    KV heads are dealt out to the devices of a tier in turn, so each holds an equal share of every request.
    """

    def __init__(
        self,
        machine: Machine,
        model: Model,
        placement: Placement,
        stages: Sequence[IndexStage],
        batch: int,
    ) -> None:
        self.machine, self.model, self.placement, self.batch = machine, model, placement, batch
        self.stage = stages[0] if stages else None
        self.gpu = machine.gpu
        away = dict.fromkeys((placement.kv_tier, placement.index_tier) if stages else (placement.kv_tier,))
        self.sites = {tier: self._sites(tier) for tier in away if tier != "hbm"}
        self._check_filter()
        self._fetch_class = cache(self._new_fetch_class)
        self._store_class = cache(self._new_store_class)
        self._transfer_class = cache(self._new_transfer_class)

    def _check_filter(self) -> None:
        """Refuse a filter that no device of its tier has."""
        if self.stage is None or self.placement.site == "gpu":
            return
        if self.placement.site not in ("cxl", "pim"):
            raise ConfigError(f"found filter {self.placement.site}, expected one of gpu, cxl, pim")
        for site in self.sites[self.placement.index_tier]:
            if isinstance(site.device, CxlExpanderDevice) and site.device.filter is None:
                raise ConfigError(f"found filter cxl on {site.name}, expected an expander with a filter: block")
            if isinstance(site.device, UpmemDevice) and self.stage.operand_bits > MOST_BITS:
                raise ConfigError(
                    f"found filter pim for a {self.stage.operand_bits}-bit index, expected at most {MOST_BITS} bits: "
                    "a DPU multiplies 8 x 8 bits"
                )

    def _sites(self, tier: str) -> tuple[_Site, ...]:
        stores = self.machine.stores(tier)
        if not stores:
            raise ConfigError(f"found tier {tier}, expected a tier of {self.machine.platform.name}: "
                              f"{', '.join(self.machine.platform.tiers)}")  # fmt: skip
        return tuple(
            _Site(name, device, self.machine.routes[name], part, len(stores))
            for part, (name, device) in enumerate(stores)
        )

    def bind(self, plan: Plan) -> tuple[Bound, ...]:
        """Return the devices of the plan's program, row by row."""
        return tuple(
            self._bind_row(name, OPS[int(plan.op[i])], ROLES[int(plan.role[i])], plan.tiers, int(plan.record_bytes[i]))
            for i, name in enumerate(plan.names)
        )

    def _bind_row(self, name: str, op: Op, role: Role, tiers: Mapping[Role, str], record_bytes: int) -> Bound:
        away = tiers[role] != "hbm"
        match op:
            case "gemm":
                return Bound(self._gemm(name), "gpu")
            case "attend" | "decode":
                return Bound(self._attend(record_bytes, scattered=role == "cold"), "gpu")
            case "scan":
                return self._bind_scan(away=away)
            case "filter":
                return self._bind_filter(name) if away else Bound(lambda row: self.gpu.select(row.flops), "gpu select")
            case "read":
                return self._bind_read()
            case "write" | "migrate" | "ghostify":
                return (
                    self._bind_write(tiers[role])
                    if away
                    else Bound(lambda row: self.gpu.write(row.nbytes), "gpu write")
                )

    # --- on the GPU ---

    def _gemm(self, name: str) -> Maker:
        model = self.model
        shape = {
            "qkv": ((model.q_heads + 2 * model.kv_heads) * model.head_dim, model.hidden),
            "output": (model.hidden, model.q_heads * model.head_dim),
            "gate_up": (2 * model.intermediate, model.hidden),
            "down": (model.hidden, model.intermediate),
            "head": (model.vocabulary, model.hidden),
        }[name]
        return lambda row: self.gpu.gemm(self.batch, *shape, model.bytes_per_weight, row.nbytes)

    def _attend(self, record_bytes: int, *, scattered: bool) -> Maker:
        def make(row: Row) -> Job:
            if not row.nbytes:
                return self.gpu.multiply(row.flops)
            runs = row.runs if scattered else None
            return self.gpu.attention(self.model, self.batch, row.records, record_bytes, row.flops, runs)

        return make

    # --- near memory ---

    def _bind_scan(self, *, away: bool) -> Bound:
        if not away:
            return Bound(lambda row: self.gpu.scan(row.nbytes, row.flops // 2), "gpu scan")
        stage, sites = cast(IndexStage, self.stage), self.sites[self.placement.index_tier]

        def make(row: Row) -> Job:
            return _together([_scan_at(site, stage, self.model.q_per_kv, row) for site in sites])

        return Bound(make, f"{self.placement.index_tier} filter")

    def _bind_filter(self, name: str) -> Bound:
        """Queries go down to the filter; ids or bitmaps come up."""
        sites, down = self.sites[self.placement.index_tier], name == "query"

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, len(sites)))
            return _together([self._transfer(site, row.nbytes, piece, down=down) for site in sites])

        return Bound(make, f"{self.placement.index_tier} {'queries' if down else 'ids'}", _shares(sites))

    def _transfer(self, site: _Site, nbytes: int, piece: int, *, down: bool) -> Job:
        flow_class, latency_ps = self._transfer_class(site, piece, down)
        server = site.device.mram if isinstance(site.device, UpmemDevice) else None
        return Job(latency_ps, (Part(flow_class, site.share(nbytes), server),))

    def _new_transfer_class(self, site: _Site, piece: int, down: bool) -> tuple[FlowClass, int]:
        legs = [site.route.carry(piece, write=down)]
        if isinstance(site.device, UpmemDevice):
            legs.append(site.device.write(piece, 1) if down else site.device.read(piece, 1))
        if isinstance(site.device, CxlExpanderDevice):
            legs.append(Leg((), site.device.part.controller // 2))
        leg = join(legs)
        return self.machine.network.flow_class(leg.costs, float(piece)), leg.latency_ps

    # --- between tiers ---

    def _bind_read(self) -> Bound:
        sites, copied = self.sites[self.placement.kv_tier], self.placement.fetch == "dma"

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            return _together([self._fetch(site, row, piece, copied=copied) for site in sites])

        return Bound(make, f"{self.placement.kv_tier} fetch", _shares(sites))

    def _fetch(self, site: _Site, row: Row, piece: int, *, copied: bool) -> Job:
        flow_class, latency_ps = self._fetch_class(site, piece, 1 << octave(site.share(row.runs)), copied)
        return Job(latency_ps, (Part(flow_class, site.share(row.nbytes)),))

    def _new_fetch_class(self, site: _Site, piece: int, records: int, copied: bool) -> tuple[FlowClass, int]:
        way = site.route.carry(piece)
        source = join([site.device.read(piece, records), way, Leg((), way.latency_ps)])
        leg, weight = self.gpu.copy_in(source, piece) if copied else self.gpu.read_in_place(source)
        return self.machine.network.flow_class(leg.costs, weight), leg.latency_ps

    def _bind_write(self, tier: str) -> Bound:
        sites = self.sites[tier]

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            return _together([self._store(site, row, piece) for site in sites])

        return Bound(make, f"{tier} write", _shares(sites))

    def _store(self, site: _Site, row: Row, piece: int) -> Job:
        flow_class, latency_ps = self._store_class(site, piece, 1 << octave(site.share(row.runs)))
        return Job(latency_ps, (Part(flow_class, site.share(row.nbytes)),))

    def _new_store_class(self, site: _Site, piece: int, records: int) -> tuple[FlowClass, int]:
        target = join([site.route.carry(piece, write=True), site.device.write(piece, records)])
        leg, weight = self.gpu.copy_out(target, piece)
        return self.machine.network.flow_class(leg.costs, weight), leg.latency_ps


def _scan_at(site: _Site, stage: IndexStage, q_per_kv: int, row: Row) -> Job:
    """Scan one device's share of an index where it lies."""
    nbytes, device = site.share(row.nbytes), site.device
    if isinstance(device, UpmemDevice):
        return device.scan(stage, q_per_kv, nbytes)
    if isinstance(device, CxlExpanderDevice) and device.filter is not None:
        macs_per_byte = stage.macs * q_per_kv / stage.record_bytes
        return device.filter.scan(nbytes, macs_per_byte)
    raise ConfigError(f"found a filter at {site.name}, expected a device that has one: a CXL expander or UPMEM")


def _together(jobs: Sequence[Job]) -> Job:
    """Join the shares of several devices; the delay of the slowest counts for all."""
    return Job(max(job.delay_ps for job in jobs), tuple(part for job in jobs for part in job.parts))


def _shares(sites: Sequence[_Site]) -> tuple[tuple[str, float], ...]:
    shares: dict[str, float] = {}
    for site in sites:
        for link in site.route.links:
            shares[link.name] = shares.get(link.name, 0.0) + 1.0 / site.parts
    return tuple(shares.items())
