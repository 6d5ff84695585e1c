"""Synthetic traces fitted to a recorded one.

Per head, keys, queries and values before rotation are a mean and a deviation that follows a first-order
autoregression, x_t = mean + r_t, r_t = phi r_{t-1} + e_t (the generator of AR queries about fixed centres that RoPE
turns into a distance preference). The innovations e are drawn from the recorded ones with replacement, one recorded
position at a time for all layers and heads together, so that spectra, heavy tails, and what a query has to do with its
own key stay as recorded. The first four tokens keep their recorded keys: they are the sinks. A gain on each
head's queries and its phi are then tuned on pilots until participation ratio and consecutive overlap are the recorded
ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.errors import Location, TraceError, UsageError
from ghostsim.seeding import generator
from ghostsim.trace.compose import SINKS, Head, compose
from ghostsim.trace.format import Trace
from ghostsim.trace.rope import rotate
from ghostsim.trace.statistics import Floats, best, probabilities
from ghostsim.trace.write import TraceWriter, model_fields

Indices = npt.NDArray[np.int64]

MIN_PROMPT = 64 + SINKS
PILOTS = 3
ROUNDS = 4
_GAIN = (0.92, 1.08)  # a query norm stays within 8 % of the recorded one
_PHI_MAX = 0.98
_PAIRS = 32
_SCORES = 1 << 20
_BLOCK = 1 << 16
_VANISHED = 1e-9


@dataclass(frozen=True, eq=False)
class Process:
    """A fitted autoregression: `mean` [h, d], `phi` [h], recorded deviations [n, h, d] of consecutive positions.

    `spread` [h] scales the innovations so that another phi keeps the recorded variance; `gain` [h] scales the result.
    """

    mean: Floats
    phi: Floats
    deviation: Floats
    spread: Floats
    gain: Floats

    @property
    def rows(self) -> int:
        """How many positions were recorded."""
        return len(self.deviation)

    def innovation(self, rows: Indices, phi: Floats) -> Floats:
        """Return e of recorded rows (>= 1), [len(rows), h, d]."""
        found: Floats = self.deviation[rows] - phi[:, None] * self.deviation[rows - 1]
        return found

    def with_phi(self, phi: Floats) -> Process:
        """Return the process with another phi and the same variance."""
        fitted = _autocorrelation(self.deviation)
        return replace(self, phi=phi, spread=np.sqrt((1 - phi**2) / (1 - fitted**2)))

    def fill(self, rows: Indices, out: npt.NDArray[Any]) -> None:
        """Fill `out` [n, h, d] with a path whose innovations come from the recorded `rows` [n] (>= 1)."""
        fitted, state = _autocorrelation(self.deviation), self.deviation[rows[0]]
        for start in range(0, len(rows), _BLOCK):
            e = self.innovation(rows[start : start + _BLOCK], fitted) * self.spread[:, None]
            e[0] = state if start == 0 else e[0] + self.phi[:, None] * state
            _accumulate(e, self.phi[:, None])
            state = e[-1].copy()
            out[start : start + len(e)] = self.gain[:, None] * (self.mean + e)


def _accumulate(e: Floats, phi: Floats) -> None:
    """Turn innovations [n, ...] into r_t = phi r_{t-1} + e_t in place, by doubling."""
    reach = 1
    while reach < len(e) and float(np.max(phi)) > _VANISHED:
        e[reach:] += phi * e[:-reach]
        reach, phi = 2 * reach, phi**2


def _autocorrelation(deviation: Floats) -> Floats:
    products = (deviation[1:] * deviation[:-1]).sum(axis=(0, 2))
    squares = (deviation[:-1] ** 2).sum(axis=(0, 2))
    found = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    return np.clip(found, 0.0, _PHI_MAX)


def _process(rows: npt.NDArray[Any]) -> Process:
    """Fit rows [n, h, d] of consecutive positions."""
    values = rows.astype(np.float64)
    mean = values.mean(axis=0)
    ones = np.ones(values.shape[1])
    return Process(mean, _autocorrelation(values - mean), values - mean, ones, ones)


@dataclass(frozen=True, eq=False)
class HeadModel:
    """What is fitted of one (kept layer, KV head): its keys and its group's queries."""

    keys: Process
    queries: Process


def _queries(trace: Trace, layer: int, kv_head: int) -> npt.NDArray[Any]:
    """Return the recorded queries [W + steps, g, d] of consecutive positions."""
    group = slice(kv_head * trace.model.q_per_kv, (kv_head + 1) * trace.model.q_per_kv)
    return np.concatenate([trace.q_prompt[layer, group].swapaxes(0, 1), trace.q[:, layer, group]])


