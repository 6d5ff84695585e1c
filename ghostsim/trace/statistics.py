"""How a trace's attention is spread, how long it stays where it is, and what its queries and keys look like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.trace.compose import SINKS, Head, Workload, compose
from ghostsim.trace.format import Trace

Floats = npt.NDArray[np.float64]

LOCAL = 256
SHARES = (0.50, 0.90, 0.95, 0.99)
TOPS = (8, 32, 128)
TOP = 32
LAGS = (1, 4, 16)
ENERGY = 0.90
SPIKE = 0.10
CLASSES = ("dormant", "local", "retrieval", "semantic memory")
RULE = (
    "dormant: the first 4 tokens and the own one hold 0.9 of the mass; else local: the first 4 and the last 256 hold "
    "0.9; else retrieval: in a tenth of the steps one other token takes 0.1 or more; else semantic memory"
)
_HELD = 0.9
_SPIKY_STEPS = 0.1
_BLOCK = 1 << 16
_SCORES = 1 << 20  # per query head; bounds the time on long traces


@dataclass(frozen=True, eq=False)
class TraceStatistics:
    """Statistics of a trace; arrays are [kept layers, query heads, ...] or [kept layers, KV heads, ...] for keys.

    Masses, counts and entropies are means over the steps looked at. Probabilities are the exact softmax in float64
    over the attended tokens.
    """

    layers: tuple[int, ...]
    steps: tuple[int, ...]
    attended: float
    """Attended tokens, mean over steps and layers."""
    tokens_for: Floats
    """Tokens that hold each of `SHARES` of the mass, [..., 4]."""
    top_mass: Floats
    """Mass of the best `TOPS` tokens, [..., 3]."""
    first_mass: Floats
    """Mass of token 0."""
    sink_mass: Floats
    """Mass of the first 4 tokens."""
    own_mass: Floats
    """Mass of the query's own token."""
    local_mass: Floats
    """Mass of the last 256 tokens, own one included."""
    held_mass: Floats
    """Mass of the first 4 and the last 256 together, each token once."""
    quiet_mass: Floats
    """Mass of the first 4 and the own token together, each token once."""
    induction_mass: Floats
    """Mass of the tokens that follow earlier occurrences of the query's token, over the steps that repeat one."""
    spiky_steps: Floats
    """Share of steps in which one token outside the first 4 and the last 256 takes 0.1 or more."""
    participation: Floats
    """Participation ratio 1 / sum p^2."""
    entropy: Floats
    """Nats."""
    above_uniform: Floats
    """Share of attended tokens with more than 1 / attended of the mass."""
    score_sd: Floats
    """Standard deviation of the scores over the attended tokens."""
    lags: tuple[int, ...]
    persistence: Floats
    """Share of the best 32 tokens that are among the best 32 after each of `lags` steps, [..., lags]."""
    shifted: Floats
    """The same after one step, with all positions of the earlier set moved by one; empty without two steps."""
    layer_overlap: Floats
    """Share of the best 32 tokens (of the mass over all heads) that adjacent kept layers have in common, [kept - 1]."""
    query_cosine: Floats
    """Cosine of consecutive queries before rotation; empty without two steps."""
    query_norm: Floats
    key_norm: Floats
    """Mean norm over tokens, [kept, KV heads]."""
    key_norm_cv: Floats
    """Standard deviation over mean."""
    key_norm_max: Floats
    first_key_norm: Floats
    key_energy: Floats
    """Falling eigenvalues of K^T K as shares of their sum, before and after rotation, [kept, KV heads, 2, d]."""
    key_energy_centred: Floats
    """The same of the covariance of the keys."""
    norm_product: Floats
    """scale * mean query norm * mean key norm: the widest that scores could be."""

    @property
    def key_rank(self) -> npt.NDArray[np.int64]:
        """Dimensions that hold 0.9 of the key energy, before and after rotation, [kept, KV heads, 2]."""
        return rank(self.key_energy)

    @property
    def key_rank_centred(self) -> npt.NDArray[np.int64]:
        """Dimensions that hold 0.9 of the keys' variance, before and after rotation, [kept, KV heads, 2]."""
        return rank(self.key_energy_centred)

    @property
    def classes(self) -> npt.NDArray[np.int64]:
        """Class of each head as an index into `CLASSES`, by `RULE`, [kept, query heads]."""
        return head_classes(self.quiet_mass, self.held_mass, self.spiky_steps)

    def class_share(self) -> dict[str, float]:
        """Return the share of heads in each class."""
        return {name: float((self.classes == i).mean()) for i, name in enumerate(CLASSES)}


