"""Energy: bytes, operations and time, at the prices that the parts state."""

from __future__ import annotations

from collections.abc import Mapping

from ghostsim.config.hardware import CxlExpander, Gpu, HostCpu, Nvme, Platform, Tier, Upmem

_PJ_PER_MJ = 1e9
_PJ_PER_J = 1e12


def tier_energy_per_bit(platform: Platform, tier: Tier) -> float | None:
    """Return the pJ per bit that the media of a tier state, None if they state none."""
    part = platform.devices[platform.tiers[tier][0]]
    match part:
        case Gpu() | HostCpu() | CxlExpander():
            return part.memory.dram.energy
        case Nvme():
            return part.energy
        case _:
            return None


def energy_mj_per_token(
    platform: Platform,
    bytes_moved: Mapping[str, int],
    *,
    flops: int,
    filter_macs: int,
    pim_busy_s: float,
    elapsed_s: float,
    tokens: float,
) -> dict[str, float]:
    """Return millijoules per token by component.

    Parameters
    ----------
    bytes_moved
        Bytes over the whole run by tier and by link.
    flops, filter_macs
        Operations on the GPU, and in the filter of a CXL expander.
    pim_busy_s, elapsed_s
        Time that DPUs ran, and simulated time.

    Returns
    -------
    mapping
        Media and links that state an energy per bit, `gpu_compute`, `filter`, `dpus`, and `static` for all
        devices of the platform, used or not. Components without a stated energy are absent.
    """
    prices: dict[str, float | None] = {tier: tier_energy_per_bit(platform, tier) for tier in platform.tiers}
    prices |= {name: link.energy for name, link in platform.links.items()}
    spent = {
        name: 8 * nbytes * price for name, nbytes in bytes_moved.items() if (price := prices.get(name)) is not None
    }
    parts = platform.devices.values()
    gpu = next(part for part in parts if isinstance(part, Gpu))
    spent["gpu_compute"] = flops * gpu.compute_energy
    filters = [part.filter for part in parts if isinstance(part, CxlExpander) and part.filter is not None]
    if filter_macs and filters:
        spent["filter"] = filter_macs * filters[0].energy
    dpus = sum(part.ranks * part.dpu_power for part in parts if isinstance(part, Upmem))
    if pim_busy_s:
        spent["dpus"] = dpus * pim_busy_s * _PJ_PER_J
    spent["static"] = sum(part.static for part in parts) * elapsed_s * _PJ_PER_J
    return {name: picojoules / _PJ_PER_MJ / tokens for name, picojoules in spent.items()}
