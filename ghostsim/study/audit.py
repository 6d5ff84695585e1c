"""Audit of sketches on a recorded trace: how they rank keys beside the exact scores, and what they may rule out.

Cold are the prompt's tokens but the first 4 and the last 256. Bases and code ranges are fitted on the cold keys and on
the recorded prompt queries, known before the first step. Every sketch is judged with sound bounds under the flat, the
one-pass and the staged certificate, and as an estimate: with the published absolute threshold, and with the best that
any threshold could do, ruling out the lowest share of the cold tokens of each query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ghostsim.config.rules import Certify
from ghostsim.errors import TraceError
from ghostsim.policy.bases import BasisKind, fitted_basis, principal_basis
from ghostsim.policy.bounds import PageLocalSketch, QuantisedSketch, ResidualSketch, local_frames, norms
from ghostsim.policy.cold import Cold, Oracle, certified_read, exponentials
from ghostsim.policy.exact import TOP, Array, Block, blocks, softcapped
from ghostsim.policy.rules import Mask
from ghostsim.policy.units import token_units
from ghostsim.trace.compose import SINKS, Head, compose
from ghostsim.trace.format import Rope, Trace
from ghostsim.trace.statistics import CLASSES, LOCAL, looked_at, statistics

Floats = npt.NDArray[np.float64]
Form = Literal["flat", "one_pass", "staged", "threshold", "share"]
Scope = Literal["head", "group"]

SCOPES: tuple[Scope, ...] = ("head", "group")
BASES: tuple[BasisKind, ...] = ("random", "pca", "query", "symmetric")
DIMS = (8, 16, 32, 64)
BITS = (2, 4, 8)
CODED = (32, 64)
LOCAL_FRAMES = (32, 64, 128)
CODE_BITS = 4
PAGE = 16
EPS = (0.01, 0.001)
THETAS = (0.1, 0.3, 0.6)
SHARES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
STEPS = 32
DEFINITIONS = ("frontier", "simulator", "modern", "needed")
MARGIN = 0.05 + 0.05
"""What the published rule adds to the estimate: its two constants."""
_FIELDS = (
    "rows", "cold", "eliminated", "top", "top_cold", "top_eliminated", "needed", "needed_eliminated",
    "all_eliminated", "all_falsely", "lost",
)  # fmt: skip
_LEAST_COLD = 2 * TOP


@dataclass(frozen=True)
class Sketch:
    """What is stored per key.

    A projection on one of `BASES` is m numbers in fp16 and a norm; `coded` is a PCA projection at 4 bits with two
    norms, `local` the same in page-local frames of 16 tokens; `keys` are all channels at some bits and a norm.
    """

    kind: BasisKind | Literal["coded", "local", "keys", "exact"]
    size: int
    """Dimensions of a projection, bits of quantised keys; of the exact key its dimensions."""
    nbytes: float
    """Bytes per token and KV head; none for the exact scores, which stand for the limit of what any index can do."""

    @property
    def label(self) -> str:
        """What a reader calls it."""
        match self.kind:
            case "exact":
                return "exact scores"
            case "keys":
                return f"{self.size}-bit keys"
            case "coded" | "local":
                return f"{NAMES[self.kind]} {self.size}, {CODE_BITS} bit"
        return f"{NAMES[self.kind]} {self.size}"


NAMES = {
    "random": "random",
    "pca": "PCA",
    "query": "query-aware",
    "symmetric": "symmetric",
    "summed": "summed",
    "coded": "PCA",
    "local": "page-local",
    "keys": "quantised keys",
    "exact": "exact scores",
}


@dataclass(frozen=True)
class Rule:
    """What is ruled out: by a certificate at `value` = eps, below the threshold `value`, or the lowest share."""

    form: Form
    value: float

    @property
    def certified(self) -> bool:
        """Whether the rule promises a bound on the lost mass."""
        return self.form in ("flat", "one_pass", "staged")

    @property
    def eps(self) -> float:
        """The lost mass at which the oracle is asked which tokens are needed."""
        return self.value if self.certified else EPS[0]

    @property
    def label(self) -> str:
        """What a reader calls it."""
        match self.form:
            case "threshold":
                return f"estimate + {MARGIN:g} < {self.value:g}"
            case "share":
                return f"lowest {100 * self.value:g} % by estimate"
        return f"{self.form.replace('_', '-')}, eps {self.value * 100:g} %"


RULES = (
    *(Rule(form, eps) for form in ("flat", "one_pass", "staged") for eps in EPS),
    *(Rule("threshold", theta) for theta in THETAS),
    *(Rule("share", share) for share in SHARES),
)


@dataclass(frozen=True)
class Point:
    """One sketch under one rule, over some heads; false elimination by each of `DEFINITIONS`."""

    sketch: Sketch
    rule: Rule
    scope: Scope
    elimination: float
    of_oracle: float
    """Elimination as a share of what the staged rule on exact scores rules out at the same eps."""
    false_elimination: dict[str, float]
    lost_mean: float
    lost_max: float
    moved: float
    """Bytes of the sketch and of the K and V that are read, as a share of all K and V in fp16; over cold tokens."""

    @property
    def certified(self) -> bool:
        """Whether the lost mass is bounded."""
        return self.rule.certified

    @property
    def name(self) -> str:
        """Sketch, bytes and rule."""
        return f"{self.sketch.label} ({self.sketch.nbytes:g} bytes a token, {self.rule.label})"


@dataclass(frozen=True, eq=False)
class Audit:
    """The audit of a trace; `counts` [sketches, rules, scopes, kept, query heads, fields] are sums over steps."""

    trace: Trace
    steps: tuple[int, ...]
    cold_tokens: int
    """Fewest of any layer."""
    classes: npt.NDArray[np.int64]
    """[kept, query heads], indexes into `CLASSES`."""
    sketches: tuple[Sketch, ...]
    counts: Floats
    lost_max: Floats
    """[sketches, rules, scopes, kept, query heads]"""
    spearman: Floats
    """[sketches, kept, query heads], mean over steps."""
    overlap: Floats
    """Share of the exact best 32 cold tokens that are among the best 32 by estimate; as `spearman`."""
    violations: int
    """Bounds below the exact score by more than the rounding of fp32."""

    def point(self, sketch: int, rule: int, scope: Scope, heads: Mask | None = None) -> Point:
        """Return sketch number `sketch` under rule number `rule`, over the `heads` [kept, query heads] or all."""
        chosen = np.ones(self.classes.shape, dtype=bool) if heads is None else heads
        where = SCOPES.index(scope)
        sums = dict(zip(_FIELDS, self.counts[sketch, rule, where][chosen].sum(axis=0).tolist(), strict=True))
        oracle = self._oracle(RULES[rule].eps, where, chosen)
        elimination = _ratio(sums["eliminated"], sums["cold"])
        return Point(
            self.sketches[sketch],
            RULES[rule],
            scope,
            elimination,
            _ratio(elimination, oracle),
            _false_elimination(sums),
            _ratio(sums["lost"], sums["rows"]),
            float(self.lost_max[sketch, rule, where][chosen].max(initial=0.0)),
            self.sketches[sketch].nbytes / (4 * self.trace.model.head_dim) + 1 - elimination,
        )

    def _oracle(self, eps: float, where: int, chosen: Mask) -> float:
        """Return the elimination of the staged rule on exact scores, the last sketch."""
        rule = RULES.index(Rule("staged", eps))
        sums = self.counts[-1, rule, where][chosen].sum(axis=0)
        return _ratio(float(sums[_FIELDS.index("eliminated")]), float(sums[_FIELDS.index("cold")]))

    def points(self, heads: Mask | None = None) -> Iterator[Point]:
        """Yield every sketch under every rule and scope; thresholds mean nothing for the exact scores."""
        for i, sketch in enumerate(self.sketches):
            for j, rule in enumerate(RULES):
                if rule.certified or sketch.kind != "exact":
                    yield from (self.point(i, j, scope, heads) for scope in SCOPES)

    def parts(self) -> dict[str, Mask]:
        """Return the heads of each layer and of each class that has any."""
        layers = {
            f"layer {layer}": np.arange(len(self.classes))[:, None] == np.full(self.classes.shape, i)
            for i, layer in enumerate(self.trace.model.kept_layers)
        }
        classes = {name: self.classes == i for i, name in enumerate(CLASSES)}
        return layers | {name: heads for name, heads in classes.items() if heads.any()}


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _false_elimination(sums: dict[str, float]) -> dict[str, float]:
    return {
        "frontier": _ratio(sums["top_eliminated"], sums["top"]),
        "simulator": _ratio(sums["top_eliminated"], sums["top_cold"]),
        "modern": _ratio(sums["all_falsely"], sums["all_eliminated"]),
        "needed": _ratio(sums["needed_eliminated"], sums["needed"]),
    }


# --- what is audited ----------------------------------------------------------------------------------------


def sketches_of(d: int, *, rotated: bool = True) -> tuple[Sketch, ...]:
    """Return the sketches of keys of d channels, those that are no smaller than a key left out; exact scores last."""
    projections = [Sketch(kind, m, 2 * m + 2) for kind in BASES for m in DIMS if m < d]
    coded = [Sketch("coded", m, m * CODE_BITS / 8 + 4) for m in CODED if m <= d]
    local = [Sketch("local", m, m * CODE_BITS / 8 + 4) for m in LOCAL_FRAMES if m <= d and rotated]
    return (*projections, *coded, *local, *(Sketch("keys", b, d * b / 8 + 2) for b in BITS), Sketch("exact", d, 0))


@dataclass(frozen=True, eq=False)
class Rotation:
    """How the keys of a layer are rotated."""

    rope: Rope
    inv_freq: Array


def fit(
    sketch: Sketch, keys: Array, queries: Array, rotation: Rotation | None = None, first: int = 0
) -> ResidualSketch | QuantisedSketch | PageLocalSketch:
    """Fit a sketch on cold prompt `keys` [n, d] and prompt `queries` [.., d], and store those keys.

    Page-local frames need the `rotation` of the keys, the first of which stands at position `first`.
    """
    match sketch.kind:
        case "keys":
            return QuantisedSketch.fit(keys, np.eye(keys.shape[1]), sketch.size)
        case "coded":
            return QuantisedSketch.fit(keys, principal_basis(keys, sketch.size), CODE_BITS, "two")
        case "local":
            assert rotation is not None
            frames = local_frames(keys, rotation.rope, rotation.inv_freq, PAGE, first)
            inside = QuantisedSketch.fit(frames, principal_basis(frames, sketch.size), CODE_BITS, "two")
            return PageLocalSketch(PAGE, first, rotation.rope, rotation.inv_freq, inside)
    assert sketch.kind != "exact"
    return ResidualSketch.fit(keys, fitted_basis(sketch.kind, keys, queries, sketch.size))


@dataclass(frozen=True, eq=False)
class Unit:
    """One KV head at the steps looked at: s steps, g query heads, n cold tokens."""

    head: Head
    cold: list[list[Cold]]
    """[s][g], each of one step and one query head."""
    scores: Floats
    """[s, g, n]"""
    weights: Floats
    total: Floats
    """[s, g]"""
    top: npt.NDArray[np.int64]
    """[s, g, 32] positions among the cold tokens of the exact best 32 of all tokens; -1 where one is hot."""
    top_count: npt.NDArray[np.int64]
    """[s, g] how many tokens the exact best 32 are: fewer where fewer are attended."""
    ranks: npt.NDArray[np.int64]
    """[s, g, n] ranks of the scores, from the lowest."""
    needed: dict[float, Mask]
    """Per eps the tokens [s, g, n] that the oracle reads for each query head."""
    rotation: Rotation | None

    @property
    def keys(self) -> Array:
        """Cold keys [n, d]."""
        return self.head.keys[self.cold[0][0].c0 : self.cold[0][0].c1]

    @property
    def queries(self) -> Array:
        """Queries [s * g, d]."""
        rows = [cold.block.queries[0] for step in self.cold for cold in step]
        return np.concatenate(rows)


def _step_block(head: Head, step: int) -> Block:
    own = head.context + step
    return next(blocks(replace(head, context=own, keys=head.keys[: own + 1], queries=head.queries[step : step + 1])))


def cold_range(head: Head, steps: Sequence[int]) -> tuple[int, int]:
    """Return the prompt positions [c0, c1) that are cold at all steps looked at."""
    begin = 0 if head.window is None else max(0, head.context + max(steps) - head.window + 1)
    c0 = max(SINKS, begin)
    return c0, max(c0, head.context - LOCAL)


def unit_of(head: Head, steps: Sequence[int], rotation: Rotation | None = None) -> Unit:
    """Score a head's cold tokens exactly at the given steps, and ask the oracle."""
    c0, c1 = cold_range(head, steps)
    whole = [_step_block(head, step) for step in steps]
    group = range(head.queries.shape[1])
    cold = [[Cold(block.query_head(j), 0, c0, c1) for j in group] for block in whole]
    top = np.concatenate([block.top for block in whole])
    scores = np.concatenate([block.scores[:, :, c0:c1] for block in whole])
    oracles = [[Oracle(each.block, 0) for each in step] for step in cold]
    return Unit(
        head,
        cold,
        scores,
        np.concatenate([block.weights[:, :, c0:c1] for block in whole]),
        np.concatenate([block.total for block in whole]),
        np.where((top >= c0) & (top < c1), top - c0, -1),
        (top >= 0).sum(axis=-1),
        ranks(scores),
        {eps: np.array([[each.read(eps, c0, c1) for each in step] for step in oracles]) for eps in EPS},
        rotation,
    )


