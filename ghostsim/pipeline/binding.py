"""Binding: which device does which row of the plan, over which route.

The result is one function per row of the program, from the sizes of a row to the job that a device makes of
it, and the links that the row's bytes cross.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import groupby
from typing import NamedTuple

from ghostsim.config.model import Model
from ghostsim.devices.cxl_expander import CxlExpanderDevice
from ghostsim.devices.dram import octave
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Leg, join, rounded
from ghostsim.devices.machine import Machine, Route, Store
from ghostsim.devices.nvme import NvmeDevice
from ghostsim.devices.upmem import MOST_BITS, UpmemDevice
from ghostsim.engine.network import FlowClass
from ghostsim.engine.server import FifoServer
from ghostsim.errors import ConfigError
from ghostsim.plan.plan import OPS, ROLES, Plan
from ghostsim.plan.selection import IndexStage
from ghostsim.policy.placement import FROM_TIER, Placement


class Row(NamedTuple):
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
    """Equal devices of a tier, their share of its bytes, and the ways to them.

    Equal devices with equal shares run in lockstep. One flow therefore stands for all: a byte costs each of
    them an equal part, and the requester keeps as much outstanding as all flows together would.
    """

    name: str
    devices: tuple[Store, ...]
    routes: tuple[Route, ...]
    before: int
    """Devices of the tier that come before these."""
    of: int
    """Devices of the tier."""

    def share(self, size: int) -> int:
        """Return the share of these devices; the shares of all sites sum to the whole."""
        return size * (self.before + len(self.devices)) // self.of - size * self.before // self.of

    def records(self, runs: int) -> int:
        """Return the share of one device in a number of pieces, as a power of two."""
        return 1 << octave(self.share(runs) // len(self.devices))

    def spread(self, way: Callable[[Store, Route], Leg]) -> Leg:
        """Return the leg of a byte that is spread over the devices."""
        legs = [way(device, route) for device, route in zip(self.devices, self.routes, strict=True)]
        costs = tuple((resource, cost / len(legs)) for leg in legs for resource, cost in leg.costs)
        return Leg(costs, legs[0].latency_ps)


_Template = tuple[FlowClass, int, FifoServer | None]
"""What does not depend on bytes: class of flows, delay, and the queue to wait in."""


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
        self.stages = tuple(stages)
        self.gpu = machine.gpu
        away = dict.fromkeys((placement.kv_tier, placement.archive, *((placement.index_tier,) if stages else ())))
        self.sites = {tier: self._sites(tier) for tier in away if tier != "hbm"}
        self._check_filter()
        if "ssd" in (placement.kv_tier, placement.archive) and placement.fetch == "zero_copy":
            raise ConfigError(
                "found fetch zero_copy from tier ssd, expected dma: a drive has no memory that SMs could read"
            )
        self._scan = cache(self._new_scan)
        self._fetch = cache(self._new_fetch)
        self._store = cache(self._new_store)
        self._transfer = cache(self._new_transfer)

    def _check_filter(self) -> None:
        """Refuse a filter that no device of its tier has."""
        if not self.stages or self.placement.site == "gpu":
            return
        widest = max(stage.operand_bits for stage in self.stages)
        if self.placement.site not in ("cxl", "pim"):
            raise ConfigError(f"found filter {self.placement.site}, expected one of gpu, cxl, pim")
        for site in self.sites[self.placement.index_tier]:
            device = site.devices[0]
            if isinstance(device, CxlExpanderDevice) and device.filter is None:
                raise ConfigError(f"found filter cxl on {site.name}, expected an expander with a filter: block")
            if isinstance(device, UpmemDevice) and widest > MOST_BITS:
                raise ConfigError(
                    f"found filter pim for a {widest}-bit index, expected at most {MOST_BITS} bits: "
                    "a DPU multiplies 8 x 8 bits"
                )

    def _sites(self, tier: str) -> tuple[_Site, ...]:
        stores = [(name, device, self.machine.routes[name]) for name, device in self.machine.stores(tier)]
        if not stores:
            raise ConfigError(f"found tier {tier}, expected a tier of {self.machine.platform.name}: "
                              f"{', '.join(self.machine.platform.tiers)}")  # fmt: skip
        sites: list[_Site] = []
        for _, equal in groupby(stores, key=lambda store: (store[1].part, store[2].kind)):
            names, devices, routes = zip(*equal, strict=True)
            sites.append(_Site(names[0], devices, routes, sum(len(site.devices) for site in sites), len(stores)))
        return tuple(sites)

    def bind(self, plan: Plan) -> tuple[Bound, ...]:
        """Return the devices of the plan's program, row by row."""
        return tuple(self._bind_row(plan, i, name) for i, name in enumerate(plan.names))

    def _bind_row(self, plan: Plan, i: int, name: str) -> Bound:
        op, role, tiers = OPS[int(plan.op[i])], ROLES[int(plan.role[i])], plan.tiers
        away = tiers[role] != "hbm"
        match op:
            case "gemm":
                return Bound(self._gemm(name), "gpu")
            case "attend" | "decode":
                return Bound(self._attend(scattered=role == "cold"), "gpu")
            case "scan":
                return self._bind_scan(int(plan.stage[i]), away=away)
            case "filter":
                return self._bind_filter(name) if away else Bound(lambda row: self.gpu.select(row.flops), "gpu select")
            case "migrate" if away and name in FROM_TIER:
                return self._bind_read(tiers[role])
            case "read":
                return self._bind_read(tiers[role])
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
        job = cache(partial(self.gpu.gemm, self.batch, *shape, model.bytes_per_weight))
        return lambda row: job(row.nbytes)

    def _attend(self, *, scattered: bool) -> Maker:
        def make(row: Row) -> Job:
            if not row.nbytes:
                return self.gpu.multiply(row.flops)
            runs = row.runs if scattered else None
            return self.gpu.attention(self.model, self.batch, row.records, row.nbytes, row.flops, runs)

        return make

    # --- near memory ---

    def _bind_scan(self, number: int, *, away: bool) -> Bound:
        if not away:
            return Bound(lambda row: self.gpu.scan(row.nbytes, row.flops // 2), "gpu scan")
        sites = self.sites[self.placement.index_tier]

        def make(row: Row) -> Job:
            return _job(row.nbytes, sites, [self._scan(site, number) for site in sites])

        return Bound(make, f"{self.placement.index_tier} filter")

    def _new_scan(self, site: _Site, number: int) -> _Template:
        stage = self.stages[number]
        jobs = [_scan_at(device, stage, self.model.q_per_kv, site.name) for device in site.devices]
        flows = [part.flow_class for job in jobs for part in job.parts]
        route = [(resource, cost / len(flows)) for flow in flows for resource, cost in flow.route]
        flow_class = self.machine.network.flow_class(route, sum(flow.weight for flow in flows))
        return flow_class, jobs[0].delay_ps, jobs[0].parts[0].server

    def _bind_filter(self, name: str) -> Bound:
        """Queries go down to the filter; ids or bitmaps come up."""
        sites, down = self.sites[self.placement.index_tier], name == "query"

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, sites[0].of))
            return _job(row.nbytes, sites, [self._transfer(site, piece, down) for site in sites])

        return Bound(make, f"{self.placement.index_tier} {'queries' if down else 'ids'}", _shares(sites))

    def _new_transfer(self, site: _Site, piece: int, down: bool) -> _Template:
        def way(device: Store, route: Route) -> Leg:
            legs = [route.carry(piece, write=down)]
            if isinstance(device, UpmemDevice):
                legs.append(device.write(piece, 1) if down else device.read(piece, 1))
            if isinstance(device, CxlExpanderDevice):
                legs.append(Leg((), device.part.controller // 2))
            return join(legs)

        device = site.devices[0]
        return self._template(site, site.spread(way), piece, device.mram if isinstance(device, UpmemDevice) else None)

    def _template(self, site: _Site, leg: Leg, weight: float, server: FifoServer | None = None) -> _Template:
        return self.machine.network.flow_class(leg.costs, weight * len(site.devices)), leg.latency_ps, server

    # --- between tiers ---

    def _bind_read(self, tier: str) -> Bound:
        sites, copied = self.sites[tier], self.placement.fetch == "dma"

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            templates = [self._fetch(site, piece, site.records(row.runs), copied) for site in sites]
            return _job(row.nbytes, sites, templates)

        return Bound(make, f"{tier} fetch", _shares(sites))

    def _new_fetch(self, site: _Site, piece: int, records: int, copied: bool) -> _Template:
        def way(device: Store, route: Route) -> Leg:
            there = route.carry(piece)
            return join([device.read(piece, records), there, Leg((), there.latency_ps)])

        source, first = site.spread(way), site.devices[0]
        if isinstance(first, NvmeDevice):
            return self._template(site, self.gpu.receive(source), first.window)
        return self._template(site, *(self.gpu.copy_in(source, piece) if copied else self.gpu.read_in_place(source)))

    def _bind_write(self, tier: str) -> Bound:
        sites = self.sites[tier]

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            templates = [self._store(site, piece, site.records(row.runs)) for site in sites]
            return _job(row.nbytes, sites, templates)

        return Bound(make, f"{tier} write", _shares(sites))

    def _new_store(self, site: _Site, piece: int, records: int) -> _Template:
        def way(device: Store, route: Route) -> Leg:
            return join([route.carry(piece, write=True), device.write(piece, records)])

        target, first = site.spread(way), site.devices[0]
        if isinstance(first, NvmeDevice):
            return self._template(site, self.gpu.send(target), first.window)
        return self._template(site, *self.gpu.copy_out(target, piece))


def _scan_at(device: Store, stage: IndexStage, q_per_kv: int, name: str) -> Job:
    """Return the scan of one byte of an index where it lies."""
    if isinstance(device, UpmemDevice):
        return device.scan(stage, q_per_kv, 1)
    if isinstance(device, CxlExpanderDevice) and device.filter is not None:
        return device.filter.scan(1, stage.macs * q_per_kv / stage.record_bytes)
    raise ConfigError(f"found a filter at {name}, expected a device that has one: a CXL expander or UPMEM")


def _job(nbytes: int, sites: Sequence[_Site], templates: Sequence[_Template]) -> Job:
    """Deal bytes out to the sites of a tier; the delay of the slowest counts for all."""
    if len(sites) == 1:
        flow_class, delay_ps, server = templates[0]
        return Job(delay_ps, (Part(flow_class, nbytes, server),))
    parts = (
        Part(flow_class, site.share(nbytes), server)
        for site, (flow_class, _, server) in zip(sites, templates, strict=True)
    )
    return Job(max(delay_ps for _, delay_ps, _ in templates), tuple(parts))


def _shares(sites: Sequence[_Site]) -> tuple[tuple[str, float], ...]:
    """Return the links of a tier with the share of its bytes that crosses each."""
    crossed = Counter(link.name for site in sites for route in site.routes for link in route.links)
    return tuple((name, count / sites[0].of) for name, count in crossed.items())