def _keys(trace: Trace, name: str, layer: int, kv_head: int) -> npt.NDArray[Any]:
    recorded: npt.NDArray[Any] = getattr(trace, name)[layer, kv_head, SINKS:, None]
    return recorded


@dataclass(frozen=True, eq=False)
class Draw:
    """Which recorded position gives the innovation of each synthetic one, [tokens].

    The last `queries` positions draw from those whose queries are recorded.
    """

    source: Indices
    queries: int

    def of_keys(self) -> Indices:
        """Return rows of the recorded keys after the sinks, [tokens - 4]."""
        return self.source[SINKS:] - SINKS

    def of_queries(self, trace: Trace) -> Indices:
        """Return rows of the recorded queries, [queries]."""
        return self.source[len(self.source) - self.queries :] - (trace.prompt_len - trace.prompt_queries)


def _draw(trace: Trace, tokens: int, steps: int, rng: np.random.Generator) -> Draw:
    queries = min(trace.prompt_queries, tokens - steps - SINKS) + steps
    first = max(trace.prompt_len - trace.prompt_queries, SINKS) + 1
    source = np.concatenate(
        [
            np.arange(SINKS),
            rng.integers(SINKS + 1, trace.tokens, tokens - queries - SINKS),
            rng.integers(first, trace.tokens, queries),
        ]
    )
    return Draw(source, queries)


def synthesise(
    like: Trace,
    folder: Path,
    tokens: int | None = None,
    steps: int | None = None,
    seed: int = 1,
    *,
    force: bool = False,
    fitted: Sequence[HeadModel] | None = None,
) -> Trace:
    """Fit a generator to `like` and write one draw of it as a trace of kind `synthetic`.

    Parameters
    ----------
    like
        The trace to fit; at least two steps.
    folder
        Where to write; a new folder unless `force` is set.
    tokens, steps
        Length of the new trace, prompt and steps together, and its decode steps; those of `like` by default.
    seed
        Another seed gives another draw of the same fit.
    fitted
        The result of `fit(like)`, where several draws are wanted.

    Raises
    ------
    TraceError
        If `like` has one step only.
    UsageError
        If the prompt would be shorter than 68 tokens, or the folder exists.
    """
    tokens, steps = tokens or like.tokens, steps or like.steps
    if tokens - steps < MIN_PROMPT:
        raise UsageError(f"--tokens: found {tokens} with {steps} steps, expected at least {steps + MIN_PROMPT}")
    draw = _draw(like, tokens, steps, generator(seed, "study/synth/draw"))
    models = fit(like) if fitted is None else fitted
    with TraceWriter(folder, force=force) as writer:
        _write_arrays(writer, like, draw, steps, models)
        return writer.finish(_manifest(like, folder.name, tokens, steps, seed))


def _write_arrays(writer: TraceWriter, like: Trace, draw: Draw, steps: int, models: Sequence[HeadModel]) -> None:
    model, tokens = like.model, len(draw.source)
    kept, prompt = len(model.kept_layers), draw.queries - steps
    shape = (kept, model.kv_heads, tokens, model.head_dim)
    named = {"k": writer.array("k", like.k.dtype, shape)}
    if like.v is not None:
        named["v"] = writer.array("v", like.v.dtype, shape)
    q = writer.array("q", like.q.dtype, (steps, kept, model.q_heads, model.head_dim))
    q_prompt = writer.array("q_prompt", like.q_prompt.dtype, (kept, model.q_heads, prompt, model.head_dim))
    for (layer, kv_head), fitted in zip(np.ndindex(kept, model.kv_heads), models, strict=True):
        for name, out in named.items():
            process = fitted.keys if name == "k" else _process(_keys(like, name, layer, kv_head))
            out[layer, kv_head, :SINKS] = getattr(like, name)[layer, kv_head, :SINKS]
            process.fill(draw.of_keys(), out[layer, kv_head, SINKS:, None])
        group = slice(kv_head * model.q_per_kv, (kv_head + 1) * model.q_per_kv)
        rows = np.empty((draw.queries, model.q_per_kv, model.head_dim))
        fitted.queries.fill(draw.of_queries(like), rows)
        q[:, layer, group], q_prompt[layer, group] = rows[prompt:], rows[:prompt].swapaxes(0, 1)
    if like.q_ahead is not None:
        _write_ahead(writer, like, draw, q)
    writer.put("token_ids", like.token_ids[draw.source])
    if like.inv_freq is not None:
        writer.put("inv_freq", like.inv_freq)


