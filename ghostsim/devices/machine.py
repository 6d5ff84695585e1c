"""Elaboration: from a platform to devices with resolved routes, or one clear error before time starts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import networkx as nx
import simpy

from ghostsim.config import hardware
from ghostsim.config.hardware import Platform, Pool
from ghostsim.devices.cxl_expander import CxlExpanderDevice
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.host_cpu import HostCpuDevice
from ghostsim.devices.leg import Leg, join
from ghostsim.devices.link import LinkDevice, SwitchDevice
from ghostsim.devices.near_bank_pim import NearBankPimDevice
from ghostsim.devices.nvme import NvmeDevice
from ghostsim.devices.upmem import UpmemDevice
from ghostsim.engine.network import Network
from ghostsim.errors import ConfigError, InvariantError

Store = HostCpuDevice | CxlExpanderDevice | UpmemDevice | NearBankPimDevice | NvmeDevice
AnyDevice = GpuDevice | SwitchDevice | Store


_LINE_BYTES = 64
_MANY = 1 << 20
_ENDLESS_BYTES = 1 << 62


def _resources(expander: str) -> Sequence[str]:
    """Name what an expander shares among hosts: its media, and its filter if it has one."""
    return [f"{expander}.{part}" for part in ("bus", "activations", "filter_port", "filter_macs")]


def _never_ends() -> None:
    raise InvariantError("found the end of traffic that never ends")


def build(env: simpy.Environment, network: Network, name: str, part: hardware.Device) -> AnyDevice:
    """Make the device of a part."""
    match part:
        case hardware.Gpu():
            return GpuDevice(network, name, part)
        case hardware.HostCpu():
            return HostCpuDevice(network, name, part)
        case hardware.CxlExpander():
            return CxlExpanderDevice(network, name, part)
        case hardware.Upmem():
            return UpmemDevice(env, network, name, part)
        case hardware.NearBankPim():
            return NearBankPimDevice(network, name, part)
        case hardware.Nvme():
            return NvmeDevice(network, name, part)
        case hardware.Switch():
            return SwitchDevice(network, name, part)


@dataclass(frozen=True)
class Route:
    """The way between the GPU and a device: its links in order from the GPU, and what lies between them.

    Data that bounce off the memory of a host may pass links and switches a second time, away from the GPU: `back`.
    """

    links: tuple[LinkDevice, ...]
    between: tuple[HostCpuDevice | SwitchDevice, ...]
    back: tuple[LinkDevice | SwitchDevice, ...] = ()

    @property
    def kind(self) -> tuple[object, ...]:
        """What must be equal for two devices at the ends of two routes to be reached alike."""
        return (*(link.link.model_dump(exclude={"between"}) for link in self.links), *self.between)

    def carry(self, piece_bytes: float, *, write: bool = False) -> Leg:
        """Return the cost of one direction; the latency is one way."""
        legs = [node.carry(piece_bytes, write=write) for node in (*self.links, *self.between)]
        return join([*legs, *(node.carry(piece_bytes, write=not write) for node in self.back)])

    @property
    def shared(self) -> Route:
        """The last stretch, which hosts that share the device use too: the last switch and what follows it."""
        switches = [i for i, node in enumerate(self.between) if isinstance(node, SwitchDevice)]
        first = switches[-1] if switches else len(self.between)
        return Route(self.links[first + 1 :], self.between[first:])


class Machine:
    """All devices of a platform on one flow network."""

    def __init__(self, env: simpy.Environment, network: Network, platform: Platform) -> None:
        self.env, self.network, self.platform = env, network, platform
        self.gpu_name = platform.tiers["hbm"][0]
        self._divide()
        self.devices = {name: build(env, network, name, part) for name, part in platform.devices.items()}
        self.links = {name: LinkDevice(network, name, link) for name, link in platform.links.items()}
        gpu = self.devices[self.gpu_name]
        assert isinstance(gpu, GpuDevice)  # the platform's validator has seen to it
        self.gpu = gpu
        self.routes = {name: self._route(name) for name in self.devices if name != self.gpu_name}
        for name, device in self.devices.items():
            pool = device.part.pool if isinstance(device, CxlExpanderDevice) else None
            if isinstance(device, CxlExpanderDevice) and pool is not None and pool.load is not None:
                self._share(device, self.routes[name].shared, pool)

    def _divide(self) -> None:
        """Leave this host its share of what others use as it does: with flows in step, capacities divide exactly."""
        own = dict(self.network.scale)
        shares: dict[str, float] = {}
        for name, part in self.platform.devices.items():
            if isinstance(part, hardware.CxlExpander) and part.pool is not None:
                for resource in (*_resources(name), *self._behind_switch(name)):
                    shares[resource] = min(shares.get(resource, 1.0), 1 / part.pool.sharers)
        self.network.scale = own | {name: share * own.get(name, 1.0) for name, share in shares.items()}

    def _behind_switch(self, target: str) -> Sequence[str]:
        """Name the resources of the last switch before a device and of the links that follow it."""
        path = self._path(self.gpu_name, target)
        switches = [i for i, name in enumerate(path) if isinstance(self.platform.devices[name], hardware.Switch)]
        if not switches:
            return ()
        edges = self.platform.graph().edges
        links = [str(edges[pair]["link"]) for pair in itertools.pairwise(path[switches[-1] :])]
        fabric = f"{path[switches[-1]]}.fabric"
        return [each for name in (fabric, *links) for each in (name, f"{name}.down")]

    def _share(self, device: CxlExpanderDevice, route: Route, pool: Pool) -> None:
        """Let other hosts read lines from an expander for as long as time goes on."""
        leg = join([device.read(_LINE_BYTES, _MANY), route.carry(_LINE_BYTES)])
        flow_class = self.network.flow_class(leg.costs, float(pool.window), pool.load)
        for _ in range(pool.hosts):
            self.network.start(flow_class, _ENDLESS_BYTES, _never_ends)

    def stores(self, tier: str) -> Sequence[tuple[str, Store]]:
        """Return the devices of a tier other than hbm, in the platform's order."""
        named = ((name, self.devices[name]) for name in self.platform.tiers.get(tier, ()))  # type: ignore[call-overload]
        return [(name, device) for name, device in named if isinstance(device, Store)]

    def bounce(self, target: str, host: HostCpuDevice) -> Route:
        """Return the way from a device into the memory of a host, and from there to the GPU.

        Neither half passes data between devices, so the root complex's limit on that does not hold.

        Raises
        ------
        ConfigError
            If the host does not reach the device.
        """
        near, far = self.routes[host.name], self._path(host.name, target)
        if not far or self.gpu_name in far:
            raise ConfigError(f"found fetch staged from {target}, expected a device that {host.name} reaches")
        links, inner = self._along(far)
        nodes: list[LinkDevice | SwitchDevice] = [*links, *(node for node in inner if isinstance(node, SwitchDevice))]
        once, again = ([node for node in nodes if (node in (*near.links, *near.between)) is twice]
                       for twice in (False, True))  # fmt: skip
        return Route(
            (*near.links, *(node for node in once if isinstance(node, LinkDevice))),
            (*near.between, *(node for node in once if isinstance(node, SwitchDevice))),
            tuple(again),
        )

    def _route(self, target: str) -> Route:
        """Take the way of least latency; every device on it passes traffic on."""
        links, inner = self._along(self._path(self.gpu_name, target))
        return Route(links, tuple(node for node in inner if isinstance(node, HostCpuDevice | SwitchDevice)))

    def _path(self, source: str, target: str) -> list[str]:
        """Return the devices on the way of least latency, none if there is no way."""
        graph = self.platform.graph()
        if not nx.has_path(graph, source, target):
            return []
        return list(nx.shortest_path(graph, source, target, weight="latency_ps"))

    def _along(self, path: Sequence[str]) -> tuple[tuple[LinkDevice, ...], tuple[AnyDevice, ...]]:
        """Return the links of a path and the devices between its ends."""
        edges = self.platform.graph().edges
        links = tuple(self.links[edges[pair]["link"]] for pair in itertools.pairwise(path))
        return links, tuple(self.devices[name] for name in path[1:-1])