def ranks(values: Floats) -> npt.NDArray[np.int64]:
    """Return the ranks of `values` [..., n], the lowest 0, ties by position."""
    order = np.argsort(values, axis=-1, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.arange(values.shape[-1])[(None,) * (values.ndim - 1)], axis=-1)
    return out


# --- judging -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Judged:
    """What a sketch says about the cold tokens of a unit, [s, g, n]."""

    upper: Floats
    estimate: Floats
    ranks: npt.NDArray[np.int64]

    weights: list[list[tuple[Array, Array]]]
    """[s][g] (bound - peak, its exponential), each [1, n]: made once for all rules."""


def _judged(unit: Unit, upper: Floats, estimate: Floats, ordered: npt.NDArray[np.int64]) -> Judged:
    weights = [
        [exponentials(upper[i, j : j + 1], cold) for j, cold in enumerate(step)] for i, step in enumerate(unit.cold)
    ]
    return Judged(upper, estimate, ordered, weights)


def judge(unit: Unit, sketch: Sketch) -> Judged:
    """Score a unit by a sketch; the exact scores bound themselves."""
    if sketch.kind == "exact":
        return _judged(unit, unit.scores, unit.scores, unit.ranks)
    index = fit(sketch, unit.keys, unit.head.prompt_queries, unit.rotation, unit.cold[0][0].c0)
    upper, estimate = (
        np.asarray(softcapped(found * unit.head.scale, unit.head.softcap)).reshape(unit.scores.shape)
        for found in (index.upper(unit.queries), index.estimate(unit.queries))
    )
    return _judged(unit, upper, estimate, ranks(estimate))


