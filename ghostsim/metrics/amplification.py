"""Read amplification: what media move of whole units for the pieces that are asked of them."""

from __future__ import annotations

import numpy as np

from ghostsim.config.hardware import Platform
from ghostsim.devices.leg import rounded
from ghostsim.devices.units import unit_bytes, whole
from ghostsim.plan.plan import OPS, ROLES, Op, Plan, Role

_GATHERS: tuple[Op, ...] = ("read", "attend", "decode")
_SCATTERED: tuple[Role, ...] = ("cold", "archive")


def read_amplification(plan: Plan, platform: Platform) -> dict[str, float]:
    """Return, by tier, bytes that the media move for scattered KV over bytes asked for; tiers without such are absent.

    A row's pieces count by their mean size, on the grid on which the devices see them. What is brought from another
    tier and then attended in HBM is a stream there.
    """
    kinds = np.isin(plan.op, [OPS.index(op) for op in _GATHERS])
    found = {}
    for tier in dict.fromkeys(plan.tiers.values()):
        roles = [ROLES.index(role) for role in _SCATTERED if plan.tiers.get(role) == tier]
        rows = kinds & np.isin(plan.role, roles) & (plan.nbytes > 0)
        if rows.any():
            units = [unit_bytes(platform.devices[name]) for name in platform.tiers[tier]]  # type: ignore[index]
            asked = plan.nbytes[rows].tolist()
            pieces = [rounded(n / max(1, runs)) for n, runs in zip(asked, plan.runs[rows].tolist(), strict=True)]
            moved = sum(n * whole(size, unit) / size for n, size in zip(asked, pieces, strict=True) for unit in units)
            found[tier] = moved / len(units) / sum(asked)
    return found
