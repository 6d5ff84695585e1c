"""Does a server take jobs first come, first served?"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.engine.clock import CountingEnvironment, call_after
from ghostsim.engine.network import Network
from ghostsim.engine.server import FifoServer
from ghostsim.errors import InvariantError


def test_jobs_are_served_in_the_order_of_arrival():
    env = CountingEnvironment()
    server = FifoServer(env)
    log = []
    for name, service_ps in [("long", 100), ("short", 1), ("none", 0), ("last", 10)]:
        server.submit(service_ps, lambda name=name: log.append((name, env.now)))
    env.run()
    assert log == [("long", 100), ("short", 101), ("none", 101), ("last", 111)]
    assert server.waits_ps == [0, 100, 101, 101]
    assert server.busy_ps == 111


def test_places_work_side_by_side():
    env = CountingEnvironment()
    server = FifoServer(env, places=2)
    log = []
    for service_ps in (30, 10, 10, 10):
        server.submit(service_ps, lambda: log.append(env.now))
    assert (server.free, server.queued) == (0, 2)
    env.run()
    assert log == [10, 20, 30, 30]
    assert (server.free, server.queued, server.busy_ps) == (2, 0, 60)


def test_a_job_can_be_a_flow():
    env = CountingEnvironment()
    net = Network(env)
    scan = net.flow_class([(net.resource("media", 1e9), 1.0)])
    server = FifoServer(env)
    log = []
    for _ in range(3):
        server.submit(lambda done: net.start(scan, 1000, done), lambda: log.append(env.now))
    env.run()
    assert log == [1_000_000, 2_000_000, 3_000_000]


@pytest.mark.parametrize("in_order", [False, True])
def test_one_scan_at_a_time_overlaps_gathers_with_scans(in_order):
    # Eight scans that share the medium all end together, and the gathers start after them; one at a time, each
    # gather starts behind its own scan.
    env = CountingEnvironment()
    net = Network(env)
    scan = net.flow_class([(net.resource("media", 70e9), 1.0)])
    gather = net.flow_class([(net.resource("pcie", 26e9), 1.0)])
    filter_engine = FifoServer(env, places=1 if in_order else 8)
    for _ in range(8):
        filter_engine.submit(
            lambda done: net.start(scan, 700_000, done), lambda: net.start(gather, 520_000, lambda: None)
        )
    env.run()
    scan_ps, gather_ps = 10_000_000, 20_000_000
    expected_ps = (1 if in_order else 8) * scan_ps + 8 * gather_ps
    assert expected_ps <= env.now <= expected_ps + 8  # every end is rounded up


def test_a_job_submitted_at_the_end_of_another_queues_behind_those_waiting():
    env = CountingEnvironment()
    server = FifoServer(env)
    log = []

    def resubmit():
        log.append("first")
        server.submit(5, lambda: log.append("again"))

    server.submit(5, resubmit)
    server.submit(5, lambda: log.append("waiting"))
    env.run()
    assert log == ["first", "waiting", "again"]


def test_thousands_of_jobs_that_end_at_once_do_not_nest():
    env = CountingEnvironment()
    server = FifoServer(env)
    count = 0

    def done():
        nonlocal count
        count += 1

    server.submit(1, done)
    for _ in range(5000):
        server.submit(lambda release: release(), done)
    env.run()
    assert count == 5001


def test_a_place_given_back_twice_is_noticed():
    env = CountingEnvironment()
    server = FifoServer(env)

    def service(release):
        release()
        release()

    with pytest.raises(InvariantError, match="twice"):
        server.submit(service, lambda: None)


def test_nonsense_is_refused():
    env = CountingEnvironment()
    with pytest.raises(ValueError, match="at least 1"):
        FifoServer(env, places=0)
    with pytest.raises(ValueError, match="at least 0"):
        FifoServer(env).submit(-1, lambda: None)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 50)), max_size=30), st.integers(1, 4))
def test_finish_times_follow_the_recurrence_of_a_fifo_queue(jobs, places):
    # Kiefer and Wolfowitz: a job starts when it has arrived and the first place is free.
    env = CountingEnvironment()
    server = FifoServer(env, places)
    ends, expected, free = {}, {}, [0] * places
    for i, (arrival, service_ps) in sorted(enumerate(jobs), key=lambda job: job[1][0]):
        call_after(env, arrival, lambda i=i, s=service_ps: server.submit(s, lambda: ends.__setitem__(i, env.now)))
        start = max(arrival, min(free))
        free[free.index(min(free))] = expected[i] = start + service_ps
    env.run()
    assert ends == expected
