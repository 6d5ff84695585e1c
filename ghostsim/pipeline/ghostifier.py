"""Who makes the record of a token that turns cold, apart from the GPU: a thread of the host, or an engine near memory.

Nobody waits for a record unless too many are outstanding; reading the key and writing the record contend with decode.
"""

from __future__ import annotations

from dataclasses import replace

from ghostsim.devices.host_cpu import HostCpuDevice
from ghostsim.devices.leg import Leg, join
from ghostsim.devices.link import LinkDevice
from ghostsim.devices.machine import Machine, Route, Store
from ghostsim.engine.network import FlowClass
from ghostsim.engine.server import FifoServer
from ghostsim.errors import ConfigError

_WINDOW = 64 * 1024.0
"""Bytes that either keeps outstanding; only the ratio to other requesters matters."""


class Ghostifier:
    """One thread of the first host, first come, first served."""

    def __init__(self, machine: Machine) -> None:
        hosts = [device for device in machine.devices.values() if isinstance(device, HostCpuDevice)]
        if not hosts:
            raise ConfigError(f"found ghostify by cpu on {machine.platform.name}, expected a platform with a host")
        self.machine, self.host = machine, hosts[0]
        self.cores, self.core = self.host.working()
        self.server = FifoServer(machine.env)

    def record(self, deliver: Leg, key_share: float, flops: float) -> tuple[FlowClass, int]:
        """Return the class of flows of record bytes, and the delay of the first one.

        Parameters
        ----------
        deliver
            The way of a record to its index.
        key_share, flops
            Bytes of keys that are read, and operations, for one byte of a record.
        """
        seconds = max(key_share / self.core.bandwidth, flops / self.core.flops)
        read = scaled(self.host.media.stream(), key_share)
        leg = join([read, Leg(((self.cores, seconds),), self.core.start), deliver])
        flow_class = self.machine.network.flow_class(leg.costs, _WINDOW, 1 / seconds, leg.writes)
        return flow_class, leg.latency_ps

    def deliver(self, target: Store | None = None, route: Route | None = None) -> Leg:
        """Return the way of a record from the host to a device, or to HBM."""
        if target is self.host:
            return self.host.media.stream(write=True)
        links = self.links(route)
        if target is None:
            return join([link.carry(_WINDOW) for link in links])
        return join([*(link.carry(_WINDOW, write=True) for link in links), target.write(_WINDOW, 1).bulk])

    def links(self, route: Route | None) -> tuple[LinkDevice, ...]:
        """Return the links between the host and an index, from the way of the GPU to it (none: it lies in HBM)."""
        to_host = self.machine.routes[self.host.name]
        if route is None or route == to_host:
            return to_host.links if route is None else ()
        if self.host not in route.between:
            raise ConfigError(
                f"found ghostify by cpu for an index that {self.host.name} does not reach, expected one below it"
            )
        return route.links[len(to_host.links) :]


def in_place(device: Store, key_share: float) -> Leg:
    """Return the cost of a byte of a record that an engine makes where both key and record lie."""
    if isinstance(device, HostCpuDevice):
        return join([scaled(device.media.stream(), key_share), device.media.stream(write=True)])
    return join([scaled(device.read(_WINDOW, 1), key_share), device.write(_WINDOW, 1).bulk])


def scaled(leg: Leg, share: float) -> Leg:
    """Return a leg of which every byte of the flow takes `share` bytes."""
    return replace(leg, costs=tuple((resource, cost * share) for resource, cost in leg.costs))
