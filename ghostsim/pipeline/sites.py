"""Sites: the equal devices of a tier as one, and the flows that stand for those of all.

Bytes are dealt out evenly to the devices of a tier. What a row asks of a site does not depend on its bytes but on
their pattern; that part, the template, is made once per pattern.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, Generic, TypeAlias, TypeVar

from ghostsim.devices.dram import octave
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Leg, Load
from ghostsim.devices.link import LinkDevice
from ghostsim.devices.machine import Machine, Route, Store
from ghostsim.devices.near_bank_pim import NearBankPimDevice
from ghostsim.devices.upmem import UpmemDevice
from ghostsim.engine.network import FlowClass, Network
from ghostsim.engine.server import Server
from ghostsim.errors import ConfigError

AnyStore = TypeVar("AnyStore", Store, GpuDevice)


@dataclass(frozen=True, eq=False)
class Site(Generic[AnyStore]):
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


def sites_of(machine: Machine, tier: str) -> tuple[Site[Store], ...]:
    """Return the sites of a tier other than hbm.

    Raises
    ------
    ConfigError
        If the platform has no such tier.
    """
    stores = [(name, device, machine.routes[name]) for name, device in machine.stores(tier)]
    if not stores:
        has = ", ".join(machine.platform.tiers)
        raise ConfigError(f"found tier {tier}, expected a tier of {machine.platform.name}: {has}")
    sites: list[Site[Store]] = []
    for _, equal in groupby(stores, key=lambda store: (store[1].part, store[2].kind)):
        names, devices, routes = zip(*equal, strict=True)
        sites.append(Site(names[0], devices, routes, sum(len(site.devices) for site in sites), len(stores)))
    return tuple(sites)


# --- flows ---

Template: TypeAlias = tuple[FlowClass, int, Server | None, tuple[Load, ...]]
"""What does not depend on bytes: class of flows, delay, the queue to wait in, and the media that are waited for."""


def template(network: Network, site: Site[AnyStore], leg: Leg, weight: float, server: Server | None = None) -> Template:
    """Return the flow of bytes that take one leg, for a requester that keeps `weight` bytes outstanding per device."""
    flow_class = network.flow_class(leg.costs, weight * len(site.devices), writes=leg.writes)
    return flow_class, leg.latency_ps, server, leg.loads


def in_lockstep(network: Network, jobs: Sequence[Job]) -> Template:
    """Return one flow that stands for those of equal devices, each with an equal part of every byte."""
    flows = [part.flow_class for job in jobs for part in job.parts]
    route = [(resource, cost / len(flows)) for flow in flows for resource, cost in flow.route]
    flow_class = network.flow_class(route, sum(flow.weight for flow in flows))
    return flow_class, jobs[0].delay_ps, jobs[0].parts[0].server, jobs[0].loads


def gate(device: AnyStore) -> Server | None:
    """Return where the host's transfers wait for the kernels of a device, if both exclude each other."""
    if isinstance(device, NearBankPimDevice):
        return device.mode.shared
    return device.mram if isinstance(device, UpmemDevice) else None


_DELAY = itemgetter(1)


def deal(nbytes: int, sites: Sequence[Site[Any]], templates: Sequence[Template]) -> Job:
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


# --- links ---


def shares(sites: Sequence[Site[Any]]) -> tuple[tuple[str, float], ...]:
    """Return the links of a tier with the share of its bytes that crosses each."""
    return crossed([(*route.links, *route.back) for site in sites for route in site.routes])


def crossed(ways: Sequence[Sequence[object]]) -> tuple[tuple[str, float], ...]:
    """Return the links on ways that have equal shares of some bytes, with the share that crosses each."""
    found = Counter(node.name for way in ways for node in way if isinstance(node, LinkDevice))
    return tuple((name, count / len(ways)) for name, count in found.items())
