"""Is every byte moved once, and no resource busier than it can be?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.engine.clock import CountingEnvironment
from ghostsim.engine.network import Network, Probe
from ghostsim.engine.probes import UtilisationProbe


class Ledger(Probe):
    def __init__(self):
        self.started, self.finished, self.highest = [], [], None
        self.times = []

    def on_rates(self, now_ps, used):
        self.times.append(now_ps)
        self.highest = np.array(used) if self.highest is None else np.maximum(self.highest, used)

    def on_start(self, now_ps, flow):
        self.started.append((now_ps, flow))

    def on_finish(self, now_ps, flow):
        self.finished.append((now_ps, flow))


def random_run(seed, flows=60, bin_ps=10**6):
    rng = np.random.default_rng(seed)
    env = CountingEnvironment()
    net = Network(env)
    resources = [net.resource(f"r{i}", capacity) for i, capacity in enumerate(rng.uniform(1e9, 4e12, 5))]
    classes = [
        net.flow_class(
            [(resources[r], rng.uniform(0.5, 2)) for r in rng.permutation(5)[: rng.integers(1, 5)]],
            weight=float(rng.choice([1, 4, 64])),
            ceiling=[None, 5e10][rng.integers(2)],
        )
        for _ in range(6)
    ]
    ledger = Ledger()
    net.probes.append(ledger)
    probe = UtilisationProbe(net, bin_ps)
    sent = [(classes[rng.integers(6)], int(rng.integers(0, 10**6)), int(rng.integers(0, 10**7))) for _ in range(flows)]
    for flow_class, nbytes, delay_ps in sent:
        net.start(flow_class, nbytes, lambda: None, delay_ps)
    env.run()
    return net, ledger, probe, sent


@pytest.mark.parametrize("seed", range(8))
def test_the_integral_of_use_is_bytes_times_cost(seed):
    _, _, probe, sent = random_run(seed)
    expected = np.zeros(5)
    spill = np.zeros(5)  # a flow keeps its rate up to the whole picosecond in which it ends
    for flow_class, nbytes, _ in sent:
        for resource, cost in flow_class.route:
            expected[resource.index] += nbytes * cost
            spill[resource.index] += flow_class.solo_rate * cost * 1e-12
    assert np.all(probe.units() >= expected * (1 - 1e-9) - spill * 1e-3)
    assert np.all(probe.units() <= expected * (1 + 1e-9) + spill)


@pytest.mark.parametrize("seed", range(8))
def test_bytes_delivered_are_bytes_requested(seed):
    net, ledger, _, sent = random_run(seed)
    assert sorted(flow.nbytes for _, flow in ledger.finished) == sorted(nbytes for _, nbytes, _ in sent)
    assert {flow.number for _, flow in ledger.started} == {flow.number for _, flow in ledger.finished}
    assert net.flows_started == len(sent)


@pytest.mark.parametrize("seed", range(8))
def test_no_flow_beats_an_idle_network(seed):
    net, ledger, _, _ = random_run(seed)
    for finish_ps, flow in ledger.finished:
        assert finish_ps - flow.start_ps >= net.solo_ps(flow.flow_class, flow.nbytes)


@pytest.mark.parametrize("seed", range(8))
def test_no_resource_is_ever_more_than_full(seed):
    net, ledger, probe, _ = random_run(seed)
    capacities = np.array([resource.capacity for resource in net.resources.values()])
    assert np.all(ledger.highest <= capacities)
    assert max(probe.utilisation().values()) <= 1
    assert np.all(probe.bins() <= capacities[:, None] * 1e-6 * (1 + 1e-9))


def test_rates_are_announced_in_order_and_end_at_nothing():
    net, ledger, _, _ = random_run(3)
    assert ledger.times == sorted(ledger.times)
    assert all(net.used(resource) == 0 for resource in net.resources.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 10**9))
def test_bins_of_any_width_add_up_to_the_same(seed, bin_ps):
    _, _, fine, _ = random_run(seed, flows=10, bin_ps=max(bin_ps, 10**5))
    _, _, whole, _ = random_run(seed, flows=10, bin_ps=None)
    assert fine.units() == pytest.approx(whole.units(), rel=1e-9)
    assert whole.bins().shape == (5, 1)


def test_a_bin_holds_what_happened_in_it():
    env = CountingEnvironment()
    net = Network(env)
    link = net.resource("link", 1e9)
    probe = UtilisationProbe(net, bin_ps=1_000_000)
    net.start(net.flow_class([(link, 1.0)]), 2000, lambda: None, 500_000)
    env.run(3_500_000)
    assert probe.bins() == pytest.approx(np.array([[500.0, 1000.0, 500.0, 0.0]]))
    assert probe.utilisation() == pytest.approx({"link": 2.0 / 3.5})


@pytest.mark.parametrize("most_bins", [1, 2, 7, 8])
def test_bins_double_until_few_enough_and_lose_nothing(most_bins):
    env = CountingEnvironment()
    net = Network(env)
    link = net.resource("link", 1e9)
    few, fine = UtilisationProbe(net, 10_000, most_bins), UtilisationProbe(net, 10_000)
    for i in range(20):
        net.start(net.flow_class([(link, 1.0)]), 100 + 7 * i, lambda: None, i * 333_333)
        if i % 5 == 0:
            env.run(i * 100_000 + 1)
            few.bins()
    env.run()
    wide = few.bins()[0]
    ratio = few.bin_ps // 10_000
    assert most_bins / 2 <= len(wide) <= most_bins
    assert ratio & (ratio - 1) == 0
    merged = [fine.bins()[0, i : i + ratio].sum() for i in range(0, fine.bins().shape[1], ratio)]
    assert wide == pytest.approx(merged)


def test_a_long_log_is_summed_on_the_way(monkeypatch):
    _, _, whole, _ = random_run(5)
    monkeypatch.setattr("ghostsim.engine.probes._LOG_LENGTH", 3)
    _, _, pieces, _ = random_run(5)
    assert pieces.bins() == pytest.approx(whole.bins(), rel=1e-12)


def test_a_resource_added_later_was_idle_before():
    env = CountingEnvironment()
    net = Network(env)
    first = net.resource("first", 1e9)
    probe = UtilisationProbe(net)
    net.start(net.flow_class([(first, 1.0)]), 1000, lambda: None)
    env.run(500_000)
    assert probe.units() == pytest.approx([500])
    second = net.resource("second", 1e9)
    assert net.used(second) == 0
    net.start(net.flow_class([(second, 1.0)]), 100, lambda: None)
    env.run()
    assert probe.units() == pytest.approx([1000, 100])


def test_nothing_at_all_has_used_nothing():
    net = Network(CountingEnvironment())
    net.resource("link", 1e9)
    probe = UtilisationProbe(net)
    assert probe.utilisation() == {"link": 0.0}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1, max_size=20),
    st.floats(1.0, 10.0),
)
def test_more_bandwidth_never_delays_the_end_of_single_stage_work(flows, factor):
    def makespan(bandwidth):
        net = Network(CountingEnvironment())
        link = net.resource("link", bandwidth)
        for weight, nbytes, delay_ps in flows:
            net.start(net.flow_class([(link, 1.0)], weight=weight + 1), nbytes, lambda: None, delay_ps)
        net.env.run()
        return net.env.now

    # Each end is rounded up by less than a picosecond.
    assert makespan(1e9 * factor) <= makespan(1e9) + len(flows)
