"""How slow is this machine now? Bare SimPy events, beside which the simulator is timed."""

import time

from ghostsim.engine.clock import CountingEnvironment

EVENT_S = 0.5e-6
"""A timeout of bare SimPy with its resume on a quiet machine."""
EVENTS = 400_000
"""As long as what is timed beside it: a short look would find a quiet moment that a long run does not."""


def slowness():
    """Return how many times as slow as a quiet machine this one is, by CPU seconds per event of bare SimPy."""
    env = CountingEnvironment()

    def ticks():
        for _ in range(EVENTS):
            yield env.timeout(1)

    env.process(ticks())
    begun = time.process_time()
    env.run()
    return max(1.0, (time.process_time() - begun) / EVENTS / EVENT_S)


def paced(measure, repeats=5):
    """Return the median of what `measure` takes on a quiet machine, and beside it the slowness and its result.

    `measure` returns CPU seconds and anything else.
    """
    looks = []
    for _ in range(repeats):
        slow = slowness()
        seconds, result = measure()
        looks.append((seconds / slow, slow, result))
    return sorted(looks, key=lambda look: look[0])[repeats // 2]
