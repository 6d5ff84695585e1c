"""A serving loop on synthetic iteration times."""

import numpy as np

from ghostsim.engine.clock import CountingEnvironment
from ghostsim.pipeline.serving import Channel, Job, Memory, Server, check, open_loop

UNIT_PS = 10**9


class Synthetic:
    """Iterations of constant time, or of what `draw` returns, whatever they hold."""

    def __init__(self, unit_ps=UNIT_PS, draw=None):
        self.unit_ps, self.draw = unit_ps, draw

    def __call__(self, batch, contexts, chunks):
        count = len(contexts)
        times = np.full(count, self.unit_ps) if self.draw is None else self.draw(count)
        return np.asarray(times, np.int64), {}


def roomy(tokens_of_room=10**9, token_bytes=1):
    return Memory(lambda tokens: {"hbm": tokens * token_bytes}, {"hbm": tokens_of_room * token_bytes})


def serve(jobs, arrivals_ps, costs=None, memory=None, ways=(), **options):
    """Serve jobs, which arrive at given times, to the end."""
    env = CountingEnvironment()
    channels = {way: Channel(1000, 1e9) for way in ways}
    options = {"max_batch": 8, "prefill_chunk": 512, "channels": channels} | options
    server = Server(env, costs or Synthetic(), memory or roomy(), **options)
    env.process(open_loop(env, server, zip(arrivals_ps, jobs, strict=True)))
    env.run()
    check(server, jobs)
    return server


def jobs_of(prompts, outputs, blocks=None):
    blocks = blocks or [()] * len(prompts)
    rows = zip(prompts, outputs, blocks, strict=True)
    return [Job(i, int(p), int(o), tuple(ids), tuple(ids)) for i, (p, o, ids) in enumerate(rows)]
