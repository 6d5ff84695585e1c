"""What 100 % of a resource is in bytes per second, from the effective configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghostsim.units import BANDWIDTH, DURATION, TRANSFER_RATE

_STATED = {
    **dict.fromkeys(("root_complex", "root_complex.down"), ("root_complex",)),
    **dict.fromkeys(("fabric", "fabric.down"), ("bandwidth",)),
    "filter_port": ("filter", "media_bandwidth"),
}
"""Resources of a device whose capacity is one field of its part."""


def plain(value: object) -> object:
    """Return a number without its source."""
    return value.get("value") if isinstance(value, Mapping) else value


def bandwidths(platform: Mapping[str, Any]) -> dict[str, float]:
    """Return bytes per second by resource, for links, memory buses and what parts state; others are left out."""
    found: dict[str, float | None] = {}
    for name, link in (platform.get("links") or {}).items():
        found |= dict.fromkeys((name, f"{name}.down"), link_bandwidth(link, raw=True))
    for name, device in (platform.get("devices") or {}).items():
        bus = f"{name}.hbm.bus" if device.get("kind") == "gpu" else f"{name}.bus"
        found |= {bus: _bus(device)} | {f"{name}.{part}": _stated(device, path) for part, path in _STATED.items()}
    return {name: rate for name, rate in found.items() if rate}


def link_bandwidth(link: Mapping[str, Any], *, raw: bool = False) -> float | None:
    """Return bytes per second and direction: as stated, else rate x width x encoding; `raw` is rate x width."""
    try:
        if link.get("bandwidth") is not None and not raw:
            return BANDWIDTH.parse(plain(link["bandwidth"]))
        lanes = TRANSFER_RATE.parse(plain(link["rate"])) * _float(link["width"]) / 8
        return lanes if raw else lanes * _float(link.get("encoding", 1))
    except (KeyError, TypeError, ValueError):
        return None


def _float(value: object) -> float:
    return float(str(plain(value)))


def _stated(device: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    node: Any = device
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    try:
        return None if node is None else BANDWIDTH.parse(plain(node))
    except ValueError:
        return None


def _bus(device: Mapping[str, Any]) -> float | None:
    """Return the data rate of all channels: a burst of `access_bytes` each nBL or tCCD_S clocks, the longer one."""
    try:
        memory = device["memory"]
        dram, timing, geometry = (memory["dram"], memory["dram"]["timing"], memory["dram"]["geometry"])
        clock_ps = (
            DURATION.parse(plain(timing["tCK"]))
            if "tCK" in timing
            else 2e12 / TRANSFER_RATE.parse(plain(dram["data_rate"]))
        )
        burst = max(_float(timing["nBL"]), _clocks(plain(timing["tCCD_S"]), clock_ps))
        buses = (
            _float(memory["channels"])
            * _float(geometry.get("subchannels", 1))
            * _float(geometry.get("pseudochannels", 1))
        )
        return (
            buses * _float(geometry["access_bytes"]) / (burst * clock_ps) * 1e12 * _float(memory.get("efficiency", 1))
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _clocks(value: object, clock_ps: float) -> float:
    text = str(value)
    return float(text.removesuffix(" nCK")) if text.endswith(" nCK") else DURATION.parse(text) / clock_ps


def platform_of(config: Mapping[str, Any], label: str) -> Mapping[str, Any]:
    """Return the platform of a run: the scenario's, with what the run overrides."""
    runs = config.get("runs")
    own = runs.get(label, {}).get("platform") if isinstance(runs, Mapping) else None
    return _merged(config.get("platform") or {}, own if isinstance(own, Mapping) else {})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return found