def _write_ahead(writer: TraceWriter, like: Trace, draw: Draw, q: npt.NDArray[Any]) -> None:
    """Write predicted queries: the new ones plus a path of the recorded prediction error."""
    assert like.q_ahead is not None
    out = writer.array("q_ahead", like.q_ahead.dtype, q.shape)
    # Errors are recorded for steps only: a source among the prompt's queries stands for some step.
    rows = 1 + (draw.source[-len(q) :] - like.prompt_len - 1) % (like.steps - 1)
    for layer in range(q.shape[1]):
        error = np.empty(q[:, layer].shape)
        recorded = like.q_ahead[:, layer].astype(np.float64) - like.q[:, layer].astype(np.float64)
        _process(recorded).fill(rows, error)
        out[:, layer] = q[:, layer] + error


def _manifest(like: Trace, name: str, tokens: int, steps: int, seed: int) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "synthetic",
        "model": model_fields(like),
        "rope": asdict(like.rope) if like.rope else None,
        "prompt_len": tokens - steps,
        "steps": steps,
        "tokens": tokens,
        "provenance": {
            "recorder": f"ghostsim trace synth --like {like.name}",
            "text": f"none; fitted to: {like.provenance.text}"[:1000],
            "licence": like.provenance.licence,
            "seed": seed,
        },
    }


# --- fit -------------------------------------------------------------------------------------------------------


def fit(like: Trace) -> tuple[HeadModel, ...]:
    """Fit every (kept layer, KV head) of a trace and tune it on pilots of the recorded length.

    Raises
    ------
    TraceError
        If the trace has one step only.
    """
    if like.steps < 2:
        raise TraceError("steps: found 1, expected at least 2 to fit how queries go on", Location(like.path))
    workload = compose([like], None, requests=1, steps=None, context=None, seed=0)
    return tuple(_fit(like, workload.head(unit)) for unit in range(len(workload.heads)))


def _fit(like: Trace, recorded: Head) -> HeadModel:
    at = recorded.kept_layer, recorded.kv_head
    model = HeadModel(_process(_keys(like, "k", *at)), _process(_queries(like, *at)))
    target = _measure(recorded)
    for round_ in range(ROUNDS):
        pilots = [_pilot(like, model, recorded, f"study/synth/pilot{round_}/{i}") for i in range(PILOTS)]
        participation, overlap = np.mean([_measure(pilot) for pilot in pilots], axis=0)
        model = replace(model, queries=_tuned(model.queries, participation / target[0], overlap, target[1]))
    return model


def _tuned(queries: Process, wider: Floats, overlap: Floats, wanted: Floats) -> Process:
    """Sharpen heads that are `wider` than recorded, and let queries last longer where sets overlap too little."""
    gain = np.clip(queries.gain * wider**0.2, *_GAIN)
    longer = np.sqrt(np.divide(wanted, overlap, out=np.ones_like(overlap), where=overlap > 0))
    return replace(queries.with_phi(np.clip(queries.phi * longer, 0.0, _PHI_MAX)), gain=gain)


def _pilot(like: Trace, model: HeadModel, recorded: Head, path: str) -> Head:
    """Draw a head of the recorded length."""
    draw = _draw(like, like.tokens, like.steps, generator(0, path))
    keys = np.empty((like.tokens - SINKS, 1, like.model.head_dim))
    model.keys.fill(draw.of_keys(), keys)
    rows = np.empty((draw.queries, like.model.q_per_kv, like.model.head_dim))
    model.queries.fill(draw.of_queries(like), rows)
    inv_freq = None if like.inv_freq is None else like.inv_freq[recorded.kept_layer]
    now = np.arange(like.prompt_len, like.tokens)[:, None]
    rotated = rotate(keys[:, 0], np.arange(SINKS, like.tokens), inv_freq, like.rope)
    queries = rotate(rows[-like.steps :], now, inv_freq, like.rope)
    return replace(recorded, keys=np.concatenate([recorded.keys[:SINKS], rotated]), queries=queries)


def _measure(head: Head) -> Floats:
    """Return participation ratio and overlap of the best sets of consecutive steps, [2, g]."""
    steps = len(head.queries)
    count = max(1, min(_PAIRS, steps - 1, _SCORES // len(head.keys)))
    pairs = np.stack([_pair(head, int(step)) for step in np.linspace(0, steps - 2, count).astype(int)])
    return pairs.mean(axis=0)


def _pair(head: Head, step: int) -> Floats:
    p, following = probabilities(head, step), probabilities(head, step + 1)
    common = [np.isin(a, b).mean() for a, b in zip(best(p), best(following), strict=True)]
    return np.stack([1 / (p**2).sum(axis=1), np.array(common)])
