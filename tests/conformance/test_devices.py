"""Does every part of the catalogue make a device, and every platform a machine on which bytes arrive?"""

import math

import pytest
from rig import Rig, part, platform

from ghostsim.config import catalogue, hardware
from ghostsim.devices.dram import DramMedia, idle_latency_ps
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.leg import Leg, join
from ghostsim.devices.link import LinkDevice, SwitchDevice
from ghostsim.devices.machine import build

PARTS = [name for name in sorted(catalogue.files("part")) if part(name).kind != "gpu_arch"]
PLATFORMS = sorted(catalogue.files("platform"))
SOME_MEMORY = part("xeon_spr_8ch").memory
TIERS = [(name, tier) for name in PLATFORMS for tier in platform(name).tiers if tier != "hbm"]


def make(rig, name):
    """Return the device of a part."""
    made = part(name)
    match made:
        case hardware.Dram():
            return DramMedia(rig.network, name, SOME_MEMORY.model_copy(update={"dram": made}))
        case hardware.Link():
            return LinkDevice(rig.network, name, made)
        case _:
            return build(rig.env, rig.network, name, made)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_makes_resources_that_can_do_something(name):
    rig = Rig()
    make(rig, name)
    assert rig.network.resources
    assert all(0 < r.capacity < math.inf for r in rig.network.resources.values())
    assert all(r.name.startswith(name) for r in rig.network.resources.values())


@pytest.mark.parametrize("name", PARTS)
def test_a_part_moves_bytes_in_finite_time(name):
    rig = Rig()
    device = make(rig, name)
    match device:
        case GpuDevice():
            rig.job("scan", device.scan(10**6, 10**6))
        case LinkDevice() | SwitchDevice():
            rig.flow("carry", device.carry(512), 10**6)
        case DramMedia():
            rig.flow("gather", device.gather(512, 1000), 10**6)
        case _:
            rig.flow("read", device.read(512, 1000), 10**6)
            rig.flow("write", device.write(512, 1000), 10**6)
    assert all(end > 0 for end in rig.run().values())


@pytest.mark.parametrize("name", [n for n in PARTS if part(n).kind == "dram"])
def test_a_dram_line_takes_tens_of_nanoseconds(name):
    assert 15_000 < idle_latency_ps(part(name)) < 100_000


@pytest.mark.parametrize("name", PLATFORMS)
def test_a_platform_elaborates(name):
    rig = Rig()
    machine = rig.machine(name)
    assert set(machine.devices) == set(machine.platform.devices)
    assert set(machine.links) == set(machine.platform.links)
    assert all(0 < r.capacity < math.inf for r in rig.network.resources.values())


@pytest.mark.parametrize(("name", "tier"), TIERS)
def test_every_tier_has_a_route_of_links_that_meet(name, tier):
    machine = Rig().machine(name)
    for device, _ in machine.stores(tier):
        at = machine.gpu_name
        for link in machine.routes[device].links:
            ends = machine.platform.links[link.name].between
            assert at in ends
            at = ends[1] if ends[0] == at else ends[0]
        assert at == device


@pytest.mark.parametrize(("name", "tier"), TIERS)
def test_an_unloaded_fetch_takes_its_hops_both_ways_and_then_some(name, tier):
    machine = Rig().machine(name)
    for device, _ in machine.stores(tier):
        rig = Rig()
        machine = rig.machine(name)
        route, store = machine.routes[device], machine.devices[device]
        way = route.carry(512)
        leg, weight = machine.gpu.read_in_place(join([store.read(512, 1), way, Leg((), way.latency_ps)]))
        rig.flow("only", leg, 512, weight)
        hops = 2 * sum(link.link.latency for link in route.links)
        assert hops < rig.run()["only"] < 1_000_000_000


@pytest.mark.parametrize(("name", "tier"), TIERS)
def test_no_tier_is_faster_than_its_narrowest_link(name, tier):
    nbytes = 10**9
    rig = Rig()
    machine = rig.machine(name)
    (device, store), *_ = machine.stores(tier)
    route = machine.routes[device]
    rig.flow("only", join([store.read(4096, 10**5), route.carry(4096)]), nbytes)
    narrowest = min(link.link.bandwidth or link.link.raw for link in route.links)
    assert nbytes / rig.run()["only"] * 1e12 < narrowest
