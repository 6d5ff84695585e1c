"""Placement: from what is read to the bytes that move, by tier and stage.

The program of a layer follows the decode step of one transformer layer: project the query, attend over the
hot tokens while the filter scans the index where it lives, decide, fetch what survived, attend it, project.
Sizes come from the Selection, tiers from the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ghostsim.config.model import Model
from ghostsim.config.policy import Certify, IntFormat, Policy
from ghostsim.plan.plan import BATCH, Op, Plan, Role, Work, build
from ghostsim.plan.selection import IndexStage, Selection
from ghostsim.policy.costs import format_bytes

Ints = NDArray[np.int64]
Result = Literal["ids", "bitmap"]

_ID_BYTES = 4
_QUERY_BITS = 8
"""Narrowest query code: keys of fewer bits meet 8-bit queries."""
_BUFFERED_LAYERS = 2


@dataclass(frozen=True)
class Placement:
    """Where the parts of a policy live and how they move; the fields of a scenario's run."""

    kv_tier: str
    index_tier: str
    site: str
    fetch: str
    chunks: int
    result: Result


@dataclass(frozen=True)
class _Sizes:
    """Tokens of each request, summed over KV heads: arrays [requests, steps, layers]."""

    hot: Ints
    cold: Ints
    read: Ints
    runs: Ints
    scanned: Ints


