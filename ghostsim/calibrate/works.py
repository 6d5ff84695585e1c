"""Makes of a point what the GPU has to run: buffers and a kernel or copy on them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ghostsim.calibrate import kernels
from ghostsim.calibrate.points import LATENCY, Point, l2_rounds, zero_copy_steps

_BLOCK = 4096
"""Words (16 KiB) of one program: 128 threads load 128 bytes each."""
_STEP_BYTES = 4096
_SCORED = 64
_WORD = 4


@dataclass(frozen=True)
class Work:
    """What to run; `in_graph` times back to back in a CUDA graph, or with 0 once, after the L2 was flushed."""

    run: Callable[[], object]
    in_graph: int = 0


class Works:
    """Builds the work of points on a device; large buffers are shared between points.

    Sizes are bytes, those of `buffer_bytes` and `host_bytes` powers of two; `chain` is words. The weights of a GEMM
    are copied until they fill `cold_bytes`, so that one run does not find those of the last one in the L2.
    """

    def __init__(
        self,
        device: str,
        *,
        buffer_bytes: int = 2**32,
        host_bytes: int = 2**28,
        cold_bytes: int = 2**29,
        chain: int = 2**24,
    ) -> None:
        self.device, self.buffer_bytes, self.host_bytes = device, buffer_bytes, host_bytes
        self.cold_bytes, self.chain_words = cold_bytes, chain

    @cached_property
    def buffer(self) -> Tensor:
        """Words of device memory, all zero."""
        return torch.zeros(self.buffer_bytes // _WORD, dtype=torch.int32, device=self.device)

    @cached_property
    def host(self) -> Tensor:
        """Pinned words of host memory, all zero; unified addressing lets kernels read them in place."""
        return torch.zeros(self.host_bytes // _WORD, dtype=torch.int32, pin_memory=self.device == "cuda")

    @cached_property
    def chain(self) -> Tensor:
        """One random cycle through pinned host memory."""
        order = torch.randperm(self.chain_words, dtype=torch.int64, generator=torch.Generator().manual_seed(1))
        following = torch.empty(self.chain_words, dtype=torch.int32)
        following[order] = order.roll(-1).to(torch.int32)
        return following.pin_memory() if self.device == "cuda" else following

    def sums(self, programs: int) -> Tensor:
        """Return a zero word for each program."""
        return torch.zeros(programs, dtype=torch.int32, device=self.device)

    def build(self, point: Point) -> Work:
        """Return the work of a point."""
        return _BUILDERS[point.probe](self, **point.conditions)


def _touch(works: Works, n_kernels: int) -> Work:
    flag = works.sums(1)

    def run() -> None:
        for _ in range(n_kernels):
            kernels.touch[(1,)](flag)

    return Work(run, in_graph=1)


def _chase(works: Works, loads: int) -> Work:
    chain, place = works.chain, works.sums(1)
    return Work(lambda: kernels.chase[(1,)](chain, place, loads, num_warps=1))


def _stream(works: Works, op: str, working_set_bytes: int) -> Work:
    words = works.buffer[: working_set_bytes // _WORD]
    blocks = len(words) // _BLOCK
    if op == "copy":
        source, target = words[: len(words) // 2], words[len(words) // 2 :]
        return Work(lambda: kernels.copy_stream[(blocks // 2,)](source, target, BLOCK=_BLOCK))
    if op == "write":
        return Work(lambda: kernels.write_stream[(blocks,)](words, BLOCK=_BLOCK))
    sums = works.sums(blocks)
    return Work(lambda: kernels.read_stream[(blocks,)](words, sums, BLOCK=_BLOCK))


def _permutation(nbytes: int, record_bytes: int) -> tuple[int, int]:
    """Return mask and half the bits of the numbers of the records in a buffer of a power of two bytes."""
    records = nbytes // record_bytes
    return records - 1, records.bit_length() // 2


def _gather(works: Works, record_bytes: int, n_records: int) -> Work:
    words = record_bytes // _WORD
    each = _BLOCK // words
    programs = n_records // each
    source, sums = works.buffer, works.sums(programs)
    mask, half = _permutation(works.buffer_bytes, record_bytes)
    return Work(lambda: kernels.gather[(programs,)](source, sums, mask, half, RECORDS=each, WORDS=words))


def _l2(works: Works, working_set_bytes: int) -> Work:
    words = works.buffer[: working_set_bytes // _WORD]
    blocks, rounds = len(words) // _BLOCK, l2_rounds(working_set_bytes)
    sums = works.sums(blocks)
    return Work(lambda: kernels.read_resident[(blocks,)](words, sums, blocks, rounds, BLOCK=_BLOCK), in_graph=1)


def _host_dma(works: Works, direction: str, transfer_bytes: int) -> Work:
    words = transfer_bytes // _WORD
    host, device = works.host[:words], works.buffer[:words]
    target, source = (device, host) if direction == "h2d" else (host, device)
    return Work(lambda: target.copy_(source, non_blocking=True))


def _zero_copy(works: Works, record_bytes: int, outstanding_bytes: int) -> Work:
    programs, steps = outstanding_bytes // _STEP_BYTES, zero_copy_steps(outstanding_bytes)
    words, each = record_bytes // _WORD, _STEP_BYTES // record_bytes
    host, sums = works.host, works.sums(programs)
    mask, half = _permutation(works.host_bytes, record_bytes)
    return Work(lambda: kernels.read_in_steps[(programs,)](host, sums, steps, mask, half, RECORDS=each, WORDS=words))


def _sketch_score(works: Works, record_bytes: int, queries: int, n_records: int) -> Work:
    records = works.buffer.view(torch.int8)[: n_records * record_bytes]
    asked = torch.ones(queries * record_bytes, dtype=torch.float32, device=works.device)
    scores = torch.empty(n_records, dtype=torch.float32, device=works.device)
    grid = (n_records // _SCORED,)
    return Work(lambda: kernels.score[grid](records, asked, scores, queries, DIMS=record_bytes, BLOCK=_SCORED))


def _gemm(works: Works, dtype: str, m: int, n: int, k: int) -> Work:
    kind = getattr(torch, dtype)
    size = kind.itemsize * k * n
    weights = itertools.cycle([_random(works, kind, k, n) for _ in range(math.ceil(works.cold_bytes / size))])
    a, out = _random(works, kind, m, k), torch.empty((m, n), dtype=kind, device=works.device)
    return Work(lambda: torch.matmul(a, next(weights), out=out), in_graph=20)


def _random(works: Works, kind: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=kind, device=works.device)


def _attention(works: Works, q_heads: int, kv_heads: int, head_dim: int, batch: int, kv_len: int, **names: str) -> Work:
    kind = getattr(torch, names["kv_dtype"])
    shapes = ((batch, q_heads, 1, head_dim), *[(batch, kv_heads, kv_len, head_dim)] * 2)
    q, k, v = (_random(works, kind, *shape) for shape in shapes)
    return Work(lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True), in_graph=20)


_BUILDERS: dict[str, Callable[..., Work]] = {
    LATENCY: _chase,
    "gpu_launch": _touch,
    "gpu_stream": _stream,
    "gpu_gather": _gather,
    "gpu_l2": _l2,
    "gpu_host_dma": _host_dma,
    "gpu_zero_copy": _zero_copy,
    "gpu_sketch_score": _sketch_score,
    "gpu_gemm": _gemm,
    "gpu_decode_attention": _attention,
}