def eliminated(unit: Unit, judged: Judged, rule: Rule) -> Mask:
    """Return the cold tokens [s, g, n] that a rule rules out, each query head by itself."""
    if rule.form == "threshold":
        return np.asarray(judged.estimate + MARGIN < rule.value)
    if rule.form == "share":
        return np.asarray(judged.ranks < int(rule.value * judged.ranks.shape[-1]))
    certify = Certify(certify=rule.value, form=rule.form)
    out = np.empty(unit.scores.shape, dtype=bool)
    for i, j in np.ndindex(out.shape[:2]):
        cold = unit.cold[i][j]
        out[i, j] = ~certified_read(certify, *judged.weights[i][j], cold, token_units(cold.c0, cold.c1))
    return out


def _shared(mask: Mask, *, all_of: bool) -> Mask:
    """Return a mask [s, g, n] in which every query head of the group does what all or any of them do."""
    joined = mask.all(axis=1, keepdims=True) if all_of else mask.any(axis=1, keepdims=True)
    return np.broadcast_to(joined, mask.shape)


def _tally(unit: Unit, out: Mask, needed: Mask, above: Mask) -> tuple[Floats, Floats]:
    """Return sums over steps [g, fields] and the largest lost mass [g]; `above` [s, g]: some token should be read."""
    inside = unit.top >= 0
    hit = np.take_along_axis(out, np.maximum(unit.top, 0), axis=-1) & inside
    lost = (unit.weights * out).sum(axis=-1) / unit.total
    nothing = out.all(axis=-1)
    found = {
        "rows": np.ones(nothing.shape),
        "cold": np.full(nothing.shape, out.shape[-1]),
        "eliminated": out.sum(axis=-1),
        "top": unit.top_count,
        "top_cold": inside.sum(axis=-1),
        "top_eliminated": hit.sum(axis=-1),
        "needed": needed.sum(axis=-1),
        "needed_eliminated": (needed & out).sum(axis=-1),
        "all_eliminated": nothing,
        "all_falsely": nothing & above,
        "lost": lost,
    }
    return np.stack([found[name].sum(axis=0) for name in _FIELDS], axis=-1).astype(np.float64), lost.max(axis=0)