class _Program:
    """Writes the rows of one layer for one policy and one placement."""

    def __init__(self, selection: Selection, policy: Policy, model: Model, placement: Placement, batch: int) -> None:
        self.policy, self.model, self.placement, self.batch = policy, model, placement, batch
        self.requests = range(batch)
        self.stage = selection.stages[0] if selection.stages else None
        self.token_bytes = format_bytes(policy.keep[0].format, model.head_dim)
        self.sizes = _sum_over_heads(selection, batch)
        self.layers = selection.unit_of.shape[1]
        self.near_memory = self.stage is not None and placement.site != "gpu"
        self.apart = placement.kv_tier != "hbm"

    def rows(self) -> Iterator[Work]:
        """Yield the rows of one layer in the order in which they may start."""
        yield self._gemm("qkv", self.model.qkv_weights, (("head", 1),))
        yield from self._store()
        yield self._attend_hot()
        yield from self._state()
        if self.stage is not None:
            yield from self._near_scan(self.stage) if self.near_memory else self._gpu_scan(self.stage)
        if self.apart:
            yield from self._reads()
        if self.apart or self.stage is not None:
            yield self._attend_survivors()
        last = "survivors" if self.apart or self.stage is not None else "hot"
        yield self._gemm("output", self.model.output_weights, ((last, 0),))
        yield self._gemm("gate_up", self.model.gate_up_weights, (("output", 0),))
        yield self._gemm("down", self.model.down_weights, (("gate_up", 0),))
        final = np.zeros(self.layers, np.int64)
        final[-1] = self.model.head_weights
        yield self._gemm("head", final, (("down", 0),))

    def _gemm(self, name: str, weights: int | Ints, after: tuple[tuple[str, int], ...]) -> Work:
        nbytes, flops = weights * self.model.bytes_per_weight, 2 * self.batch * weights
        return Work(name, "gemm", "weights", nbytes=nbytes, flops=flops, after=after)

    # --- hot part and bookkeeping ---

    def _attend_hot(self) -> Work:
        tokens = self.sizes.hot if self.apart or self.stage is not None else self.sizes.hot + self.sizes.read
        quantised = isinstance(self.policy.keep[0].format, IntFormat)
        op: Op = "decode" if quantised else "attend"
        role: Role = "warm" if quantised else "hot"
        total = tokens.sum(axis=0)
        return Work(
            "hot",
            op,
            role,
            record_bytes=self.token_bytes,
            nbytes=total * self.token_bytes,
            records=total,
            runs=total,
            flops=total * self._attention_flops(),
            after=(("qkv", 0),),
        )

    def _store(self) -> Iterator[Work]:
        """Write the new token, and move the one that leaves the hot set."""
        heads = self.batch * self.model.kv_heads
        yield Work(
            "write", "write", "hot", record_bytes=self.token_bytes, nbytes=heads * self.token_bytes, records=heads,
            runs=heads, after=(("qkv", 0),),
        )  # fmt: skip
        leaving = np.minimum(self.sizes.cold, self.model.kv_heads).sum(axis=0)
        if self.apart:
            yield Work(
                "age", "migrate" if self.stage else "write", "cold", record_bytes=self.token_bytes,
                nbytes=leaving * self.token_bytes, records=leaving, runs=leaving,
                after=(("qkv", 0), ("age", self.layers)),
            )  # fmt: skip
        if self.stage is not None:
            size = self.stage.record_bytes // self.stage.unit_tokens
            yield Work(
                "ghostify", "ghostify", "index", record_bytes=size, nbytes=leaving * size, records=leaving,
                runs=leaving, after=(("qkv", 0), ("ghostify", self.layers)),
            )  # fmt: skip

    def _state(self) -> Iterator[Work]:
        """Rewrite the bookkeeping of every kept token."""
        state = self.policy.keep[0].state
        if state:
            kept = (self.sizes.hot + self.sizes.read).sum(axis=0)
            yield Work("state", "migrate", "hot", nbytes=kept * state, records=kept, runs=kept, after=(("hot", 0),))

    # --- the filter ---

    def _scan(
        self, name: str, request: int, stage: IndexStage, scanned: Ints, after: tuple[tuple[str, int], ...]
    ) -> Work:
        macs = scanned * stage.macs * self.model.q_per_kv
        return Work(
            name, "scan", "index", request, record_bytes=stage.record_bytes, nbytes=scanned * stage.record_bytes,
            records=scanned, runs=np.minimum(scanned, self.model.kv_heads), flops=2 * macs, after=after,
        )  # fmt: skip

    def _gpu_scan(self, stage: IndexStage) -> Iterator[Work]:
        scanned = self.sizes.scanned.sum(axis=0)
        yield self._scan("scan", BATCH, stage, scanned, (("qkv", 0),))
        yield Work(
            "filter",
            "filter",
            "index",
            records=scanned,
            flops=scanned * self.model.q_per_kv,
            after=self._decides("scan"),
        )

    def _near_scan(self, stage: IndexStage) -> Iterator[Work]:
        """One scan per request and chunk; a PIM kernel runs on all ranks at once, so there it is one per batch."""
        width = max(_QUERY_BITS, stage.operand_bits)
        query = self.batch * self.model.kv_heads * self.model.q_per_kv * stage.macs * width // 8
        yield Work("query", "filter", "index", nbytes=query, records=self.batch, runs=1, after=(("qkv", 0),))
        if self.placement.site == "pim":
            scanned, read = self.sizes.scanned.sum(axis=0), self.sizes.read.sum(axis=0)
            yield self._scan("scan", BATCH, stage, scanned, (("query", 0),))
            yield self._results("filter", BATCH, scanned, read, "scan")
            return
        for request, chunk in self._pieces():
            name = f"{request}.{chunk}"
            scanned = self._part(self.sizes.scanned[request], chunk)
            yield self._scan(f"scan{name}", request, stage, scanned, (("query", 0),))
            read = self._part(self.sizes.read[request], chunk)
            yield self._results(f"filter{name}", request, scanned, read, f"scan{name}")

    def _results(self, name: str, request: int, scanned: Ints, read: Ints, scan: str) -> Work:
        nbytes = -(-scanned // 8) if self.placement.result == "bitmap" else read * _ID_BYTES
        flops = scanned * self.model.q_per_kv
        return Work(
            name, "filter", "index", request, nbytes=nbytes, records=scanned, runs=np.minimum(nbytes, 1), flops=flops,
            after=self._decides(scan),
        )  # fmt: skip

    def _decides(self, scan: str) -> tuple[tuple[str, int], ...]:
        """A staged certificate needs the normaliser of the hot tokens; the other rules decide on scores alone."""
        rule = self.policy.read.rule
        staged = isinstance(rule, Certify) and rule.form == "staged"
        return ((scan, 0), ("hot", 0)) if staged else ((scan, 0),)

    # --- what survives ---

    def _reads(self) -> Iterator[Work]:
        for request, chunk in self._pieces():
            tokens = self._part(self.sizes.read[request], chunk)
            runs = np.minimum(self._part(self.sizes.runs[request], chunk), tokens)
            yield Work(
                f"read{request}.{chunk}", "read", "cold", request, stage=1, record_bytes=self.token_bytes,
                nbytes=tokens * self.token_bytes, records=tokens, runs=runs, after=self._may_read(request, chunk),
            )  # fmt: skip

    def _may_read(self, request: int, chunk: int) -> tuple[tuple[str, int], ...]:
        """A fetch waits for its ids; without a filter it runs ahead as far as the layer buffers reach."""
        if self.stage is None:
            return (("survivors", _BUFFERED_LAYERS),)
        if self.near_memory and self.placement.site != "pim":
            return ((f"filter{request}.{chunk}", 0),)
        return (("filter", 0),)

    def _attend_survivors(self) -> Work:
        """Attend what was read: from HBM, unless the SMs read it in place while fetching."""
        tokens, runs = self.sizes.read.sum(axis=0), self.sizes.runs.sum(axis=0)
        in_place = self.apart and self.placement.fetch == "zero_copy"
        role: Role = "hot" if self.apart else "cold"
        waits = tuple((f"read{r}.{c}", 0) for r, c in self._pieces()) if self.apart else (("filter", 0),)
        return Work(
            "survivors", "attend", role, stage=1, record_bytes=self.token_bytes,
            nbytes=0 if in_place else tokens * self.token_bytes, records=tokens, runs=runs,
            flops=tokens * self._attention_flops(), after=(*waits, ("hot", 0)),
        )  # fmt: skip

    # --- arithmetic ---

    def _attention_flops(self) -> int:
        """Q K and P V of one token in one KV head, over its query heads."""
        return 4 * self.model.head_dim * self.model.q_per_kv

    def _pieces(self) -> list[tuple[int, int]]:
        chunks = self.placement.chunks if self.near_memory and self.placement.site != "pim" else 1
        return [(request, chunk) for request in self.requests for chunk in range(chunks)]

    def _part(self, sizes: Ints, chunk: int) -> Ints:
        """Share `chunk` of sizes, so that the shares sum to the whole."""
        chunks = self.placement.chunks if self.near_memory and self.placement.site != "pim" else 1
        return np.asarray(sizes * (chunk + 1) // chunks - sizes * chunk // chunks)


def _sum_over_heads(selection: Selection, batch: int) -> _Sizes:
    rows = selection.unit_of[:batch]

    def per_request(values: Ints) -> Ints:
        return np.asarray(values[rows].sum(axis=2, dtype=np.int64).swapaxes(1, 2))

    scanned = selection.scanned[0] if selection.stages else np.zeros_like(selection.hot_tokens)
    return _Sizes(
        hot=per_request(selection.hot_tokens),
        cold=per_request(selection.cold_tokens),
        read=per_request(selection.read_tokens),
        runs=per_request(selection.read_runs),
        scanned=per_request(scanned),
    )


def place(selection: Selection, policy: Policy, model: Model, placement: Placement, batch: int) -> Plan:
    """Bind a Selection to tiers.

    Parameters
    ----------
    selection
        Reads of at least `batch` requests, for the layers and KV heads of `model`.
    model
        Shape that bytes are charged at.

    Returns
    -------
    Plan
        Rows of all steps; its bytes per tier and cause are what the simulation must deliver.
    """
    program = _Program(selection, policy, model, placement, batch)
    tiers: dict[Role, str] = {"weights": "hbm", "hot": "hbm", "warm": "hbm", "cold": placement.kv_tier}
    if program.stage is not None:
        tiers["index"] = placement.index_tier
    return build(list(program.rows()), tiers, selection.steps, program.layers)
