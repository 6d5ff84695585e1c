"""How far is fluid from packets?

The step latency of a decode program, the finish times of single flows on random networks, and the one case in
which first come, first served differs most from equal shares: a deep stream that meets shallow gathers.
"""

from functools import partial

import numpy as np
import pytest
from packet_network import PacketNetwork

from ghostsim.engine.clock import PS_PER_S, CountingEnvironment
from ghostsim.engine.network import Network

HBM, MEDIA, LINK, PCIE, FILTER = "hbm", "cxl.media", "cxl.link", "pcie", "filter"
BANDWIDTH = {HBM: 3000e9, MEDIA: 70e9, LINK: 56e9, PCIE: 52e9, FILTER: 200e9}
QUANTUM = 32768  # at most 64 KiB and a 32nd of the median flow
SMALL_QUANTUM = 4096
WINDOW = 8


class Fluid:
    def __init__(self, bandwidth):
        self.env = CountingEnvironment()
        self.net = Network(self.env)
        self.resources = {name: self.net.resource(str(name), b) for name, b in bandwidth.items()}

    def start(self, route, nbytes, on_finish, *, delay_s=0.0, weight=1.0):
        flow_class = self.net.flow_class([(self.resources[name], cost) for name, cost in route], weight)
        self.net.start(flow_class, nbytes, on_finish, round(delay_s * PS_PER_S))

    def run(self):
        self.env.run()
        return self.now

    @property
    def now(self):
        return self.env.now / PS_PER_S


class Packet:
    def __init__(self, bandwidth, *, fair, quantum=QUANTUM):
        self.net = PacketNetwork(quantum, fair)
        for name, b in bandwidth.items():
            self.net.resource(name, b)

    def start(self, route, nbytes, on_finish, *, delay_s=0.0, weight=1.0):
        # First come, first served weighs by what is outstanding, a round robin by its credit.
        window = WINDOW if self.net.fair else round(WINDOW * weight)
        self.net.start(route, nbytes, on_finish, delay_s=delay_s, window=window, weight=weight)

    def run(self):
        self.net.run()
        return self.net.now

    @property
    def now(self):
        return self.net.now


