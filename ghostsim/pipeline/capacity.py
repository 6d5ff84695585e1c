"""Capacity: the bytes that a run keeps in each tier, and the largest batch that fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ghostsim.config.hardware import Platform
from ghostsim.config.model import Model
from ghostsim.config.policy import Keep, Policy
from ghostsim.config.rules import AllRule, TopFrac, TopK
from ghostsim.config.scenario import Run
from ghostsim.plan.selection import IndexStage
from ghostsim.policy.costs import anchor_bytes, format_bytes, index_stages

_BUFFERED_LAYERS = 2
_BUFFERED = ("dma", "staged")
_MOST_REQUESTS = 4096


@dataclass(frozen=True)
class Footprint:
    """Bytes per tier of a run with a batch."""

    batch: int
    tokens: int
    tiers: Mapping[str, int]

    def overflow(self, platform: Platform) -> str:
        """Say which tier is too small, or nothing."""
        for tier, nbytes in self.tiers.items():
            capacity = platform.tier_capacity(tier)  # type: ignore[arg-type]
            if nbytes > capacity:
                return (
                    f"found {nbytes / 1e9:.1f} GB for tier {tier} at batch {self.batch}, "
                    f"expected at most its {capacity / 1e9:.1f} GB"
                )
        return ""


def kept_tokens(keep: Keep, tokens: int) -> int:
    """Bound the tokens per KV head that a KEEP clause stores."""
    rule, pin = keep.select.rule, keep.select.pin
    pinned = pin.sinks + pin.window
    match rule:
        case AllRule():
            return tokens
        case TopK() as budget:
            return min(tokens, budget.tokens + pinned)
        case TopFrac(topfrac=share):
            return min(tokens, int(share * tokens) + pinned)
        case _:
            return min(tokens, pinned) if pinned else tokens


def stored_tokens(policy: Policy, tokens: int) -> int:
    """Bound the tokens per KV head that a policy stores out of `tokens`."""
    return max(kept_tokens(keep, tokens) for keep in policy.keep)


def warm_tokens(run: Run, tokens: int) -> int:
    """Bound the tokens per KV head that lie in a warm tier: those of warm clauses that no earlier clause serves."""
    found = before = 0
    for keep in run.policy.keep if run.warm_tier != "hbm" else ():
        kept = max(before, kept_tokens(keep, tokens))
        found += kept - before if keep.role == "warm" else 0
        before = kept
    return found


def index_bytes(stages: Sequence[IndexStage], stored: int, cold: int) -> int:
    """Return the bytes of an index per KV head: archived tokens have no record beyond their cluster's, in stage 0."""
    judged = [cold if number else stored for number in range(len(stages))]
    return sum(stage.nbytes(-(-tokens // stage.unit_tokens)) for stage, tokens in zip(stages, judged, strict=True))


def footprint(run: Run, model: Model, tokens: int, batch: int) -> Footprint:
    """Return the bytes of weights, KV, pinned KV, index, cache and fetch buffers of a run.

    KV outside HBM keeps a copy of the pinned tokens in HBM, but for warm ones elsewhere, what the policy's cache
    holds, and the buffers of two layers.
    """
    heads = batch * -(-model.layers // run.policy.layer_groups) * model.kv_heads
    token_bytes = format_bytes(run.policy.keep[0].format, model.head_dim)
    stored = stored_tokens(run.policy, tokens)
    tiers = {"hbm": model.weight_bytes}

    warm = warm_tokens(run, tokens)
    archived = 0 if run.policy.archive is None else stored
    cold = max((kept_tokens(keep, tokens) for keep in run.policy.keep if keep.role != "archive"), default=0)

    def add(tier: str, nbytes: int) -> None:
        tiers[tier] = tiers.get(tier, 0) + nbytes

    add(run.kv_tier, heads * (cold - warm if run.kv_tier == "hbm" else cold) * token_bytes)
    if warm:
        warm_bytes = max(format_bytes(keep.format, model.head_dim) for keep in run.policy.keep if keep.role == "warm")
        add(run.warm_tier, heads * warm * warm_bytes)
        if run.fetch in _BUFFERED:
            add("hbm", _BUFFERED_LAYERS * batch * model.kv_heads * warm * warm_bytes)
    add(run.archive_tier or run.kv_tier, heads * archived * token_bytes)
    anchors = sum(anchor_bytes(keep.format, model.head_dim) for keep in run.policy.keep)
    add("hbm", int(heads * stored * anchors))
    if run.kv_tier != "hbm" or (run.archive_tier or "hbm") != "hbm":
        pin = run.policy.read.pin
        add("hbm", heads * (min(tokens, pin.sinks + pin.window + 1) - warm) * token_bytes)
        if run.policy.read.cache is not None:
            add("hbm", heads * min(run.policy.read.cache.tokens, stored) * token_bytes)
        if run.prefetch is not None:
            held = min(run.prefetch.tokens, stored) * (1 if run.prefetch.by == "layer_ahead" else run.prefetch.ahead)
            add("hbm", heads * held * token_bytes)
        if run.fetch in _BUFFERED:
            add("hbm", _BUFFERED_LAYERS * batch * model.kv_heads * stored * token_bytes)
    stages = index_stages(run.policy, model.head_dim, model.kv_heads)
    add(run.index_tier, heads * index_bytes(stages, stored, cold if archived else stored))
    return Footprint(batch, tokens, tiers)


def largest_batch(run: Run, model: Model, tokens: int) -> int:
    """Return the largest batch that overflows no tier, 0 if none fits."""
    low, high = 0, _MOST_REQUESTS
    while low < high:
        middle = (low + high + 1) // 2
        fits = not footprint(run, model, tokens, middle).overflow(run.platform)
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
