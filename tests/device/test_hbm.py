"""HBM as the kernels of its GPU see it."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.hbm import Hbm
from ghostsim.timing.dram import channel_imbalance

H100 = part("h100_sxm").memory
GB = 10**9


def hbm(rig):
    return Hbm(rig.network, "hbm", H100)


def test_peak_is_the_datasheet():
    assert hbm(Rig()).peak == pytest.approx(3350e9, rel=0.001)


def test_kernel_takes_the_rate_that_was_measured_for_it():
    took = alone_ps(lambda rig: hbm(rig).kernel(3.2e12), 32 * GB)
    assert took == pytest.approx(32 * GB / 3.2e12 * PS, rel=1e-6)


def test_no_kernel_beats_the_bus():
    took = alone_ps(lambda rig: hbm(rig).kernel(9e12), 32 * GB)
    assert 32 * GB / took * PS == pytest.approx(3350e9, rel=0.001)


def test_stream_loses_little_to_turnarounds_and_refresh():
    took = alone_ps(lambda rig: hbm(rig).stream(), 32 * GB)
    assert 0.95 * 3350e9 < 32 * GB / took * PS <= 3351e9


def test_first_byte_takes_what_a_pointer_chase_measures():
    assert hbm(Rig()).latency_ps == pytest.approx(344_000, rel=0.02)


def test_scattered_kernel_pays_for_unequal_channels():
    def rate(records):
        rig = Rig()
        return rig.network.flow_class(hbm(rig).scattered(3.2e12, 64, records).costs).solo_rate

    ratio = channel_imbalance(2048, 80) / channel_imbalance(2**17, 80)
    assert rate(2**17) / rate(2048) == pytest.approx(ratio, rel=1e-9)
    assert channel_imbalance(2048, 80) == pytest.approx(1.5, rel=0.05)


def test_scattered_never_beats_the_kernel():
    rig = Rig()
    memory = hbm(rig)
    scattered = rig.network.flow_class(memory.scattered(2e12, 4096, 10**6).costs).solo_rate
    assert scattered <= 2e12 * (1 + 1e-9)


def test_two_kernels_share_the_bus():
    rig = Rig()
    leg = hbm(rig).kernel(3.2e12)
    rig.flow("a", leg, GB)
    rig.flow("b", leg, GB)
    assert rig.run()["b"] == pytest.approx(2 * GB / 3.2e12 * PS, rel=1e-6)


def test_gather_and_stream_meet_on_the_bus_only():
    """Scattered 64 B records wait for rows and leave bus time to a stream: together they beat one after the other."""
    rig = Rig()
    memory = hbm(rig)
    rig.flow("gather", memory.gather(64, 10**7), 2 * GB)
    rig.flow("stream", memory.stream(), GB)
    both = max(rig.run().values())
    one = alone_ps(lambda rig: hbm(rig).gather(64, 10**7), 2 * GB)
    other = alone_ps(lambda rig: hbm(rig).stream(), GB)
    assert one < both * 1.001
    assert both < 0.9 * (one + other)
