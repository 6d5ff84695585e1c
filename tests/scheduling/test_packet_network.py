"""Does the packet network, which checks the fluid one, itself obey queueing?"""

import pytest
from packet_network import PacketNetwork


def run(fair, *flows, bandwidth=1e9, quantum=1000):
    net = PacketNetwork(quantum, fair)
    net.resource("a", bandwidth)
    net.resource("b", bandwidth)
    started = [net.start(route, nbytes, lambda: None, **options) for route, nbytes, options in flows]
    net.run()
    return [flow.finish_s for flow in started]


@pytest.mark.parametrize("fair", [False, True])
def test_a_packet_flow_alone_takes_bytes_over_bandwidth(fair):
    assert run(fair, ([("a", 1.0)], 10_500, {})) == pytest.approx([10.5e-6])


@pytest.mark.parametrize("fair", [False, True])
def test_a_second_hop_adds_one_quantum(fair):
    assert run(fair, ([("a", 1.0), ("b", 1.0)], 10_000, {})) == pytest.approx([11e-6])


@pytest.mark.parametrize("fair", [False, True])
def test_a_window_of_one_stores_and_forwards(fair):
    assert run(fair, ([("a", 1.0), ("b", 1.0)], 10_000, {"window": 1})) == pytest.approx([20e-6])


def test_round_robin_serves_by_weight():
    route = [("a", 1.0)]
    first, second = run(True, (route, 300_000, {"weight": 3.0}), (route, 300_000, {"weight": 1.0}))
    assert (first, second) == pytest.approx((400e-6, 600e-6), rel=0.01)


def test_round_robin_ignores_windows_and_fifo_does_not():
    route = [("a", 1.0)]
    flows = (route, 300_000, {"window": 30}), (route, 100_000, {"window": 10})
    assert run(True, *flows)[1] == pytest.approx(200e-6, rel=0.02)
    assert run(False, *flows)[1] == pytest.approx(400e-6, rel=0.02)
