"""Does a piece smaller than a unit of its memory or link cost the whole unit, and do the figures say so?"""

from dataclasses import replace

import numpy as np
import pytest
from invented import CXL, HBM, OFFLOAD, llama, policy, selection, simulate
from rig import Rig

from ghostsim.devices.link import answer_seconds, data_bandwidth
from ghostsim.metrics.collect import run_metrics
from ghostsim.timing import flit

MODEL = llama("layers=2")
TOKENS = 4096
PLACES = {
    "host memory": (OFFLOAD, "dram", 64),
    "expander": (replace(CXL, kv_tier="cxl"), "cxl", 64),
    "drive": (replace(HBM, kv_tier="ssd"), "ssd", 16384),
    "hbm": (HBM, "hbm", 64),
    "dpus": (replace(HBM, kv_tier="pim"), "pim", 8),
}
"""Placement, tier, and the bytes of an access, of a page, of a granule."""


def amplification(of, place, run_tokens):
    placement, tier, _ = PLACES[place]
    chosen = selection(policy(of), MODEL, hot=260, cold=16384, read=TOKENS, runs=TOKENS // run_tokens)
    return run_metrics(simulate(chosen, policy(of), MODEL, placement, 1).record)["read_amplification"][tier]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("run_tokens", [1, 2, 8])
def test_scattered_tokens_take_whole_units(place, run_tokens):
    piece, unit = 512 * run_tokens, PLACES[place][2]
    assert amplification("ghostkv", place, run_tokens) == pytest.approx(-(-piece // unit) * unit / piece)


def test_longer_runs_share_the_page_of_a_drive():
    found = [amplification("ghostkv", "drive", tokens) for tokens in (1, 4, 16)]
    assert found == pytest.approx([32, 8, 2])


def test_a_run_without_scattered_reads_has_no_amplification():
    of = policy("int4")
    chosen = selection(of, MODEL, hot=16384, cold=0, read=0)
    assert run_metrics(simulate(chosen, of, MODEL, HBM, 1).record)["read_amplification"] == {}


@pytest.mark.parametrize(("device", "unit"), [("host0", 64), ("cxl_exp0", 64), ("ssd0", 16384), ("upmem0", 8)])
@pytest.mark.parametrize("piece", [1, 66, 100, 136, 1000, 4000])
def test_media_are_busy_for_whole_units(device, unit, piece):
    """The resource that carries the bytes is charged as much as for the units, asked for one by one."""
    machine = Rig().machine()

    def cost(size):
        costs = machine.devices[device].read(size, 10**6).costs
        return max(cost for resource, cost in costs if resource.name.endswith((".bus", ".dies", ".from_dpu"))) * size

    assert cost(piece) == pytest.approx(cost(unit) * -(-piece // unit), rel=1e-6)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize(("piece", "lines"), [(1, 1), (64, 1), (66, 2), (136, 3), (512, 8)])
def test_a_flit_link_carries_whole_lines(piece, lines, write):
    link = Rig().machine().links["cxl0"].link
    seconds = piece / data_bandwidth(link, piece, write=write)
    assert seconds == pytest.approx(lines * 64 / data_bandwidth(link, 64, write=write))
    answers = answer_seconds(link, piece, write=write) * piece
    assert answers == pytest.approx(lines * flit.answer_seconds(link.rate, link.width, link.flit, write=write))


@pytest.mark.parametrize("piece", [1, 4, 30, 64, 200])
def test_a_pcie_piece_takes_a_header_and_whole_words(piece):
    """20 B of header and framing for each completion of at most 256 B, or 24 B for its request."""
    link = Rig().machine().links["nvme0"].link
    moved = max(-(-piece // 4) * 4 + 20, 24)
    raw = link.rate * link.width / 8 * 128 / 130 * 0.902
    assert piece / data_bandwidth(link, piece) == pytest.approx(moved / raw, rel=1e-6)


def test_the_mean_of_a_tier_weighs_bytes():
    """Two layers, one of single tokens and one of runs of 32."""
    runs = np.array([TOKENS, TOKENS // 32])[None, :, None, None]
    chosen = selection(policy("ghostkv"), MODEL, hot=260, cold=16384, read=TOKENS, runs=runs)
    record = simulate(chosen, policy("ghostkv"), MODEL, PLACES["drive"][0], 1).record
    assert run_metrics(record)["read_amplification"]["ssd"] == pytest.approx((32 + 1) / 2)
