"""Are the rates the weighted max-min fair ones?"""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostsim.engine.clock import PS_PER_S, CountingEnvironment
from ghostsim.engine.fairness import Demand, fill
from ghostsim.engine.network import Network

RESOURCES = 4

magnitudes = st.floats(1e-3, 1e3)
costs = st.dictionaries(st.integers(0, RESOURCES - 1), st.floats(0.1, 10.0), min_size=1)
demands = st.lists(
    st.builds(
        Demand,
        costs.map(lambda cost: tuple(sorted(cost.items()))),
        magnitudes,
        magnitudes | st.just(math.inf),
        st.integers(1, 50),
    ),
    min_size=1,
    max_size=12,
)
capacities = st.lists(magnitudes, min_size=RESOURCES, max_size=RESOURCES)


def use(demands, rates):
    used = [0.0] * RESOURCES
    for demand, rate in zip(demands, rates, strict=True):
        for resource, cost in demand.costs:
            used[resource] += demand.flows * cost * rate
    return used


@given(demands, capacities)
def test_no_resource_is_used_beyond_its_capacity(demands, capacities):
    used = use(demands, fill(demands, capacities)[0])
    assert all(u <= capacity * (1 + 1e-9) for u, capacity in zip(used, capacities, strict=True))


@given(demands, capacities)
def test_every_flow_has_a_bottleneck(demands, capacities):
    # Bertsekas and Gallager: rates are max-min fair exactly if every flow is at its ceiling or crosses a full
    # resource on which no flow has more per weight.
    rates = fill(demands, capacities)[0]
    used = use(demands, rates)
    highest = [
        max((r / d.weight for d, r in zip(demands, rates, strict=True) if i in dict(d.costs)), default=0.0)
        for i in range(RESOURCES)
    ]
    for demand, rate in zip(demands, rates, strict=True):
        assert 0 < rate <= demand.ceiling
        assert rate >= demand.ceiling * (1 - 1e-9) or any(
            used[i] >= capacities[i] * (1 - 1e-9) and rate / demand.weight >= highest[i] * (1 - 1e-9)
            for i, _ in demand.costs
        )


def test_the_textbook_example():
    # Three links of capacity 1; one flow crosses all of them, link 0 carries one more flow, link 1 two more.
    long = Demand(((0, 1.0), (1, 1.0), (2, 1.0)), 1.0, math.inf, 1)
    rates, _ = fill(
        [long, Demand(((0, 1.0),), 1.0, math.inf, 1), Demand(((1, 1.0),), 1.0, math.inf, 2)], [1.0, 1.0, 1.0]
    )
    assert rates == pytest.approx([1 / 3, 2 / 3, 1 / 3])


def test_no_demand_has_no_rates():
    assert fill([], [1.0])[0] == []


def unique(demands):
    """Return demands of which no two are one class of flows."""
    return list({demand[:3]: demand for demand in demands}.values())


@given(demands.map(unique), capacities)
def test_resources_that_cannot_limit_change_no_rate(demands, capacities):
    # A network fills only those of which no other resource of every route fills first.
    env = CountingEnvironment()
    network = Network(env)
    resources = [network.resource(f"r{i}", capacity * PS_PER_S) for i, capacity in enumerate(capacities)]
    classes = [
        network.flow_class(
            [(resources[i], cost) for i, cost in demand.costs],
            demand.weight,
            demand.ceiling * PS_PER_S if demand.ceiling < math.inf else None,
        )
        for demand in demands
    ]
    for flow_class, demand in zip(classes, demands, strict=True):
        for _ in range(demand.flows):
            network.start(flow_class, 10**9, str)
    env.step()
    asked = [demand._replace(ceiling=demand.ceiling * PS_PER_S / PS_PER_S) for demand in demands]
    rates, limits = fill(asked, [capacity * PS_PER_S / PS_PER_S for capacity in capacities])
    assert [flow_class.shares[-1] for flow_class in classes] == list(zip(rates, limits, strict=True))
