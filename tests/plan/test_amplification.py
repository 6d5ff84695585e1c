"""Does a piece smaller than a unit of its memory or link cost the whole unit, and do the figures say so?"""

from dataclasses import replace

import numpy as np
import pytest
from invented import CXL, HBM, OFFLOAD, llama, policy, selection, simulate
from rig import Rig

from ghostsim.config.load import load_scenario
from ghostsim.devices.link import answer_seconds, data_bandwidth
from ghostsim.metrics.collect import run_metrics
from ghostsim.pipeline.decode import placement_of
from ghostsim.plan.selection import GROUPS
from ghostsim.policy.evaluation import groups_of
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


# --- pieces that share a page -------------------------------------------------------------------------------------


COLD = 16384


@pytest.fixture(params=[4096, 8192, 16384])
def page(request):
    return request.param


def paged(reads, page):
    """Return the amplification of a drive with such pages, for one mask [cold tokens] of reads per layer and head."""
    shape = (1, MODEL.layers, MODEL.kv_heads, 1)
    masks = [reads(number) for number in range(MODEL.layers * MODEL.kv_heads)]
    tokens, runs = (
        [count(mask) for mask in masks] for count in (np.count_nonzero, lambda m: np.diff(m, prepend=0).clip(0).sum())
    )
    groups = np.reshape([groups_of(mask.astype(bool), 0) for mask in masks], (len(masks), 1, GROUPS))
    of, place = policy("ghostkv"), replace(PLACES["drive"][0], unit_bytes=page)
    chosen = selection(
        of, MODEL, hot=260, cold=COLD, read=np.reshape(tokens, shape), runs=np.reshape(runs, shape), groups=groups
    )
    record = simulate(chosen, of, MODEL, place, 1, sets=(f"devices.ssd0.page={page} B",)).record
    return run_metrics(record)["read_amplification"]["ssd"]


@pytest.mark.parametrize("share", [0.01, 0.1, 0.4])
def test_random_tokens_read_as_many_pages_as_balls_fill_bins(page, share):
    """A page of g of T tokens is left alone with probability C(T - g, n) / C(T, n); sizes lie on a grid of 9 %."""
    n, g = int(share * COLD), page // 512
    alone = np.exp(sum(np.log((COLD - n - i) / (COLD - i)) for i in range(g)))

    def reads(seed):
        return np.isin(np.arange(COLD), np.random.default_rng(seed).choice(COLD, n, replace=False)).astype(int)

    assert paged(reads, page) == pytest.approx(COLD / g * (1 - alone) * page / (512 * n), rel=0.05)


def test_every_other_token_reads_every_page_once(page):
    assert paged(lambda _: np.arange(COLD) % 2, page) == pytest.approx(2, rel=0.05)


def test_one_token_a_page_shares_none(page):
    g = page // 512
    assert paged(lambda _: (np.arange(COLD) % g == 0).astype(int), page) == pytest.approx(g)


def test_a_run_knows_the_page_of_its_drive():
    sets = ("runs.ghostkv_gpu.kv_tier=ssd",)
    assert placement_of(load_scenario("recorded_4k", sets).value.runs["ghostkv_gpu"]).unit_bytes == 16384


@pytest.mark.parametrize(("place", "taken"), [("host memory", 128), ("expander", 128), ("hbm", 96)])
def test_a_record_takes_whole_accesses(place, taken):
    """K and V of 2 bits with a scale and a minimum: 72 B, in accesses of 64 B, of 32 B in HBM."""
    placement, tier, _ = PLACES[place]
    of = policy("ghostkv_onepass", "keep.0.format={int: {bits: 2, group: 128}}")
    chosen = selection(of, MODEL, hot=260, cold=COLD, read=TOKENS, runs=TOKENS)
    found = run_metrics(simulate(chosen, of, MODEL, placement, 1).record)["read_amplification"][tier]
    assert found == pytest.approx(taken / 72)


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
