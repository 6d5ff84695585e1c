"""How slow is this machine now? Bare SimPy events, beside which the simulator is timed."""

import time

from ghostsim.engine.clock import CountingEnvironment

EVENT_S = 0.5e-6
"""A timeout of bare SimPy with its resume on a quiet machine."""


def event_s():
    """Return CPU seconds per event of bare SimPy."""
    env = CountingEnvironment()

    def ticks():
        for _ in range(50_000):
            yield env.timeout(1)

    env.process(ticks())
    begun = time.process_time()
    env.run()
    return (time.process_time() - begun) / 50_000
