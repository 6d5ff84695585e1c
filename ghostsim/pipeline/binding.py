"""Binding: which device does which row of the plan, over which route.

The result is one function per row of the program, from the sizes of a row to the job that a device makes of
it, and the links that the row's bytes cross.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Generic, NamedTuple, TypeVar

from ghostsim.config.model import Model
from ghostsim.devices.dram import octave
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.host_cpu import HostCpuDevice
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Leg, Load, join, rounded
from ghostsim.devices.link import LinkDevice
from ghostsim.devices.machine import Machine, Route, Store
from ghostsim.devices.near_bank_pim import NearBankPimDevice
from ghostsim.devices.nvme import NvmeDevice
from ghostsim.devices.sketch_filter import SketchFilter
from ghostsim.devices.upmem import MOST_BITS, UpmemDevice
from ghostsim.engine.network import FlowClass
from ghostsim.engine.server import Server
from ghostsim.errors import ConfigError
from ghostsim.pipeline.ghostifier import Ghostifier, in_place, scaled
from ghostsim.plan.plan import OPS, ROLES, Plan
from ghostsim.plan.selection import IndexStage
from ghostsim.policy.placement import FROM_TIER, Placement

_DECIDED = "threshold"
_DOWN = ("query", _DECIDED)
"""Rows from the GPU to a filter; a threshold is found by a kernel first."""
_STREAMED_BYTES = 4096
_STAGED_BYTES = 65536
"""Of a buffer that cores fill and a copy engine takes."""


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


AnyStore = TypeVar("AnyStore", Store, GpuDevice)


@dataclass(frozen=True, eq=False)
class _Site(Generic[AnyStore]):
    """Equal devices of a tier, their share of its bytes, and the ways to them.

    Equal devices with equal shares run in lockstep. One flow therefore stands for all: a byte costs each of
    them an equal part, and the requester keeps as much outstanding as all flows together would.
    """

    name: str
    devices: tuple[AnyStore, ...]
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

    def spread(self, way: Callable[[AnyStore, Route], Leg]) -> Leg:
        """Return the leg of a byte that is spread over the devices."""
        legs = [way(device, route) for device, route in zip(self.devices, self.routes, strict=True)]
        costs = tuple((resource, cost / len(legs)) for leg in legs for resource, cost in leg.costs)
        writes = tuple(resource for leg in legs for resource in leg.writes)
        return Leg(costs, legs[0].latency_ps, legs[0].loads, writes)


_Template = tuple[FlowClass, int, Server | None, tuple[Load, ...]]
"""What does not depend on bytes: class of flows, delay, the queue to wait in, and the media that are waited for."""


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
        self.resident = False
        self.gpu = machine.gpu
        away = dict.fromkeys((placement.kv_tier, placement.archive, *((placement.index_tier,) if stages else ())))
        self.sites = {tier: self._sites(tier) for tier in away if tier != "hbm"}
        self._check_fetch()
        self.scanners = self._scanners() if stages and placement.near_memory else ()
        self._scan = cache(self._new_scan)
        self._cross = cache(self._new_cross)
        self._fetch = cache(self._new_fetch)
        self._cpu_attend = cache(self._new_cpu_attend)
        self._store = cache(self._new_store)
        self._transfer = cache(self._new_transfer)

    def _check_fetch(self) -> None:
        """Refuse reads in place of what no load can reach, and attention on cores away from the memory they share."""
        if self.placement.fetch == "cpu" and self.placement.kv_tier not in ("dram", "hbm"):
            raise ConfigError(
                f"found fetch cpu from tier {self.placement.kv_tier}, expected kv_tier: dram, the memory of the cores"
            )
        if self.placement.fetch in ("staged", "cpu"):
            for site in self.sites.get(self.placement.kv_tier, ()):
                self._host(site).working()
                self._ways_in(site)
        if self.placement.fetch != "zero_copy":
            return
        fetched = {self.placement.kv_tier, *((self.placement.index_tier,) if self.placement.site == "none" else ())}
        for tier in sorted(fetched & set(self.sites)):
            why = _not_addressable(self.sites[tier][0].devices[0])
            if why:
                raise ConfigError(f"found fetch zero_copy from tier {tier}, expected dma: {why}")

    def _scanners(self) -> Sequence[_Site[Store]] | Sequence[_Site[GpuDevice]]:
        """Return what scans the index; refuse a filter that a device does not have."""
        site = self.placement.site
        if site == "hbm":
            at_gpu = _Site((self.machine.gpu_name), (self.gpu,), (Route((), ()),), 0, 1)
            _check_engine(at_gpu, site, self.stages)
            return (at_gpu,)
        for scanner in self.sites[self.placement.index_tier]:
            _check_engine(scanner, site, self.stages)
        return self.sites[self.placement.index_tier]

    def _sites(self, tier: str) -> tuple[_Site[Store], ...]:
        stores = [(name, device, self.machine.routes[name]) for name, device in self.machine.stores(tier)]
        if not stores:
            raise ConfigError(f"found tier {tier}, expected a tier of {self.machine.platform.name}: "
                              f"{', '.join(self.machine.platform.tiers)}")  # fmt: skip
        sites: list[_Site[Store]] = []
        for _, equal in groupby(stores, key=lambda store: (store[1].part, store[2].kind)):
            names, devices, routes = zip(*equal, strict=True)
            sites.append(_Site(names[0], devices, routes, sum(len(site.devices) for site in sites), len(stores)))
        return tuple(sites)

    def bind(self, plan: Plan) -> tuple[Bound, ...]:
        """Return the devices of the plan's program, row by row."""
        scanned = plan.nbytes[plan.op == OPS.index("scan")].sum()
        self.resident = self.gpu.keeps(int(scanned) // plan.steps)
        return tuple(self._bind_row(plan, i, name) for i, name in enumerate(plan.names))

    def _bind_row(self, plan: Plan, i: int, name: str) -> Bound:
        op, role, tiers = OPS[int(plan.op[i])], ROLES[int(plan.role[i])], plan.tiers
        away = tiers[role] != "hbm"
        match op:
            case "gemm":
                return Bound(self._gemm(name), "gpu")
            case "attend" | "decode":
                return self._bind_cpu_attend() if away else Bound(self._attend(scattered=role == "cold"), "gpu")
            case "scan":
                return self._bind_scan(int(plan.stage[i]), int(plan.request[i]), away=away)
            case "filter":
                return self._bind_filter(name)
            case "read":
                return self._bind_read(tiers[role])
            case "migrate" if name.startswith("recall") or (away and name in FROM_TIER):
                return self._bind_read(tiers[role])
            case "ghostify" if name == "ghostify" and self.placement.ghostify != "gpu":
                return self._bind_ghostify(tiers[role])
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

    # --- the filter ---

    def _bind_scan(self, number: int, request: int, *, away: bool) -> Bound:
        if self.scanners:
            return self._bind_near_scan(number, request)
        if away:
            return self._bind_cross()
        return Bound(lambda row: self.gpu.scan(row.nbytes, row.flops // 2, resident=self.resident), "gpu scan")

    def _bind_near_scan(self, number: int, request: int) -> Bound:
        sites = self.scanners
        templates = [self._scan(site, number, request) for site in sites]

        def make(row: Row) -> Job:
            return _job(row.nbytes, sites, templates)

        return Bound(make, f"{self.placement.site} filter")

    def _new_scan(self, site: _Site[AnyStore], number: int, request: int) -> _Template:
        stage = self.stages[number]
        where, heads = self.placement.site, self.model.q_per_kv
        jobs = [_scan_at(device, where, stage, heads, request) for device in site.devices]
        return self._in_lockstep(jobs)

    def _in_lockstep(self, jobs: Sequence[Job]) -> _Template:
        """Return one flow that stands for those of equal devices, each with an equal part of every byte."""
        flows = [part.flow_class for job in jobs for part in job.parts]
        route = [(resource, cost / len(flows)) for flow in flows for resource, cost in flow.route]
        flow_class = self.machine.network.flow_class(route, sum(flow.weight for flow in flows))
        return flow_class, jobs[0].delay_ps, jobs[0].parts[0].server, jobs[0].loads

    def _bind_cross(self) -> Bound:
        """Without a filter the records of the index cross to the GPU, which scores them as they arrive."""
        sites = tuple(map(self._ways_in, self.sites[self.placement.index_tier]))

        def make(row: Row) -> Job:
            macs = round(row.flops / 2 / max(1, row.nbytes), 3)
            return _job(row.nbytes, sites, [self._cross(site, macs) for site in sites])

        return Bound(make, f"{self.placement.index_tier} index", _shares(sites))

    def _new_cross(self, site: _Site[Store], macs_per_byte: float) -> _Template:
        leg, weight = self._arrive(site, _STREAMED_BYTES, 1 << 20)
        return self._template(site, self.gpu.score(leg, macs_per_byte), weight, _gate(site.devices[0]))

    def _bind_filter(self, name: str) -> Bound:
        """Queries and thresholds go down to the filter; ids, bitmaps and histograms come up."""
        if not self.scanners:
            return Bound(lambda row: self.gpu.select(row.flops), "gpu select")
        sites, down, decided = self.scanners, name.startswith(_DOWN), name.startswith(_DECIDED)

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, sites[0].of))
            job = _job(row.nbytes, sites, [self._transfer(site, piece, down) for site in sites])
            return job._replace(delay_ps=job.delay_ps + self.gpu.part.launch) if decided else job

        return Bound(make, f"{self.placement.site} {'queries' if down else 'ids'}", _shares(sites))

    def _new_transfer(self, site: _Site[AnyStore], piece: int, down: bool) -> _Template:
        units = max(1, self.batch * self.model.kv_heads // site.of)

        def way(device: AnyStore, route: Route) -> Leg:
            return join([route.carry(piece, write=down), device.pass_on(piece, units, write=down)])

        return self._template(site, site.spread(way), piece, _gate(site.devices[0]))

    def _template(self, site: _Site[AnyStore], leg: Leg, weight: float, server: Server | None = None) -> _Template:
        flow_class = self.machine.network.flow_class(leg.costs, weight * len(site.devices), writes=leg.writes)
        return flow_class, leg.latency_ps, server, leg.loads

    # --- between tiers ---

    def _ways_in(self, site: _Site[Store]) -> _Site[Store]:
        """Return a site with the ways that its data take to the GPU: staged ones go by the memory of the host."""
        host = self._host(site) if self.placement.fetch == "staged" else None
        if host is None or site.devices[0] is host:
            return site
        names = {device: name for name, device in self.machine.devices.items()}
        return replace(site, routes=tuple(self.machine.bounce(names[device], host) for device in site.devices))

    def _bind_read(self, tier: str) -> Bound:
        sites = tuple(map(self._ways_in, self.sites[tier]))

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            templates = [self._fetch(site, piece, site.records(row.runs)) for site in sites]
            return _job(row.nbytes, sites, templates)

        return Bound(make, f"{tier} fetch", _shares(sites))

    def _new_fetch(self, site: _Site[Store], piece: int, records: int) -> _Template:
        return self._template(site, *self._arrive(site, piece, records), _gate(site.devices[0]))

    def _arrive(self, site: _Site[Store], piece: int, records: int) -> tuple[Leg, float]:
        """Return the cost of bringing scattered pieces to the GPU, and the outstanding bytes of who asks for them."""

        def way(device: Store, route: Route) -> Leg:
            there = route.carry(piece)
            return join([device.read(piece, records), there, Leg((), there.latency_ps)])

        source, first = site.spread(way), site.devices[0]
        if self.placement.fetch == "staged":
            return self._staged(source, self._host(site), lands=isinstance(first, NvmeDevice))
        if isinstance(first, NvmeDevice):
            return self.gpu.receive(source), first.window
        if self.placement.fetch == "zero_copy":
            return self.gpu.read_in_place(source)
        return self.gpu.copy_in(source, piece)

    def _staged(self, source: Leg, host: HostCpuDevice, *, lands: bool) -> tuple[Leg, float]:
        """Return the cost of bytes that cores gather in a buffer; the copy engine waits for that buffer alone."""
        near = self.machine.routes[host.name].carry(_STAGED_BYTES)
        way = join([source, host.stage(lands=lands)])
        return self.gpu.copy_in(way, _STAGED_BYTES, host.media.latency_ps + 2 * near.latency_ps)

    def _host(self, site: _Site[Store]) -> HostCpuDevice:
        """Return the host that KV of a tier lies in or goes by."""
        nodes = (*site.devices, *site.routes[0].between, *self.machine.devices.values())
        for node in nodes:
            if isinstance(node, HostCpuDevice):
                return node
        raise ConfigError(f"found fetch {self.placement.fetch} from {site.name}, expected a platform with a host")

    def _bind_cpu_attend(self) -> Bound:
        sites = self.sites[self.placement.kv_tier]

        def make(row: Row) -> Job:
            piece, work = rounded(row.nbytes / max(1, row.runs)), round(row.flops / max(1, row.nbytes), 3)
            return _job(
                row.nbytes, sites, [self._cpu_attend(site, piece, site.records(row.runs), work) for site in sites]
            )

        return Bound(make, f"{self.placement.kv_tier} attend")

    def _new_cpu_attend(self, site: _Site[Store], piece: int, records: int, flops_per_byte: float) -> _Template:
        hosts = [device for device in site.devices if isinstance(device, HostCpuDevice)]
        return self._in_lockstep([host.attend(piece, records, flops_per_byte) for host in hosts])

    def _bind_ghostify(self, tier: str) -> Bound:
        """Records are made by a thread of the host, one job after the other, or where key and index lie."""
        key_bytes = self.model.head_dim * self.model.bytes_per_element
        if self.placement.ghostify == "near":

            def near(row: Row) -> Job:
                share = round(row.records * key_bytes / max(1, row.nbytes), 3)
                sites = self.sites[tier]
                legs = [site.spread(lambda device, _: in_place(device, share)) for site in sites]
                return _job(row.nbytes, sites, [self._template(site, leg, _STREAMED_BYTES)
                                                for site, leg in zip(sites, legs, strict=True)])  # fmt: skip

            return Bound(near, f"{tier} ghostify")
        thread, sites = Ghostifier(self.machine), self.sites[tier] if tier != "hbm" else ()
        ways = [scaled(site.spread(thread.deliver), len(site.devices) / site.of) for site in sites]
        record = cache(partial(thread.record, join(ways) if sites else thread.deliver()))

        def make(row: Row) -> Job:
            nbytes = max(1, row.nbytes)
            flow_class, delay_ps = record(round(row.records * key_bytes / nbytes, 3), round(row.flops / nbytes, 3))
            return Job(delay_ps, (Part(flow_class, row.nbytes, thread.server),))

        routes: list[Route | None] = [route for site in sites for route in site.routes] or [None]
        return Bound(make, "host ghostify", _crossed([thread.links(route) for route in routes]))

    def _bind_write(self, tier: str) -> Bound:
        sites = self.sites[tier]

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            templates = [self._store(site, piece, site.records(row.runs)) for site in sites]
            return _job(row.nbytes, sites, templates)

        return Bound(make, f"{tier} write", _shares(sites))

    def _new_store(self, site: _Site[Store], piece: int, records: int) -> _Template:
        def way(device: Store, route: Route) -> Leg:
            return join([route.carry(piece, write=True), device.write(piece, records)])

        target, first = site.spread(way), site.devices[0]
        if isinstance(first, NvmeDevice):
            return self._template(site, self.gpu.send(target), first.window)
        return self._template(site, *self.gpu.copy_out(target, piece), _gate(first))


def _not_addressable(device: Store) -> str:
    """Say why SMs cannot read a memory by loads, or nothing."""
    if isinstance(device, NvmeDevice):
        return "a drive has no memory that SMs could read"
    return "a host transfer brings what lies there, no load does" if isinstance(device, UpmemDevice) else ""


def _gate(device: AnyStore) -> Server | None:
    """Return where the host's transfers wait for the kernels of a device, if both exclude each other."""
    if isinstance(device, NearBankPimDevice):
        return device.mode.shared
    return device.mram if isinstance(device, UpmemDevice) else None


def _engine(device: AnyStore, site: str) -> SketchFilter | None:
    """Return the engine of a device at a filter site, if it has one there."""
    if site == "cpu":
        return device.scorer if isinstance(device, HostCpuDevice) else None
    return None if isinstance(device, UpmemDevice | NearBankPimDevice) else device.filter


def _check_engine(scanner: _Site[AnyStore], site: str, stages: Sequence[IndexStage]) -> None:
    device, widest = scanner.devices[0], max(stage.operand_bits for stage in stages)
    if isinstance(device, UpmemDevice):
        if widest > MOST_BITS:
            raise ConfigError(
                f"found filter {site} for a {widest}-bit index, expected at most {MOST_BITS} bits: "
                "a DPU multiplies 8 x 8 bits"
            )
    elif isinstance(device, NearBankPimDevice):
        wrong = [stage.operand_bits for stage in stages if stage.operand_bits != device.part.operand_bits]
        if wrong:
            raise ConfigError(
                f"found filter {site} for a {wrong[0]}-bit index on {scanner.name}, expected one of "
                f"{device.part.operand_bits} bits: that is what its units multiply"
            )
    elif _engine(device, site) is None:
        block = "core" if site == "cpu" else "filter"
        raise ConfigError(f"found filter {site} on {scanner.name}, expected a device with a {block}: block")


def _scan_at(device: AnyStore, site: str, stage: IndexStage, q_per_kv: int, request: int) -> Job:
    """Return the scan of one byte of an index where it lies."""
    if isinstance(device, UpmemDevice | NearBankPimDevice):
        return device.scan(stage, q_per_kv, 1)
    engine = _engine(device, site)
    assert engine is not None  # `_check_engine` has seen to it
    return engine.scan(1, stage.macs * q_per_kv / stage.record_bytes, request)


_DELAY = itemgetter(1)


def _job(nbytes: int, sites: Sequence[_Site[Any]], templates: Sequence[_Template]) -> Job:
    """Deal bytes out to the sites of a tier; the delay of the slowest counts for all."""
    if len(sites) == 1:
        flow_class, delay_ps, server, loads = templates[0]
        return Job(delay_ps, (Part(flow_class, nbytes, server),), loads)
    parts = (
        Part(flow_class, site.share(nbytes), server)
        for site, (flow_class, _, server, _) in zip(sites, templates, strict=True)
    )
    slowest = max(templates, key=_DELAY)
    return Job(slowest[1], tuple(parts), slowest[3])


def _shares(sites: Sequence[_Site[Any]]) -> tuple[tuple[str, float], ...]:
    """Return the links of a tier with the share of its bytes that crosses each."""
    return _crossed([(*route.links, *route.back) for site in sites for route in site.routes])


def _crossed(ways: Sequence[Sequence[object]]) -> tuple[tuple[str, float], ...]:
    """Return the links on ways that have equal shares of some bytes, with the share that crosses each."""
    crossed = Counter(node.name for way in ways for node in way if isinstance(node, LinkDevice))
    return tuple((name, count / len(ways)) for name, count in crossed.items())
