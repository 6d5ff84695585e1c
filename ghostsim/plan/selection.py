"""Selection: what a policy reads at each step and what that loses, without hardware and without a clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bits = NDArray[np.uint8]
GROUPS = 9
"""Sizes of groups of positions that reads are counted in: 2 to 512."""


@dataclass(frozen=True)
class IndexStage:
    """One stage of the READ cascade: what is scanned per unit, and the arithmetic of one record.

    `record_bytes` are moved per scanned record and KV head (a fraction where an index is shared between heads or holds
    a share of the channels; the bytes of a step are rounded down); `macs` are spent per record and query head, on
    operands of `operand_bits`.
    """

    name: str
    record_bytes: float
    unit_tokens: int
    macs: int
    operand_bits: int

    def nbytes(self, records: int) -> int:
        """Return the bytes of some records."""
        return int(self.record_bytes * records)


@dataclass(frozen=True)
class Stream:
    """KV that moves in one way: the tokens of one KEEP clause, pinned or selected, in one form.

    `op` is ``attend`` (as it is), ``decode`` (dequantised while it is attended), ``read`` (fetched from its tier) or
    ``migrate`` (recalled from its tier into a cache; the same tokens are attended from there by another stream).
    """

    op: Literal["attend", "decode", "read", "migrate"]
    role: Literal["hot", "warm", "cold", "archive"]
    clause: int
    """The KEEP clause whose tokens these are; keys and values may be streams of their own."""
    selected: bool
    """Whether it waits for the READ selector."""
    record_bytes: int
    """Bytes of one token and KV head, nominal: a residual in fp16 makes the mean larger."""


@dataclass(frozen=True)
class Selection:
    """The reads and the quality of one policy on one workload.

    U distinct heads (request, kept layer, recorded KV head), S steps, g query heads per KV head, C index
    stages, K streams. `unit_of[request, layer, kv_head]` says which of the U evaluations serves a head of the target
    model. A head's attended tokens are its hot ones (the PIN set, own token included; without pins the own
    token) and its cold ones, of which `read_tokens` are read.
    """

    policy: str
    workload_hash: str
    stages: tuple[IndexStage, ...]
    streams: tuple[Stream, ...]
    unit_of: NDArray[np.int32]
    """[requests, layers, kv_heads] row of the arrays below."""
    attended: Ints
    """[U, S] positions that the model attends without any policy."""
    hot_tokens: Ints
    """[U, S] attended tokens in the PIN set."""
    cold_tokens: Ints
    """[U, S] attended tokens outside the PIN set; an evicted one counts here and is never read."""
    stored_tokens: Ints
    """[U, S] tokens that some KEEP clause stores at this step (hot ones included)."""
    read_tokens: Ints
    """[U, S] cold tokens that are read."""
    read_runs: Ints
    """[U, S] maximal runs of consecutive positions among the cold tokens that are read, archived ones apart."""
    read_groups: Ints
    """[U, S, GROUPS] of the same, groups of 2, 4, 8, ... positions, aligned, that hold at least one."""
    archive_tokens: Ints
    """[U, S] cold tokens that are archived."""
    archive_runs: Ints
    """[U, S] clusters whose archived tokens are read: they lie together in their tier."""
    scanned: Ints
    """[C, U, S] records that reach each index stage."""
    scan_bytes: Ints
    """[C, U, S] their bytes."""
    stream_tokens: Ints
    """[K, U, S] tokens of each stream, none of anchors."""
    stream_bytes: Ints
    """[K, U, S] their bytes."""
    state_bytes: Ints
    """[U, S] bookkeeping that is rewritten."""
    refit_bytes: Ints
    """[U, S] keys that are read to build indexes again."""
    rewritten_bytes: Ints
    """[U, S] records that are then written again."""
    lost_mass: Floats
    """[U, S, g] attention mass outside the read set."""
    certified_mass: Floats | None
    """[U, S, g] proven upper bound of `lost_mass`; None without a certificate."""
    violations: Ints | None
    """[U, S, g] tokens whose claimed upper bound lies below the true score; None if no bound is claimed."""
    violated_mass: Floats | None
    """[U, S, g] attention mass of those tokens."""
    bound_checks: Ints
    """[U, S, g] tokens whose bound was compared."""
    top_cold: Ints
    """[U, S, g] cold tokens among the exact top 32 attended ones."""
    top_eliminated: Ints
    """[U, S, g] of those, the ones that are not read."""
    needless_reads: Ints
    """[U, S] cold tokens read that the oracle at the same eps (0.01 for rules without one) would not read."""
    oracle_reads: Ints
    """[U, S] cold tokens that this oracle reads."""
    output_error: Floats | None
    """[U, S, g] relative error of the attention output; None where the trace holds no values."""
    sets: Bits = field(repr=False)
    """[U, S, ceil(tokens / 8)] attended positions read, hot ones included, packed with ``bitorder="little"``."""

    @property
    def steps(self) -> int:
        """Decode steps."""
        return int(self.attended.shape[1])

    def weights(self) -> Ints:
        """Count how many (request, layer, KV head) of the target model each of the U rows serves."""
        return np.bincount(self.unit_of.ravel(), minlength=self.attended.shape[0])
