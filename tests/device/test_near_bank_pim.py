"""Near-bank PIM: a kernel at the banks' own rate, host accesses at the interface's, and the modes that part them."""

from dataclasses import replace

import pytest
from invented import PIM, llama, policy, simulate, varied
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.job import Job, Part
from ghostsim.devices.near_bank_pim import NearBankPimDevice
from ghostsim.errors import ConfigError
from ghostsim.metrics.collect import step_ms
from ghostsim.plan.selection import IndexStage

GB = 10**9
KEYS = IndexStage("mean", 256, 1, 128, 16)
MODEL = llama("layers=2")
PARTS = {
    "gddr6_aim": (16, 2_200_000, 16 * 32 * 32e9, 16 * 64e9),
    "hbm_pim_aquabolt": (4, 5_400_000, 4 * 1.2288e12, 4 * 307e9),
}


def pim(rig, name="gddr6_aim"):
    return NearBankPimDevice(rig.network, "pim0", part(name))


def transfer(device, nbytes):
    leg = device.read(4096, 1)
    return Job(leg.latency_ps, (Part(device.network.flow_class(leg.costs, 65536.0), nbytes, device.mode.shared),))


@pytest.mark.parametrize("name", list(PARTS))
def test_an_empty_kernel_takes_its_launch_and_both_switches(name):
    assert alone_ps(lambda rig: pim(rig, name).scan(KEYS, 1, 32)) == pytest.approx(PARTS[name][1], rel=0.001)


@pytest.mark.parametrize("name", list(PARTS))
@pytest.mark.parametrize("heads", [1, 4])
def test_a_kernel_reads_the_banks_once_per_query_head(name, heads):
    """One fp16 multiply-accumulate for every two bytes: what a unit reads is what it multiplies."""
    _, launch, inside, _ = PARTS[name]
    took = alone_ps(lambda rig: pim(rig, name).scan(KEYS, heads, 100 * GB)) - launch
    assert 100 * GB / took * PS == pytest.approx(inside / heads, rel=0.001)


@pytest.mark.parametrize("name", list(PARTS))
def test_the_host_gets_what_the_interfaces_give(name):
    took = alone_ps(lambda rig: pim(rig, name).read(4096, 1), 100 * GB)
    assert 100 * GB / took * PS == pytest.approx(PARTS[name][3], rel=0.001)


def test_a_short_piece_pays_for_whole_accesses():
    (_, cost), *_ = pim(Rig()).read(66, 1).costs
    assert cost == pytest.approx(96 / 66)


def test_host_accesses_wait_for_the_kernel_and_then_run_side_by_side():
    rig = Rig()
    device = pim(rig)
    kernel, one = alone_ps(lambda rig: pim(rig).scan(KEYS, 4, GB)), alone_ps(lambda rig: transfer(pim(rig), GB))
    rig.job("kernel", device.scan(KEYS, 4, GB))
    rig.job("a", transfer(device, GB))
    rig.job("b", transfer(device, GB))
    ends = rig.run()
    latency = device.part.latency
    assert ends == {"kernel": kernel, "a": kernel + 2 * one - latency, "b": kernel + 2 * one - latency}


def test_a_kernel_waits_for_all_accesses_before_it_and_none_after():
    rig = Rig()
    device = pim(rig)
    kernel, one = alone_ps(lambda rig: pim(rig).scan(KEYS, 4, GB)), alone_ps(lambda rig: transfer(pim(rig), GB))
    rig.job("before", transfer(device, GB))
    rig.job("kernel", device.scan(KEYS, 4, GB))
    rig.job("after", transfer(device, GB))
    assert rig.run() == {"before": one, "kernel": one + kernel, "after": 2 * one + kernel}


def test_a_run_filters_on_near_bank_pim():
    """Page means in fp16 beside the banks of a card: faster than to bring them over its link to the GPU."""
    of = policy("quest")
    chosen = varied(of, MODEL, context=32768, batch=2, steps=2, share=0.05)
    times = [
        step_ms(simulate(chosen, of, MODEL, replace(PIM, site=site), 2, "h100_near_bank").record).mean()
        for site in ("pim", "none")
    ]
    assert times[0] < times[1]


def test_codes_that_the_units_do_not_multiply_are_refused():
    of = policy("ghostkv")
    chosen = varied(of, MODEL, context=4096, batch=1, steps=1)
    with pytest.raises(ConfigError, match="found filter pim for a 4-bit index on pim0, expected one of 16 bits"):
        simulate(chosen, of, MODEL, PIM, 1, "h100_near_bank")
