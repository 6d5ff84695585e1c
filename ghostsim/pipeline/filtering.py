"""Filtering: what scans an index, where it lies, and what passes between it and the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from ghostsim.config.model import Model
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.host_cpu import HostCpuDevice
from ghostsim.devices.job import Job
from ghostsim.devices.leg import Leg, join, rounded
from ghostsim.devices.machine import Machine, Route, Store
from ghostsim.devices.near_bank_pim import NearBankPimDevice
from ghostsim.devices.sketch_filter import SketchFilter
from ghostsim.devices.upmem import MOST_BITS, UpmemDevice
from ghostsim.errors import ConfigError
from ghostsim.pipeline.bound import Bound, Row
from ghostsim.pipeline.sites import AnyStore, Site, Template, deal, gate, in_lockstep, shares, template
from ghostsim.pipeline.transfers import Transfers
from ghostsim.plan.selection import IndexStage
from ghostsim.policy.placement import Placement

_DECIDED = "threshold"
_DOWN = ("query", _DECIDED)
"""Rows from the GPU to a filter; a threshold is found by a kernel first."""
_STREAMED_BYTES = 4096
_MANY = 1 << 20


class Filtering:
    """Binds the rows that score an index and hand over what survives."""

    def __init__(
        self,
        machine: Machine,
        model: Model,
        placement: Placement,
        stages: Sequence[IndexStage],
        batch: int,
        transfers: Transfers,
    ) -> None:
        self.machine, self.model, self.placement, self.batch = machine, model, placement, batch
        self.stages, self.transfers = tuple(stages), transfers
        self.gpu = machine.gpu
        self.scanners = self._scanners() if stages and placement.near_memory else ()
        self._scan = cache(self._new_scan)
        self._cross = cache(self._new_cross)
        self._transfer = cache(self._new_transfer)

    def _scanners(self) -> Sequence[Site[Store]] | Sequence[Site[GpuDevice]]:
        """Return what scans the index; refuse a filter that a device does not have."""
        site = self.placement.site
        if site == "hbm":
            at_gpu = Site((self.machine.gpu_name), (self.gpu,), (Route((), ()),), 0, 1)
            _check_engine(at_gpu, site, self.stages)
            return (at_gpu,)
        scanners = self.transfers.sites[self.placement.index_tier]
        for scanner in scanners:
            _check_engine(scanner, site, self.stages)
        return scanners

    # --- scans ---

    def scan(self, number: int, request: int, *, away: bool, resident: bool) -> Bound:
        """Score the records of a stage: where they lie, or on the GPU, from its memory or as they arrive."""
        if self.scanners:
            return self._near_scan(number, request)
        if away:
            return self._crossing()
        return Bound(lambda row: self.gpu.scan(row.nbytes, row.flops // 2, resident=resident), "gpu scan")

    def _near_scan(self, number: int, request: int) -> Bound:
        sites = self.scanners
        templates = [self._scan(site, number, request) for site in sites]
        return Bound(lambda row: deal(row.nbytes, sites, templates), f"{self.placement.site} filter")

    def _new_scan(self, site: Site[AnyStore], number: int, request: int) -> Template:
        stage = self.stages[number]
        where, heads = self.placement.site, self.model.q_per_kv
        jobs = [_scan_at(device, where, stage, heads, request) for device in site.devices]
        return in_lockstep(self.machine.network, jobs)

    def _crossing(self) -> Bound:
        """Without a filter the records of the index cross to the GPU, which scores them as they arrive."""
        sites = tuple(map(self.transfers.ways_in, self.transfers.sites[self.placement.index_tier]))

        def make(row: Row) -> Job:
            macs = round(row.flops / 2 / max(1, row.nbytes), 3)
            return deal(row.nbytes, sites, [self._cross(site, macs) for site in sites])

        return Bound(make, f"{self.placement.index_tier} index", shares(sites), self.transfers.copies(sites))

    def _new_cross(self, site: Site[Store], macs_per_byte: float) -> Template:
        leg, weight = self.transfers.arrive(site, _STREAMED_BYTES, _MANY)
        return template(self.machine.network, site, self.gpu.score(leg, macs_per_byte), weight, gate(site.devices[0]))

    # --- what is asked and answered ---

    def exchange(self, name: str) -> Bound:
        """Send queries and thresholds down to the filter, ids, bitmaps and histograms up; the GPU selects by itself."""
        if not self.scanners:
            return Bound(lambda row: self.gpu.select(row.flops), "gpu select")
        sites, down, decided = self.scanners, name.startswith(_DOWN), name.startswith(_DECIDED)

        def make(row: Row) -> Job:
            piece = rounded(row.nbytes / max(1, sites[0].of))
            job = deal(row.nbytes, sites, [self._transfer(site, piece, down) for site in sites])
            return job._replace(delay_ps=job.delay_ps + self.gpu.part.launch) if decided else job

        return Bound(make, f"{self.placement.site} {'queries' if down else 'ids'}", shares(sites))

    def _new_transfer(self, site: Site[AnyStore], piece: int, down: bool) -> Template:
        units = max(1, self.batch * self.model.kv_heads // site.of)

        def way(device: AnyStore, route: Route) -> Leg:
            return join([route.carry(piece, write=down), device.pass_on(piece, units, write=down)])

        return template(self.machine.network, site, site.spread(way), piece, gate(site.devices[0]))


def _engine(device: AnyStore, site: str) -> SketchFilter | None:
    """Return the engine of a device at a filter site, if it has one there."""
    if site == "cpu":
        return device.scorer if isinstance(device, HostCpuDevice) else None
    return None if isinstance(device, UpmemDevice | NearBankPimDevice) else device.filter


def _check_engine(scanner: Site[AnyStore], site: str, stages: Sequence[IndexStage]) -> None:
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
