"""Energy by component: bits, operations and busy time, at the prices that the parts state.

The whole platform is paid for, used or not: what a run does not use still stands there and idles. Static power is
one component per device, so that a reader can leave out what another machine would not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ghostsim.config.hardware import CxlExpander, Device, Gpu, HostCpu, Nvme, Platform, Tier, Upmem

_PJ_PER_MJ = 1e9
_PJ_PER_J = 1e12
_DRIVE_STAGES = ("commands", "dies", "channels")
STATIC = ".static"
"""How the components of static power end."""


@dataclass(frozen=True)
class Activity:
    """What a run did, in the units that energy is stated for.

    Parameters
    ----------
    moved
        Bytes over the whole run by tier and by link.
    attended
        Bytes of KV, over the whole run, that the GPU attended to from other tiers than its own.
    copied
        Bytes that staged copies wrote to and read from the memory of a host, by host.
    bounced
        Bytes that drives brought to the memory of a host, not of the GPU.
    tensor_flops
        Operations of the tensor cores.
    utilisation
        Mean share in use of each resource over `simulated_s`.
    simulated_s, elapsed_s
        From the first to the last event, and from the first to the last step.
    """

    moved: Mapping[str, int]
    attended: int = 0
    copied: Mapping[str, int] = field(default_factory=dict)
    bounced: int = 0
    tensor_flops: int = 0
    utilisation: Mapping[str, float] = field(default_factory=dict)
    simulated_s: float = 0.0
    elapsed_s: float = 0.0

    def busy_s(self, resource: str) -> float:
        """Return the seconds that a resource was busy."""
        return self.utilisation.get(resource, 0.0) * self.simulated_s


def static_watts(part: Device) -> float:
    """Return the power of a device that does nothing, its memory's standby power included."""
    standby = part.memory.standby if isinstance(part, Gpu | HostCpu | CxlExpander) else None
    return part.static + (standby or 0.0)


def media_energy(part: Device) -> float | None:
    """Return the pJ per bit that the DRAM of a device states, None if it states none or has none."""
    return part.memory.dram.energy if isinstance(part, Gpu | HostCpu | CxlExpander) else None


def energy_pj(platform: Platform, did: Activity) -> dict[str, float]:
    """Return picojoules by component.

    Returns
    -------
    mapping
        Tiers and links by their name: bits. `GPU.tensor`, `GPU.vector`: operations. `GPU.onchip`: bits from memory
        ports to SMs. `GPU.copy`: bits of the copy engines. `HOST.staged`: bits that staged copies write and read.
        `DEVICE.filter`: multiply-accumulates. `UPMEM.dpus`, `DRIVE.active`: busy time. `DEVICE.static`: elapsed time.
        What a part states no energy for is absent.
    """
    spent: dict[str, float] = {}
    for name, amount, price in _components(platform, did):
        if price is not None and (amount or name.endswith(STATIC)):
            spent[name] = spent.get(name, 0.0) + amount * price
    return spent


def energy_mj_per_token(platform: Platform, did: Activity, tokens: float) -> dict[str, float]:
    """Return millijoules per token by component, as `energy_pj` has them."""
    return {name: picojoules / _PJ_PER_MJ / tokens for name, picojoules in energy_pj(platform, did).items()}


def without_energy(platform: Platform) -> list[str]:
    """Return the components whose energy no part of the platform states."""
    every = Activity(dict.fromkeys((*platform.tiers, *platform.links), 1))
    return list(dict.fromkeys(name for name, _, price in _components(platform, every) if price is None))


_Component = tuple[str, float, float | None]
"""Name, amount, and pJ per unit of it."""


def _components(platform: Platform, did: Activity) -> Iterator[_Component]:
    gpu_name = platform.tiers["hbm"][0]
    gpu = platform.devices[gpu_name]
    assert isinstance(gpu, Gpu)  # the platform's validator has seen to it
    copied = did.busy_s(f"{gpu_name}.copy") * gpu.copy_engines.count * gpu.copy_engines.bandwidth
    landed = copied + did.moved.get("ssd", 0) - did.bounced  # copies and drives end in HBM, or begin there
    for tier, names in platform.tiers.items():
        nbytes = did.moved.get(tier, 0) + (landed if tier == "hbm" else 0)
        yield from _media(platform, tier, names, nbytes)
    for name, link in platform.links.items():
        yield name, 8.0 * did.moved.get(name, 0), link.energy
    yield from _gpu(gpu_name, gpu, did)
    yield f"{gpu_name}.copy", 8 * copied, gpu.copy_engines.energy
    for name, nbytes in did.copied.items():
        yield f"{name}.staged", 8.0 * nbytes, media_energy(platform.devices[name])
    for name, part in platform.devices.items():
        yield from _device(name, part, did)


def _media(platform: Platform, tier: Tier, names: tuple[str, ...], nbytes: float) -> Iterator[_Component]:
    """A tier deals its bytes out evenly to its devices."""
    for name in names:
        part = platform.devices[name]
        if isinstance(part, Gpu | HostCpu | CxlExpander):
            yield tier, 8 * nbytes / len(names), media_energy(part)


def _gpu(name: str, gpu: Gpu, did: Activity) -> Iterator[_Component]:
    vector = did.busy_s(f"{name}.vector") * gpu.vector_macs + did.busy_s(f"{name}.select") * gpu.select
    yield f"{name}.tensor", float(did.tensor_flops), gpu.compute_energy
    yield f"{name}.vector", vector, gpu.vector_energy
    yield f"{name}.onchip", 8.0 * (did.moved.get("hbm", 0) + did.attended), gpu.onchip_energy


def _device(name: str, part: Device, did: Activity) -> Iterator[_Component]:
    match part:
        case Upmem():
            yield f"{name}.dpus", part.ranks * part.dpu_power * did.busy_s(f"{name}.dpus"), _PJ_PER_J
        case Nvme():
            busy_s = max(did.busy_s(f"{name}.{stage}") for stage in _DRIVE_STAGES)
            yield f"{name}.active", part.active * busy_s, _PJ_PER_J
    if isinstance(part, Gpu | HostCpu | CxlExpander | Nvme) and part.filter is not None:
        yield f"{name}.filter", did.busy_s(f"{name}.filter_macs") * part.filter.macs, part.filter.energy
    yield f"{name}{STATIC}", static_watts(part) * did.elapsed_s, _PJ_PER_J
