"""Drift over a long decode: how what was fitted on the prompt serves the tokens that turn cold later.

Hot are the first 4 and the last 256 tokens; what leaves them turns cold, joins the nearest cluster or is written as a
record in the bases and code ranges that stand. Each index is fitted once, or again on a clock (`REFRESH`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import Policy
from ghostsim.config.rules import Certify
from ghostsim.errors import TraceError
from ghostsim.policy.clusters import ClusterIndex
from ghostsim.policy.cold import Cold, certified_read, exponentials, fitting_rows, pins_of
from ghostsim.policy.costs import index_stages
from ghostsim.policy.exact import Array, block_of
from ghostsim.policy.head import Indexes
from ghostsim.policy.indexes import TokenIndex, row_norms
from ghostsim.policy.rules import Mask
from ghostsim.policy.scoring import Index
from ghostsim.policy.stages import Offer, Stage
from ghostsim.trace.compose import SINKS, Head, compose
from ghostsim.trace.format import Trace
from ghostsim.trace.statistics import CLASSES, LOCAL, statistics

Floats = npt.NDArray[np.float64]

EPS = 0.01
REFRESH = (None, 256, 64)
"""Steps between refits; None: never."""
INDEXES: dict[str, dict[str, Any]] = {
    "balls of 16": {"centroid": {"tokens": 16, "radius": True, "joins": True}},
    "PCA 32, 8 bit": {"sketch": {"dims": 32, "bits": 8}},
    "4-bit keys": {"qkeys": {"bits": 4}},
}
WINDOWS = 8
LOOKED = 8
"""Steps looked at in each window."""
LEAST_STEPS = 128
MEASURES = ("head", "group", "late", "fitted")
"""Share of the cold tokens ruled out per query head and by GQA group; slack of late and of fitted tokens."""


@dataclass(frozen=True, eq=False)
class Drift:
    """`values` [indexes, refresh, windows, measures, kept layers, query heads] are means over the steps looked at.

    The slack of a token is what its bound adds per ||q||: the radius of its ball, or the error norm of its record.
    """

    trace: Trace
    windows: tuple[tuple[int, int], ...]
    """First step and one behind the last."""
    values: Floats
    classes: npt.NDArray[np.int64]
    """[kept, query heads], indexes into `CLASSES`."""
    violations: int
    lost_max: float

    def mean(self, index: int, refresh: int, measure: str, heads: Mask | None = None) -> Floats:
        """Return a measure [windows] over the `heads` [kept, query heads], or all."""
        chosen = np.ones(self.classes.shape, dtype=bool) if heads is None else heads
        return np.asarray(self.values[index, refresh, :, MEASURES.index(measure)][:, chosen].mean(axis=1))

    def ratio(self, index: int, refresh: int, heads: Mask | None = None) -> Floats:
        """Return the slack of late tokens as a multiple of that of the prompt's, [windows]."""
        late, fitted = (self.mean(index, refresh, name, heads) for name in ("late", "fitted"))
        return np.asarray(late / np.where(fitted > 0, fitted, 1.0))

    def parts(self) -> dict[str, Mask]:
        """Return all heads, those of each layer, and those of each class that has any."""
        kept, shape = self.trace.model.kept_layers, self.classes.shape
        layers = {f"layer {l}": np.broadcast_to(np.arange(len(kept))[:, None] == i, shape) for i, l in enumerate(kept)}
        classes = {name: self.classes == i for i, name in enumerate(CLASSES)}
        return {"all": np.ones(shape, dtype=bool)} | layers | {k: v for k, v in classes.items() if v.any()}

    def cost(self, index: int, refresh: int) -> float:
        """Return the bytes a step of refits, of keys read and records written, as a share of all cold K and V."""
        every = REFRESH[refresh]
        if every is None or every >= self.windows[-1][1]:
            return 0.0
        d = self.trace.model.head_dim
        (stage,) = index_stages(policy_of(list(INDEXES)[index], every), d)
        return (2 * d + stage.record_bytes / stage.unit_tokens) / (4 * d * every)


