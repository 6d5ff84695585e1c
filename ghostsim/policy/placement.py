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
from ghostsim.config.policy import Policy
from ghostsim.config.rules import Certify, Presume
from ghostsim.plan.plan import BATCH, Op, Plan, Role, Work, build
from ghostsim.plan.selection import Selection
from ghostsim.policy.costs import FAR, format_bytes, rebuild_flops, side_bytes
from ghostsim.policy.prefetch import Ahead
from ghostsim.policy.traffic import Moved, sum_over_heads, without_hits

Ints = NDArray[np.int64]
Result = Literal["ids", "bitmap", "histogram"]

_ID_BYTES = 4
_BINS = 256
_BIN_BYTES = 4
_THRESHOLD_BYTES = 4
"""What the histogram of the scores of one query head has, and what the GPU answers with."""
_FP16_BYTES = 2
_PARTIAL_BYTES = 4
_QUERY_BITS = 8
"""Narrowest query code: keys of fewer bits meet 8-bit queries."""
_BUFFERED_LAYERS = 2
FROM_TIER = ("refit", "retire")
"""Migrations from a tier, not to it: of keys that an index is built again from, and of tokens that are archived."""


@dataclass(frozen=True)
class Placement:
    """Where the parts of a policy live and how they move; the fields of a scenario's run."""

    kv_tier: str
    index_tier: str
    site: str
    fetch: str
    chunks: int
    result: Result
    archive_tier: str | None = None
    warm_tier: str = "hbm"
    unit_bytes: int = 1
    """What the media of `kv_tier` move at once: a page of flash, a DRAM access."""
    ghostify: str = "gpu"
    behind: int = 0
    """Steps that records may lag behind where the GPU does not make them."""

    @property
    def archive(self) -> str:
        """The tier of archived tokens."""
        return self.archive_tier or self.kv_tier

    @property
    def near_memory(self) -> bool:
        """Whether the index is scanned where it lies, and not by the GPU's kernels."""
        return self.site not in ("gpu", "none")

    @property
    def per_request(self) -> bool:
        """Whether a filter serves requests one by one: a PIM kernel runs on all banks at once for the batch."""
        return self.near_memory and self.site != "pim"


