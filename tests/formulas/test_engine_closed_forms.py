"""Do flows take the time that a formula gives?"""

import math

import numpy as np
import pytest

from ghostsim.engine.clock import CountingEnvironment
from ghostsim.engine.network import Network


@pytest.fixture
def net():
    return Network(CountingEnvironment())


def finish_times(net, *flows):
    """Start (class, bytes, delay) flows at time 0 and return when each one ended."""
    ends = [None] * len(flows)

    def note(i):
        ends[i] = net.env.now

    for i, (flow_class, nbytes, delay_ps) in enumerate(flows):
        net.start(flow_class, nbytes, lambda i=i: note(i), delay_ps)
    net.env.run()
    return ends


def test_one_flow_takes_bytes_over_bandwidth(net):
    link = net.flow_class([(net.resource("link", 1e9), 1.0)])
    assert finish_times(net, (link, 1000, 0)) == [1_000_000]


@pytest.mark.parametrize(("nbytes", "bandwidth"), [(1, 3e12), (7, 56e9), (64, 63.015e9), (10**12, 4.8e12), (3, 7.0)])
def test_finish_is_rounded_up_to_the_next_picosecond(net, nbytes, bandwidth):
    link = net.flow_class([(net.resource("link", bandwidth), 1.0)])
    (end,) = finish_times(net, (link, nbytes, 0))
    exact = nbytes * 10**12 / bandwidth
    assert end == math.ceil(exact - 1e-3)
    assert end == net.solo_ps(link, nbytes)


@pytest.mark.parametrize("k", [2, 3, 8, 1000])
def test_k_equal_flows_take_k_times_as_long(net, k):
    link = net.flow_class([(net.resource("link", 8e9), 1.0)])
    assert finish_times(net, *[(link, 4096, 0)] * k) == [k * 512_000] * k


def test_a_quotient_of_floats_costs_no_extra_picosecond(net):
    gather = net.flow_class([(net.resource("link", 56e9), 1.1)])
    assert net.solo_ps(gather, 560) == 11_000
    assert finish_times(net, (gather, 560, 0)) == [11_000]


def test_delay_comes_before_the_first_byte(net):
    link = net.flow_class([(net.resource("link", 1e9), 1.0)])
    assert finish_times(net, (link, 1000, 250_000)) == [1_250_000]


def test_a_later_flow_takes_half_from_then_on(net):
    link = net.flow_class([(net.resource("link", 1e9), 1.0)])
    # 500 B alone, then both share: the first needs 2 * 500 ns more, the second 500 ns alone after that.
    assert finish_times(net, (link, 1000, 0), (link, 1000, 500_000)) == [1_500_000, 2_000_000]


def test_rates_are_in_proportion_to_weights(net):
    link = net.resource("link", 4e9)
    heavy, light = net.flow_class([(link, 1.0)], weight=3 * 65536), net.flow_class([(link, 1.0)], weight=65536)
    # 3 and 1 GB/s until the heavy one is through after 1 us; then 4 GB/s for the 2000 B left.
    assert finish_times(net, (heavy, 3000, 0), (light, 3000, 0)) == [1_000_000, 1_500_000]


def test_weight_alone_changes_nothing(net):
    link = net.resource("link", 4e9)
    assert finish_times(net, (net.flow_class([(link, 1.0)], weight=1e-3), 4000, 0)) == [1_000_000]


def test_a_ceiling_leaves_the_rest_to_others(net):
    link = net.resource("link", 10e9)
    capped, free = net.flow_class([(link, 1.0)], ceiling=2e9), net.flow_class([(link, 1.0)])
    assert finish_times(net, (capped, 2000, 0), (free, 8000, 0)) == [1_000_000, 1_000_000]


def test_a_ceiling_is_per_flow(net):
    capped = net.flow_class([(net.resource("link", 10e9), 1.0)], ceiling=2e9)
    assert finish_times(net, *[(capped, 2000, 0)] * 5) == [1_000_000] * 5
    assert finish_times(net, *[(capped, 2000, 0)] * 10)[0] == 3_000_000


def test_a_flow_limited_by_its_ceiling_alone_needs_no_resource(net):
    assert finish_times(net, *[(net.flow_class([], ceiling=1e9), 1000, 0)] * 3) == [1_000_000] * 3


def test_the_slowest_resource_and_its_cost_decide(net):
    media, link = net.resource("media", 70e9), net.resource("link", 56e9)
    gather = net.flow_class([(media, 1.4), (link, 1.0)])
    assert finish_times(net, (gather, 50_000, 0)) == [1_000_000]


def test_two_classes_meet_on_one_of_two_resources(net):
    media, link = net.resource("media", 30e9), net.resource("link", 10e9)
    scan, fetch = net.flow_class([(media, 1.0)]), net.flow_class([(media, 2.0), (link, 2.0)])
    # The link holds the fetch at 5 GB/s, which costs the medium 10; the scan gets the other 20 GB/s.
    assert finish_times(net, (scan, 20_000, 0), (fetch, 5_000, 0)) == [1_000_000, 1_000_000]


def test_costs_of_a_resource_named_twice_add(net):
    hbm = net.resource("hbm", 3e12)
    copy = net.flow_class([(hbm, 1.0), (hbm, 0.5)])
    assert copy is net.flow_class([(hbm, 1.5)])
    assert finish_times(net, (copy, 2_000_000, 0)) == [1_000_000]


