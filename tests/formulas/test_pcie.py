"""Does the TLP arithmetic give the published PCIe figures?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.timing.pcie import (
    dma_bandwidth,
    raw_bytes_per_s,
    read_bandwidth,
    tlp_bytes_per_s,
    write_bandwidth,
    zero_copy_bandwidth,
)

GEN5 = 32e9


@pytest.mark.parametrize(
    ("rate", "lanes", "expected_gbps"),
    [(2.5e9, 1, 0.25), (8e9, 16, 15.75), (16e9, 16, 31.51), (GEN5, 16, 63.02), (64e9, 16, 128)],
)
def test_raw_rate_follows_the_line_coding(rate, lanes, expected_gbps):
    assert raw_bytes_per_s(rate, lanes) == pytest.approx(expected_gbps * 1e9, rel=1e-3)


def test_data_link_layer_leaves_56_8_of_63_gigabytes_per_second():
    assert tlp_bytes_per_s(GEN5, 16) == pytest.approx(56.8e9, rel=2e-3)


@pytest.mark.parametrize(
    ("payload", "expected_gbps"), [(64, 43.3), (128, 49.2), (256, 52.7), (512, 52.7), (4096, 52.7)]
)
def test_gen5_reads_match_pcie_bench(payload, expected_gbps):
    assert read_bandwidth(GEN5, 16, payload, mps=256, mrrs=512) == pytest.approx(expected_gbps * 1e9, rel=2e-3)


def test_write_efficiency_is_payload_over_payload_and_header():
    assert write_bandwidth(GEN5, 16, 256, mps=256) == pytest.approx(tlp_bytes_per_s(GEN5, 16) * 256 / 280)


def test_requests_limit_reads_whose_answers_are_smaller_than_their_requests():
    assert read_bandwidth(GEN5, 16, 2, mps=256, mrrs=512) == pytest.approx(tlp_bytes_per_s(GEN5, 16) * 2 / 24)


@given(
    st.integers(1, 64).map(lambda n: 64 * n),
    st.sampled_from([128, 256, 512]),
    st.sampled_from([2.5e9, 8e9, 16e9, GEN5, 64e9]),
)
def test_no_payload_beats_the_tlp_rate(payload, mps, rate):
    best = tlp_bytes_per_s(rate, 16)
    assert read_bandwidth(rate, 16, payload, mps, 512) < best < raw_bytes_per_s(rate, 16)
    assert write_bandwidth(rate, 16, payload, mps) < best


@given(st.sampled_from([64, 128, 256]))
def test_larger_maximum_payload_never_slows_reads(payload):
    rates = [read_bandwidth(GEN5, 16, 4096, mps, 512) for mps in (payload, 2 * payload)]
    assert rates[0] < rates[1]


def test_small_fragments_are_limited_by_descriptors():
    assert dma_bandwidth(50e9, 256, 12_900) == pytest.approx(256 / 12.9e-9)


def test_large_fragments_run_at_link_rate():
    assert dma_bandwidth(50e9, 65536, 12_900) == pytest.approx(50e9)


def test_zero_copy_is_window_over_latency():
    assert zero_copy_bandwidth(35_200, 1_000_000) == pytest.approx(35.2e9)
