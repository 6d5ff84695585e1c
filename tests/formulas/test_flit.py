"""Does the slot arithmetic give the efficiencies of CXL flits?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.timing.flit import FORMATS, data_efficiency, line_slots, link_bandwidth, wire_bytes_per_s

flits = st.sampled_from(["68B", "256B", "lopt"])


@pytest.mark.parametrize(("flit", "expected"), [("68B", 64 / 85), ("256B", 0.75), ("lopt", 0.75)])
def test_one_header_slot_per_line_is_the_lower_bound(flit, expected):
    assert data_efficiency(flit, headers_per_slot=1) == pytest.approx(expected)


@pytest.mark.parametrize(("flit", "expected"), [("68B", 0.869), ("256B", 0.865)])
def test_packed_headers_reach_86_percent(flit, expected):
    assert data_efficiency(flit, headers_per_slot=3) == pytest.approx(expected, abs=1e-3)


def test_short_first_slot_carries_no_data():
    assert data_efficiency("256B", headers_per_slot=1000) == pytest.approx(14 * 16 / 256)


def test_line_takes_four_slots_and_its_share_of_a_header():
    assert line_slots(2) == 4.5


@pytest.mark.parametrize("flit", list(FORMATS))
def test_slots_fit_the_flit(flit):
    layout = FORMATS[flit]
    assert (layout.slots - layout.short_first) * 16 < layout.nbytes


@given(flits, st.sampled_from([4, 8, 16]))
def test_pure_reads_run_at_data_efficiency(flit, lanes):
    rate = 64e9 if flit != "68B" else 32e9
    found = link_bandwidth(rate, lanes, flit, read_fraction=1.0)
    assert found.write_bytes_per_s == 0
    assert found.read_bytes_per_s == pytest.approx(wire_bytes_per_s(rate, lanes) * data_efficiency(flit), rel=1e-9)


def test_pure_writes_pay_a_header_slot_per_line():
    found = link_bandwidth(32e9, 16, "68B", read_fraction=0.0)
    assert found.write_bytes_per_s == pytest.approx(wire_bytes_per_s(32e9, 16) * 64 / 85)


@given(flits, st.floats(0.05, 0.95))
def test_mixed_traffic_moves_more_than_either_direction_alone(flit, share):
    mixed = link_bandwidth(32e9, 8, flit, share)
    total = mixed.read_bytes_per_s + mixed.write_bytes_per_s
    alone = [link_bandwidth(32e9, 8, flit, fraction) for fraction in (0.0, 1.0)]
    assert total >= min(alone[0].write_bytes_per_s, alone[1].read_bytes_per_s) - 1e-3
    assert mixed.read_bytes_per_s <= alone[1].read_bytes_per_s
    assert mixed.write_bytes_per_s <= alone[0].write_bytes_per_s


@given(flits, st.floats(0, 1))
def test_bandwidth_is_proportional_to_lanes(flit, share):
    four, eight = (link_bandwidth(32e9, lanes, flit, share) for lanes in (4, 8))
    assert eight.read_bytes_per_s == pytest.approx(2 * four.read_bytes_per_s)
    assert eight.write_bytes_per_s == pytest.approx(2 * four.write_bytes_per_s)
