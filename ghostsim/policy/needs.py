"""What a policy needs of a trace, beside queries and keys."""

from __future__ import annotations

from collections.abc import Iterator

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
from ghostsim.errors import ConfigError
from ghostsim.policy.costs import format_bytes, index_stages
from ghostsim.trace.format import Trace


def unmet(policy: Policy, trace: Trace) -> str | None:
    """Return in one line what a policy needs that a trace does not hold; None if the trace can serve it."""
    return next(_unmet(policy, trace), None)


def _unmet(policy: Policy, trace: Trace) -> Iterator[str]:
    selectors = list(policy.selectors())
    if policy.read.lag == "layer" and trace.q_ahead is None:
        yield "needs queries made a layer early (q_ahead), which the trace does not hold"
    if any(each.pin.classes for each in selectors) and trace.token_class is None:
        yield "needs token classes (token_class), which the trace does not hold"
    if any(clause.first for clause in policy.keep) and trace.q_prompt.shape[2] < trace.prompt_len:
        yield f"needs every prompt query, the trace holds the last {trace.q_prompt.shape[2]} of {trace.prompt_len}"
    for each in selectors:
        if each.score is not None:
            yield from _of_score(each.score, trace)
    try:
        index_stages(policy, trace.model.head_dim, trace.model.kv_heads)
        [format_bytes(clause.format, trace.model.head_dim) for clause in policy.keep]
    except ConfigError as error:
        yield f"does not fit heads of {trace.model.head_dim} channels: {error}"


def _of_score(score: Score, trace: Trace) -> Iterator[str]:
    match score:
        case ObsScore(obs=Obs(values=True)) | NormScore(norm=Norm(of="value")) if trace.v is None:
            yield "needs values (v), which the trace does not hold"
        case TrigScore() | SketchScore(sketch=Sketch(frame=int())) if trace.rope is None:
            yield "needs keys before rotation, in this trace positions are inside them"
    window = _window(score)
    if window is not None and window > trace.q_prompt.shape[2]:
        yield f"needs the last {window} prompt queries, the trace holds {trace.q_prompt.shape[2]}"


def _window(score: Score) -> int | None:
    match score:
        case ObsScore(obs=Obs(window=window)):
            return window
        case HistScore(hist=Hist(window=window)):
            return window
        case _:
            return None
