"""Does the network give the finish times of a solver written the plain way?"""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ghostsim.engine.network as network_module
from ghostsim.engine.clock import CountingEnvironment
from ghostsim.engine.network import Network


def plain_rates(flows, capacities):
    """Fill progressively: raise all flows by the largest step that nothing forbids, fix those at a limit."""
    rate = dict.fromkeys(flows, 0.0)
    rising = list(flows)
    while rising:
        steps = []
        for r, capacity in enumerate(capacities):
            slope = sum(f.weight * f.costs.get(r, 0.0) for f in rising)
            if slope:
                steps.append(((capacity - sum(rate[f] * f.costs.get(r, 0.0) for f in flows)) / slope, ("full", r)))
        steps += [((f.ceiling - rate[f]) / f.weight, ("ceiling", f)) for f in rising if f.ceiling]
        step, (kind, what) = min(steps, key=lambda s: s[0])
        for f in rising:
            rate[f] += f.weight * max(step, 0.0)
        rising = [f for f in rising if not ((kind == "ceiling" and f is what) or (kind == "full" and what in f.costs))]
    return rate


class PlainFlow:
    def __init__(self, costs, weight, ceiling, nbytes, start_ps):
        self.costs, self.weight, self.ceiling = costs, weight, ceiling
        self.left, self.start_ps, self.finish_ps = float(nbytes), start_ps, None


def plain_finish_times(flows, capacities):
    """Advance from event to event with every flow's remaining bytes in a dictionary; return the number of solves."""
    now, active, solves = 0, [], 0
    waiting = sorted(flows, key=lambda f: f.start_ps)
    while waiting or active:
        rates = plain_rates(active, capacities)
        solves += 1
        ends = [now + math.ceil(f.left / rates[f] - 1e-3) for f in active]
        at = min(ends + [f.start_ps for f in waiting[:1]])
        for f, end in zip(active, ends, strict=True):
            f.left -= rates[f] * (at - now)
            if end <= at:
                f.finish_ps = at
        now = at
        active = [f for f in active if f.finish_ps is None]
        while waiting and waiting[0].start_ps == now:
            active.append(waiting.pop(0))
    return solves


def network_finish_times(flows, capacities):
    env = CountingEnvironment()
    net = Network(env)
    resources = [net.resource(f"r{i}", capacity * 1e12) for i, capacity in enumerate(capacities)]
    ends = [None] * len(flows)

    def note(i):
        ends[i] = env.now

    for i, f in enumerate(flows):
        route = [(resources[r], cost) for r, cost in f.costs.items()]
        flow_class = net.flow_class(route, f.weight, f.ceiling * 1e12 if f.ceiling else None)
        net.start(flow_class, int(f.left), lambda i=i: note(i), f.start_ps)
    env.run()
    return ends


@st.composite
def programs(draw):
    """Flows of a few kinds, so that classes are shared, on a few resources; many of them begin together."""
    capacities = draw(st.lists(st.floats(0.01, 3.0), min_size=1, max_size=5))
    costs = st.dictionaries(st.integers(0, len(capacities) - 1), st.sampled_from([0.5, 1.0, 1.25, 3.0]), min_size=1)
    kinds = draw(
        st.lists(
            st.tuples(costs, st.sampled_from([1.0, 2.0, 64.0]), st.sampled_from([None, None, 0.02, 0.5])),
            min_size=1,
            max_size=4,
        )
    )
    flow = st.tuples(
        st.sampled_from(kinds), st.integers(1, 10**7), st.sampled_from([0, 0, 1000, 10**6]) | st.integers(0, 10**8)
    )
    return capacities, [
        PlainFlow(*kind, nbytes, start) for kind, nbytes, start in draw(st.lists(flow, min_size=1, max_size=20))
    ]


def assert_equal_times(program):
    capacities, flows = program
    ends = network_finish_times(flows, capacities)
    solves = plain_finish_times(flows, capacities)
    for end, flow in zip(ends, flows, strict=True):
        assert abs(end - flow.finish_ps) <= 2 * solves


@settings(max_examples=150, deadline=None)
@given(programs())
def test_finish_times_are_those_of_the_plain_solver(program):
    assert_equal_times(program)


@settings(max_examples=30, deadline=None)
@given(programs())
def test_forgetting_solved_states_changes_nothing(program):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_module, "_MOST_STATES", 2)
        assert_equal_times(program)
