"""Copy engines: start, bytes, fragments, and Little's law."""

import pytest
from rig import PS, Rig, alone_ps, part

from ghostsim.devices.dma_engine import DmaEngine

ENGINES = part("h100_sxm").copy_engines
GB = 10**9


def leg(fragment, latency_ps=0):
    return lambda rig: DmaEngine(rig.network, "gpu0", ENGINES).move(fragment, latency_ps)


def test_a_copy_starts_after_its_launch():
    assert alone_ps(leg(64 * 1024), 64) == pytest.approx(2.03e6, rel=0.01)


def test_large_fragments_reach_the_rate_of_both_engines():
    assert 10 * GB / alone_ps(leg(64 * 1024), 10 * GB) * PS == pytest.approx(2 * 55.4e9, rel=0.001)


@pytest.mark.parametrize("fragment", [64, 256, 512])
def test_small_fragments_are_limited_by_descriptors(fragment):
    """Two engines issue a fragment every 11.8 ns together."""
    assert GB / alone_ps(leg(fragment), GB) * PS == pytest.approx(fragment / 11.8e-9, rel=0.005)


def test_fragments_from_1308_bytes_on_hide_their_descriptors():
    rates = [GB / (alone_ps(leg(f), GB) - ENGINES.start) * PS for f in (1300, 1320)]
    assert rates[0] == pytest.approx(1300 / 11.8e-9, rel=1e-4)
    assert rates[1] == pytest.approx(2 * 55.4e9, rel=1e-4)


@pytest.mark.parametrize("latency_ps", [910_000, 1_800_000, 5_000_000])
def test_outstanding_bytes_limit_a_copy_by_littles_law(latency_ps):
    littles = min(2 * 55.4e9, 65536 / latency_ps * PS)
    assert 10 * GB / alone_ps(leg(65536, latency_ps), 10 * GB) * PS == pytest.approx(littles, rel=0.001)


def test_copies_of_all_requests_share_the_engines():
    rig = Rig()
    shared = leg(65536)(rig)
    for name in range(4):
        rig.flow(name, shared, GB)
    assert 4 * GB / (rig.run()[3] - ENGINES.start) * PS == pytest.approx(2 * 55.4e9, rel=1e-4)