def head_classes(quiet_mass: Floats, held_mass: Floats, spiky_steps: Floats) -> npt.NDArray[np.int64]:
    """Return the class of each head as an index into `CLASSES`, by `RULE`."""
    kinds = [quiet_mass >= _HELD, held_mass >= _HELD, spiky_steps >= _SPIKY_STEPS]
    return np.select(kinds, [0, 1, 2], 3).astype(np.int64)


def rank(energy: Floats, held: float = ENERGY) -> npt.NDArray[np.int64]:
    """Return how many of the falling shares `energy` [..., d] it takes to hold `held`."""
    below: npt.NDArray[np.int64] = (np.cumsum(energy, axis=-1) < held).sum(axis=-1)
    return np.minimum(below + 1, energy.shape[-1])


def probabilities(head: Head, step: int) -> Floats:
    """Return the attention probabilities of one step in float64, [g, first..own token]; masked tokens hold 0."""
    out, first, scores = _scores(head, step)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    out[:, first:] = weights / weights.sum(axis=1, keepdims=True)
    return out


def _scores(head: Head, step: int) -> tuple[Floats, int, Floats]:
    """Return zeros [g, first..own token], the first attended token and the scores from there on."""
    own = head.context + step
    first = 0 if head.window is None else max(0, own - head.window + 1)
    keys = head.keys[first : own + 1].astype(np.float64, copy=False)
    scores = head.scale * (head.queries[step].astype(np.float64, copy=False) @ keys.T)
    if head.softcap is not None:
        scores = head.softcap * np.tanh(scores / head.softcap)
    return np.zeros((len(scores), own + 1)), first, scores


def statistics(trace: Trace, steps: int = 64) -> TraceStatistics:
    """Measure a trace on up to `steps` evenly spaced decode steps (fewer where the context is long).

    Persistence compares each of these steps with the one `lag` steps later, where that is recorded.
    """
    workload = compose([trace], None, requests=1, steps=None, context=None, seed=0)
    looked = looked_at(trace, steps)
    lags = tuple(lag for lag in LAGS if looked[0] + lag < trace.steps)
    kept = len(trace.model.kept_layers)
    layer_mass = np.zeros((kept, len(looked), trace.tokens))
    rows = [_unit(workload, unit, looked, lags, layer_mass) for unit in range(len(workload.heads))]
    stacked = {name: _stack([row[name] for row in rows], kept) for name in rows[0]}
    return TraceStatistics(
        layers=trace.model.kept_layers,
        steps=tuple(looked),
        attended=float(np.mean([_attended(trace, layer, step) for layer in range(kept) for step in looked])),
        lags=lags,
        layer_overlap=_layer_overlap(layer_mass),
        norm_product=trace.model.scale
        * stacked["query_norm"]
        * np.repeat(stacked["key_norm"], trace.model.q_per_kv, axis=1),
        **stacked,
    )