class Decode:
    """Layers of a decode step: per request a scan of the index, then a gather of what survived it."""

    gather_route = ((MEDIA, 1.25), (LINK, 1.06), (PCIE, 1.08), (HBM, 1.0))

    def __init__(self, network, *, layers, scan_bytes, gather_bytes, hot_bytes, extra=False, requests=8, shrink=1):
        self.start = network.start
        self.layers, self.hot_bytes, self.extra = layers, hot_bytes, extra
        self.requests, self.shrink = requests, shrink
        rng = np.random.default_rng(11)
        spread = rng.uniform(0.7, 1.3, (layers, requests))
        self.scans = (spread * scan_bytes).astype(int).tolist()
        self.gathers = (rng.permuted(spread, axis=1) * gather_bytes).astype(int).tolist()

    def run(self):
        self.layer = -1
        self._project()

    def _project(self):
        self.layer += 1
        if self.layer < self.layers:
            self.start([(HBM, 1.0)], 50_000_000 // self.shrink, self._split)

    def _split(self):
        self.left = 1 + self.requests
        self.start([(HBM, 1.1)], self.hot_bytes, self._join)
        for request in range(self.requests):
            scan = self.scans[self.layer][request]
            self.start([(MEDIA, 1.0), (FILTER, 1.0)], scan, partial(self._gather, request), delay_s=1e-6)
        if self.extra:  # write-back and a prefetch of half the weight
            self.start([(HBM, 1.0), (PCIE, 1.05), (LINK, 1.06), (MEDIA, 1.3)], 600_000, lambda: None)
            self.start(self.gather_route, 900_000, lambda: None, weight=0.5)

    def _gather(self, request):
        self.start(self.gather_route, self.gathers[self.layer][request], self._join, delay_s=1e-6)

    def _join(self):
        self.left -= 1
        if not self.left:
            self.start([(HBM, 1.1)], 6_000_000 // self.shrink, self._output)

    def _output(self):
        self.start([(HBM, 1.0)], 34_000_000 // self.shrink, self._mlp)

    def _mlp(self):
        self.start([(HBM, 1.0)], 352_000_000 // self.shrink, self._project)


PROGRAMS = {
    "link bound": {"scan_bytes": 2_000_000, "gather_bytes": 2_500_000, "hot_bytes": 34_000_000},
    "media bound": {"scan_bytes": 6_000_000, "gather_bytes": 1_000_000, "hot_bytes": 34_000_000},
    "HBM bound": {"scan_bytes": 300_000, "gather_bytes": 100_000, "hot_bytes": 800_000_000},
    "many small": {
        "scan_bytes": 200_000,
        "gather_bytes": 150_000,
        "hot_bytes": 34_000_000,
        "requests": 64,
        "shrink": 20,
    },
    "mixed": {"scan_bytes": 2_000_000, "gather_bytes": 2_000_000, "hot_bytes": 34_000_000, "extra": True},
}


@pytest.mark.parametrize("fair", [False, True], ids=["fifo", "fair"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_step_latency_within_one_percent(program, fair):
    quantum = SMALL_QUANTUM if program == "many small" else QUANTUM
    fluid, packet = Fluid(BANDWIDTH), Packet(BANDWIDTH, fair=fair, quantum=quantum)
    for network in (fluid, packet):
        Decode(network, layers=2, **PROGRAMS[program]).run()
    fluid_s, packet_s = fluid.run(), packet.run()
    print(f"\n{program}, {'fair' if fair else 'fifo'}: {packet_s * 1e3:.3f} ms, fluid {fluid_s / packet_s - 1:+.2%}")
    assert fluid_s == pytest.approx(packet_s, rel=0.01)


def random_network(seed, flows=30, resources=6):
    rng = np.random.default_rng(seed)
    bandwidth = dict(enumerate(rng.uniform(20e9, 200e9, resources).tolist()))
    program = []
    for _ in range(flows):
        hops = rng.permutation(resources)[: rng.integers(1, 5)].tolist()
        route = [(hop, float(rng.uniform(1.0, 1.25))) for hop in hops]
        program.append((route, int(rng.uniform(0.5e6, 8e6)), float(rng.uniform(0, 300e-6))))
    return bandwidth, program


def finish_times(network, program):
    ends = np.zeros(len(program))

    def note(i):
        ends[i] = network.now

    for i, (route, nbytes, delay_s) in enumerate(program):
        network.start(route, nbytes, partial(note, i), delay_s=delay_s)
    network.run()
    return ends


def errors(*, fair, quantum):
    """Relative errors of the finish times of all flows and of the makespans, over 16 networks."""
    flows, makespans = [], []
    for seed in range(16):
        bandwidth, program = random_network(seed)
        fluid = finish_times(Fluid(bandwidth), program)
        packet = finish_times(Packet(bandwidth, fair=fair, quantum=quantum), program)
        flows.append(fluid / packet - 1)
        makespans.append(fluid.max() / packet.max() - 1)
    return np.abs(np.concatenate(flows)), np.abs(np.array(makespans))


@pytest.mark.parametrize("quantum", [16384, 65536])
def test_single_flows_end_within_ten_percent_of_fair_queueing(quantum):
    flows, makespans = errors(fair=True, quantum=quantum)
    fifo, _ = errors(fair=False, quantum=quantum)
    print(
        f"\nquantum {quantum}: makespan p90 {np.quantile(makespans, 0.9):.2%};"
        f" fair queue, single flows median {np.median(flows):.1%} p90 {np.quantile(flows, 0.9):.1%};"
        f" FIFO, single flows median {np.median(fifo):.1%} p90 {np.quantile(fifo, 0.9):.1%}"
    )
    assert np.quantile(flows, 0.9) <= 0.10
    assert np.quantile(makespans, 0.9) <= 0.02


@pytest.mark.parametrize("window", [1, 4, 16, 64])
def test_fifo_divides_by_outstanding_bytes(window):
    fluid = Fluid({"media": 60e9})
    packet = PacketNetwork(16384, fair=False)
    packet.resource("media", 60e9)
    ends = {"fluid": [], "packet": []}
    fluid.start([("media", 1.0)], 40_000_000, lambda: None, weight=window)
    packet.start([("media", 1.0)], 40_000_000, lambda: None, window=window)
    for _ in range(8):
        fluid.start([("media", 1.0)], 1_000_000, lambda: ends["fluid"].append(fluid.now))
        packet.start([("media", 1.0)], 1_000_000, lambda: ends["packet"].append(packet.now), window=1)
    fluid.run()
    packet.run()
    fluid_us, packet_us = max(ends["fluid"]) * 1e6, max(ends["packet"]) * 1e6
    print(f"\nstream window {window}: packet FIFO {packet_us:.0f} us, fluid with weight = window {fluid_us:.0f} us")
    assert fluid_us == pytest.approx(packet_us, rel=0.10)


def test_equal_weights_would_be_wrong_where_windows_differ():
    packet = PacketNetwork(16384, fair=False)
    packet.resource("media", 60e9)
    ends = []
    packet.start([("media", 1.0)], 40_000_000, lambda: None, window=64)
    for _ in range(8):
        packet.start([("media", 1.0)], 1_000_000, lambda: ends.append(packet.now), window=1)
    packet.run()
    equal_weights_s = 9 * 1_000_000 / 60e9
    assert max(ends) > 4 * equal_weights_s
