"""Serving: requests that arrive, wait, share the GPU in a continuous batch, and leave."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from ghostsim.config.base import Count, Fraction, MisfitError, Strict, Text, Whole
from ghostsim.config.hardware import Delay, Link, Positive, PositiveBytes, PositiveDuration

CacheTier = Literal["dram", "cxl", "ssd"]
Batch = Annotated[Count, Field(le=4096)]


def _below_one(value: float) -> float:
    if value >= 1:
        raise ValueError(f"found {value:g}, expected a share below 1, e.g. 0.7")
    return value


class Sessions(Strict):
    """Multi-turn agent sessions whose history grows, drawn from the seed: `ghostsim trace sessions`."""

    count: Annotated[Count, Field(le=100_000)]
    turns: Annotated[Count, Field(le=10_000)]
    system_tokens: Annotated[Whole, Field(le=10**6)] = 2048
    task_tokens: Annotated[Count, Field(le=10**6)] = 2048
    result_tokens: Annotated[Count, Field(le=10**6)] = 1024
    output_tokens: Annotated[Count, Field(le=10**6)] = 256
    gap: Delay = 2 * 10**12
    """Mean time between the starts of sessions."""
    tool: Delay = 5 * 10**12
    """Mean time of a tool between two turns."""


class Arrivals(Strict):
    """When requests come: as recorded, as a Poisson process, or from clients that wait for their answers."""

    scale: Annotated[Positive, Field(ge=1e-6, le=1e6)] | None = None
    """Recorded arrivals, so many times as fast."""
    rate: Annotated[Positive, Field(ge=1e-6, le=1e6)] | None = None
    """Requests per second of a Poisson process; the order stays as recorded."""
    clients: Batch | None = None
    """Closed loop: so many clients, each with one request at a time; a client keeps to its session."""
    think: Delay = 0
    """Time between an answer and the client's next request."""

    @model_validator(mode="after")
    def _one_of_three(self) -> Arrivals:
        given = [name for name in ("scale", "rate", "clients") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'none'} of scale, rate, clients, expected one of them")
        if self.think and self.clients is None:
            raise MisfitError("found a think time without clients, expected clients: beside it", "think")
        return self


class Slo(Strict):
    """What a request is promised."""

    ttft: PositiveDuration
    """From arrival to the first token."""
    tpot: PositiveDuration
    """Mean time per output token after the first."""


class Speculation(Strict):
    """Speculative decoding with a draft of `draft` tokens; every token is accepted with the same probability.

    The acceptance is supplied: it depends on a draft model that is not simulated.
    """

    draft: Annotated[Count, Field(le=64)]
    acceptance: Annotated[Fraction, AfterValidator(_below_one)]
    cost: Delay = 0
    """Time in which the draft of one iteration is made, whatever the batch."""


class Serving(Strict):
    """A request workload and how it is served: first come, first served, in a continuous batch."""

    requests: Text | None = None
    """A recorded workload, by file or bundled name."""
    sessions: Sessions | None = None
    """Or one that is drawn."""
    count: Count | None = None
    """First requests to serve; none serves all."""
    arrivals: Arrivals = Arrivals(scale=1.0)
    max_batch: Batch = 64
    """Requests in service at once, those that wait for their history included."""
    prefill_chunk: Annotated[Count, Field(le=10**6)] = 2048
    """Prompt tokens that one iteration takes in at most."""
    slo: Slo
    prefix_cache: dict[CacheTier, PositiveBytes] | None = None
    """Prompt blocks are kept in the tier of the KV as long as there is room, then in these; none keeps nothing."""
    preemption: Literal["none", "recompute"] = "none"
    """`none` reserves room for the whole output at admission; `recompute` takes room as the output grows, and where
    there is none, the request that was admitted last gives up its own and starts again."""
    speculation: Speculation | None = None
    prefill_attention: Annotated[Fraction, Field(gt=0)] = 0.7
    """Share of the GPU's dense rate that prefill attention reaches; assumed, after FlashAttention-3's published 75 %
    of an H100's (recalled)."""

    @model_validator(mode="after")
    def _one_workload(self) -> Serving:
        if (self.requests is None) == (self.sessions is None):
            found = "neither requests nor sessions" if self.requests is None else "both requests and sessions"
            raise ValueError(f"found {found}, expected one of them, e.g. requests: azure_conv_500")
        return self


class TensorParallel(Strict):
    """Several equal GPUs that share every layer; each has the platform to itself."""

    gpus: Annotated[Count, Field(ge=2, le=64)]
    link: Link
    """From each GPU to the next, in a ring."""
