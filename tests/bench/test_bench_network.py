"""How many decode steps a second does the bare network simulate?"""

import functools
import time

import pytest
from yardstick import paced

from ghostsim.engine.clock import CountingEnvironment, uncollected
from ghostsim.engine.network import Network
from ghostsim.engine.probes import UtilisationProbe

pytestmark = pytest.mark.bench

LAYERS = 32
REQUESTS = 8
SPLIT = 2  # expanders


class FiveTiers:
    """A decode step on HBM, DRAM, two CXL expanders, PIM and SSD, 45 flows a layer.

    A layer: projection, then attention over hot tokens while each request scans its index on both expanders; what
    survives is gathered from both expanders (from DRAM, PIM and SSD for some requests); attention over survivors,
    output projection, MLP, and the write-back of the new token.
    """

    def __init__(self, probe: bool = False):
        self.env = CountingEnvironment()
        self.net = net = Network(self.env)
        self.probe = UtilisationProbe(net, bin_ps=10**7) if probe else None
        hbm = net.resource("hbm", 3000e9)
        pcie = net.resource("pcie", 52e9)
        dram = net.resource("dram", 200e9)
        pim = net.resource("pim", 100e9)
        ssd = net.resource("ssd", 12e9)
        self.gemm = net.flow_class([(hbm, 1.0)], weight=4e6)
        self.attend = net.flow_class([(hbm, 1.1)], weight=2e6)
        self.scans, self.gathers = [], []
        for i in range(SPLIT):
            media = net.resource(f"cxl{i}.media", 70e9)
            link = net.resource(f"cxl{i}.link", 56e9)
            unit = net.resource(f"cxl{i}.filter", 200e9)
            self.scans.append(net.flow_class([(media, 1.0), (unit, 1.0)], weight=65536))
            self.gathers.append(net.flow_class([(media, 1.25), (link, 1.06), (pcie, 1.08), (hbm, 1.0)], weight=32768))
        self.others = [
            net.flow_class([(dram, 1.2), (pcie, 1.05), (hbm, 1.0)], weight=65536),
            net.flow_class([(pim, 1.0), (pcie, 1.05), (hbm, 1.0)], weight=32768),
            net.flow_class([(ssd, 1.3), (pcie, 1.05), (hbm, 1.0)], weight=131072),
        ]
        self.write = net.flow_class([(hbm, 1.0), (pcie, 1.05), (dram, 1.1)], weight=65536)
        self.layer = 0
        self.end_ps = 0

    def run(self, steps: int) -> int:
        self.last = LAYERS * steps
        self._project()
        with uncollected():
            self.env.run()
        return self.end_ps

    def _project(self):
        if self.layer == self.last:
            self.end_ps = self.env.now
            return
        self.layer += 1
        self.net.start(self.gemm, 50_000_000, self._filter_and_attend, 4_000_000)

    def _filter_and_attend(self):
        self.left = 1 + REQUESTS * SPLIT + len(self.others)
        self.net.start(self.attend, 34_000_000, self._part_done, 5_000_000)
        for r in range(REQUESTS):
            for i in range(SPLIT):
                # Requests differ by up to 30 %, and so do steps.
                nbytes = 400_000 + 30_000 * ((r * 7 + i * 3 + self.layer) % 9)
                self.net.start(
                    self.scans[i], nbytes, functools.partial(self._gather, i, nbytes // 2), 900_000 + 1000 * r
                )
        for k, other in enumerate(self.others):
            self.net.start(other, 50_000 + 10_000 * ((self.layer + k) % 5), self._part_done, 1_500_000)

    def _gather(self, expander, nbytes):
        self.net.start(self.gathers[expander], nbytes, self._part_done, 1_200_000)

    def _part_done(self):
        self.left -= 1
        if self.left == 0:
            self.net.start(self.attend, 8_000_000, self._output, 5_000_000)

    def _output(self):
        for r in range(5):
            self.net.start(self.write, 4096 + 64 * r, _nothing, 500_000)
        self.net.start(self.gemm, 34_000_000, self._mlp, 4_000_000)

    def _mlp(self):
        self.net.start(self.gemm, 352_000_000, self._project, 4_000_000)


def _nothing():
    pass


def measure(probe: bool, steps: int = 40):
    """Return CPU seconds a step, and what a step takes of everything else."""
    program = FiveTiers(probe)
    start = time.process_time()
    end_ps = program.run(steps)
    seconds = time.process_time() - start
    if program.probe:
        assert max(program.probe.utilisation().values()) <= 1
    return seconds / steps, {
        "flows_per_layer": program.net.flows_started / steps / LAYERS,
        "events_per_step": program.env.events / steps,
        "solves_per_step": program.net.solves / steps,
        "fills_per_step": program.net.fills / steps,
        "step_ms": end_ps / steps / 1e9,
    }


@pytest.mark.parametrize("probe", [False, True])
def test_five_tier_decode_steps_per_second(probe):
    seconds, slow, result = paced(lambda: measure(probe))
    print(f"\nprobes {'on' if probe else 'off'}: {1 / seconds / slow:.0f} steps per CPU s on a machine {slow:.1f} x as "
          f"slow as a quiet one: {1 / seconds:.0f} steps/s, "
          + ", ".join(f"{key} {value:.4g}" for key, value in result.items()))  # fmt: skip
    assert result["flows_per_layer"] >= 44
    assert 1 / seconds >= 50
