"""A flow network on which tests run single jobs and legs of devices."""

from functools import cache, partial

from ghostsim.config.load import load_part, load_platform
from ghostsim.devices.machine import Machine
from ghostsim.engine.clock import CountingEnvironment, call_after
from ghostsim.engine.network import Network
from ghostsim.engine.probes import UtilisationProbe

PS = 1e12


@cache
def part(name, *sets):
    return load_part(name, sets).value


@cache
def platform(name="h100_cxl_pim", *sets):
    return load_platform(name, sets).value


class Rig:
    def __init__(self):
        self.env = CountingEnvironment()
        self.network = Network(self.env)
        self.probe = UtilisationProbe(self.network)
        self.ends_ps = {}

    def machine(self, name="h100_cxl_pim", *sets):
        return Machine(self.env, self.network, platform(name, *sets))

    def flow(self, name, leg, nbytes, weight=1.0):
        """Send bytes over a leg."""
        done = partial(self._done, name)
        self.network.start(self.network.flow_class(leg.costs, weight), nbytes, done, leg.latency_ps)

    def job(self, name, job, after_ps=0):
        """Run a job, now or later; it ends with the last of its parts."""
        if after_ps:
            call_after(self.env, after_ps, lambda: self.job(name, job))
            return
        for each in job.parts:
            send = partial(self.network.start, each.flow_class, each.nbytes)
            if each.server is None:
                send(partial(self._done, name), job.delay_ps)
            else:
                hold = partial(self._hold, send, job.delay_ps)
                each.server.submit(hold, partial(self._done, name))

    def run(self):
        """Return when each flow and job ended, ps, in the order in which they did."""
        self.env.run()
        return self.ends_ps

    def units(self, resource):
        return self.probe.units()[resource.index]

    @staticmethod
    def _hold(send, delay_ps, release):
        send(release, delay_ps)

    def _done(self, name):
        self.ends_ps.pop(name, None)
        self.ends_ps[name] = int(self.env.now)


def alone_ps(make, nbytes=None):
    """Return how long the one leg or job takes that `make(rig)` returns."""
    rig = Rig()
    made = make(rig)
    if nbytes is None:
        rig.job("only", made)
    else:
        rig.flow("only", made, nbytes)
    return rig.run()["only"]