def _should_read(unit: Unit, rule: Rule, needed: Mask) -> Mask:
    """Return the rows [s, g] in which some token lies above the threshold; without one, in which any is needed."""
    if rule.form == "threshold":
        return np.asarray(unit.scores.max(axis=-1) > rule.value)
    return np.asarray(needed.any(axis=-1))


def judge_rule(unit: Unit, judged: Judged, rule: Rule) -> list[tuple[Floats, Floats]]:
    """Return the tally of a rule per scope."""
    out, needed = eliminated(unit, judged, rule), unit.needed[rule.eps]
    above = _should_read(unit, rule, needed)
    together = np.broadcast_to(above.any(axis=1, keepdims=True), above.shape)
    return [
        _tally(unit, out, needed, above),
        _tally(unit, _shared(out, all_of=True), _shared(needed, all_of=False), together),
    ]


def spearman(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Floats:
    """Return Spearman's correlation of ranks [..., n] without ties."""
    n = a.shape[-1]
    return np.asarray(1 - 6 * ((a - b).astype(np.float64) ** 2).sum(axis=-1) / (n * (n**2 - 1)))


def top_overlap(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Floats:
    """Return the share of the 32 highest of `a` that are among the 32 highest of `b`, ranks [..., n]."""
    least = a.shape[-1] - TOP
    return np.asarray(((a >= least) & (b >= least)).sum(axis=-1) / TOP)


def _violations(unit: Unit, judged: Judged) -> int:
    """Count bounds below the exact score by more than d 2^-24 scale ||q|| ||k||."""
    if not (judged.upper < unit.scores).any():
        return 0
    reach = norms(unit.queries)[:, None] * norms(unit.keys)[None] * (unit.keys.shape[1] * 2.0**-24 * unit.head.scale)
    return int(np.count_nonzero(judged.upper + reach.reshape(unit.scores.shape) < unit.scores))


def audit(trace: Trace, steps: int = STEPS, progress: Callable[[int, int], None] | None = None) -> Audit:
    """Audit sketches on up to `steps` evenly spaced steps of a trace.

    Layers whose window leaves fewer than 64 cold tokens hold zeros.

    Raises
    ------
    TraceError
        If no layer has 64 cold tokens.
    """
    workload = compose([trace], None, requests=1, steps=None, context=None, seed=0)
    looked = looked_at(trace, steps)
    kept, g = len(trace.model.kept_layers), trace.model.q_per_kv
    sketches = sketches_of(trace.model.head_dim, rotated=trace.rope is not None)
    shape = (len(sketches), len(RULES), len(SCOPES), kept, trace.model.q_heads)
    found = Audit(
        trace=trace,
        steps=tuple(looked),
        cold_tokens=_cold_tokens(trace, looked),
        classes=statistics(trace).classes,
        sketches=sketches,
        counts=np.zeros((*shape, len(_FIELDS))),
        lost_max=np.zeros(shape),
        spearman=np.zeros((len(sketches), kept, trace.model.q_heads)),
        overlap=np.zeros((len(sketches), kept, trace.model.q_heads)),
        violations=0,
    )
    violations = 0
    for number in range(len(workload.heads)):
        head = workload.head(number)
        c0, c1 = cold_range(head, looked)
        if c1 - c0 >= _LEAST_COLD:
            unit = unit_of(head, looked, _rotation(trace, head.kept_layer))
            violations += _audit_unit(found, unit, slice(head.kv_head * g, (head.kv_head + 1) * g))
        if progress:
            progress(number + 1, len(workload.heads))
    return replace(found, violations=violations)


def _rotation(trace: Trace, layer: int) -> Rotation | None:
    if trace.rope is None or trace.inv_freq is None:
        return None
    return Rotation(trace.rope, trace.inv_freq[layer])


def _cold_tokens(trace: Trace, looked: Sequence[int]) -> int:
    windows = trace.model.window
    begins = [0 if w is None else max(0, trace.prompt_len + max(looked) - w + 1) for w in windows]
    cold = [trace.prompt_len - LOCAL - max(SINKS, begin) for begin in begins]
    if max(cold) < _LEAST_COLD:
        raise TraceError(
            f"{trace.name}: found {max(0, *cold)} cold tokens, expected at least {_LEAST_COLD} between the first "
            f"{SINKS} and the last {LOCAL} of the prompt, e.g. a prompt of {SINKS + LOCAL + _LEAST_COLD}"
        )
    return min(count for count in cold if count >= _LEAST_COLD)


def _audit_unit(found: Audit, unit: Unit, group: slice) -> int:
    """Fill in the heads `group` of the unit's layer, and return the violations of bounds."""
    layer, violations = unit.head.kept_layer, 0
    for i, sketch in enumerate(found.sketches):
        judged = judge(unit, sketch)
        violations += _violations(unit, judged)
        found.spearman[i, layer, group] = spearman(unit.ranks, judged.ranks).mean(axis=0)
        found.overlap[i, layer, group] = top_overlap(unit.ranks, judged.ranks).mean(axis=0)
        for j, rule in enumerate(RULES):
            for k, (sums, lost) in enumerate(judge_rule(unit, judged, rule)):
                found.counts[i, j, k, layer, group] = sums
                found.lost_max[i, j, k, layer, group] = lost
    return violations
