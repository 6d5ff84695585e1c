"""One policy on one head: which positions are read at each step, and what that loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import (
    Above,
    AllRule,
    BoxScore,
    Certify,
    ExactScore,
    IntFormat,
    Margin,
    NoneRule,
    Pin,
    Policy,
    Published,
    PublishedScore,
    TopFrac,
    TopK,
    kind_of,
)
from ghostsim.errors import ConfigError
from ghostsim.plan.selection import Bits, Floats, IndexStage, Ints
from ghostsim.policy.costs import index_stages
from ghostsim.policy.exact import Array, Block, blocks, scaled_products, softcapped
from ghostsim.policy.formats import dequantised
from ghostsim.policy.indexes import BoxIndex, TokenIndex, build, page_scores, token_scores
from ghostsim.policy.keep import Clause, agreed_top, budget, combined, stored_by_all
from ghostsim.policy.rules import CLIP, Ledger, Mask, ledger, spend
from ghostsim.trace.compose import Head

ORACLE_EPS = 0.01
_CLAIMING = ("exact", "upper-bound", "claimed")


@dataclass(frozen=True, eq=False)
class HeadRows:
    """The rows of a `Selection` that one head fills: its fields without the axis U."""

    attended: Ints
    hot_tokens: Ints
    cold_tokens: Ints
    stored_tokens: Ints
    read_tokens: Ints
    read_runs: Ints
    scanned: Ints
    lost_mass: Floats
    certified_mass: Floats | None
    violations: Ints | None
    violated_mass: Floats | None
    bound_checks: Ints
    top_cold: Ints
    top_eliminated: Ints
    needless_reads: Ints
    oracle_reads: Ints
    output_error: Floats | None
    sets: Bits

    def positions(self, step: int) -> npt.NDArray[np.int32]:
        """Return the positions attended at a step, ascending."""
        return np.flatnonzero(np.unpackbits(self.sets[step], bitorder="little")).astype(np.int32)


def claims(policy: Policy) -> bool:
    """Whether the READ score of a policy claims to bound the exact score from above."""
    return policy.read.score is not None and kind_of(policy.read.score) in _CLAIMING


def empty_rows(
    policy: Policy, stages: tuple[IndexStage, ...], shape: tuple[int, int], tokens: int, values: bool
) -> HeadRows:
    """Return rows of zeros for `shape` = (steps, query heads)."""
    steps, g = shape
    certified, claimed = isinstance(policy.read.rule, Certify), claims(policy)
    per_step = [np.zeros(steps, dtype=np.int64) for _ in range(8)]
    per_query = [np.zeros((steps, g), dtype=np.int64) for _ in range(4)]
    per_mass = [np.zeros((steps, g)) for _ in range(4)]
    return HeadRows(
        attended=per_step[0],
        hot_tokens=per_step[1],
        cold_tokens=per_step[2],
        stored_tokens=per_step[3],
        read_tokens=per_step[4],
        read_runs=per_step[5],
        scanned=np.zeros((len(stages), steps), dtype=np.int64),
        lost_mass=per_mass[0],
        certified_mass=per_mass[1] if certified else None,
        violations=per_query[0] if claimed else None,
        violated_mass=per_mass[2] if claimed else None,
        bound_checks=per_query[1],
        top_cold=per_query[2],
        top_eliminated=per_query[3],
        needless_reads=per_step[6],
        oracle_reads=per_step[7],
        output_error=per_mass[3] if values else None,
        sets=np.zeros((steps, (tokens + 7) // 8), dtype=np.uint8),
    )


# --- hot and cold -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pins:
    """The PIN set of a policy: of READ, else of the clause that evicts."""

    pin: Pin
    page: int
    at_prefill: bool

    def cold(self, begin: int, own: int, context: int) -> tuple[int, int]:
        """Return the range [c0, c1) of attended positions outside the pins; the own token is always hot."""
        newest = context - 1 if self.at_prefill else own
        c1 = min(own, newest + 1 - self.pin.window)
        if self.pin.last_page:
            c1 = min(c1, own // self.page * self.page)
        c0 = min(max(begin, self.pin.sinks), own)
        return c0, max(c0, c1)


def pins_of(policy: Policy) -> Pins:
    """Return the PIN set that divides hot from cold."""
    if policy.read.pin != Pin():
        return Pins(policy.read.pin, policy.read.page, at_prefill=False)
    for keep in policy.keep:
        if not keep.everything and not all(other.everything for other in policy.keep):
            return Pins(keep.select.pin, 1, at_prefill=keep.every == "prefill_end")
    return Pins(Pin(), 1, at_prefill=False)


def fitting_rows(pins: Pins, context: int) -> slice:
    """Return the prompt positions outside the pins when prefill ends, on which indexes are fitted."""
    start, stop = pins.pin.sinks, context - pins.pin.window
    return slice(start, stop) if stop - start > 1 else slice(0, context)


# --- one step -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cold:
    """The cold units of one step: positions c0 .. c1, in units of `sizes` tokens each (None: one)."""

    block: Block
    step: int
    c0: int
    c1: int
    sizes: Ints | None

    @property
    def weights(self) -> Array:
        """[g, tokens] exp(score - peak)."""
        return self.block.weights[self.step, :, self.c0 : self.c1]

    @property
    def unit_weights(self) -> Array:
        """[g, units]"""
        if self.sizes is None:
            return self.weights
        if not len(self.sizes):
            return self.weights
        return np.add.reduceat(self.weights, np.cumsum(self.sizes) - self.sizes, axis=1)

    @property
    def total(self) -> npt.NDArray[np.float64]:
        """[g] softmax sum over all attended positions."""
        return self.block.total[self.step]

    def hot_total(self) -> npt.NDArray[np.float64]:
        """[g] softmax sum over the hot positions."""
        row = self.block.weights[self.step]
        return row[:, : self.c0].sum(axis=1, dtype=np.float64) + row[:, self.c1 :].sum(axis=1, dtype=np.float64)

    def tokens(self, units: Mask) -> Mask:
        """Spread a mask of units over their tokens."""
        return units if self.sizes is None else np.repeat(units, self.sizes)


def _page_sizes(c0: int, c1: int, page: int) -> Ints:
    edges = np.arange(c0 // page, (c1 - 1) // page + 2) * page if c1 > c0 else np.zeros(1, dtype=np.int64)
    return np.diff(np.clip(edges, c0, c1))


def _slack(dtype: npt.DTypeLike) -> float:
    """Return the relative error that exp and the sums may make, by which certificates are widened."""
    return 8e-6 if np.dtype(dtype) == np.float32 else 1e-12


def exponentials(bounds: Array, cold: Cold) -> tuple[Array, Array]:
    """Return (bound - peak, its exponential), cut off where any budget is long spent."""
    shifted = np.subtract(bounds, cold.block.peak[cold.step][:, None])
    np.minimum(shifted, CLIP, out=shifted)
    return shifted, np.exp(shifted)


def certified_read(rule: Certify, shifted: Array, bound_weights: Array, cold: Cold) -> Mask:
    """Return the units [n] that the query heads of a group read, each by its own certificate."""
    tau = rule.certify / (1 - rule.certify)
    mass = bound_weights if cold.sizes is None else bound_weights * cold.sizes
    allowance = tau / (1 + _slack(mass.dtype))
    largest = 1 if cold.sizes is None else int(cold.sizes.max(initial=1))
    if rule.form == "staged":
        # U <= tau Z_S with Z_S = Z - (exact sum of the rest): both sums run over what is left unread.
        costs = cold.unit_weights * mass.dtype.type(tau)
        costs += mass
        read = _spend(shifted, costs, allowance * cold.total, largest * (1 + tau))
    elif rule.form == "one_pass":
        read = _spend(shifted, mass, allowance * cold.hot_total(), largest)
    else:
        theta = np.log(cold.hot_total()) + np.log(allowance / max(1, cold.c1 - cold.c0))
        read = shifted >= theta[:, None]
    return read.any(axis=0)


def certificate(
    unread: Mask, bound_weights: Array, lost: npt.NDArray[np.float64], cold: Cold
) -> npt.NDArray[np.float64]:
    """Return U / (Z_S + U) per query head [g] for the units left unread, rounded up."""
    mass = bound_weights if cold.sizes is None else bound_weights * cold.sizes
    upper = masked_sum(mass, unread) * (1 + _slack(mass.dtype))
    share = upper / (cold.total - lost + upper)
    return np.minimum(1.0, np.where(upper > 0, np.nextafter(share, np.inf), 0.0))


def masked_sum(rows: Array, mask: Mask) -> npt.NDArray[np.float64]:
    """Sum `rows` [g, n] over a mask [n], in float64."""
    if not mask.any():
        return np.zeros(len(rows))
    return np.asarray((rows * mask).sum(axis=1, dtype=np.float64))


class Oracle:
    """What the staged rule on exact scores reads at one step; policies with the same eps share the sorting."""

    def __init__(self, block: Block, step: int) -> None:
        begin, own = int(block.begins[step]), int(block.positions[step])
        self._all = Cold(block, step, begin, own + 1, None)
        self._books: dict[float, Ledger] = {}
        self._reads: dict[tuple[float, int, int], Mask] = {}

    def read(self, eps: float, c0: int, c1: int) -> Mask:
        """Return the cold tokens [c1 - c0] that some query head of the group reads."""
        key = (eps, c0, c1)
        if key not in self._reads:
            begin = self._all.c0
            self._reads[key] = spend(self._book(eps), c0 - begin, c1 - begin).any(axis=0)
        return self._reads[key]

    def _book(self, eps: float) -> Ledger:
        if eps not in self._books:
            everything, tau = self._all, eps / (1 - eps)
            scores = everything.block.scores[everything.step, :, everything.c0 : everything.c1]
            shifted, weights = exponentials(scores, everything)
            weights *= 1 + tau
            limits = tau / (1 + _slack(weights.dtype)) * everything.total
            self._books[eps] = ledger(shifted, weights, limits, 1 + tau)
        return self._books[eps]


# --- one policy on one head ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Evaluation:
    """The running evaluation of one policy on one head."""

    policy: Policy
    head: Head
    index: TokenIndex | BoxIndex | None
    rows: HeadRows
    pins: Pins
    clauses: list[Clause]
    norms: Array
    """[positions] ||k||."""
    bounds: Array | None = None
    reads: Mask = field(default_factory=lambda: np.zeros((0, 0), dtype=bool))
    formats: list[list[Mask | None]] = field(default_factory=list)
    decoded: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    @property
    def scores_needed(self) -> bool:
        """Whether the READ rule looks at scores."""
        return not isinstance(self.policy.read.rule, AllRule | NoneRule)

    def begin(self, block: Block) -> None:
        """Score the units of a block."""
        self.bounds = self._bounds(block) if self.scores_needed else None
        self.reads = np.zeros((block.steps, block.scores.shape[-1]), dtype=bool)
        self.formats = []

    def step(self, block: Block, i: int, oracle: Oracle) -> None:
        """Evaluate step i of a block."""
        stored, masks = stored_by_all(self.clauses, block, i)
        self.formats.append(masks)
        self.reads[i] = self._step(block, i, self.bounds, stored, oracle)

    def end(self, block: Block) -> None:
        """Compare the attention output of a block."""
        if self.rows.output_error is not None:
            self._output_error(block, self.reads, self.formats)

    def _bounds(self, block: Block) -> Array:
        score = self.policy.read.score
        if isinstance(self.index, BoxIndex):
            return page_scores(self.index, block, self.head)
        assert score is not None  # noqa: S101 - the model refuses such a rule without a score
        return token_scores(score, self.index, block, self.head)

    def _step(
        self, block: Block, i: int, bounds: Array | None, stored: Mask | None, oracle: Oracle
    ) -> Mask:
        begin, own, s = int(block.begins[i]), int(block.positions[i]), block.first + i
        c0, c1 = self.pins.cold(begin, own, self.head.context)
        page = self.policy.read.page
        paged = bounds is not None and page > 1
        cold = Cold(block, i, c0, c1, _page_sizes(c0, c1, page) if paged else None)
        there = None if stored is None else stored[c0:c1]
        units = None if bounds is None else self._unit_bounds(bounds, cold, page)
        read, unit_mass, unread = self._choose(units, cold, there)
        mask = _full_mask(read, begin, c0, c1, own, block.scores.shape[-1])
        if stored is not None and np.any(mask & ~stored):
            raise ConfigError(
                f"read.pin: found pins that keep evicts (policy {self.policy.name}), expected them stored"
            )
        self._count(s, begin, own, c0, c1, stored, read)
        lost = masked_sum(cold.weights, ~read)
        self.rows.lost_mass[s] = lost / cold.total
        if self.rows.certified_mass is not None and unit_mass is not None:
            self.rows.certified_mass[s] = certificate(unread, unit_mass, lost, cold)
        if units is not None:
            self._check(s, units, cold, there)
        self._compare(s, read, cold, oracle)
        packed = np.packbits(mask, bitorder="little")
        self.rows.sets[s, : len(packed)] = packed
        return mask

    def _unit_bounds(self, bounds: Array, cold: Cold, page: int) -> Array:
        if cold.sizes is None:
            return bounds[cold.step, :, cold.c0 : cold.c1]
        first = cold.c0 // page
        return bounds[cold.step, :, first : first + len(cold.sizes)]

    def _choose(self, units: Array | None, cold: Cold, there: Mask | None) -> tuple[Mask, Array | None, Mask]:
        """Return the cold tokens read, exp(bound - peak) of the units for a certificate, and the units left unread."""
        read = self.policy.read
        mass = None
        if units is None:
            take = np.full(cold.c1 - cold.c0, isinstance(read.rule, AllRule))
        elif isinstance(read.rule, Certify):
            shifted, mass = exponentials(units, cold)
            take = certified_read(read.rule, shifted, mass, cold)
        else:
            take = self._ranked(units if there is None else _hidden(units, cold, there), units.shape[1])
        tokens = cold.tokens(take) if units is not None else take
        return (tokens if there is None else tokens & there), mass, ~take

    def _ranked(self, units: Array, n: int) -> Mask:
        read = self.policy.read
        match read.rule:
            case TopK() | TopFrac():
                pinned = 1 if read.pin.last_page else 0
                return agreed_top(units, budget(read, n) - pinned, read.reduce)
            case Above(above=theta):
                agreed = units.max(axis=0) if read.reduce == "any" else combined(units, read.reduce)
                return np.asarray(agreed >= theta)
            case Margin(margin=margin):
                agreed = units if read.reduce == "any" else combined(units, read.reduce)[None]
                return np.asarray((agreed >= agreed.max(axis=1, keepdims=True, initial=-np.inf) - margin).any(axis=0))
        raise AssertionError(read.rule)

    def _count(self, s: int, begin: int, own: int, c0: int, c1: int, stored: Mask | None, read: Mask) -> None:
        rows = self.rows
        rows.attended[s] = own + 1 - begin
        rows.cold_tokens[s] = c1 - c0
        rows.hot_tokens[s] = own + 1 - begin - (c1 - c0)
        rows.stored_tokens[s] = own + 1 if stored is None else np.count_nonzero(stored)
        rows.read_tokens[s] = np.count_nonzero(read)
        rows.read_runs[s] = np.count_nonzero(read[1:] & ~read[:-1]) + (1 if len(read) and read[0] else 0)
        if self.scores_needed and len(rows.scanned):
            rows.scanned[:, s] = self._scanned(begin, own, c0, c1, stored)

    def _scanned(self, begin: int, own: int, c0: int, c1: int, stored: Mask | None) -> int:
        page = self.policy.read.page
        if page > 1 and not isinstance(self.policy.read.rule, Certify):
            return own // page - begin // page + 1
        if page > 1:
            return (c1 - 1) // page - c0 // page + 1 if c1 > c0 else 0
        return c1 - c0 if stored is None else int(np.count_nonzero(stored[c0:c1]))

    def _check(self, s: int, units: Array, cold: Cold, there: Mask | None) -> None:
        """Compare the claimed bound of every cold stored token with its exact score, in the scale of the claim."""
        rows = self.rows
        if rows.violations is None or rows.violated_mass is None:
            return
        rows.bound_checks[s] = cold.c1 - cold.c0 if there is None else np.count_nonzero(there)
        if isinstance(self.policy.read.score, ExactScore):
            return
        claimed = units if cold.sizes is None else np.repeat(units, cold.sizes, axis=1)
        exact = self._claimed_exact(cold)
        if not np.any(claimed < exact):
            return
        wrong = claimed + self._tolerance(cold) < exact
        if there is not None:
            wrong &= there
        rows.violations[s] = np.count_nonzero(wrong, axis=1)
        rows.violated_mass[s] = (cold.weights * wrong).sum(axis=1, dtype=np.float64) / cold.total

    def _claimed_exact(self, cold: Cold) -> Array:
        """Return the exact score [g, tokens] in the scale of the claim."""
        products = cold.block.products[cold.step, :, cold.c0 : cold.c1]
        match self.policy.read.score:
            case PublishedScore(published=Published(scale="cosine")):
                size = self._sizes(cold) * self.head.scale
                return np.asarray(products / np.maximum(size, np.finfo(np.float32).tiny))
            case PublishedScore(published=Published(dims=m)):
                return np.asarray(products * products.dtype.type(1 / (self.head.scale * np.sqrt(m))))
        return cold.block.scores[cold.step, :, cold.c0 : cold.c1]

    def _tolerance(self, cold: Cold) -> Array:
        """Return d 2^-24 ||q|| ||k|| [g, tokens] in the scale of the claim."""
        sizes = self._sizes(cold) * (self.head.keys.shape[1] * 2.0**-24)
        match self.policy.read.score:
            case PublishedScore(published=Published(scale="cosine")):
                return np.full_like(sizes, self.head.keys.shape[1] * 2.0**-24)
            case PublishedScore(published=Published(dims=m)):
                return np.asarray(sizes / np.sqrt(m))
        return np.asarray(sizes * self.head.scale)

    def _sizes(self, cold: Cold) -> Array:
        """Return ||q|| ||k|| [g, tokens]."""
        queries = np.linalg.norm(cold.block.queries[cold.step], axis=1).astype(self.norms.dtype)
        return np.asarray(queries[:, None] * self.norms[None, cold.c0 : cold.c1])

    def _compare(self, s: int, read: Mask, cold: Cold, oracle: Oracle) -> None:
        """Compare with the exact top 32 and with the oracle's reads."""
        top = cold.block.top[cold.step]
        inside = (top >= cold.c0) & (top < cold.c1)
        eliminated = inside.copy()
        eliminated[inside] = ~read[top[inside] - cold.c0]
        self.rows.top_cold[s] = inside.sum(axis=1)
        self.rows.top_eliminated[s] = eliminated.sum(axis=1)
        rule = self.policy.read.rule
        eps = rule.certify if isinstance(rule, Certify) else ORACLE_EPS
        best = oracle.read(eps, cold.c0, cold.c1)
        self.rows.oracle_reads[s] = np.count_nonzero(best)
        self.rows.needless_reads[s] = np.count_nonzero(read & ~best)

    # --- output error -----------------------------------------------------------------------------------------

    def _output_error(self, block: Block, reads: Mask, formats: list[list[Mask | None]]) -> None:
        rows, values = self.rows.output_error, self.head.values
        assert rows is not None and values is not None  # noqa: S101, PT018 - the rows exist where values do
        steps = slice(block.first, block.first + block.steps)
        if self.policy.lossless and not np.any(self.rows.lost_mass[steps]):
            return
        values = values[: block.scores.shape[-1]]
        exact = (block.weights @ values) / block.total[..., None]
        given = (
            self._lossy_output(block, reads, formats)
            if not self.policy.lossless
            else _output(block.weights, reads, values)
        )
        size = np.maximum(np.linalg.norm(exact, axis=-1), np.finfo(np.float64).tiny)
        rows[steps] = np.linalg.norm(given - exact, axis=-1) / size

    def _lossy_output(self, block: Block, reads: Mask, formats: list[list[Mask | None]]) -> Array:
        """Return the output over reads whose keys and values went through the first clause that stores them."""
        scores, out = block.scores.copy(), np.zeros((*block.scores.shape[:2], self.head.keys.shape[1]))
        owners = [_owners(masks, block.scores.shape[-1]) for masks in formats]
        for c, keep in enumerate(self.policy.keep):
            if isinstance(keep.format, IntFormat):
                keys, _ = self._decoded(c)
                products = scaled_products(block.queries, keys[: scores.shape[-1]], self.head.scale)
                other = softcapped(products, self.head.softcap)
                for i, owner in enumerate(owners):
                    scores[i] = np.where((owner == c) & reads[i], other[i], scores[i])
        scores = np.where(reads[:, None, :], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        for c in range(len(self.policy.keep)):
            _, values = self._decoded(c)
            owned = np.stack([owner == c for owner in owners])
            out += (weights * owned[:, None, :]) @ values[: scores.shape[-1]]
        return out

    def _decoded(self, clause: int) -> tuple[Array, Array]:
        fmt, head = self.policy.keep[clause].format, self.head
        assert head.values is not None  # noqa: S101 - asked only where values exist
        if not isinstance(fmt, IntFormat):
            return head.keys, head.values
        if clause not in self.decoded:
            self.decoded[clause] = dequantised(head.keys, fmt.int), dequantised(head.values, fmt.int)
        return self.decoded[clause]


def _owners(masks: list[Mask | None], size: int) -> npt.NDArray[np.int64]:
    """Return for each position the first clause that stores it, -1 for none."""
    owner = np.full(size, -1, dtype=np.int64)
    for c in reversed(range(len(masks))):
        mask = masks[c]
        owner[... if mask is None else mask] = c
    return owner


def _output(weights: Array, reads: Mask, values: Array) -> Array:
    masked = weights * reads[:, None, :]
    out: Array = (masked @ values) / masked.sum(axis=-1, dtype=np.float64)[..., None]
    return out


def _hidden(units: Array, cold: Cold, there: Mask) -> Array:
    """Give units without a stored token the score -inf."""
    if cold.sizes is not None and len(cold.sizes):
        there = np.logical_or.reduceat(there, np.cumsum(cold.sizes) - cold.sizes)
    return np.where(there, units, -np.inf)


def _full_mask(read: Mask, begin: int, c0: int, c1: int, own: int, size: int) -> Mask:
    mask = np.zeros(size, dtype=bool)
    mask[begin:c0] = True
    mask[c0:c1] = read
    mask[c1 : own + 1] = True
    return mask


def key_norms(head: Head) -> Array:
    """Return ||k|| [positions]."""
    return np.sqrt(np.einsum("ij,ij->i", head.keys, head.keys))


def evaluate_heads(policies: Sequence[Policy], head: Head) -> list[HeadRows]:
    """Evaluate policies on one head; keys, scores, softmax sums, indexes and oracles are shared between them."""
    runs = _start(policies, head)
    for block in blocks(head):
        oracles: Oracles = {}
        for run in runs:
            run.block(block, shared)
    return [run.rows for run in runs]


def evaluate_head(policy: Policy, head: Head) -> HeadRows:
    """Evaluate one policy on one head.

    Scores are computed in the dtype of the head's keys (float64 for recorded workloads), sums of exp in float64.
    """
    return evaluate_heads([policy], head)[0]


def _start(policies: Sequence[Policy], head: Head) -> list[Evaluation]:
    built: dict[tuple[str, int, int], TokenIndex | BoxIndex | None] = {}
    norms, runs = key_norms(head), []
    for policy in policies:
        pins = pins_of(policy)
        fit = fitting_rows(pins, head.context)
        score = policy.read.score
        index = None
        if score is not None and not isinstance(policy.read.rule, AllRule | NoneRule):
            key = (score.model_dump_json(), fit.start, fit.stop)
            if key not in built:
                built[key] = build(score, head, fit)
            index = built[key]
        stages = index_stages(policy, head.keys.shape[1])
        shape = (head.queries.shape[0], head.queries.shape[1])
        rows = empty_rows(policy, stages, shape, len(head.keys), head.values is not None)
        runs.append(Evaluation(policy, head, index, rows, pins, [Clause(keep, head) for keep in policy.keep], norms))
    return runs
