"""With synthetic service times the loop is a queue whose waits are known: of every customer, and in the mean.

The mean of a long run needs millions of customers at high load. The loop serves some of them, and the recursion that is
exact for the same customers is its control variate: its own mean over ten million others replaces that over these.
"""

import math
from functools import cache

import numpy as np
import pytest
from queues import md1, mdc, mm1, waits_of
from serving_rig import UNIT_PS, Synthetic, jobs_of, serve

from ghostsim.metrics.serving import half_width

CUSTOMERS = 20_000
ITERATIONS = 2000
"""Of a service where several requests are served side by side; their time does not depend on the batch."""
KINDS = {"M/D/1": (1, False, md1), "M/M/1": (1, True, mm1)}
LOADS = [0.3, 0.5, 0.8]
SERVERS = [2, 4]


def customers(load, count, *, seed=1, servers=1, exponential=False):
    """Return arrivals and services in ps; a service takes one unit in the mean."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(UNIT_PS / load / servers, count)).astype(np.int64)
    services = rng.exponential(UNIT_PS, count) if exponential else np.full(count, UNIT_PS)
    return arrivals, services.astype(np.int64)


def served(arrivals, services):
    """Return the waits of one-token requests on a server of batch 1, in ps."""
    times = iter(services.tolist())
    jobs = jobs_of([1] * len(arrivals), [1] * len(arrivals))
    serve(jobs, arrivals.tolist(), Synthetic(draw=lambda count: [next(times) for _ in range(count)]), max_batch=1)
    return np.array([job.admitted_ps - job.arrival_ps for job in jobs])


def served_together(arrivals, servers):
    """Return the waits of requests of many short iterations on a server of batch `servers`, in ps."""
    jobs = jobs_of([1] * len(arrivals), [ITERATIONS] * len(arrivals))
    serve(jobs, arrivals.tolist(), Synthetic(UNIT_PS // ITERATIONS), max_batch=servers)
    return np.array([job.finish_ps - job.arrival_ps - UNIT_PS for job in jobs])


@cache
def both(kind, load):
    """Return the waits of the same customers in the loop and by the recursion, in ps."""
    arrivals, services = customers(load, CUSTOMERS, exponential=KINDS[kind][1])
    return served(arrivals, services), waits_of(arrivals, services)


@cache
def both_together(servers, load):
    arrivals, services = customers(load, CUSTOMERS, servers=servers)
    return served_together(arrivals, servers), waits_of(arrivals, services, servers)


def long_run(load, **kind):
    """Return the mean wait of ten million customers, ten times a million, in services."""
    servers = kind.get("servers", 1)
    runs = (waits_of(*customers(load, 1_000_000, seed=seed, **kind), servers) for seed in range(100, 110))
    return np.mean([run.mean() for run in runs]) / UNIT_PS


@pytest.mark.slow
@pytest.mark.parametrize("load", [*LOADS, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_every_customer_waits_as_lindley_says(kind, load):
    found, expected = both(kind, load)
    assert (found == expected).all()


@pytest.mark.slow
@pytest.mark.parametrize("load", [*LOADS, 0.95])
@pytest.mark.parametrize("servers", SERVERS)
def test_side_by_side_every_customer_waits_as_lindley_says(servers, load):
    """Up to the end of the iteration that goes on when it comes."""
    found, expected = both_together(servers, load)
    late = found - expected
    assert late.min() >= 0
    assert late.max() < UNIT_PS // ITERATIONS


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_wait_is_that_of_the_queue(kind, load):
    _, exponential, expected = KINDS[kind]
    found, control = both(kind, load)
    off = (found - control).mean() / UNIT_PS
    assert off + long_run(load, exponential=exponential) == pytest.approx(expected(load), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("servers", SERVERS)
def test_side_by_side_the_mean_wait_is_that_of_m_d_c(servers, load):
    found, control = both_together(servers, load)
    half_an_iteration = 0.5 / ITERATIONS
    off = (found - control).mean() / UNIT_PS - half_an_iteration
    assert off + long_run(load, servers=servers) == pytest.approx(mdc(load, servers), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_near_saturation_the_truth_is_in_the_runs_own_interval(kind):
    _, exponential, expected = KINDS[kind]
    found = served(*customers(0.95, 4 * CUSTOMERS, exponential=exponential)) / UNIT_PS
    assert abs(found.mean() - expected(0.95)) <= half_width(found)


@pytest.mark.slow
@pytest.mark.parametrize("servers", SERVERS)
def test_side_by_side_near_saturation_the_truth_is_in_the_runs_own_interval(servers):
    arrivals, _ = customers(0.95, 2 * CUSTOMERS, servers=servers)
    found = served_together(arrivals, servers) / UNIT_PS
    assert abs(found.mean() - mdc(0.95, servers)) <= half_width(found)


def test_m_d_c_of_one_server_is_pollaczek_khinchine():
    assert mdc(0.7, 1) == pytest.approx(md1(0.7), rel=1e-9)


def test_some_customers_wait_as_lindley_says():
    arrivals, services = customers(0.8, 2000, exponential=True)
    assert (served(arrivals, services) == waits_of(arrivals, services)).all()


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.95])
def test_batch_means_cover_the_truth_as_often_as_they_say(load):
    """Of 200 intervals at 95 % at least 180 must hold the truth (fewer have a probability of 0.3 %)."""
    runs = (waits_of(*customers(load, 400_000, seed=seed)) / UNIT_PS for seed in range(200))
    assert sum(abs(run.mean() - md1(load)) <= half_width(run) for run in runs) >= 180


def test_a_mean_of_independent_values_has_the_usual_half_width():
    values = np.random.default_rng(1).normal(size=100_000)
    assert half_width(values) == pytest.approx(2.093 / math.sqrt(len(values)), rel=0.4)


def test_too_few_values_have_no_confidence():
    assert half_width(np.arange(199.0)) is None