def looked_at(trace: Trace, steps: int) -> list[int]:
    """Return the evenly spaced steps that are measured."""
    count = max(1, min(steps, trace.steps, _SCORES // trace.tokens))
    return [int(step) for step in np.linspace(0, trace.steps - 1, count).astype(int)]


def _attended(trace: Trace, layer: int, step: int) -> int:
    return min(trace.prompt_len + step + 1, trace.model.window[layer] or trace.tokens)


def _stack(rows: list[Floats], kept: int) -> Floats:
    """Stack per-unit rows (unit = layer, KV head) [g or 1, ...] to [kept, heads, ...]."""
    joined = np.concatenate(rows)
    return joined.reshape(kept, len(joined) // kept, *joined.shape[1:])


def _unit(workload: Workload, unit: int, steps: list[int], lags: tuple[int, ...], layer_mass: Floats) -> dict[str, Any]:
    head = workload.head(unit)
    measured, repeats, ids = [], [], workload.token_ids(head.request)
    for at, step in enumerate(steps):
        p = probabilities(head, step)
        layer_mass[head.kept_layer, at, : p.shape[1]] += p.sum(axis=0)
        measured.append(_spread(p, head, step))
        followed = following(ids[: p.shape[1]])
        if len(followed):
            repeats.append(p[:, followed].sum(axis=1))
    spread = {name: np.mean([row[name] for row in measured], axis=0) for name in measured[0]}
    spread["induction_mass"] = np.mean(repeats, axis=0) if repeats else np.zeros(head.queries.shape[1])
    return spread | _persistence(head, steps, lags) | _vectors(workload, head, steps)


def following(ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return the positions right after earlier occurrences of the last of `ids`, that one itself left out."""
    found: npt.NDArray[np.int64] = np.flatnonzero(ids[:-1] == ids[-1]) + 1
    return found[found < len(ids) - 1]


def _spread(p: Floats, head: Head, step: int) -> dict[str, Floats]:
    """Measure one step of one KV head's group; every value is [g] or [g, several]."""
    falling = np.sort(p, axis=1)[:, ::-1]
    reached = np.cumsum(falling, axis=1)
    attended = min(p.shape[1], head.window or p.shape[1])
    local = slice(max(SINKS, p.shape[1] - LOCAL), None)
    sinks, cold = p[:, :SINKS].sum(axis=1), p[:, SINKS : local.start]
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return {
        "tokens_for": np.stack([np.minimum((reached < x).sum(axis=1) + 1, p.shape[1]) for x in SHARES], axis=1),
        "top_mass": np.stack([falling[:, :count].sum(axis=1) for count in TOPS], axis=1),
        "first_mass": p[:, 0],
        "sink_mass": sinks,
        "own_mass": p[:, -1],
        "local_mass": p[:, -LOCAL:].sum(axis=1),
        "held_mass": sinks + p[:, local].sum(axis=1),
        "quiet_mass": sinks + (p[:, -1] if p.shape[1] > SINKS else 0.0),
        "spiky_steps": (cold.max(axis=1, initial=0.0) >= SPIKE).astype(np.float64),
        "participation": 1 / (p**2).sum(axis=1),
        "entropy": -(p * logs).sum(axis=1),
        "above_uniform": (p > 1 / attended).sum(axis=1) / attended,
        "score_sd": _scores(head, step)[2].std(axis=1),
    }


def best(p: Floats, count: int = TOP) -> npt.NDArray[np.int64]:
    """Return the positions of the `count` largest of each row of `p` [g, n], in no order."""
    count = min(count, p.shape[1])
    return np.argpartition(p, p.shape[1] - count, axis=1)[:, p.shape[1] - count :]


def _common(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> Floats:
    """Return the share of each row of `a` that is in the same row of `b`."""
    return np.array([np.isin(x, y).mean() for x, y in zip(a, b, strict=True)])


def _persistence(head: Head, steps: list[int], lags: tuple[int, ...]) -> dict[str, Floats]:
    last, group = len(head.queries) - 1, head.queries.shape[1]
    sets: dict[int, npt.NDArray[np.int64]] = {}

    def top(step: int) -> npt.NDArray[np.int64]:
        if step not in sets:
            sets[step] = best(probabilities(head, step))
        return sets[step]

    kept = [[_common(top(s), top(s + lag)) for s in steps if s + lag <= last] for lag in lags]
    moved = [_common(top(s) + 1, top(s + 1)) for s in steps if s < last] if lags else []
    return {
        "persistence": np.stack([np.mean(rows, axis=0) for rows in kept], axis=1) if kept else np.zeros((group, 0)),
        "shifted": np.mean(moved, axis=0)[:, None] if moved else np.zeros((group, 0)),
    }


def _vectors(workload: Workload, head: Head, steps: list[int]) -> dict[str, Floats]:
    trace = workload.trace_of(head.request)
    group = slice(head.kv_head * trace.model.q_per_kv, (head.kv_head + 1) * trace.model.q_per_kv)
    queries = trace.q[:, head.kept_layer, group].astype(np.float64)
    before, after = trace.k[head.kept_layer, head.kv_head], head.keys
    norms = np.concatenate([np.linalg.norm(block, axis=1) for block in _blocks(before)])
    lengths = np.linalg.norm(queries, axis=2)
    following = [step for step in steps if step + 1 < len(queries)]
    dots = (queries[following] * queries[[step + 1 for step in following]]).sum(axis=2)
    products = lengths[following] * lengths[[step + 1 for step in following]]
    cosine = np.divide(dots, products, out=np.zeros_like(dots), where=products > 0)
    return {
        "query_cosine": cosine.mean(axis=0)[:, None] if following else np.zeros((queries.shape[1], 0)),
        "query_norm": lengths[steps].mean(axis=0),
        "key_norm": norms.mean(keepdims=True),
        "key_norm_cv": norms.std(keepdims=True) / max(float(norms.mean()), np.finfo(np.float64).tiny),
        "key_norm_max": norms.max(keepdims=True),
        "first_key_norm": norms[:1],
        "key_energy": np.stack([energy(before), energy(after)])[None],
        "key_energy_centred": np.stack([energy(rows, centred=True) for rows in (before, after)])[None],
    }


def _blocks(rows: npt.NDArray[np.floating[Any]]) -> Iterator[Floats]:
    """Cut rows into blocks in float64: a million keys are a gigabyte."""
    return (rows[i : i + _BLOCK].astype(np.float64, copy=False) for i in range(0, len(rows), _BLOCK))


def energy(rows: npt.NDArray[np.floating[Any]], *, centred: bool = False) -> Floats:
    """Return the falling eigenvalues of rows^T rows, perhaps less their mean, as shares of their sum, [d]."""
    mean = reduce(np.add, (block.sum(axis=0) for block in _blocks(rows))) / len(rows) if centred else 0.0
    around = (block - mean for block in _blocks(rows))
    values = np.linalg.eigvalsh(reduce(np.add, (block.T @ block for block in around)))[::-1].clip(min=0)
    return values / max(float(values.sum()), np.finfo(np.float64).tiny)


def _layer_overlap(mass: Floats) -> Floats:
    sets = [best(layer) for layer in mass]
    return np.array([float(_common(a, b).mean()) for a, b in pairwise(sets)])


# --- beside what is published ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A published figure: its range as found, and where."""

    name: str
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Comparison:
    """A statistic of the trace beside the published one; `warning` is empty where they are alike."""

    published: Published
    measured: float
    warning: str


SLACK = 1.5
_LOUVER = "Louver's tail_metrics.csv: Qwen2.5-7B-Instruct, reasoning, 650-2,649 tokens"
_GPT2 = "GPT-2 recorded by ghostkv-lab, about 800 tokens"
PUBLISHED = (
    Published("mass of the best 8 tokens, mean over heads", 0.37, 0.37, _LOUVER),
    Published("mass of the best 32 tokens, mean over heads", 0.43, 0.63, f"{_LOUVER}; p10 to p90 of steps"),
    Published("mass of the best 128 tokens, mean over heads", 0.72, 0.72, _LOUVER),
    Published("participation ratio, mean over heads", 132, 132, _LOUVER),
    Published("entropy in nats, mean over heads", 4.8, 4.8, _LOUVER),
    Published("share of tokens that hold half the mass, mean over heads", 0.04, 0.04, _LOUVER),
    Published("share of tokens above uniform, mean over heads", 0.16, 0.16, _LOUVER),
    Published(
        "mass of the first token, upper quartile of heads",
        0.30,
        0.80,
        "secondary source on GPT-2, Llama, Mistral; 0.8 on BOS recalled for Llama-3.1-405B",
    ),
    Published(
        "best-32 overlap of consecutive steps, mean over heads",
        0.35,
        0.71,
        f"0.35-0.50: DeepSeek-V3.2 top-2,048 of 68,665 (TensorRT-LLM blog 21); 0.71: {_GPT2}",
    ),
    Published("cosine of consecutive queries, mean over heads", 0.75, 0.84, f"0.84: FreeKV (abstract); 0.75: {_GPT2}"),
    Published(
        "dimensions for 0.9 of the key energy before rotation, share of all",
        0.06,
        0.16,
        f"4-9 of 64: {_GPT2}; about 20 of 128: ShadowKV's rank 160 of 1,024",
    ),
    Published("dimensions for 0.9 of the key energy after rotation, share of all", 0.63, 0.63, "Loki, recalled"),
    Published("share of retrieval heads", 0.03, 0.06, "arXiv 2404.15574 (abstract)"),
    Published("largest ratio of mean key norms between layers", 17, 17, "Louver report: 28 layers, 4 KV heads"),
)


def compare(found: TraceStatistics) -> list[Comparison]:
    """Set the statistics beside the published ones; more than 1.5 times outside their range is worth a warning."""
    d = found.key_energy.shape[-1]
    layers = found.key_norm.mean(axis=1)
    measured = (
        *found.top_mass.mean(axis=(0, 1)),
        found.participation.mean(),
        found.entropy.mean(),
        found.tokens_for[..., 0].mean() / found.attended,
        found.above_uniform.mean(),
        np.quantile(found.first_mass, 0.75),
        found.persistence[..., 0].mean() if found.lags else None,
        found.query_cosine.mean() if found.lags else None,
        *(found.key_rank.mean(axis=(0, 1)) / d),
        found.class_share()["retrieval"],
        layers.max() / layers.min() if len(layers) > 1 and layers.min() > 0 else None,
    )
    pairs = [(known, float(value)) for known, value in zip(PUBLISHED, measured, strict=True) if value is not None]
    return [Comparison(known, value, _warning(known, value)) for known, value in pairs]


def _warning(known: Published, value: float) -> str:
    if known.low / SLACK <= value <= known.high * SLACK:
        return ""
    return f"{known.name}: {value:.3g} here, {range_text(known.low, known.high)} published"


def range_text(low: float, high: float) -> str:
    """Write a range as 0.35-0.71, or as one number."""
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def summary(found: TraceStatistics) -> dict[str, Any]:
    """Return the figures of a trace as plain data: means over heads, shares of classes, comparison, warnings."""
    compared = compare(found)
    return {
        "tokens_for": {f"{x:.0%}": float(v) for x, v in zip(SHARES, found.tokens_for.mean(axis=(0, 1)), strict=True)},
        "top_mass": {str(n): float(v) for n, v in zip(TOPS, found.top_mass.mean(axis=(0, 1)), strict=True)},
        "first_mass": float(found.first_mass.mean()),
        "sink_mass": float(found.sink_mass.mean()),
        "local_mass": float(found.local_mass.mean()),
        "participation": float(found.participation.mean()),
        "entropy_nats": float(found.entropy.mean()),
        "persistence": {
            str(lag): float(v) for lag, v in zip(found.lags, found.persistence.mean(axis=(0, 1)), strict=True)
        },
        "layer_overlap": [float(x) for x in found.layer_overlap],
        "query_norm": float(found.query_norm.mean()),
        "key_norm": float(found.key_norm.mean()),
        "key_rank": _ranks(found.key_rank),
        "key_rank_centred": _ranks(found.key_rank_centred),
        "classes": found.class_share(),
        "published": [
            {"name": c.published.name, "measured": c.measured, "low": c.published.low, "high": c.published.high}
            | {"source": c.published.source}
            for c in compared
        ],
        "warnings": [c.warning for c in compared if c.warning],
    }


def _ranks(ranks: npt.NDArray[np.int64]) -> dict[str, float]:
    before, after = ranks.mean(axis=(0, 1))
    return {"before_rope": float(before), "after_rope": float(after)}
