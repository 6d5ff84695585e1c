"""Writes what was measured: a table for `ghostsim accuracy`, and a part for platforms."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ghostsim.accuracy.predict import SCHEMAS
from ghostsim.calibrate.derive import Constants, constants, memory_like, tensor_flops_per_s
from ghostsim.calibrate.measure import Sample
from ghostsim.calibrate.points import Machine
from ghostsim.config.catalogue import names
from ghostsim.config.document import dump
from ghostsim.config.hardware import Gpu, GpuArch
from ghostsim.config.load import load_gpu, load_part
from ghostsim.errors import GhostsimError
from ghostsim.units import BANDWIDTH, BYTES, DURATION, FLOP_RATE, MAC_RATE, Dimension

TABLE, PART = "gpu.csv", "gpu.yaml"
_BASE = "h100_sxm"
_EVENTS = "torch CUDA events, median of repeats, L2 flushed before each"
_GRAPH = "kernels in a CUDA graph, median of replays"


def write(folder: Path, machine: Machine, samples: Sequence[Sample], name: str) -> None:
    """Write ``gpu.csv`` and ``gpu.yaml`` into a folder."""
    write_table(folder / TABLE, machine, samples, name)
    text = dump(part_document(machine, constants(samples), load_gpu(_BASE), name))
    (folder / PART).write_text(text, encoding="utf-8")


def write_table(path: Path, machine: Machine, samples: Sequence[Sample], name: str) -> None:
    """Write the samples as rows of their probes; a column that a probe does not have is empty."""
    used = dict.fromkeys(sample.point.probe for sample in samples)
    columns = list(dict.fromkeys(column for probe in used for column in SCHEMAS[probe].columns))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["probe", "part", *columns, "value", "unit", "source"], lineterminator="\n")
        writer.writeheader()
        for sample in samples:
            probe = sample.point.probe
            common = {"probe": probe, "part": name, "unit": SCHEMAS[probe].unit, "source": _source(machine, "")}
            writer.writerow({**common, **sample.point.conditions, "value": f"{sample.value:.6g}"})


def architecture(found: str) -> str:
    """Return the architecture of the catalogue whose kernel constants a GPU takes: its own, or the next older one.

    Raises
    ------
    GhostsimError
        If the GPU is older than all of them.
    """
    known = sorted(int(e.name[3:]) for e in names("parts") if e.kind == "gpu_arch" and e.name.startswith("sm_"))
    older = [number for number in known if number <= int(found.removeprefix("sm_"))]
    if not older:
        raise GhostsimError(f"found a GPU of {found}, expected sm_{known[0]} or later")
    return f"sm_{older[-1]}"


def part_document(machine: Machine, found: Constants, base: Gpu, name: str) -> dict[str, Any]:
    """Return the part: what was measured or follows from it; the rest is that of `base`."""
    channels, efficiency = memory_like(base.memory, found.stream_bytes_per_s)
    nearest = architecture(machine.architecture)
    arch = cast(GpuArch, load_part(nearest).value)
    driver, events, graph = (_source(machine, method) for method in ("as the driver says", _EVENTS, _GRAPH))
    stream = BANDWIDTH.format(_rounded(found.stream_bytes_per_s))
    kernels = "" if nearest == machine.architecture else f", kernel constants of {nearest}"
    return {
        "schema": 1,
        "kind": "gpu",
        "extends": base.name,
        "name": name,
        "summary": f"{machine.name} ({machine.architecture}{kernels}); what is not measured is that of {base.name}",
        "architecture": nearest,
        "sms": _fact(machine.sms, driver),
        "tensor": _derived(_quantity(FLOP_RATE, tensor_flops_per_s(arch, found.gemm_flops_per_s)),
                           f"best gpu_gemm row over the architecture's flop_efficiency; {graph}"),
        "vector_macs": _fact(_quantity(MAC_RATE, found.sketch_macs_per_s), f"gpu_sketch_score, 32 queries; {events}"),
        "l2": _fact(BYTES.format(machine.l2_bytes), driver),
        "l2_bandwidth": _fact(_quantity(BANDWIDTH, found.l2_bytes_per_s), f"gpu_l2; {graph}"),
        "memory": {
            "channels": _derived(channels, f"{base.name}'s DRAM, as many channels as {stream} takes"),
            "capacity": _fact(BYTES.format(machine.memory_bytes), driver),
            "efficiency": _derived(_rounded(efficiency), f"gpu_stream, {stream}, over what channels stream; {events}"),
        },
        "launch": _fact(_duration(found.launch_s), f"gpu_launch; {graph}"),
        "copy_engines": {
            "start": _fact(_duration(found.copy_start_s), f"gpu_host_dma, fit of start + bytes / bandwidth; {events}"),
            "bandwidth": _fact(_quantity(BANDWIDTH, found.copy_bytes_per_s), f"gpu_host_dma, the same fit; {events}"),
        },
        "read_window": _derived(_quantity(BYTES, found.read_window_bytes),
                                f"plateau of gpu_zero_copy times the measured latency of dependent loads; {events}"),
    }  # fmt: skip


def _source(machine: Machine, method: str) -> str:
    text = f"measured on {machine.date}, {machine.name}, driver {machine.driver}, torch {machine.torch}"
    return f"{text}, {method}" if method else f"{text}, ghostsim calibrate gpu"


def _fact(value: object, source: str) -> dict[str, object]:
    return {"value": value, "source": source, "confidence": "measured"}


def _derived(value: object, source: str) -> dict[str, object]:
    return {"value": value, "source": f"derived: {source}", "confidence": "derived"}


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _quantity(dimension: Dimension, value: float) -> str:
    return dimension.format(round(value) if dimension.integer else _rounded(value))


def _duration(seconds: float) -> str:
    return DURATION.format(round(_rounded(seconds) * 1e12))
