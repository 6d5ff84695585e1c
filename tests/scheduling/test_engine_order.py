"""In which order do things of one instant happen, and is it always the same?"""

import hashlib
import os
import subprocess
import sys

import simpy

from ghostsim.engine.clock import LAST, NEVER, PS_PER_S, Call, CountingEnvironment, call_after
from ghostsim.engine.network import Network


def two_links():
    net = Network(CountingEnvironment())
    return net, net.flow_class([(net.resource("a", 1e9), 1.0)]), net.flow_class([(net.resource("b", 1e9), 1.0)])


def test_flows_that_end_together_call_back_in_the_order_of_their_start():
    net, a, b = two_links()
    log = []
    for name, flow_class in [("b1", b), ("a1", a), ("b2", b), ("a2", a)]:
        net.start(flow_class, 1000, lambda name=name: log.append((net.env.now, name)))
    net.env.run()
    assert log == [(2_000_000, "b1"), (2_000_000, "a1"), (2_000_000, "b2"), (2_000_000, "a2")]


def test_a_later_start_that_ends_at_the_same_instant_comes_later():
    net, a, b = two_links()
    log = []
    net.start(a, 500, lambda: log.append("delayed"), 500_000)
    net.start(b, 1000, lambda: log.append("whole"))
    net.env.run()
    assert log == ["delayed", "whole"]


def test_no_callback_comes_before_start_returns():
    net, a, _ = two_links()
    log = []
    net.start(a, 0, lambda: log.append("done"))
    log.append("returned")
    net.env.run()
    assert log == ["returned", "done"]


def test_chained_flows_run_one_after_the_other():
    net, a, b = two_links()
    log = []

    def second():
        log.append(("first", net.env.now))
        net.start(b, 500, lambda: log.append(("second", net.env.now)))

    net.start(a, 1000, second)
    net.env.run()
    assert log == [("first", 1_000_000), ("second", 1_500_000)]


def test_all_starts_of_an_instant_are_solved_once():
    net, a, b = two_links()

    def begin():
        yield net.env.timeout(100)
        for _ in range(50):
            net.start(a, 1000, lambda: None)
        yield net.env.timeout(0)
        net.start(b, 1000, lambda: None)

    net.env.process(begin())
    net.env.run(1000)
    assert net.solves == 1


def test_delayed_flows_of_an_instant_are_solved_once():
    net, a, b = two_links()
    for _ in range(50):
        net.start(a, 1000, lambda: None, 100)
        net.start(b, 1000, lambda: None, 100)
    net.env.run(101)
    assert net.solves == 1


def test_a_lone_flow_is_its_begin_and_its_end():
    net, a, _ = two_links()
    net.start(a, 1000, lambda: None, 100)
    net.env.run()
    assert net.env.events == 2
    assert a.rate == 0


def test_known_states_are_not_solved_again():
    net, a, _ = two_links()
    left = 1000

    def again():
        nonlocal left
        left -= 1
        if left:
            net.start(a, 100, again, 10)

    again()
    net.env.run()
    assert net.solves >= 1000
    assert net.fills <= 3


def test_a_mix_of_events_and_flows_keeps_the_order_of_the_queue():
    net, a, _ = two_links()
    log = []
    net.env.process(_sleeper(net.env, log))
    net.start(a, 1000, lambda: log.append("flow"))
    call_after(net.env, 1_000_000, lambda: log.append("call"))
    net.env.run()
    # The alarm of the flow is set when the rates are solved, after both others were queued.
    assert log == ["call", "sleeper", "flow"]


def _sleeper(env, log):
    yield env.timeout(1_000_000)
    log.append("sleeper")


def test_last_comes_after_everything_of_the_instant():
    env = CountingEnvironment()
    log = []
    Call(env, lambda _: log.append("last"), 0, LAST)
    call_after(env, 0, lambda: call_after(env, 0, lambda: log.append("first")))
    env.run()
    assert log == ["first", "last"]


def test_events_are_counted_once_however_often_asked():
    env = CountingEnvironment()
    for delay in range(10):
        call_after(env, delay, lambda: None)
    assert env.events == 0
    for _ in range(4):
        env.step()
    assert env.events == env.events == 4
    env.run()
    assert env.events == env.events == 10


def test_a_plain_environment_will_do():
    net = Network(simpy.Environment())
    net.start(net.flow_class([(net.resource("a", 1e9), 1.0)]), 1000, lambda: None)
    net.env.run()
    assert net.env.now == 1_000_000


def test_an_open_end_is_beyond_any_run():
    assert NEVER > 10**6 * PS_PER_S


PROGRAM = """
import numpy as np
from ghostsim.engine.clock import CountingEnvironment
from ghostsim.engine.network import Network
rng = np.random.default_rng(7)
env = CountingEnvironment()
net = Network(env)
resources = [net.resource(f"r{i}", c) for i, c in enumerate(rng.uniform(1e9, 1e12, 6))]
classes = [net.flow_class([(resources[r], float(rng.uniform(1, 2))) for r in rng.permutation(6)[:3]]) for _ in range(9)]
def follow(n):
    print(n, env.now)
    if n:
        net.start(classes[n % 9], 1000 * n, lambda: follow(n - 1), 10 * n)
for n in range(40):
    follow(n)
env.run()
print(net.solves, net.fills, env.events)
"""


def test_another_process_and_hash_seed_give_the_same_times():
    digests = set()
    for seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        output = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, check=True
        ).stdout
        assert len(output.splitlines()) > 800
        digests.add(hashlib.sha256(output).hexdigest())
    assert len(digests) == 1
