"""The host: its memory, and the root complex between devices below it."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.host_cpu import HostCpuDevice
from ghostsim.devices.leg import join

XEON = part("xeon_spr_8ch")
GB = 10**9


def host(rig):
    return HostCpuDevice(rig.network, "host0", XEON)


def test_a_line_takes_what_was_measured():
    """110 ns idle load-to-use on this socket (Mess)."""
    assert alone_ps(lambda rig: host(rig).read(64, 1), 64) == pytest.approx(110_000, rel=0.03)


def test_long_reads_reach_what_was_measured():
    assert 10 * GB / alone_ps(lambda rig: host(rig).read(8192, 10**6), 10 * GB) * PS == pytest.approx(267.4e9, rel=0.02)


def test_passing_the_root_complex_takes_half_a_round_trip():
    assert alone_ps(lambda rig: host(rig).carry(512), 26) == 50_000 + 1000


def test_root_complex_passes_26_gb_a_second():
    assert 26 * GB / alone_ps(lambda rig: host(rig).carry(512), 26 * GB) * PS == pytest.approx(26e9, rel=1e-6)


def test_root_complex_is_shared_by_all_devices_below_it():
    rig = Rig()
    machine = rig.machine()
    for name in ("cxl_exp0", "cxl_exp1", "upmem0"):
        rig.flow(name, machine.routes[name].carry(4096), GB)
    ends = rig.run()
    assert 3 * GB / max(ends.values()) * PS == pytest.approx(26e9, rel=0.001)


def test_host_memory_is_not_behind_the_root_complex():
    rig = Rig()
    machine = rig.machine()
    leg = join([machine.routes["host0"].carry(4096), machine.devices["host0"].read(4096, 10**6)])
    rig.flow("only", leg, 10 * GB)
    assert 10 * GB / rig.run()["only"] * PS > 50e9
    assert rig.units(machine.devices["host0"].root_complex) == 0


@pytest.mark.parametrize("cores", [1, 4])
def test_staging_copies_run_at_what_the_cores_copy(cores):
    few = part("xeon_spr_8ch", f"cores={cores}")
    took = alone_ps(lambda rig: HostCpuDevice(rig.network, "h", few).stage(lands=False), 10 * GB)
    assert 10 * GB / (took - 1_000_000) * PS == pytest.approx(cores * 8e9, rel=1e-4)


@pytest.mark.parametrize(("lands", "crossings"), [(False, 2), (True, 4)])
def test_a_staging_copy_crosses_host_memory_again(lands, crossings):
    """The buffer is written and read; what a drive sends lands before that and is read once more."""
    rig = Rig()
    device = host(rig)
    leg = device.stage(lands=lands)
    assert sum(resource is device.media.bus for resource, _ in leg.costs) == crossings


@pytest.mark.parametrize(("cores", "flops_per_byte", "rate"), [(4, 4, 48e9), (4, 16, 16e9), (40, 4, 267.4e9)])
def test_cores_attend_at_the_slowest_of_their_loads_their_arithmetic_and_memory(cores, flops_per_byte, rate):
    few = part("xeon_spr_8ch", f"cores={cores}")

    def attend(rig):
        job = HostCpuDevice(rig.network, "h", few).attend(8192, 10**6, flops_per_byte)
        return job._replace(parts=(job.parts[0]._replace(nbytes=10 * GB),))

    assert 10 * GB / alone_ps(attend) * PS == pytest.approx(rate, rel=0.03)


def test_cores_are_shared_by_filter_copies_and_attention():
    rig = Rig()
    device = HostCpuDevice(rig.network, "h", part("xeon_spr_8ch", "cores=4"))
    rig.job("scan", device.scorer.scan(GB, 4.0))
    rig.flow("copy", device.stage(lands=False), GB, float(4 * 4096))
    job = device.attend(8192, 10**6, 4.0)
    rig.job("attend", job._replace(parts=(job.parts[0]._replace(nbytes=GB),)))
    # A core second for 12, 8 and 12 GB.
    assert max(rig.run().values()) == pytest.approx((GB / 12e9 + GB / 8e9 + GB / 12e9) / 4 * PS, rel=0.01)