def policy_of(name: str, every: int | None) -> Policy:
    """Return the policy of an index that is fitted again every so many steps."""
    read = {
        "rule": {"certify": EPS},
        "score": INDEXES[name],
        "refresh": "never" if every is None else {"steps": every},
        "pin": {"sinks": SINKS, "window": LOCAL},
    }
    keep = [{"every": "step", "select": "all", "role": "cold"}]
    return Policy.model_validate({"schema": 1, "name": "drift", "keep": keep, "read": read})


def drift(trace: Trace, progress: Callable[[int, int], None] | None = None) -> Drift:
    """Measure drift over all steps of a trace, in eight windows of which eight steps each are looked at.

    Raises
    ------
    TraceError
        If the trace has fewer than 128 steps, or a prompt without cold tokens.
    """
    if trace.steps < LEAST_STEPS or trace.prompt_len <= SINKS + LOCAL:
        raise TraceError(
            f"{trace.name}: found {trace.steps} steps after a prompt of {trace.prompt_len}, expected at least "
            f"{LEAST_STEPS} after more than {SINKS + LOCAL}, e.g. facts_4k"
        )
    workload = compose([trace], None, requests=1, steps=None, context=None, seed=0)
    edges = np.linspace(0, trace.steps, WINDOWS + 1).astype(int).tolist()
    windows = tuple(pairwise(edges))
    model = trace.model
    shape = (len(INDEXES), len(REFRESH), WINDOWS, len(MEASURES), len(model.kept_layers), model.q_heads)
    values, violations, lost = np.zeros(shape), 0, 0.0
    for number in range(len(workload.heads)):
        head = workload.head(number)
        group = slice(head.kv_head * model.q_per_kv, (head.kv_head + 1) * model.q_per_kv)
        for w, judged in _judged(head, windows):
            at = (judged.index, judged.refresh, w, slice(None), head.kept_layer, group)
            values[at] += judged.measures / LOOKED
            violations, lost = violations + judged.violations, max(lost, judged.lost)
        if progress:
            progress(number + 1, len(workload.heads))
    return Drift(trace, windows, values, statistics(trace).classes, violations, lost)


@dataclass(frozen=True, eq=False)
class _Judged:
    """One index at one step of one KV head; `measures` [4, query heads]."""

    index: int
    refresh: int
    measures: Floats
    violations: int
    lost: float


def _judged(head: Head, windows: Sequence[tuple[int, int]]) -> Iterator[tuple[int, _Judged]]:
    """Yield (window, what one index does) for every step looked at."""
    indexes, sizes = Indexes(head), row_norms(head.keys)
    policies = {(i, r): policy_of(name, every) for i, name in enumerate(INDEXES) for r, every in enumerate(REFRESH)}
    pins = pins_of(policies[0, 0])
    fit = fitting_rows(pins, head.context)
    stages = {place: indexes.stage(policy, 0, fit) for place, policy in policies.items()}
    for w, (first, end) in enumerate(windows):
        for step in np.linspace(first, end - 1, LOOKED).astype(int).tolist():
            block = block_of(head, step, step + 1)
            cold = Cold(block, 0, *pins.cold(int(block.begins[0]), int(block.positions[0]), head.context))
            for (i, r), stage in stages.items():
                stage.begin(block, block.queries)
                yield w, _judge(stage, cold, head, sizes, (i, r))


def _judge(stage: Stage, cold: Cold, head: Head, sizes: Array, place: tuple[int, int]) -> _Judged:
    offer = stage.offer(cold, None, np.zeros(len(cold.total)))
    out = _ruled_out(stage, offer)
    together = np.broadcast_to(out.all(axis=0).mean(), len(out))
    slack = slacks(stage.index(cold.block.first), int(cold.block.positions[0]))[: cold.c1]
    late, fitted = (float(part.mean()) for part in (slack[head.context - LOCAL :], slack[SINKS : head.context - LOCAL]))
    measures = np.stack([out.mean(axis=1), together, np.full(len(out), late), np.full(len(out), fitted)])
    lost = float(((cold.weights * out).sum(axis=1) / cold.total).max())
    return _Judged(*place, measures, _violations(offer, head, sizes), lost)


