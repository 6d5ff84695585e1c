"""Do the UPMEM formulas reproduce the published single figures, and the limits they claim?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.timing.upmem import (
    UPMEM_350MHZ,
    DotProduct,
    dot_product,
    host_bytes_per_s,
    host_transfer_ps,
    issue_cycles,
    mram_bytes_per_s,
    mram_dma_cycles,
    scan_cycles_per_record,
)

sizes = st.integers(1, 256).map(lambda count: 8 * count)
ops = st.sampled_from(["read", "write", "copy"])


def with_tasklets(count):
    return replace(UPMEM_350MHZ, tasklets=count)


def test_one_tasklet_waits_for_loop_setup_and_bytes():
    assert mram_dma_cycles(with_tasklets(1), "read", 512) == 44 + 53.5 + 256


def test_engine_is_the_limit_from_four_tasklets_on():
    assert mram_dma_cycles(with_tasklets(4), "read", 512) == pytest.approx(36 + 0.55 * 512)


@given(ops, sizes, st.integers(4, 24))
def test_more_than_four_tasklets_do_not_help(op, nbytes, tasklets):
    assert mram_dma_cycles(with_tasklets(tasklets), op, nbytes) == mram_dma_cycles(with_tasklets(4), op, nbytes)


@given(ops, sizes, st.integers(1, 24))
def test_dma_never_beats_two_bytes_per_cycle(op, nbytes, tasklets):
    moved = 2 * nbytes if op == "copy" else nbytes
    assert moved / mram_dma_cycles(with_tasklets(tasklets), op, nbytes) < 2


def test_largest_transfer_takes_as_long_as_two_halves():
    spec = with_tasklets(8)
    assert mram_dma_cycles(spec, "copy", 2048) == 2 * mram_dma_cycles(spec, "copy", 1024)


def test_peak_mram_bandwidth_is_near_the_600_megabytes_per_second_of_the_machine():
    assert mram_bytes_per_s(with_tasklets(8)) == pytest.approx(602e6, rel=0.02)


@pytest.mark.parametrize(("tasklets", "cycles"), [(1, 1100), (11, 100), (16, 100), (24, 100)])
def test_eleven_tasklets_fill_the_pipeline(tasklets, cycles):
    assert issue_cycles(100, tasklets) == pytest.approx(cycles)


def test_eight_bit_dot_product_counts_by_hand():
    assert dot_product(128, 8, 4) == DotProduct(
        load_record=16, unpack=64, load_query=256, multiply=512, add=512, per_record=11
    )


def test_sign_sketch_counts_by_hand():
    assert dot_product(128, 1, 4) == DotProduct(
        load_record=2, unpack=0, load_query=16, multiply=32, add=16, per_record=11
    )


def test_codes_wider_than_the_multiplier_are_refused():
    with pytest.raises(ValueError, match="8 x 8 bits"):
        dot_product(128, 16, 1)


@given(st.integers(1, 256), st.integers(1, 8), st.integers(1, 16))
def test_more_query_heads_share_load_and_unpack(dims, bits, heads):
    one, many = dot_product(dims, bits, 1), dot_product(dims, bits, heads)
    assert (many.load_record, many.unpack) == (one.load_record, one.unpack)
    assert many.total <= heads * one.total


def test_scan_of_wide_codes_is_limited_by_instructions():
    work = dot_product(128, 8, 4)
    per_record = work.total + UPMEM_350MHZ.loop_instructions / 16
    assert scan_cycles_per_record(UPMEM_350MHZ, work, 128) == pytest.approx(per_record)


def test_scan_without_work_is_limited_by_the_dma_engine():
    idle = DotProduct(0, 0, 0, 0, 0, 0)
    expected = mram_dma_cycles(UPMEM_350MHZ, "read", 2048) / 16
    assert scan_cycles_per_record(UPMEM_350MHZ, idle, 128) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("direction", "mode", "dpus", "expected"),
    [
        ("to_dpu", "serial", 64, 0.33e9),
        ("to_dpu", "parallel", 1, 0.33e9),
        ("to_dpu", "parallel", 64, 6.68e9),
        ("from_dpu", "parallel", 64, 4.74e9),
        ("to_dpu", "broadcast", 64, 16.88e9),
    ],
)
def test_host_transfers_meet_the_measured_ends(direction, mode, dpus, expected):
    assert host_bytes_per_s(UPMEM_350MHZ, direction, mode, dpus) == pytest.approx(expected)


@given(st.integers(1, 63))
def test_parallel_transfers_gain_with_every_dpu(dpus):
    rates = [host_bytes_per_s(UPMEM_350MHZ, "to_dpu", "parallel", count) for count in (dpus, dpus + 1)]
    assert rates[0] < rates[1]


def test_host_transfer_time_is_bytes_over_bandwidth():
    assert host_transfer_ps(UPMEM_350MHZ, "to_dpu", "parallel", 1_000_000, 64) == pytest.approx(64e6 / 6.68e9 * 1e12)


@pytest.mark.parametrize(("instructions", "measured_mops"), [(6, 58.3), (7, 50.0)])
def test_instruction_issue_gives_the_measured_rate_of_additions(instructions, measured_mops):
    """PrIM: INT32 ADD (address, two loads, add, store, branch share) takes six instructions, INT64 ADD seven."""
    rate = 350e6 / issue_cycles(instructions, 16)
    assert rate == pytest.approx(measured_mops * 1e6, rel=0.01)


@pytest.mark.parametrize("nbytes", [8, 64, 512, 2048])
def test_dma_engine_shared_by_many_tasklets_is_busy_as_measured(nbytes):
    """pim-memcpy, four tasklets and more: about 36 + 0.56 cycles a byte; uPIMulator's bar is a mean error of 12 %."""
    measured = {8: 41, 64: 69, 512: 314, 2048: 1190}[nbytes]
    assert mram_dma_cycles(UPMEM_350MHZ, "read", nbytes) == pytest.approx(measured, rel=0.12)
