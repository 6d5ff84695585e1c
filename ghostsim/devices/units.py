"""Whole units: memories move pages, accesses and lines, whatever part of them is asked for."""

from __future__ import annotations

import math

from ghostsim.config.hardware import CxlExpander, Device, Gpu, HostCpu, NearBankPim, Nvme, Platform, Tier, Upmem

MRAM_BYTES = 8
"""Granule of transfers to and from the MRAM of a DPU."""


def whole(piece_bytes: float, unit_bytes: int) -> int:
    """Return the bytes of the units that a piece at the beginning of a unit takes."""
    return math.ceil(piece_bytes / unit_bytes) * unit_bytes


def tier_unit(platform: Platform, tier: Tier) -> int:
    """Return the least that every medium of a tier moves; 1 where there is none."""
    return min((unit_bytes(platform.devices[name]) for name in platform.tiers.get(tier, ())), default=1)


def unit_bytes(part: Device) -> int:
    """Return the least that the medium of a device moves: a DRAM access, a flash page, a granule of MRAM."""
    match part:
        case Gpu() | HostCpu() | CxlExpander():
            return part.memory.dram.geometry.access_bytes
        case Nvme():
            return part.page
        case NearBankPim():
            return part.access
        case Upmem():
            return MRAM_BYTES
        case _:
            return 1
