"""Classical queues: mean waiting times in service times, and the waits of given customers."""

import math

import numpy as np


def md1(load):
    """Pollaczek-Khinchine with constant service."""
    return load / (2 * (1 - load))


def mm1(load):
    return load / (1 - load)


def mdc(load, servers, states=400):
    """Crommelin's argument: whoever is in service now has left one service time later, and nobody else.

    The stationary distribution p satisfies p = start(p) * Poisson, where start(p) lumps all states up to c.
    """
    rate = load * servers
    arrive = np.exp([-rate + j * math.log(rate) - math.lgamma(j + 1) for j in range(states)])
    p = np.zeros(states)
    p[0] = 1.0
    for _ in range(5000):
        start = np.concatenate([[p[: servers + 1].sum()], p[servers + 1 :]])
        new = np.convolve(start, arrive)[:states]
        new /= new.sum()
        if np.abs(new - p).max() < 1e-13:
            break
        p = new
    return float((np.maximum(0, np.arange(states) - servers) * p).sum() / rate)


def waits_of(arrivals_ps, services_ps, servers=1):
    """Lindley's recursion: who comes n-th starts when it is there and the one `servers` before it has left.

    With constant services customers leave as they came; several servers are as many recursions side by side.
    """
    waits = np.empty(len(arrivals_ps), np.int64)
    for first in range(servers):
        arrived, services = arrivals_ps[first::servers], services_ps[first::servers]
        worked = np.concatenate([[0], np.cumsum(services[:-1])])
        waits[first::servers] = np.maximum.accumulate(arrived - worked) + worked - arrived
    return waits
