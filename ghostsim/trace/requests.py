"""Request workloads: when requests arrive, how long their prompts and outputs are, and which prompts share a prefix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

MOONCAKE_BLOCK_TOKENS = 512  # Qin et al., "Mooncake", FAST 2025
LARGEST_TOKENS = 10**9
LARGEST_INT = 2**63 - 1
PS_PER_S = 10**12
PS_PER_MS = 10**9


@dataclass(frozen=True)
class Request:
    """One request; `blocks` and `session` are None where the source does not say."""

    arrival_ps: int
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None
    session: int | None


@dataclass(frozen=True, eq=False)
class Blocks:
    """Ids of the prompt blocks of all requests: those of request i are ids[offsets[i] : offsets[i + 1]]."""

    block_tokens: int
    ids: Ints
    offsets: Ints


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in the order of arrival, as int64 columns [n]; `session` holds -1 for a request of no session.

    An `output_tokens` of 0 is a request that failed in the recorded system.
    """

    arrival_ps: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    session: Ints | None = None
    blocks: Blocks | None = None

    def __len__(self) -> int:
        return len(self.arrival_ps)

    def __getitem__(self, index: int) -> Request:
        at = range(len(self))[index]
        blocks, session = self.blocks, None if self.session is None else int(self.session[at])
        ids = None if blocks is None else blocks.ids[blocks.offsets[at] : blocks.offsets[at + 1]]
        return Request(
            int(self.arrival_ps[at]),
            int(self.prompt_tokens[at]),
            int(self.output_tokens[at]),
            None if ids is None else tuple(ids.tolist()),
            None if session is None or session < 0 else session,
        )

    def __iter__(self) -> Iterator[Request]:
        return (self[index] for index in range(len(self)))


def int64(values: Iterable[int]) -> Ints:
    """Return a column."""
    return np.fromiter(values, dtype=np.int64)


def blocks_of(block_tokens: int, per_request: Sequence[Sequence[int]]) -> Blocks:
    """Return the ids of each request as columns."""
    offsets = np.zeros(len(per_request) + 1, dtype=np.int64)
    np.cumsum([len(ids) for ids in per_request], out=offsets[1:])
    return Blocks(block_tokens, int64(id_ for ids in per_request for id_ in ids), offsets)


def prefix_hits(blocks: Blocks) -> Ints:
    """Return for each request how many of its leading blocks an unbounded cache holds when it comes, [n].

    The cache holds every prompt block of the requests before it; a block behind one that is missing is no hit.
    """
    counts = np.diff(blocks.offsets)
    owner = np.repeat(np.arange(len(counts)), counts)
    _, first, inverse = np.unique(blocks.ids, return_index=True, return_inverse=True)
    misses = np.cumsum(owner[first][inverse] == owner)
    before = np.concatenate([[0], misses])[blocks.offsets[:-1]]
    leading = misses == np.repeat(before, counts)
    return np.bincount(owner[leading], minlength=len(counts)).astype(np.int64)


def summary(requests: Requests) -> dict[str, Any]:
    """Describe requests: rate, lengths, sessions, and the share of prompt blocks that an unbounded cache would hold."""
    span_s = float(requests.arrival_ps[-1] - requests.arrival_ps[0]) / PS_PER_S
    return {
        "requests": len(requests),
        "span_s": span_s,
        "requests_per_s": (len(requests) - 1) / span_s if span_s else None,
        "prompt_tokens": _spread_of(requests.prompt_tokens),
        "output_tokens": _spread_of(requests.output_tokens),
        "without_output": int((requests.output_tokens == 0).sum()),
        "sessions": None if requests.session is None else _session_summary(requests.session),
        "blocks": None if requests.blocks is None else _block_summary(requests.blocks),
    }


def _spread_of(values: Ints) -> dict[str, float]:
    p50, p95 = np.quantile(values, [0.5, 0.95])
    return {"mean": float(values.mean()), "p50": float(p50), "p95": float(p95), "max": int(values.max())}


def _session_summary(session: Ints) -> dict[str, float]:
    _, turns = np.unique(session[session >= 0], return_counts=True)
    return {"count": len(turns), "requests": int(turns.sum()), "longest": int(turns.max(initial=0))}


def _block_summary(blocks: Blocks) -> dict[str, float]:
    total, hits = len(blocks.ids), int(prefix_hits(blocks).sum())
    return {
        "block_tokens": blocks.block_tokens,
        "total": total,
        "distinct": len(np.unique(blocks.ids)),
        "prefix_hit_share": hits / total if total else 0.0,
    }


def format_summary(found: Mapping[str, Any]) -> str:
    """Lay out the result of `summary` as text."""
    rate, sessions, blocks = found["requests_per_s"], found["sessions"], found["blocks"]
    lines = [
        f"requests  {found['requests']} in {found['span_s']:.1f} s" + (f", {rate:.3f} per second" if rate else ""),
        *(f"{name:<9} {_lengths_text(found[f'{name}_tokens'])}" for name in ("prompt", "output")),
        f"failed    {found['without_output']} requests without output",
        f"sessions  {_sessions_text(sessions)}",
        f"blocks    {_blocks_text(blocks)}",
    ]
    return "\n".join(lines)


def _lengths_text(found: Mapping[str, float]) -> str:
    return f"mean {found['mean']:.1f}, median {found['p50']:.0f}, p95 {found['p95']:.0f}, max {found['max']} tokens"


def _sessions_text(found: Mapping[str, int] | None) -> str:
    if found is None:
        return "not recorded"
    return f"{found['count']} with {found['requests']} requests, at most {found['longest']} in one"


def _blocks_text(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not recorded"
    share = f"{found['prefix_hit_share']:.1%} hits in an unbounded prefix cache"
    return f"{found['total']} of {found['block_tokens']} tokens, {found['distinct']} distinct, {share}"
