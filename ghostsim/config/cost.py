"""What a platform costs: the sum over its parts, where they state it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ghostsim.units import CURRENCY


@dataclass(frozen=True)
class PlatformCost:
    """Dollars of the parts that state a cost, and the devices that state none."""

    usd: float
    unstated: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Whether every device states its cost; a link that states none comes with its ends."""
        return not self.unstated

    def per_usd(self, tokens_per_s: float) -> float | None:
        """Return tokens per second and dollar, None where a device states no cost."""
        return tokens_per_s / self.usd if self.known and self.usd else None


def platform_cost(platform: Mapping[str, Any]) -> PlatformCost | None:
    """Return the cost of the platform of an effective document, None if no part of it states one."""
    devices, links = (platform.get(parts) or {} for parts in ("devices", "links"))
    costs = {name: _usd(part.get("cost")) for name, part in [*devices.items(), *links.items()]}
    stated = {name: usd for name, usd in costs.items() if usd is not None}
    if not stated:
        return None
    return PlatformCost(sum(stated.values()), tuple(name for name in devices if name not in stated))


def cost_text(cost: PlatformCost) -> str:
    """Say what a platform costs, or which devices state no cost."""
    if cost.known:
        return f"{CURRENCY.format(cost.usd)} for the platform"
    return f"{CURRENCY.format(cost.usd)} without {', '.join(cost.unstated)}, whose cost is not stated"


def _usd(cost: object) -> float | None:
    """Return a stated cost, None where there is none that can be read."""
    try:
        return CURRENCY.parse(cost.get("value") if isinstance(cost, Mapping) else cost)
    except ValueError:
        return None
