"""With synthetic service times the loop is a queue whose mean waiting is known."""

import math

import numpy as np
import pytest
from queues import md1, mdc, mm1
from serving_rig import UNIT_PS, Synthetic, jobs_of, serve

from ghostsim.metrics.serving import half_width

CUSTOMERS = 60_000


def arrivals(rng, gap_ps, count):
    return np.cumsum(rng.exponential(gap_ps, count)).astype(np.int64).tolist()


def waits(load, customers=CUSTOMERS, seed=1, exponential=False):
    """Return the waiting times of one-token requests on a server of batch 1, in services."""
    rng = np.random.default_rng(seed)
    times = arrivals(rng, UNIT_PS / load, customers)
    costs = Synthetic(draw=lambda count: rng.exponential(UNIT_PS, count)) if exponential else Synthetic()
    jobs = jobs_of([1] * customers, [1] * customers)
    serve(jobs, times, costs, max_batch=1)
    return np.array([job.admitted_ps - job.arrival_ps for job in jobs]) / UNIT_PS


def close_to(found, expected):
    """Within 2 %, or within the run's own confidence where that is wider."""
    return abs(found.mean() - expected) <= max(0.02 * expected, half_width(found))


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_constant_service_waits_as_m_d_1(load):
    assert close_to(waits(load), md1(load))


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.3, 0.5, 0.8])
def test_exponential_service_waits_as_m_m_1(load):
    assert close_to(waits(load, exponential=True), mm1(load))


@pytest.mark.slow
@pytest.mark.parametrize(("load", "servers"), [(0.5, 2), (0.8, 2), (0.8, 4)])
def test_many_short_iterations_wait_as_m_d_c(load, servers):
    """A service of 2,000 iterations whose time does not depend on the batch is c servers side by side."""
    iterations, customers = 2000, 30_000
    rng = np.random.default_rng(1)
    service_ps = iterations * UNIT_PS
    times = arrivals(rng, service_ps / load / servers, customers)
    jobs = jobs_of([1] * customers, [iterations] * customers)
    serve(jobs, times, max_batch=servers)
    found = np.array([job.finish_ps - job.arrival_ps for job in jobs]) / service_ps - 1
    assert close_to(found, mdc(load, servers))


def test_m_d_c_of_one_server_is_pollaczek_khinchine():
    assert mdc(0.7, 1) == pytest.approx(md1(0.7), rel=1e-9)


def test_m_d_1_at_half_load_without_waiting_for_the_long_run():
    found = waits(0.5, customers=20_000)
    assert abs(found.mean() - md1(0.5)) <= 1.5 * half_width(found)


@pytest.mark.slow
def test_batch_means_cover_the_truth_as_often_as_they_say():
    """Of 60 intervals at 95 %, at least 51 must hold the truth (below that has a probability of 0.3 %)."""
    runs = [waits(0.5, customers=4000, seed=seed) for seed in range(60)]
    covered = sum(abs(run.mean() - md1(0.5)) <= half_width(run) for run in runs)
    assert covered >= 51


def test_a_mean_of_independent_values_has_the_usual_half_width():
    values = np.random.default_rng(1).normal(size=100_000)
    assert half_width(values) == pytest.approx(2.093 / math.sqrt(len(values)), rel=0.4)


def test_too_few_values_have_no_confidence():
    assert half_width(np.arange(199.0)) is None