def test_no_bytes_take_the_delay_only(net):
    link = net.flow_class([(net.resource("link", 1.0), 1.0)])
    assert finish_times(net, (link, 0, 0), (link, 0, 77)) == [0, 77]
    assert net.solo_ps(link, 0) == 0


def test_numpy_integers_keep_the_clock_an_integer(net):
    link = net.flow_class([(net.resource("link", 1e9), 1.0)])
    (end,) = finish_times(net, (link, np.int64(1000), np.int64(5)))
    assert end == 1_000_005
    assert type(end) is int


def test_transfer_is_start_as_an_event(net):
    link = net.flow_class([(net.resource("link", 1e9), 1.0)])

    def process():
        yield net.transfer(link, 1000, 500)
        yield net.transfer(link, 0, 100)

    net.env.run(net.env.process(process()))
    assert net.env.now == 1_000_600


def test_equal_arguments_give_the_same_class(net):
    link = net.resource("link", 1e9)
    first = net.flow_class([(link, 1)], weight=2, ceiling=5e8)
    assert first is net.flow_class(((link, 1.0),), 2.0, 5e8)
    assert first is not net.flow_class([(link, 1)], weight=2)


@pytest.mark.parametrize("capacity", [0, -1.0, math.inf, math.nan])
def test_a_capacity_is_positive_and_finite(net, capacity):
    with pytest.raises(ValueError, match="link: found capacity"):
        net.resource("link", capacity)


def test_a_name_is_taken_once(net):
    net.resource("link", 1e9)
    with pytest.raises(ValueError, match="link: found the name twice"):
        net.resource("link", 2e9)


@pytest.mark.parametrize(
    ("costs", "weight", "ceiling"),
    [([-1.0], 1.0, None), ([math.nan], 1.0, None), ([1.0], 0.0, None), ([1.0], 1.0, 0.0), ([0.0], 1.0, None)],
)
def test_a_class_that_makes_no_sense_is_refused(net, costs, weight, ceiling):
    link = net.resource("link", 1e9)
    with pytest.raises(ValueError, match="found"):
        net.flow_class([(link, cost) for cost in costs], weight, ceiling)


@pytest.mark.parametrize(("nbytes", "delay_ps"), [(-1, 0), (1, -1)])
def test_negative_bytes_and_delays_are_refused(net, nbytes, delay_ps):
    link = net.flow_class([(net.resource("link", 1e9), 1.0)])
    with pytest.raises(ValueError, match="neither below 0"):
        net.start(link, nbytes, print, delay_ps)


def test_a_resource_of_another_network_is_refused(net):
    stranger = Network(CountingEnvironment()).resource("link", 1e9)
    net.resource("link", 1e9)
    with pytest.raises(ValueError, match="another network"):
        net.flow_class([(stranger, 1.0)])


def test_a_year_is_not_forever(net):
    link = net.flow_class([(net.resource("link", 1.0), 1.0)])
    assert finish_times(net, (link, 10**8, 0)) == [10**20]


def test_use_follows_the_rates(net):
    media, link = net.resource("media", 30e9), net.resource("link", 10e9)
    fetch = net.flow_class([(media, 2.0), (link, 2.0)])
    net.start(fetch, 5_000, lambda: None, 100)
    assert net.used(media) == 0.0
    net.env.run(500_000)
    assert (net.used(media), net.used(link)) == pytest.approx((10e9, 10e9))
    net.env.run()
    assert (net.used(media), net.used(link)) == (0.0, 0.0)


def dram(net):
    """A bus of 40 GB/s for reads or writes alone and of 30 for halves, with a straight line between."""
    return net.resource("dram", 40e9, mix=lambda writes: 40e9 - 20e9 * min(writes, 1 - writes))


def test_reads_beside_writes_share_the_capacity_of_their_mix(net):
    bus = dram(net)
    read, write = net.flow_class([(bus, 1.0)]), net.flow_class([(bus, 1.0)], writes=[bus])
    assert net.solo_ps(read, 40_000) == net.solo_ps(write, 40_000) == 1_000_000
    # 15 GB/s each while both run, then 40 GB/s for the 25 kB that the write has left.
    assert finish_times(net, (read, 15_000, 0), (write, 40_000, 0)) == [1_000_000, 1_625_000]


def test_a_resource_full_at_its_mix_counts_as_full(net):
    bus = dram(net)
    net.start(net.flow_class([(bus, 1.0)]), 15_000, lambda: None)
    net.start(net.flow_class([(bus, 1.0)], writes=[bus]), 15_000, lambda: None)
    net.env.run(500_000)
    assert net.used(bus) == pytest.approx(40e9)


def test_a_mix_set_by_rates_elsewhere_is_found(net):
    bus, link = dram(net), net.resource("link", 6e9)
    read, write = net.flow_class([(bus, 1.0)]), net.flow_class([(bus, 1.0), (link, 1.0)], writes=[bus])
    # Writes are held at 6 GB/s; r + 6 = 40 - 20 * 6 / (r + 6) gives r = 30.7178 GB/s.
    total = 20 + math.sqrt(400 - 120)
    ends = finish_times(net, (read, 1_000_000, 0), (write, 6_000_000, 0))
    assert ends[0] == pytest.approx(1_000_000 / (total - 6) * 1000, rel=1e-5)
    assert ends[1] == 1_000_000_000


def test_writes_to_a_resource_without_mix_are_as_reads(net):
    link = net.resource("link", 1e9)
    assert net.flow_class([(link, 1.0)], writes=[link]) is net.flow_class([(link, 1.0)])
