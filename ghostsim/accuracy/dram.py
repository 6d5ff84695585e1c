"""Predictions for the rows of the DRAM and memory-system tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ghostsim.timing import dram, loaded
from ghostsim.timing.dram import DramTiming, Pattern, Settings
from ghostsim.timing.dram_table import load_timings

Row = Mapping[str, str]

_CONTROLLER: Mapping[str, type] = {"mapping": str, "page_policy": str, "refresh": str}
_PATTERN: Mapping[str, type] = {"part": str, "pattern": str, "record_bytes": int, "read_fraction": float}
_LATENCY: Mapping[str, type] = {**_PATTERN, "arrival": str, "injected_GBps": float, **_CONTROLLER}
_SYSTEM: Mapping[str, type] = {
    "part": str,
    "read_fraction": float,
    "load_GBps": float,
    "max_GBps": float,
    "idle_ns": float,
}

COLUMNS: Mapping[str, Mapping[str, type]] = {
    "dram_bandwidth": {**_PATTERN, "outstanding": int, "read_queue": int, "write_queue": int, **_CONTROLLER},
    "dram_latency_mean": _LATENCY,
    "dram_latency_p95": _LATENCY,
    "dram_gather": {"part": str, "record_bytes": int, "n_records": int, **_CONTROLLER},
    "memory_system_latency": _SYSTEM,
    "cxl_latency_model": _SYSTEM,
}
"""The condition columns of each probe and their types."""

UNITS: Mapping[str, str] = {probe: "GB/s" if probe == "dram_bandwidth" else "ns" for probe in COLUMNS}

KNOWN: Mapping[str, tuple[str, ...]] = {"pattern": ("stream", "random"), "arrival": ("idle", "poisson")}
"""The values of conditions that have no others."""


def modelled(row: Row) -> bool:
    """Say whether the bank model knows the row's mapping, page policy and refresh."""
    try:
        _settings(row)
    except ValueError:
        return False
    return True


def _timing(row: Row) -> DramTiming:
    return load_timings()[row["part"]]


def _pattern(row: Row) -> Pattern:
    return Pattern(row["pattern"], int(row["record_bytes"]), float(row["read_fraction"]))


def _settings(row: Row) -> Settings:
    return Settings(row["mapping"], row["page_policy"], row["refresh"])


def bandwidth(row: Row) -> float:
    """Return the saturated bandwidth of one channel in GB/s."""
    rate = dram.saturated_bandwidth(
        _timing(row),
        _pattern(row),
        outstanding=int(row["outstanding"]),
        read_queue=int(row["read_queue"]),
        write_queue=int(row["write_queue"]),
        settings=_settings(row),
    )
    return rate / 1e9


def _latency(row: Row) -> tuple[float, float]:
    injected = None if row["arrival"] == "idle" else float(row["injected_GBps"]) * 1e9
    return dram.loaded_latency(_timing(row), _pattern(row), injected, settings=_settings(row))


def latency_mean(row: Row) -> float:
    """Return the mean read latency of one channel in ns."""
    return _latency(row)[0]


def latency_p95(row: Row) -> float:
    """Return the 95th percentile of the read latency of one channel in ns."""
    return _latency(row)[1]


def gather(row: Row) -> float:
    """Return the makespan of a gather from one channel in ns."""
    return dram.gather_makespan(_timing(row), int(row["n_records"]), int(row["record_bytes"]), settings=_settings(row))


def _system(row: Row, shape: loaded.LatencyShape) -> float:
    utilisation = float(row["load_GBps"]) / float(row["max_GBps"])
    return loaded.latency_ns(float(row["idle_ns"]), utilisation, float(row["read_fraction"]), shape)


def memory_system_latency(row: Row) -> float:
    """Return the load-to-use latency of a machine in ns from its idle latency and maximum bandwidth."""
    return _system(row, loaded.DRAM)


def cxl_latency_model(row: Row) -> float:
    """Return the latency in ns at the host port of the vendor's simulated CXL expander."""
    return _system(row, loaded.CXL_THROTTLED)


PROBES: Mapping[str, Callable[[Row], float]] = {
    "dram_bandwidth": bandwidth,
    "dram_latency_mean": latency_mean,
    "dram_latency_p95": latency_p95,
    "dram_gather": gather,
    "memory_system_latency": memory_system_latency,
    "cxl_latency_model": cxl_latency_model,
}
"""The prediction of each probe, in the unit of `UNITS`; an unknown DRAM part raises KeyError(part)."""