class _Program:
    """Writes the rows of one layer for one policy and one placement."""

    def __init__(
        self,
        selection: Selection,
        policy: Policy,
        model: Model,
        placement: Placement,
        batch: int,
        ahead: Ahead | None,
    ) -> None:
        self.policy, self.model, self.placement, self.batch = policy, model, placement, batch
        self.requests = range(batch)
        self.stages = selection.stages
        selected = [stream for stream in selection.streams if stream.selected]
        self.archives = any(stream.role == "archive" for stream in selected)
        self.away = self.archives and placement.archive != "hbm"
        only = all(stream.role == "archive" for stream in selected)
        self.apart = placement.kv_tier != "hbm" and not only
        self.ahead = ahead
        warm = {i for i, keep in enumerate(policy.keep) if keep.role == "warm" and placement.warm_tier != "hbm"}
        self.traffic = without_hits(
            sum_over_heads(
                selection, batch, apart=self.apart, away=self.away, warm=warm, unit_bytes=placement.unit_bytes
            ),
            ahead,
        )
        self.warms = bool(warm)
        self.layers = selection.unit_of.shape[1]
        self.token_bytes = max(format_bytes(keep.format, model.head_dim) for keep in policy.keep)
        self.near_memory = bool(self.stages) and placement.near_memory
        self.selects = self.apart or self.away or bool(self.stages)
        self.rebuild = max(
            (rebuild_flops(keep.format, model.head_dim) for keep in policy.keep if keep.role in FAR), default=0
        )
        cache = policy.read.cache
        self.recalls = cache is not None and cache.misses == "migrate"
        self.fetch = "recall" if self.recalls else "read"

    def rows(self) -> Iterator[Work]:
        """Yield the rows of one layer in the order in which they may start."""
        full = (("ghostify", self.placement.behind * self.layers),) if self.placement.behind else ()
        yield self._gemm("qkv", self.model.qkv_weights, (("head", 1), *full))
        yield from self._store()
        yield from self._attend_near()
        if self.warms:
            yield from self._attend_warm()
        yield from self._refresh()
        yield from self._state()
        if self.stages:
            yield from self._near_scan() if self.near_memory else self._gpu_scan()
        if self.apart:
            yield from self._reads(self.fetch, "cold", self.traffic.fetched, self.traffic.runs)
        if self.away:
            yield from self._reads("resurrect", "archive", self.traffic.archived, self.traffic.archive_runs)
        if self.ahead is not None:
            yield from self._bring(self.ahead)
        if self.selects:
            yield self._attend_survivors()
        last = "survivors" if self.selects else "hot"
        yield self._gemm("output", self.model.output_weights, ((last, 0), *self._warm()))
        yield self._gemm("gate_up", self.model.gate_up_weights, (("output", 0),))
        yield self._gemm("down", self.model.down_weights, (("gate_up", 0),))
        final = np.zeros(self.layers, np.int64)
        final[-1] = self.model.head_weights
        yield self._gemm("head", final, (("down", 0),))

    def _gemm(self, name: str, weights: int | Ints, after: tuple[tuple[str, int], ...]) -> Work:
        nbytes, flops = weights * self.model.bytes_per_weight, 2 * self.batch * weights
        return Work(name, "gemm", "weights", nbytes=nbytes, flops=flops, after=after)

    # --- hot part and bookkeeping ---

    def _attend_near(self) -> Iterator[Work]:
        """Attend what is in HBM and waits for nothing; what is dequantised on the way is a kernel of its own."""
        for i, moved in enumerate(self.traffic.near):
            op: Op = "decode" if moved.lossy else "attend"
            total = moved.tokens.sum(axis=0)
            yield Work(
                "warm" if i else "hot", op, "hot", record_bytes=moved.record_bytes, nbytes=moved.nbytes.sum(axis=0),
                records=total, runs=total, flops=total * self._attention_flops(), after=(("qkv", 0),),
            )  # fmt: skip

    def _attend_warm(self) -> Iterator[Work]:
        """Bring what is kept warm, as far ahead as the layer buffers reach, and attend it."""
        moved = self.traffic.warm
        nbytes, tokens = moved.nbytes.sum(axis=0), moved.tokens.sum(axis=0)
        in_place = self.placement.fetch == "zero_copy"
        yield Work(
            "bring_warm", "read", "warm", record_bytes=moved.record_bytes, nbytes=nbytes, records=tokens,
            runs=np.minimum(tokens, self._heads), after=(("attend_warm", _BUFFERED_LAYERS),),
        )  # fmt: skip
        yield Work(
            "attend_warm", "decode" if moved.lossy else "attend", "hot", record_bytes=moved.record_bytes,
            nbytes=0 if in_place else nbytes, records=tokens, runs=tokens, flops=tokens * self._attention_flops(),
            after=(("qkv", 0), ("bring_warm", 0)),
        )  # fmt: skip

    def _warm(self) -> tuple[tuple[str, int], ...]:
        """Name what is attended beside the hot tokens and the survivors."""
        beside = (("warm", len(self.traffic.near) > 1), ("attend_warm", self.warms))
        return tuple((name, 0) for name, there in beside if there)

    def _store(self) -> Iterator[Work]:
        """Write the new token, and move the one that leaves the hot set."""
        heads = self._heads
        yield Work(
            "write", "write", "hot", record_bytes=self.token_bytes, nbytes=heads * self.token_bytes, records=heads,
            runs=heads, after=(("qkv", 0),),
        )  # fmt: skip
        if self.warms:
            yield self._cool()
        leaving = np.minimum(self.traffic.cold, self.model.kv_heads).sum(axis=0)
        if self.apart:
            yield Work(
                "age", "migrate" if self.stages else "write", "cold", record_bytes=self.token_bytes,
                nbytes=leaving * self.token_bytes, records=leaving, runs=leaving,
                after=(("qkv", 0), ("age", self.layers)),
            )  # fmt: skip
        if self.away:
            yield from self._retire()
        if self.stages:
            size = int(sum(stage.record_bytes / stage.unit_tokens for stage in self.stages))
            yield Work(
                "ghostify", "ghostify", "index", record_bytes=size, nbytes=leaving * size, records=leaving,
                runs=leaving, flops=leaving * self._record_flops() if self.placement.behind else 0,
                after=(("age" if self.placement.behind and self.apart else "qkv", 0), ("ghostify", self.layers)),
            )  # fmt: skip

    def _cool(self) -> Work:
        """Move the token that turns warm."""
        size = self.traffic.warm.record_bytes
        leaving = np.minimum(self.traffic.warm.tokens, self.model.kv_heads).sum(axis=0)
        return Work(
            "cool", "migrate", "warm", record_bytes=size, nbytes=leaving * size, records=leaving, runs=leaving,
            after=(("qkv", 0), ("cool", self.layers)),
        )  # fmt: skip

    def _record_flops(self) -> int:
        """Return the operations of a token's records: a projection, or scale, offset, rounding of every channel."""
        d = self.model.head_dim
        return sum(2 * d * stage.macs if stage.macs < d else 4 * d for stage in self.stages)

    def _retire(self) -> Iterator[Work]:
        """Move the token that becomes archived, out of the cold tier if it was in another one."""
        if self.apart and self.placement.archive == self.placement.kv_tier:
            return
        leaving = np.minimum(self.traffic.archive, self.model.kv_heads).sum(axis=0)
        sizes = {"record_bytes": self.token_bytes, "nbytes": leaving * self.token_bytes}
        if self.apart:
            yield Work(
                "retire", "migrate", "cold", **sizes, records=leaving, runs=leaving,
                after=(("qkv", 0), ("retire", self.layers)),
            )  # fmt: skip
        yield Work(
            "archive", "migrate", "archive", **sizes, records=leaving, runs=leaving,
            after=(("retire" if self.apart else "qkv", 0), ("archive", self.layers)),
        )  # fmt: skip

    def _refresh(self) -> Iterator[Work]:
        """Read the cold keys again and write new records; the scan goes on in the old ones meanwhile."""
        if not self.traffic.refit.any():
            return
        keys, nbytes = self.traffic.refit.sum(axis=0), self.traffic.rewritten.sum(axis=0)
        yield Work(
            "refit", "migrate", "cold", record_bytes=self._key_bytes, nbytes=keys, records=keys // self._key_bytes,
            runs=np.minimum(keys, self._heads), after=(("qkv", 0), ("refit", self.layers)),
        )  # fmt: skip
        yield Work(
            "rewrite", "ghostify", "index", nbytes=nbytes, records=keys // self._key_bytes,
            runs=np.minimum(nbytes, self._heads), after=(("refit", 0), ("rewrite", self.layers)),
        )  # fmt: skip

    @property
    def _key_bytes(self) -> int:
        return side_bytes(self.policy.keep[0].format.k, self.model.head_dim)

    def _state(self) -> Iterator[Work]:
        """Rewrite the bookkeeping of every kept token."""
        if self.traffic.state.any():
            kept = (self.traffic.hot + self.traffic.read).sum(axis=0)
            nbytes = self.traffic.state.sum(axis=0)
            yield Work("state", "migrate", "hot", nbytes=nbytes, records=kept, runs=kept, after=(("hot", 0),))

    # --- the filter ---

    def _cascade(self, name: str, request: int, chunk: int | None, first: str) -> Iterator[Work]:
        """All stages, each of which looks at what the one before has left."""
        for number in range(len(self.stages)):
            before = _stage_name(name, number - 1) if number else first
            yield self._scan(name, request, number, self._scanned_by(request, chunk, number), before)

    def _scan(self, name: str, request: int, number: int, sizes: tuple[Ints, Ints], before: str) -> Work:
        scanned, nbytes = sizes
        stage = self.stages[number]
        return Work(
            _stage_name(name, number), "scan", "index", request, number, record_bytes=max(1, int(stage.record_bytes)),
            nbytes=nbytes, records=scanned, runs=np.minimum(scanned, self.model.kv_heads),
            flops=2 * scanned * stage.macs * self.model.q_per_kv, after=((before, 0),),
        )  # fmt: skip

    def _gpu_scan(self) -> Iterator[Work]:
        yield from self._cascade("scan", BATCH, None, "qkv")
        scanned = sum(self.traffic.scanned).sum(axis=0)  # type: ignore[union-attr]
        yield Work(
            "filter", "filter", "index", records=scanned, flops=scanned * self.model.q_per_kv,
            after=self._decides(_stage_name("scan", len(self.stages) - 1)),
        )  # fmt: skip

    def _near_scan(self) -> Iterator[Work]:
        """One scan per request and chunk; a PIM kernel runs on all ranks at once, so there it is one per batch."""
        width = max(_QUERY_BITS, *(stage.operand_bits for stage in self.stages))
        macs = sum(stage.macs for stage in self.stages)
        query = self.batch * self.model.kv_heads * self.model.q_per_kv * macs * width // 8
        yield Work("query", "filter", "index", nbytes=query, records=self.batch, runs=1, after=(("qkv", 0),))
        for request in self.requests if self.placement.per_request else (BATCH,):
            yield from self._two_passes(request) if self.placement.result == "histogram" else self._one_pass(request)

    def _one_pass(self, request: int) -> Iterator[Work]:
        """Score and hand over, chunk by chunk: ids, or one bit per record."""
        last = len(self.stages) - 1
        for chunk in range(self._chunks()):
            name = _piece("scan", request, chunk)
            yield from self._cascade(name, request, chunk, "query")
            yield self._results(request, chunk, self._decides(_stage_name(name, last)))

    def _two_passes(self, request: int) -> Iterator[Work]:
        """Score, return a histogram, learn the threshold; then scan again and hand over ids, chunk by chunk."""
        last, first = len(self.stages) - 1, _piece("score", request)
        yield from self._cascade(first, request, None, "query")
        scanned = self._scanned_by(request, None, last)[0]
        heads = self.model.kv_heads * self.model.q_per_kv * (self.batch if request == BATCH else 1)
        up, down = heads * _BINS * _BIN_BYTES, heads * _THRESHOLD_BYTES
        busy = np.minimum(scanned, 1)
        yield Work(
            _piece("histogram", request), "filter", "index", request, nbytes=busy * up, records=scanned, runs=busy,
            flops=scanned * self.model.q_per_kv, after=self._decides(_stage_name(first, last)),
        )  # fmt: skip
        yield Work(
            _piece("threshold", request), "filter", "index", request, nbytes=busy * down, records=busy, runs=busy,
            after=((_piece("histogram", request), 0),),
        )  # fmt: skip
        for chunk in range(self._chunks()):
            name = _piece("scan", request, chunk)
            sizes = self._scanned_by(request, chunk, last)
            yield self._scan(name, request, last, sizes, _piece("threshold", request))
            yield self._results(request, chunk, ((_stage_name(name, last), 0),))

    def _scanned_by(self, request: int, chunk: int | None, number: int) -> tuple[Ints, Ints]:
        scanned, nbytes = self.traffic.scanned[number], self.traffic.scan_bytes[number]
        if request == BATCH:
            return scanned.sum(axis=0), nbytes.sum(axis=0)
        scanned, nbytes = scanned[request], nbytes[request]
        return (scanned, nbytes) if chunk is None else (self._part(scanned, chunk), self._part(nbytes, chunk))

    def _results(self, request: int, chunk: int, after: tuple[tuple[str, int], ...]) -> Work:
        scanned, _ = self._scanned_by(request, chunk, len(self.stages) - 1)
        read = self.traffic.read.sum(axis=0) if request == BATCH else self._part(self.traffic.read[request], chunk)
        nbytes = -(-scanned // 8) if self.placement.result == "bitmap" else read * _ID_BYTES
        flops = 0 if self.placement.result == "histogram" else scanned * self.model.q_per_kv
        return Work(
            _piece("filter", request, chunk), "filter", "index", request, nbytes=nbytes, records=scanned,
            runs=np.minimum(nbytes, 1), flops=flops, after=after,
        )  # fmt: skip

    def _decides(self, scan: str) -> tuple[tuple[str, int], ...]:
        """A staged rule needs the normaliser of the pinned tokens; the others decide on scores alone."""
        rules = [selector.rule for selector in self.policy.read.cascade]
        staged = any(isinstance(rule, Certify | Presume) and rule.form == "staged" for rule in rules)
        pinned = ("hot", "attend_warm") if self.warms else ("hot",)
        return ((scan, 0), *((name, 0) for name in pinned if staged))

    # --- what is foretold ---

    def _bring(self, ahead: Ahead) -> Iterator[Work]:
        """Ask the index with a foretold query, when it has answered the real one, and fetch what it names."""
        asked = tuple((row, 0) for row in self._answers())
        last = len(self.stages) - 1
        if ahead.scans:
            for number, stage in enumerate(self.stages):
                scanned = ahead.scanned[number]
                yield Work(
                    _stage_name("foretell", number), "scan", "index", BATCH, number,
                    record_bytes=max(1, int(stage.record_bytes)), nbytes=ahead.scan_bytes[number], records=scanned,
                    runs=np.minimum(scanned, self.model.kv_heads), flops=2 * scanned * stage.macs * self.model.q_per_kv,
                    after=((_stage_name("foretell", number - 1), 0),) if number else asked,
                )  # fmt: skip
            nbytes = -(-ahead.scanned[last] // 8) if self.placement.result == "bitmap" else ahead.tokens * _ID_BYTES
            yield Work(
                "foretold", "filter", "index", nbytes=nbytes, records=ahead.scanned[last],
                runs=np.minimum(nbytes, 1), flops=ahead.scanned[last] * self.model.q_per_kv,
                after=((_stage_name("foretell", last), 0),),
            )  # fmt: skip
        size = self.traffic.fetched.record_bytes
        read, runs = self.traffic.read.sum(axis=0), self.traffic.runs.sum(axis=0)
        yield Work(
            "prefetch", "read", "cold", stage=len(self.stages), record_bytes=size, nbytes=ahead.tokens * size,
            records=ahead.tokens, runs=-(-ahead.tokens * runs // np.maximum(read, 1)),
            after=(("foretold", 0),) if ahead.scans else asked,
        )  # fmt: skip

    def _answers(self) -> list[str]:
        """Name the rows with which the filter has answered the real query."""
        if self.placement.per_request:
            return [f"filter{request}.{chunk}" for request, chunk in self._pieces()]
        return ["filter"]

    # --- what survives ---

    def _reads(self, name: str, role: Role, moved: Moved, pieces: Ints) -> Iterator[Work]:
        if self.placement.fetch == "cpu" and role == "cold":
            yield from self._attend_away()
            return
        for request, chunk in self._pieces():
            tokens = self._part(moved.tokens[request], chunk)
            runs = np.minimum(self._part(pieces[request], chunk), tokens)
            yield Work(
                f"{name}{request}.{chunk}", "migrate" if name == "recall" else "read", role, request,
                stage=len(self.stages) or 1,
                record_bytes=moved.record_bytes, nbytes=self._part(moved.nbytes[request], chunk), records=tokens,
                runs=runs, after=self._may_read(request, chunk),
            )  # fmt: skip

    def _attend_away(self) -> Iterator[Work]:
        """Send the queries; attend where the tokens lie; bring back an output, a maximum and a sum per query head."""
        moved, heads = self.traffic.fetched, self.batch * self.model.q_heads
        size = self.model.head_dim * _FP16_BYTES
        yield Work(
            "ask", "write", "cold", record_bytes=size, nbytes=heads * size, records=heads, runs=1, after=(("qkv", 0),),
        )  # fmt: skip
        for request, chunk in self._pieces():
            tokens = self._part(moved.tokens[request], chunk)
            name, busy = f"attend{request}.{chunk}", np.minimum(tokens, 1)
            partial = self.model.q_heads * (self.model.head_dim + 2) * _PARTIAL_BYTES
            yield Work(
                name, "attend", "cold", request, stage=len(self.stages) or 1, record_bytes=moved.record_bytes,
                nbytes=self._part(moved.nbytes[request], chunk), records=tokens,
                runs=np.minimum(self._part(self.traffic.runs[request], chunk), tokens),
                flops=tokens * self._attention_flops(), after=(("ask", 0), *self._may_read(request, chunk)),
            )  # fmt: skip
            yield Work(
                f"read{request}.{chunk}", "read", "cold", request, stage=len(self.stages) or 1, record_bytes=partial,
                nbytes=busy * partial, records=busy, runs=busy, after=((name, 0),),
            )  # fmt: skip

    def _may_read(self, request: int, chunk: int) -> tuple[tuple[str, int], ...]:
        """A fetch waits for its ids; without a filter it runs ahead as far as the layer buffers reach."""
        if not self.stages:
            return (("survivors", _BUFFERED_LAYERS),) if self.placement.fetch != "cpu" else ()
        if self.placement.per_request:
            return ((f"filter{request}.{chunk}", 0),)
        return (("filter", 0),)

    def _attend_survivors(self) -> Work:
        """Attend what was read: from HBM, unless the SMs read it in place while fetching."""
        tokens, runs = self.traffic.read.sum(axis=0), (self.traffic.runs + self.traffic.archive_runs).sum(axis=0)
        in_place = (self.apart or self.away) and self.placement.fetch in ("zero_copy", "cpu")
        elsewhere = self.apart and self.placement.fetch == "cpu"
        merged = self.batch * self.model.q_heads * self.model.head_dim * 2
        here, fetched = self.traffic.here, self.traffic.fetched
        role: Role = "hot" if self.apart or self.away else "cold"
        lossy = here.lossy or fetched.lossy or self.traffic.archived.lossy or self.rebuild
        op: Op = "decode" if lossy else "attend"
        names = [name for name, there in ((self.fetch, self.apart), ("resurrect", self.away)) if there]
        waits = tuple((f"{name}{r}.{c}", 0) for name in names for r, c in self._pieces()) or (("filter", 0),)
        if self.ahead is not None:
            waits = (*waits, ("prefetch", self.ahead.shift))
        return Work(
            "survivors", op, role, stage=len(self.stages) or 1, record_bytes=self.token_bytes,
            nbytes=here.nbytes.sum(axis=0) + (0 if in_place else self._landed()), records=tokens, runs=runs,
            flops=merged if elsewhere else tokens * (self._attention_flops() + self.rebuild),
            after=(*waits, ("hot", 0)),
        )  # fmt: skip

    def _landed(self) -> Ints:
        """Return the bytes of the tokens that are attended from HBM after they came from their tier.

        What was recalled into a cache is attended with the rest of it.
        """
        landed = np.zeros_like(self.traffic.landed) if self.recalls else self.traffic.landed
        return np.asarray((landed + self.traffic.archived.nbytes).sum(axis=0))

    # --- arithmetic ---

    @property
    def _heads(self) -> int:
        return self.batch * self.model.kv_heads

    def _attention_flops(self) -> int:
        """Q K and P V of one token in one KV head, over its query heads."""
        return 4 * self.model.head_dim * self.model.q_per_kv

    def _pieces(self) -> list[tuple[int, int]]:
        return [(request, chunk) for request in self.requests for chunk in range(self._chunks())]

    def _chunks(self) -> int:
        return self.placement.chunks if self.near_memory and self.placement.per_request else 1

    def _part(self, sizes: Ints, chunk: int) -> Ints:
        """Share `chunk` of sizes, so that the shares sum to the whole."""
        chunks = self._chunks()
        return np.asarray(sizes * (chunk + 1) // chunks - sizes * chunk // chunks)


def _piece(name: str, request: int, chunk: int | None = None) -> str:
    """Name a row that serves a request, or a chunk of it; one that serves the batch has the bare name."""
    if request == BATCH:
        return name
    return f"{name}{request}" if chunk is None else f"{name}{request}.{chunk}"


def _stage_name(name: str, number: int) -> str:
    return f"{name}s{number}" if number else name


def place(
    selection: Selection,
    policy: Policy,
    model: Model,
    placement: Placement,
    batch: int,
    ahead: Ahead | None = None,
) -> Plan:
    """Bind a Selection to tiers.

    Parameters
    ----------
    selection
        Reads of at least `batch` requests, for the layers and KV heads of `model`.
    model
        Shape that bytes are charged at.
    ahead
        What is fetched before it is asked for.

    Returns
    -------
    Plan
        Rows of all steps; its bytes per tier and cause are what the simulation must deliver.
    """
    program = _Program(selection, policy, model, placement, batch, ahead)
    tiers: dict[Role, str] = {"weights": "hbm", "hot": "hbm", "warm": placement.warm_tier, "cold": placement.kv_tier}
    if program.archives:
        tiers["archive"] = placement.archive
    if program.stages:
        tiers["index"] = placement.index_tier
    return build(list(program.rows()), tiers, selection.steps, program.layers)
