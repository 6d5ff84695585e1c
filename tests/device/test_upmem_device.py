"""UPMEM ranks: a kernel is launch and instructions, host transfers are slow, and the two exclude each other."""

import math
from dataclasses import replace

import pytest
from invented import HBM, llama, policy, selection
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.job import Job, Part
from ghostsim.devices.upmem import UpmemDevice
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.bound import Row
from ghostsim.plan.selection import IndexStage
from ghostsim.policy.placement import place

RANKS = part("upmem_ranks")
STAGE = IndexStage("qkeys", 66, 1, 128, 4)
DPUS = 16 * 64
GB = 10**9


def upmem(rig, *sets):
    return UpmemDevice(rig.env, rig.network, "upmem0", part("upmem_ranks", *sets) if sets else RANKS)


def instructions(dims=128, q_heads=4, record=66):
    """4-bit codes: load 8 B at a time, unpack two instructions a code, then per code and head half a load, a
    multiply and an add; the loop over records, and four instructions for each DMA transfer of 2,048 B."""
    return 8 + 2 * dims + dims * q_heads * 2.5 + 3 + 2 * q_heads + 4 * record / 2048


def host_read(device, nbytes):
    leg = device.read(8192, 10**6)
    return Job(leg.latency_ps, (Part(device.network.flow_class(leg.costs), nbytes, device.mram),))


def test_an_empty_kernel_takes_its_launch():
    assert alone_ps(lambda rig: upmem(rig).scan(STAGE, 4, 66)) == pytest.approx(30e6, rel=0.001)


def test_a_scan_issues_one_instruction_a_cycle_and_dpu():
    records = 10**8
    took = alone_ps(lambda rig: upmem(rig).scan(STAGE, 4, 66 * records))
    assert took == pytest.approx(30e6 + records * instructions() / (DPUS * 350e6) * PS, rel=1e-3)


def test_fewer_than_11_tasklets_leave_the_pipeline_idle():
    took = [alone_ps(lambda rig, n=n: upmem(rig, f"tasklets={n}").scan(STAGE, 4, GB)) - 30e6 for n in (11, 22, 1)]
    assert took[0] == pytest.approx(took[1], rel=0.01)
    assert took[2] == pytest.approx(11 * took[0], rel=0.01)


def test_a_scan_of_sign_bits_is_limited_by_mram():
    """One bit a dimension leaves the DMA engine the slowest: 2 x 36 cycles and 0.55 cycles a byte for 2,048 B."""
    signs = IndexStage("sketch", 2, 1, 16, 1)
    took = alone_ps(lambda rig: upmem(rig).scan(signs, 1, GB)) - 30e6
    assert GB / took * PS <= DPUS * 350e6 * 2048 / (2 * 36 + 0.55 * 2048)


def test_results_come_back_at_the_measured_rate():
    assert GB / alone_ps(lambda rig: upmem(rig).read(4096, 10**6), GB) * PS == pytest.approx(16 * 4.74e9, rel=1e-4)


def test_records_go_out_at_the_measured_rate():
    assert GB / alone_ps(lambda rig: upmem(rig).write(4096, 10**6), GB) * PS == pytest.approx(16 * 6.68e9, rel=1e-4)


def test_mram_is_closed_to_the_host_while_dpus_run():
    rig = Rig()
    device = upmem(rig)
    kernel = alone_ps(lambda rig: upmem(rig).scan(STAGE, 4, GB))
    transfer = alone_ps(lambda rig: host_read(upmem(rig), GB))
    rig.job("kernel", device.scan(STAGE, 4, GB))
    rig.job("transfer", host_read(device, GB))
    assert rig.run() == {"kernel": kernel, "transfer": kernel + transfer}


def test_a_kernel_waits_for_the_host_transfer_before_it():
    rig = Rig()
    device = upmem(rig)
    rig.job("transfer", host_read(device, GB))
    rig.job("kernel", device.scan(STAGE, 4, GB))
    ends = rig.run()
    assert ends["kernel"] - ends["transfer"] == alone_ps(lambda rig: upmem(rig).scan(STAGE, 4, GB))


def test_two_kernels_run_one_after_the_other():
    rig = Rig()
    device = upmem(rig)
    for name in "ab":
        rig.job(name, device.scan(STAGE, 4, GB))
    assert rig.run()["b"] == 2 * rig.ends_ps["a"]


@pytest.mark.parametrize(("records", "ranks", "dpus"), [(1, 1, 1), (8, 8, 1), (16, 16, 1), (64, 16, 4), (1024, 16, 64)])
def test_records_on_few_dpus_come_back_on_the_measured_curve(records, ranks, dpus):
    """0.12 GB/s from one DPU (serial) and 4.74 from the 64 of a rank (parallel), a power of their number between."""
    rate = ranks * 0.12e9 * (4.74 / 0.12) ** (math.log(dpus) / math.log(64))
    took = alone_ps(lambda rig: upmem(rig).read(512, records), GB)
    assert GB / took * PS == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize(("units", "copies"), [(4096, 1), (1024, 1), (64, 16), (8, 128)])
def test_a_query_goes_to_the_dpus_that_hold_its_index(units, copies):
    took = alone_ps(lambda rig: upmem(rig).pass_on(4096, units, write=True), GB)
    assert GB / took * PS == pytest.approx(16 * 6.68e9 / copies, rel=1e-4)


def test_one_query_for_all_dpus_is_broadcast():
    """16.88 GB/s, counting what all 64 DPUs of a rank receive; every rank receives its own copy at once."""
    took = alone_ps(lambda rig: upmem(rig).pass_on(4096, 1, write=True), GB)
    assert GB / took * PS == pytest.approx(16.88e9 / 64, rel=1e-4)


def test_kv_in_mram_waits_for_the_kernel():
    """Fetches of KV that lies in MRAM stand in the queue of the kernels."""
    of, placement = policy("full"), replace(HBM, kv_tier="pim")
    model = llama("layers=1")
    chosen = selection(of, model, hot=1, cold=4096, read=4096)
    rig = Rig()
    machine = rig.machine("h100_cxl_pim")
    plan = place(chosen, of, model, placement, 1)
    bound = Binder(machine, model, placement, (), 1).bind(plan)
    jobs = [
        row.make(Row(512, 1, 1, 1))
        for row, name in zip(bound, plan.names, strict=True)
        if name.startswith("read") or name == "age"
    ]
    assert len(jobs) == 2
    assert all(job.parts[0].server is machine.devices["upmem0"].mram for job in jobs)