def _ruled_out(stage: Stage, offer: Offer) -> Mask:
    """Return the cold tokens [g, n] that each query head rules out by itself."""
    cold, units, rule = offer.cold, offer.units, stage.selector.rule
    assert isinstance(rule, Certify)
    assert offer.scores is not None
    out = []
    for j in range(len(offer.scores)):
        alone = Cold(cold.block.query_head(j), 0, cold.c0, cold.c1)
        shifted, mass = exponentials(offer.scores[j : j + 1], alone)
        out.append(~units.spread(certified_read(rule, shifted, mass, alone, units)))
    return np.stack(out)


def slacks(index: Index | None, own: int) -> Array:
    """Return what the bound of each token [tokens] adds per ||q|| when position `own` is decoded."""
    if isinstance(index, ClusterIndex):
        return np.asarray(index.radii(np.array([own]))[0][index.labels])
    assert isinstance(index, TokenIndex)
    assert index.norms is not None
    return index.norms


def _violations(offer: Offer, head: Head, sizes: Array) -> int:
    """Count bounds below the exact score by more than d 2^-24 scale ||q|| ||k||."""
    cold = offer.cold
    assert offer.raw is not None
    claimed, part = offer.units.repeat(offer.raw), slice(cold.c0, cold.c1)
    reach = np.linalg.norm(cold.block.queries[0], axis=1)[:, None] * sizes[part] * head.scale
    exact = cold.block.scores[0, :, part]
    return int(np.count_nonzero(claimed + reach * (head.keys.shape[1] * 2.0**-24) < exact))


# --- as data and as text ----------------------------------------------------------------------------------------


def as_json(found: Drift) -> dict[str, Any]:
    """Return the measures of every index and refit clock, by window, over all heads and by part."""
    return {
        "eps": EPS,
        "windows": [list(window) for window in found.windows],
        "violations": found.violations,
        "lost_mass_max": found.lost_max,
        "sentence": sentence(found),
        "indexes": {
            name: {_clock(every): _one(found, i, r) for r, every in enumerate(REFRESH)}
            for i, name in enumerate(INDEXES)
        },
    }


def _one(found: Drift, i: int, r: int) -> dict[str, Any]:
    def measured(heads: Mask) -> dict[str, list[float]]:
        named = {"elimination": "head", "elimination_group": "group", "slack_late": "late", "slack_fitted": "fitted"}
        return {key: found.mean(i, r, name, heads).tolist() for key, name in named.items()}

    parts = {part: measured(heads) for part, heads in found.parts().items()}
    return {"refit_share": found.cost(i, r), **parts.pop("all"), "parts": parts}


def _clock(every: int | None) -> str:
    return "never" if every is None else str(every)


def clock_name(every: int | None) -> str:
    """Return what a reader calls a refit clock."""
    return "never refitted" if every is None else f"refitted every {every} steps"


def sentence(found: Drift) -> str:
    """Say in one sentence what drift does to the best index that is never refitted, and what refitting it saves."""
    best = max(range(len(INDEXES)), key=lambda i: found.mean(i, 0, "group")[-1])
    first, last = (found.mean(best, 0, "group")[w] for w in (0, -1))
    often = found.mean(best, len(REFRESH) - 1, "group")[-1]
    return (
        f"Over {found.windows[-1][1]:,} steps {list(INDEXES)[best]} that are never refitted go from {100 * first:.1f} "
        f"to {100 * last:.1f} % of the cold tokens ruled out by GQA group, refitted every {REFRESH[-1]} steps to "
        f"{100 * often:.1f} %; tokens that turned cold late have {found.ratio(best, 0)[-1]:.2f} times the slack of the "
        "prompt's."
    )


def drift_text(found: Drift) -> str:
    """Lay out elimination by GQA group and the slack of late tokens by window."""
    header = f"{'index':16}{'refit':>8}{'bytes':>8}" + "".join(f"{first:>7}-{end - 1}" for first, end in found.windows)
    lines = ["drift: ruled out by GQA group / slack of late tokens over that of the prompt's, by steps", "", header]
    for i, name in enumerate(INDEXES):
        for r, every in enumerate(REFRESH):
            gone, slack = found.mean(i, r, "group"), found.ratio(i, r)
            cells = "".join(f"  {g:.3f}/{s:5.2f}" for g, s in zip(gone, slack, strict=True))
            lines.append(f"{name:16}{_clock(every):>8}{100 * found.cost(i, r):7.2f}%{cells}")
    return "\n".join([*lines, "", f"{found.violations} bounds violated. {sentence(found)}"])
