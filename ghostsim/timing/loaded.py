"""Loaded latency of whole memory systems, whose idle latency and bandwidth are known and whose inside is not.

The shape between idle and full is fitted, to the rows of `memory_system_latency` and `cxl_latency_model` in
``hwmodels/reference`` (curves of the Mess simulator, BSD-3-Clause). Two mechanisms, two sets of constants: a DRAM
system fills up, so its queues grow steeply near the end and steeper with writes, whose bus turnarounds interrupt reads;
behind a CXL port of the vendor's simulation the requester is throttled and the medium is never full.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LatencyShape:
    """Latency over idle latency = 1 + (linear + linear_writes w) x + (knee + knee_writes min(w, 1/2)) x^exponent.

    x is load over maximum and w the share of writes; beyond one half the reads are the ones that interrupt.
    """

    linear: float
    linear_writes: float
    knee: float
    knee_writes: float
    exponent: float

    def factor(self, utilisation: float, read_fraction: float = 1.0) -> float:
        """Return the loaded over the idle latency at a share of the maximum bandwidth; above 1 it stays that of 1."""
        x, writes = min(max(utilisation, 0.0), 1.0), 1 - read_fraction
        knee = self.knee + self.knee_writes * min(writes, 0.5)
        return 1 + (self.linear + self.linear_writes * writes) * x + knee * float(x**self.exponent)


DRAM = LatencyShape(linear=0.257, linear_writes=0.00451, knee=0.744, knee_writes=1.97, exponent=6.72)
DRAM_SOURCE = (
    "fitted to the 233 rows of Graviton 3 (DDR5), Skylake 8160 (DDR4) and H100 (HBM2e); median / p90 error 2.2 / "
    "7.6 %, on the half not fitted to 2.2 / 8.4 %, on machines not fitted to 3.2 / 14.0 %"
)

CXL_THROTTLED = LatencyShape(linear=0.04, linear_writes=0.41, knee=0.128, knee_writes=0.248, exponent=7.0)
CXL_SOURCE = (
    "fitted to the 100 rows of the vendor's simulation, the only such part; median / p90 error 0.3 / 1.4 %, each read "
    "fraction predicted from the others 0.5 / 1.7 %"
)


def latency_ns(idle_ns: float, utilisation: float, read_fraction: float = 1.0, shape: LatencyShape = DRAM) -> float:
    """Return the load-to-use latency in ns at a share of the maximum bandwidth."""
    return idle_ns * shape.factor(utilisation, read_fraction)
