"""What a simulation on an idle machine measures: how long, at which use of which resource."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ghostsim.engine.clock import PS_PER_S


@dataclass(frozen=True)
class Measured:
    """A simulated transfer or decode step: mean duration and the mean use of every resource."""

    duration_ps: float
    used: Mapping[str, float]


@dataclass(frozen=True)
class Bulk:
    """Moving many bytes from one place to another: ``latency + bytes / rate``."""

    latency_ps: int
    bytes_per_s: float
    used: Mapping[str, float]
    """Share of each resource that such a transfer uses."""

    @classmethod
    def between(cls, small: Measured, small_bytes: int, large: Measured, large_bytes: int) -> Bulk:
        """Return the transfer of which two sizes were measured."""
        rate = (large_bytes - small_bytes) / (large.duration_ps - small.duration_ps) * PS_PER_S
        return cls(max(0, round(small.duration_ps - small_bytes / rate * PS_PER_S)), rate, large.used)

    def conflict(self, used: Mapping[str, float]) -> float:
        """Return the share of time in which the transfer meets other traffic at the resource where they meet most."""
        return max((share * used.get(name, 0.0) for name, share in self.used.items()), default=0.0)
