"""The accuracy probes of GPU kernels and of UPMEM's MRAM DMA, and the GPUs that tables name."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import cast, get_args

from ghostsim import bundled
from ghostsim.accuracy.table import Row
from ghostsim.config.catalogue import names
from ghostsim.config.hardware import Gpu, GpuArch
from ghostsim.config.load import load_part
from ghostsim.devices.dram import timing_of
from ghostsim.devices.gpu_arch import attention_params, gemm_params
from ghostsim.timing import dram
from ghostsim.timing.gpu_kernels import AttentionShape, GemmShape, GpuSpec, decode_attention_us, gemm_us
from ghostsim.timing.upmem import DMA_MAX_BYTES, UPMEM_350MHZ, Op, mram_dma_cycles
from ghostsim.units import BANDWIDTH, BYTES, FLOP_RATE

ELEMENT_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0}
FRAMEWORKS = ("vllm", "sglang", "trtllm", "torch")
DPUS = {"UPMEM_DPU_350MHz": UPMEM_350MHZ}


@dataclass(frozen=True)
class GpuPart:
    """A GPU known by its datasheet; its kernels' constants are those of its architecture.

    `part` describes its memories too, where the catalogue or a file of the user does.
    """

    spec: GpuSpec
    architecture: str
    part: Gpu | None = None

    @property
    def arch(self) -> GpuArch:
        """The kernel constants."""
        return self.part.architecture if self.part else load_arch(self.architecture)


def gpu_of(part: Gpu) -> GpuPart:
    """Return a GPU that is known by its part."""
    memory = part.memory
    peak = memory.channels * memory.efficiency * dram.peak_bandwidth(timing_of(memory.dram))
    return GpuPart(GpuSpec(part.sms, part.tensor, peak, part.l2), part.architecture.name, part)


@cache
def load_arch(name: str) -> GpuArch:
    """Return the kernel constants of a GPU architecture of the catalogue."""
    return cast(GpuArch, load_part(name).value)


@cache
def gpu_parts() -> Mapping[str, GpuPart]:
    """Return the GPUs of ``hwmodels/reference/gpu_specs.csv`` and of the catalogue by every name they go by."""
    path = bundled.folder("hwmodels") / "reference" / "gpu_specs.csv"
    quantities: dict[str, dict[str, str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            text = row["value"] if row["unit"] == "-" else f"{row['value']} {row['unit']}"
            quantities.setdefault(row["part"], {})[row["quantity"]] = text
    own = {entry.name: cast(Gpu, load_part(entry.name).value) for entry in names("parts") if entry.kind == "gpu"}
    known = {name: _gpu_part(quantities[found.get("same_as", name)], own) for name, found in quantities.items()}
    return known | {name: gpu_of(part) for name, part in own.items()}


def _gpu_part(found: Mapping[str, str], own: Mapping[str, Gpu]) -> GpuPart:
    spec = GpuSpec(
        sms=int(found["sms"]),
        peak_flops=FLOP_RATE.parse(found["dense_bf16"]),
        hbm_bytes_per_s=BANDWIDTH.parse(found["hbm_bandwidth"]),
        l2_bytes=int(BYTES.parse(found["l2"])),
    )
    return GpuPart(spec, found["architecture"], own.get(found.get("catalogue", "")))


def family(row: Row) -> str:
    """Return the kernel family of a decode-attention row.

    The framework without its version, TensorRT-LLM by KV type. PyTorch takes the constants of vLLM: both call
    FlashAttention.
    """
    name = row["framework"].split(" ")[0]
    if name not in FRAMEWORKS:
        raise FieldError("framework", f"one of {', '.join(FRAMEWORKS)} with its version, e.g. 'vllm 0.24.0'")
    if name == "trtllm":
        return f"trtllm_{'fp8' if row['kv_dtype'] == 'fp8' else 'bf16'}"
    return "vllm" if name == "torch" else name


def attention_shape(row: Row) -> AttentionShape:
    """Return the kernel that a decode-attention row measures."""
    q_heads, kv_heads = count(row, "q_heads"), count(row, "kv_heads")
    if q_heads % kv_heads:
        raise FieldError("q_heads", f"a multiple of kv_heads {kv_heads}")
    size = ELEMENT_BYTES[one_of(row, "kv_dtype", tuple(ELEMENT_BYTES))]
    return AttentionShape(q_heads, kv_heads, count(row, "head_dim"), size, count(row, "batch"), count(row, "kv_len"))


def attention_us(gpu: GpuPart, row: Row) -> float:
    """Predict the microseconds of a decode-attention row."""
    shape = attention_shape(row)
    one_of(row, "warm_l2", ("yes", "no"))
    params = attention_params(gpu.arch, family(row), shape.q_heads, shape.kv_heads)
    return decode_attention_us(gpu.spec, params, shape)


def gemm_shape(row: Row) -> GemmShape:
    """Return the product that a GEMM row measures."""
    size = ELEMENT_BYTES[one_of(row, "dtype", tuple(ELEMENT_BYTES))]
    return GemmShape(count(row, "m"), count(row, "n"), count(row, "k"), size)


def dense_us(gpu: GpuPart, row: Row) -> float:
    """Predict the microseconds of a GEMM row."""
    return gemm_us(gpu.spec, gemm_params(gpu.arch), gemm_shape(row))


def mram_cycles(row: Row) -> float:
    """Predict the DPU cycles of an MRAM DMA row."""
    spec = replace(DPUS[row["part"]], tasklets=count(row, "tasklets"))
    nbytes = count(row, "transfer_bytes")
    if nbytes % 8 or nbytes > DMA_MAX_BYTES:
        raise FieldError("transfer_bytes", f"a multiple of 8 up to {DMA_MAX_BYTES}")
    return mram_dma_cycles(spec, cast(Op, one_of(row, "op", get_args(Op))), nbytes)


class FieldError(ValueError):
    """A field holds a value that the probe does not know."""

    def __init__(self, column: str, expected: str) -> None:
        super().__init__(column, expected)
        self.column, self.expected = column, expected


def one_of(row: Row, column: str, known: tuple[str, ...]) -> str:
    """Return a field that must be one of some texts."""
    if row[column] not in known:
        raise FieldError(column, f"one of {', '.join(known)}")
    return row[column]


def count(row: Row, column: str) -> int:
    """Return a field that must be a whole number above zero."""
    number = int(row[column])
    if number < 1:
        raise FieldError(column, "at least 1")
    return number


GPU_PROBES: Mapping[str, Callable[[GpuPart, Row], float]] = {
    "gpu_decode_attention": attention_us,
    "gpu_gemm": dense_us,
}
PROBES: Mapping[str, Callable[[Row], float]] = {"upmem_mram_dma": mram_cycles}
COLUMNS: Mapping[str, Mapping[str, type]] = {
    "gpu_decode_attention": {
        "framework": str,
        "q_heads": int,
        "kv_heads": int,
        "head_dim": int,
        "kv_dtype": str,
        "batch": int,
        "kv_len": int,
        "warm_l2": str,
    },
    "gpu_gemm": {"dtype": str, "m": int, "n": int, "k": int},
    "upmem_mram_dma": {"op": str, "tasklets": int, "transfer_bytes": int},
}
UNITS: Mapping[str, str] = {
    "gpu_decode_attention": "us",
    "gpu_gemm": "us",
    "upmem_mram_dma": "DPU cycles per loop iteration",
}
