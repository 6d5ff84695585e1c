"""Blocks sink from tier to tier, the least recently used first."""

from hypothesis import given
from hypothesis import strategies as st

from ghostsim.pipeline.prefix_cache import HOME, PrefixCache


def filled(ids, **below):
    cache = PrefixCache(10, below)
    cache.add(ids)
    cache.release(ids)
    return cache


def test_held_blocks_are_not_free():
    cache = filled([1, 2, 3])
    cache.hold([2])
    assert cache.free_bytes == 20
    assert cache.home_bytes == 30


def test_the_end_of_a_prompt_leaves_before_its_beginning():
    cache = filled([1, 2, 3], dram=100)
    cache.evict(10)
    assert cache.find([1, 2, 3]) == [HOME, HOME, "dram"]


def test_a_block_is_found_only_behind_those_before_it():
    cache = filled([1, 2, 3])
    cache.evict(10)
    assert cache.find([1, 9, 2]) == [HOME]


def test_what_leaves_home_is_written_below_and_what_leaves_there_goes_behind():
    cache = filled([1, 2, 3], dram=10, ssd=10)
    out, behind = cache.evict(30)
    assert (dict(out), dict(behind)) == ({"dram": 30}, {"ssd": 20})
    assert cache.counts["dropped"] == 1


def test_a_block_that_is_below_already_is_not_written_again():
    cache = filled([1], dram=100)
    cache.evict(10)
    cache.add([1])
    cache.release([1])
    assert not cache.evict(10)[0]


def test_a_read_block_is_the_last_to_sink_further():
    cache = filled([1, 2], dram=20, ssd=100)
    cache.evict(20)
    cache.touch(["dram"], [2])
    cache.add([3])
    cache.release([3])
    cache.evict(10)
    assert cache.find([1]) == ["ssd"]
    assert cache.find([2]) == ["dram"]


def test_a_tier_without_room_is_passed_over():
    cache = filled([1], dram=5, ssd=100)
    out, behind = cache.evict(10)
    assert (dict(out), dict(behind)) == ({"ssd": 10}, {})


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.integers(0, 5), st.integers(0, 5))
def test_lower_tiers_never_hold_more_than_their_room(ids, dram, ssd):
    cache = PrefixCache(10, {"dram": 10 * dram, "ssd": 10 * ssd})
    for block in ids:
        new = cache.add([block])
        cache.release(new)
        if cache.free_bytes > 30:
            cache.evict(10)
    assert cache.tier_bytes("dram") <= 10 * dram
    assert cache.tier_bytes("ssd") <= 10 * ssd
