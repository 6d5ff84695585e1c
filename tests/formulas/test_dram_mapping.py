"""Are address mappings one to one, and do they place addresses where their names say?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostsim.timing.dram_mapping import decode, known
from ghostsim.timing.dram_table import load_timings

TIMINGS = load_timings()
NAMES = ("CHUNK256", "MOP4CLXOR", "RoBaRaCoCh", "ChRaBaRoCo", "rochrabacobg", "rorachbacobg")


@settings(max_examples=60, deadline=None)
@given(part=st.sampled_from(sorted(TIMINGS)), name=st.sampled_from(NAMES), start=st.integers(0, 1 << 20))
def test_no_two_rows_share_a_place(part, name, start):
    timing = TIMINGS[part]
    lines = np.arange(start, start + 4096, dtype=np.int64) * timing.access_bytes
    channel, bank, row = decode(timing, lines, name)
    _, counts = np.unique(np.stack([channel, bank, row]), axis=1, return_counts=True)
    assert counts.max() <= timing.row_bytes // timing.access_bytes
    assert bank.min() >= 0
    assert bank.max() < timing.units * timing.banks


def test_row_interleaving_keeps_a_row_together():
    timing = TIMINGS["DDR4_3200AA_1ch_1R"]
    _, bank, row = decode(timing, np.arange(0, 2 * timing.row_bytes, 64), "RoBaRaCoCh")
    assert len(set(zip(bank.tolist(), row.tolist(), strict=True))) == 2


def test_lowest_field_of_dramsim_mapping_moves_with_every_access():
    timing = TIMINGS["DDR4_8Gb_x8_3200_1ch_1R"]
    _, bank, _ = decode(timing, np.arange(0, 256, 64), "rochrabacobg")
    assert (bank // timing.banks_per_group).tolist() == [0, 1, 2, 3]


def test_four_lines_stay_together_before_banks_change():
    _, bank, _ = decode(TIMINGS["DDR4_3200AA_1ch_1R"], np.arange(0, 512, 64), "MOP4CLXOR")
    assert len(set((bank[:4] // 4).tolist()) | set((bank[4:] // 4).tolist())) > 1


@pytest.mark.parametrize("name", ["", "other", "RoBaCo ", "RoBaBaCo", "RoRaCoCh", "chunk"])
def test_what_is_no_mapping_is_known_as_none(name):
    assert not known(name)
