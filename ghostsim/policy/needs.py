"""What a policy needs of a trace, beside queries and keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ghostsim.config.policy import Policy
from ghostsim.config.scores import (
    Hist,
    HistScore,
    Norm,
    NormScore,
    Obs,
    ObsScore,
    Score,
    Sketch,
    SketchScore,
    TrigScore,
)
from ghostsim.errors import ConfigError, Location, TraceError
from ghostsim.policy.costs import format_bytes, index_stages
from ghostsim.trace.compose import Workload
from ghostsim.trace.format import Trace


@dataclass(frozen=True)
class Held:
    """What a trace, or a request composed of several, holds that policies may need."""

    values: bool
    token_class: bool
    q_ahead: bool
    rotates: bool
    """Whether keys are those before rotation."""
    prompt_queries: int
    prompt: int
    """Tokens before step 0."""


def unmet(policy: Policy, trace: Trace) -> str | None:
    """Return in one line what a policy needs that a trace does not hold; None if the trace can serve it."""
    held = Held(
        values=trace.v is not None,
        token_class=trace.token_class is not None,
        q_ahead=trace.q_ahead is not None,
        rotates=trace.rope is not None,
        prompt_queries=trace.prompt_queries,
        prompt=trace.prompt_len,
    )
    return next(_lacking(policy, held), None) or _unfit(policy, trace)


def check_served(policy: Policy, workload: Workload, at: Location | None = None) -> None:
    """Refuse a policy that some request of a workload cannot serve.

    Raises
    ------
    TraceError
        What the trace lacks; where `at` is not given, with the folder of the trace.
    """
    for request in range(workload.requests):
        own = workload.trace_of(request)
        held = Held(
            values=workload.holds(request, "v"),
            token_class=workload.holds(request, "token_class"),
            q_ahead=own.q_ahead is not None,
            rotates=own.rope is not None,
            prompt_queries=workload.prompt_queries(request),
            prompt=workload.context,
        )
        for reason in _lacking(policy, held):
            raise TraceError(f"{policy.name}: {reason}", at or Location(own.path))


def _lacking(policy: Policy, held: Held) -> Iterator[str]:
    selectors = list(policy.selectors())
    if policy.read.lag == "layer" and not held.q_ahead:
        yield "needs queries made a layer early (q_ahead), which the trace does not hold"
    if any(each.pin.classes for each in selectors) and not held.token_class:
        yield "needs token classes (token_class), which the trace does not hold"
    if any(clause.first for clause in policy.keep) and held.prompt_queries < held.prompt:
        yield f"needs every prompt query (q_prompt), the trace holds the last {held.prompt_queries} of {held.prompt}"
    for each in selectors:
        if each.score is not None:
            yield from _of_score(each.score, held)


def _unfit(policy: Policy, trace: Trace) -> str | None:
    try:
        index_stages(policy, trace.model.head_dim, trace.model.kv_heads)
        [format_bytes(clause.format, trace.model.head_dim) for clause in policy.keep]
    except ConfigError as error:
        return f"does not fit heads of {trace.model.head_dim} channels: {error}"
    return None


def _of_score(score: Score, held: Held) -> Iterator[str]:
    match score:
        case ObsScore(obs=Obs(values=True)) | NormScore(norm=Norm(of="value")) if not held.values:
            yield "needs values (v), which the trace does not hold"
        case TrigScore() | SketchScore(sketch=Sketch(frame=int()) | Sketch(basis="planes")) if not held.rotates:
            yield "needs keys before rotation (rope), in this trace positions are inside them"
    window = _window(score)
    if window is not None and window > held.prompt_queries:
        yield f"needs the last {window} prompt queries (q_prompt), the trace holds {held.prompt_queries}"


def _window(score: Score) -> int | None:
    match score:
        case ObsScore(obs=Obs(window=window)):
            return window
        case HistScore(hist=Hist(window=window)):
            return window
        case _:
            return None
