"""Transfers: how KV reaches the GPU from the tier it lies in, and leaves for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

from ghostsim.config.model import Model
from ghostsim.devices.host_cpu import LANDED_PASSES, STAGED_PASSES, HostCpuDevice
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Leg, join, rounded
from ghostsim.devices.machine import Machine, Route, Store
from ghostsim.devices.nvme import NvmeDevice
from ghostsim.devices.upmem import UpmemDevice
from ghostsim.errors import ConfigError
from ghostsim.pipeline.bound import Bound, Row
from ghostsim.pipeline.ghostifier import Ghostifier, in_place, scaled
from ghostsim.pipeline.sites import Site, Template, crossed, deal, gate, in_lockstep, shares, template
from ghostsim.policy.placement import Placement

_STREAMED_BYTES = 4096
_STAGED_BYTES = 65536
"""Of a buffer that cores fill and a copy engine takes."""


class Transfers:
    """Binds the rows that move KV between tiers."""

    def __init__(
        self, machine: Machine, model: Model, placement: Placement, sites: Mapping[str, tuple[Site[Store], ...]]
    ) -> None:
        self.machine, self.model, self.placement, self.sites = machine, model, placement, sites
        self.gpu = machine.gpu
        self._check()
        self._fetch = cache(self._new_fetch)
        self._cpu_attend = cache(self._new_cpu_attend)
        self._store = cache(self._new_store)

    def _check(self) -> None:
        """Refuse reads in place of what no load can reach, and attention on cores away from the memory they share."""
        if self.placement.fetch == "cpu" and self.placement.kv_tier not in ("dram", "hbm"):
            raise ConfigError(
                f"found fetch cpu from tier {self.placement.kv_tier}, expected kv_tier: dram, the memory of the cores"
            )
        read = (self.placement.kv_tier, self.placement.warm_tier)
        if self.placement.fetch in ("staged", "cpu"):
            for site in (site for tier in read for site in self.sites.get(tier, ())):
                self._host(site).working()
                self.ways_in(site)
        if self.placement.fetch != "zero_copy":
            return
        crossing = (self.placement.index_tier,) if self.placement.site == "none" else ()
        for tier in sorted({*read, *crossing} & set(self.sites)):
            why = _not_addressable(self.sites[tier][0].devices[0])
            if why:
                raise ConfigError(f"found fetch zero_copy from tier {tier}, expected dma: {why}")

    # --- to the GPU ---

    def ways_in(self, site: Site[Store]) -> Site[Store]:
        """Return a site with the ways that its data take to the GPU: staged ones go by the memory of the host."""
        host = self._host(site) if self.placement.fetch == "staged" else None
        if host is None or site.devices[0] is host:
            return site
        names = {device: name for name, device in self.machine.devices.items()}
        return replace(site, routes=tuple(self.machine.bounce(names[device], host) for device in site.devices))

    def read(self, tier: str) -> Bound:
        """Bring scattered pieces to the GPU."""
        sites = tuple(map(self.ways_in, self.sites[tier]))

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            templates = [self._fetch(site, piece, site.records(row.runs)) for site in sites]
            return deal(row.nbytes, sites, templates)

        return Bound(make, f"{tier} fetch", shares(sites), self.copies(sites))

    def copies(self, sites: Sequence[Site[Store]]) -> tuple[tuple[str, float], ...]:
        """Return how often a byte on its way to the GPU passes the memory of each host: where it is staged."""
        if self.placement.fetch != "staged":
            return ()
        passes: dict[str, float] = {}
        for site in sites:
            times = STAGED_PASSES + (LANDED_PASSES if _lands(site) else 0)
            host = self._host(site).name
            passes[host] = passes.get(host, 0.0) + times * len(site.devices) / site.of
        return tuple(passes.items())

    def _new_fetch(self, site: Site[Store], piece: int, records: int) -> Template:
        return template(self.machine.network, site, *self.arrive(site, piece, records), gate(site.devices[0]))

    def arrive(self, site: Site[Store], piece: int, records: int) -> tuple[Leg, float]:
        """Return the cost of bringing scattered pieces to the GPU, and the outstanding bytes of who asks for them."""

        def way(device: Store, route: Route) -> Leg:
            there = route.carry(piece)
            return join([device.read(piece, records), there, Leg((), there.latency_ps)])

        source, first = site.spread(way), site.devices[0]
        if self.placement.fetch == "staged":
            return self._staged(source, self._host(site), lands=_lands(site))
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

    def _host(self, site: Site[Store]) -> HostCpuDevice:
        """Return the host that KV of a tier lies in or goes by."""
        nodes = (*site.devices, *site.routes[0].between, *self.machine.devices.values())
        for node in nodes:
            if isinstance(node, HostCpuDevice):
                return node
        raise ConfigError(f"found fetch {self.placement.fetch} from {site.name}, expected a platform with a host")

    # --- where KV lies ---

    def attend_in_place(self) -> Bound:
        """Attend on the cores of the host."""
        sites = self.sites[self.placement.kv_tier]

        def make(row: Row) -> Job:
            piece, work = rounded(row.nbytes / max(1, row.runs)), round(row.flops / max(1, row.nbytes), 3)
            templates = [self._cpu_attend(site, piece, site.records(row.runs), work) for site in sites]
            return deal(row.nbytes, sites, templates)

        return Bound(make, f"{self.placement.kv_tier} attend")

    def _new_cpu_attend(self, site: Site[Store], piece: int, records: int, flops_per_byte: float) -> Template:
        hosts = [device for device in site.devices if isinstance(device, HostCpuDevice)]
        return in_lockstep(self.machine.network, [host.attend(piece, records, flops_per_byte) for host in hosts])

    # --- away from the GPU ---

    def write(self, tier: str) -> Bound:
        """Bring scattered pieces from HBM."""
        sites = self.sites[tier]

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, row.runs))
            templates = [self._store(site, piece, site.records(row.runs)) for site in sites]
            return deal(row.nbytes, sites, templates)

        return Bound(make, f"{tier} write", shares(sites))

    def _new_store(self, site: Site[Store], piece: int, records: int) -> Template:
        def way(device: Store, route: Route) -> Leg:
            return join([route.carry(piece, write=True), device.write(piece, records)])

        target, first, network = site.spread(way), site.devices[0], self.machine.network
        if isinstance(first, NvmeDevice):
            return template(network, site, self.gpu.send(target), first.window)
        return template(network, site, *self.gpu.copy_out(target, piece), gate(first))

    # --- records of tokens that turn cold ---

    def ghostify(self, tier: str) -> Bound:
        """Make records by a thread of the host, one job after the other, or where key and index lie."""
        key_bytes = self.model.head_dim * self.model.bytes_per_element
        make = self._near_records if self.placement.ghostify == "near" else self._host_records
        return make(tier, key_bytes)

    def _near_records(self, tier: str, key_bytes: int) -> Bound:
        sites = self.sites[tier]

        def make(row: Row) -> Job:
            share = round(row.records * key_bytes / max(1, row.nbytes), 3)
            legs = [site.spread(lambda device, _: in_place(device, share)) for site in sites]
            templates = [
                template(self.machine.network, site, leg, _STREAMED_BYTES)
                for site, leg in zip(sites, legs, strict=True)
            ]
            return deal(row.nbytes, sites, templates)

        return Bound(make, f"{tier} ghostify")

    def _host_records(self, tier: str, key_bytes: int) -> Bound:
        thread, sites = Ghostifier(self.machine), self.sites[tier] if tier != "hbm" else ()
        ways = [scaled(site.spread(thread.deliver), len(site.devices) / site.of) for site in sites]
        record = cache(partial(thread.record, join(ways) if sites else thread.deliver()))

        def make(row: Row) -> Job:
            nbytes = max(1, row.nbytes)
            flow_class, delay_ps = record(round(row.records * key_bytes / nbytes, 3), round(row.flops / nbytes, 3))
            return Job(delay_ps, (Part(flow_class, row.nbytes, thread.server),))

        routes: list[Route | None] = [route for site in sites for route in site.routes] or [None]
        return Bound(make, "host ghostify", crossed([thread.links(route) for route in routes]))


def _lands(site: Site[Store]) -> bool:
    """Tell whether bytes must lie in host memory before a core can copy them."""
    return isinstance(site.devices[0], NvmeDevice)


def _not_addressable(device: Store) -> str:
    """Say why SMs cannot read a memory by loads, or nothing."""
    if isinstance(device, NvmeDevice):
        return "a drive has no memory that SMs could read"
    return "a host transfer brings what lies there, no load does" if isinstance(device, UpmemDevice) else ""
