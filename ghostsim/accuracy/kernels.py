"""The accuracy probes of GPU kernels and of UPMEM's MRAM DMA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import cast, get_args

from ghostsim.accuracy.table import Row
from ghostsim.config import catalogue
from ghostsim.config.document import read
from ghostsim.config.hardware import Gpu
from ghostsim.config.load import load_part
from ghostsim.devices.gpu_arch import attention_params, gemm_params, gpu_spec
from ghostsim.timing.gpu_kernels import AttentionShape, GemmShape, decode_attention_us, gemm_us
from ghostsim.timing.upmem import DMA_MAX_BYTES, UPMEM_350MHZ, Op, UpmemSpec, mram_dma_cycles

ELEMENT_BYTES = {"bfloat16": 2.0, "float16": 2.0, "fp8": 1.0}
FRAMEWORKS = ("vllm", "sglang", "trtllm", "torch")
DPUS = {"UPMEM_DPU_350MHz": UPMEM_350MHZ}


@cache
def gpu_names() -> Mapping[str, str]:
    """Return the GPUs of the catalogue by every name they go by: their own and their aliases."""
    found: dict[str, str] = {}
    for name, path in catalogue.files("part").items():
        text = read(path)[0].plain()
        if text.get("kind") == "gpu":
            found |= dict.fromkeys((name, *text.get("aliases", ())), name)
    return found


@cache
def gpu(name: str) -> Gpu:
    """Return the GPU that goes by a name; KeyError(name) if there is none."""
    return cast(Gpu, load_part(gpu_names()[name]).value)


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


def attention_us(part: Gpu, row: Row) -> float:
    """Predict the microseconds of a decode-attention row."""
    shape = attention_shape(row)
    one_of(row, "warm_l2", ("yes", "no"))
    params = attention_params(part.architecture, family(row), shape.q_heads, shape.kv_heads)
    return decode_attention_us(gpu_spec(part), params, shape)


def gemm_shape(row: Row) -> GemmShape:
    """Return the product that a GEMM row measures."""
    size = ELEMENT_BYTES[one_of(row, "dtype", tuple(ELEMENT_BYTES))]
    return GemmShape(count(row, "m"), count(row, "n"), count(row, "k"), size)


def dense_us(part: Gpu, row: Row) -> float:
    """Predict the microseconds of a GEMM row."""
    return gemm_us(gpu_spec(part), gemm_params(part.architecture), gemm_shape(row))


def mram_cycles(row: Row, dpu: UpmemSpec | None = None) -> float:
    """Predict the DPU cycles of an MRAM DMA row, of `dpu` instead of the row's part if given."""
    spec = replace(dpu or DPUS[row["part"]], tasklets=count(row, "tasklets"))
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
    """Return the text of a column, which must be one of those that are known."""
    if row[column] not in known:
        raise FieldError(column, f"one of {', '.join(known)}")
    return row[column]


def count(row: Row, column: str) -> int:
    """Return the number of a column, which must be at least 1."""
    number = int(row[column])
    if number < 1:
        raise FieldError(column, "at least 1")
    return number


GPU_PROBES: Mapping[str, Callable[[Gpu, Row], float]] = {
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
