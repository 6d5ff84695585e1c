"""Copy engines: bytes, descriptors and outstanding bytes are three resources that all copies share."""

from __future__ import annotations

from ghostsim.config.hardware import CopyEngines
from ghostsim.devices.leg import Leg
from ghostsim.engine.network import Network

_PS_PER_S = 1e12


class DmaEngine:
    """The copy engines of one GPU: `NAME.copy` bytes/s, `NAME.descriptors` fragments/s, `NAME.copy_window` bytes."""

    def __init__(self, network: Network, name: str, engines: CopyEngines) -> None:
        self.engines = engines
        self.copy = network.resource(f"{name}.copy", engines.count * engines.bandwidth)
        self.window = network.resource(f"{name}.copy_window", float(engines.window))
        fragments = engines.count * _PS_PER_S / engines.descriptor if engines.descriptor else None
        self.descriptors = network.resource(f"{name}.descriptors", fragments) if fragments else None

    def move(self, fragment_bytes: float, latency_ps: int) -> Leg:
        """Return the cost of copying fragments over a route of that latency.

        By Little's law a flow keeps rate times latency outstanding, so the window is a resource whose cost
        per byte is the latency.
        """
        costs = [(self.copy, 1.0), (self.window, latency_ps / _PS_PER_S)]
        if self.descriptors is not None:
            costs.append((self.descriptors, 1.0 / fragment_bytes))
        return Leg(tuple(costs), self.engines.start)
