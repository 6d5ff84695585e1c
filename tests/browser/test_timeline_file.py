"""Does a timeline survive its file, and can a viewer draw it?"""

import gzip
import itertools
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yardstick import paced

from ghostsim.export.timeline import Counter, Slice, read_timeline, write_timeline

names = st.text(min_size=1, max_size=8)
slices = st.builds(
    lambda label, lane, name, start, length: Slice(label, lane, name, "read", start, start + length, {"layer": 1}),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["gpu", "cxl"]),
    names,
    st.integers(0, 10**15),
    st.integers(0, 10**12),
)


def events(path):
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


@settings(max_examples=60, deadline=None)
@given(st.lists(slices, max_size=30))
def test_every_slice_comes_back_to_the_picosecond(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("timeline") / "timeline.json.gz"
    write_timeline(path, some, [], {"covers": "all"})
    found = read_timeline(path)

    def key(one):
        return (one.label, one.lane.split(" #")[0], one.name, one.start_ps, one.finish_ps)

    assert sorted(map(key, found.slices)) == sorted(map(key, some))
    assert found.metadata == {"covers": "all"}


@settings(max_examples=60, deadline=None)
@given(st.lists(slices, max_size=40))
def test_slices_of_one_lane_never_overlap(tmp_path_factory, some):
    path = tmp_path_factory.mktemp("timeline") / "timeline.json.gz"
    write_timeline(path, some, [], {})
    lanes = {}
    for one in read_timeline(path).slices:
        lanes.setdefault((one.label, one.lane), []).append((one.start_ps, one.finish_ps))
    for pieces in lanes.values():
        pieces.sort()
        assert all(after[0] >= before[1] for before, after in itertools.pairwise(pieces))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), max_size=30))
def test_counters_come_back_bin_by_bin(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("timeline") / "timeline.json.gz"
    counter = Counter("a", "pcie0", 7, values, "utilisation", {"capacity_bytes_per_s": 64e9})
    write_timeline(path, [], [counter], {})
    assert read_timeline(path).counters == (counter,)


def test_overlapping_slices_use_the_lowest_free_track(tmp_path):
    pieces = [(0, 10), (5, 15), (10, 20), (16, 18), (17, 19)]
    path = tmp_path / "timeline.json.gz"
    write_timeline(path, [Slice("a", "gpu", f"s{i}", "read", *piece) for i, piece in enumerate(pieces)], [], {})
    placed = {one.name: one.lane for one in read_timeline(path).slices}
    assert placed == {"s0": "gpu", "s1": "gpu #2", "s2": "gpu", "s3": "gpu #2", "s4": "gpu #3"}


def test_same_slices_give_the_same_bytes(tmp_path):
    some = [Slice("a", "gpu", "x", "read", 0, 5)]
    write_timeline(tmp_path / "one.gz", some, [], {})
    time.sleep(1.1)
    write_timeline(tmp_path / "two.gz", some, [], {})
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


def test_viewers_get_names_and_microseconds(tmp_path):
    path = tmp_path / "timeline.json.gz"
    write_timeline(path, [Slice("run", "gpu", "x", "read", 1_500_000, 2_000_001)], [], {})
    found = events(path)
    assert {"process_name", "thread_name"} <= {event["name"] for event in found}
    piece = next(event for event in found if event["ph"] == "X")
    assert (piece["ts"], piece["dur"]) == (1.5, 0.500001)


def test_arrows_lead_from_what_a_slice_waited_for_on_another_lane(tmp_path):
    chain = [("gpu", 0, 4_000_000), ("cxl filter", 4_000_000, 9_000_000), ("cxl fetch", 9_000_000, 20_000_000)]
    some = [
        Slice("run", lane, lane, "read", start, finish, {}, row, (row - 1,) if row else ())
        for row, (lane, start, finish) in enumerate(chain)
    ]
    path = tmp_path / "timeline.json.gz"
    write_timeline(path, some, [], {})
    found = events(path)
    lanes = {event["tid"]: event["args"]["name"] for event in found if event["name"] == "thread_name"}
    leaving = {event["id"]: lanes[event["tid"]] for event in found if event["ph"] == "s"}
    arriving = {event["id"]: (lanes[event["tid"]], event["ts"]) for event in found if event["ph"] == "f"}
    assert sorted((leaving[each], *arriving[each]) for each in leaving) == [
        ("cxl filter", "cxl fetch", 9.0),
        ("gpu", "cxl filter", 4.0),
    ]


def test_arrows_begin_and_end_inside_slices(tmp_path):
    some = [Slice("run", f"lane {i % 3}", "x", "read", i * 50, i * 50 + 40, {}, i, tuple(range(i))) for i in range(9)]
    path = tmp_path / "timeline.json.gz"
    write_timeline(path, some, [], {})
    found = events(path)
    spans = [(each["pid"], each["tid"], each["ts"], each["ts"] + each["dur"]) for each in found if each["ph"] == "X"]
    ends = [each for each in found if each["ph"] in "sf"]
    assert ends
    for end in ends:
        assert any(
            (end["pid"], end["tid"]) == (pid, tid) and start <= end["ts"] <= finish for pid, tid, start, finish in spans
        )


def test_outstanding_slices_of_a_lane_are_counted(tmp_path):
    pieces = [(0, 10_000_000), (5_000_000, 15_000_000), (10_000_000, 20_000_000)]
    path = tmp_path / "timeline.json.gz"
    write_timeline(path, [Slice("a", "gpu", f"s{i}", "read", *piece) for i, piece in enumerate(pieces)], [], {})
    counted = [(e["ts"], e["args"]["value"]) for e in events(path) if e["name"] == "gpu outstanding"]
    assert counted == [(0, 1), (5, 2), (15, 1), (20, 0)]


@pytest.mark.bench
def test_hundred_thousand_slices_are_written_in_seconds(tmp_path):
    many = [
        Slice("run", f"lane {i % 40}", "read", "read", i * 100, i * 100 + 950, {"layer": i % 32}) for i in range(10**5)
    ]

    def write():
        began = time.process_time()
        write_timeline(tmp_path / "timeline.json.gz", many, [], {})
        return time.process_time() - began, None

    assert paced(write, repeats=1)[0] < 3
