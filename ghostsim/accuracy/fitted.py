"""What is fitted to the reference tables, and how it does on rows that it was not fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from ghostsim import bundled
from ghostsim.timing import loaded, upmem


@dataclass(frozen=True)
class FittedConstants:
    """A set of constants: what they describe, how often they were fitted, and to what, with the errors found."""

    name: str
    belongs_to: str
    probe: str
    source: str


def fitted_constants() -> list[FittedConstants]:
    """Return every set of constants that rows of the reference tables have set."""
    rest = [
        FittedConstants("loaded latency of DRAM", "any DRAM system", "memory_system_latency", loaded.DRAM_SOURCE),
        FittedConstants("loaded latency behind CXL", "any expander", "cxl_latency_model", loaded.CXL_SOURCE),
        FittedConstants("MRAM DMA", "UPMEM DPU", "upmem_mram_dma", upmem.DMA_SOURCE),
    ]
    return [*_kernels(), *rest]


def _kernels() -> Iterator[FittedConstants]:
    for path in sorted((bundled.folder("hwmodels") / "gpu" / "arch").glob("*.yaml")):
        arch: Mapping[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        for kind, probe in (("attention", "gpu_decode_attention"), ("gemm", "gpu_gemm")):
            for name, kernel in arch[kind].items():
                if kernel["confidence"] == "derived":
                    yield FittedConstants(f"{kind} {name}", path.stem, probe, kernel["source"])
