"""Synthetic traces fitted to recorded ones.

Per head, queries, keys and values before rotation are a mean plus a deviation that follows a first-order
autoregression, r_t = phi r_{t-1} + e_t: queries wander about fixed centres, which RoPE turns into a distance preference
of each head. The innovations e are the recorded ones, cut into runs of geometric length, the topics, which are put in
random order (after the stationary bootstrap of Politis and Romano, 1994), at the same recorded positions for all layers
and heads, so that spectra, heavy tails and what a query has to do with its neighbours' keys stay as recorded. The first
four tokens keep their recorded keys: they are the sinks. No query refers to one token further back than its topic.

Several documents of one model give one mean and one autoregression, and their topics stand mixed in a draw, which so
behaves like their mean. What a document not fitted differs by from that mean, no draw can know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.errors import Location, TraceError, UsageError
from ghostsim.seeding import generator
from ghostsim.trace.compose import SINKS, same_model, same_text
from ghostsim.trace.format import Trace
from ghostsim.trace.statistics import Floats
from ghostsim.trace.write import TraceWriter, model_fields

Array = npt.NDArray[Any]
Indices = npt.NDArray[np.int64]

MIN_PROMPT = 64 + SINKS
TOPIC = 64  # mean length of a run of recorded innovations, in tokens
_PHI_MAX = 0.98
_BLOCK = 1 << 16
_VANISHED = 1e-9


@dataclass(frozen=True, eq=False)
class Process:
    """A fitted autoregression: `mean` [h, d], `phi` [h, 1], deviations [n, h, d] of consecutive recorded positions."""

    mean: Floats
    phi: Floats
    deviation: Floats

    def path(self, rows: Indices) -> Iterator[tuple[slice, Floats]]:
        """Yield [n, h, d] in blocks; the innovations are those of the recorded `rows` (>= 1), the start is stationary.

        Yields
        ------
        where, values
            The positions of a block and its vectors.
        """
        state = self.deviation[rows[0]]
        for start in range(0, len(rows), _BLOCK):
            at = rows[start : start + _BLOCK]
            walk = self.deviation[at] - self.phi * self.deviation[at - 1]
            walk[0] = state if start == 0 else walk[0] + self.phi * state
            accumulate(walk, self.phi)
            state = walk[-1].copy()
            yield slice(start, start + len(at)), self.mean + walk


def accumulate(walk: Floats, phi: Floats) -> None:
    """Turn innovations e [n, ...] into r_t = phi r_{t-1} + e_t in place, by doubling the reach of each sum."""
    reach = 1
    while reach < len(walk) and float(np.max(phi)) > _VANISHED:
        walk[reach:] += phi * walk[:-reach]
        reach, phi = 2 * reach, phi**2


def fit(*documents: Array) -> Process:
    """Fit vectors [n, h, d] of consecutive positions, n >= 2, of one or several documents."""
    values = np.concatenate(documents).astype(np.float64)
    mean = values.mean(axis=0)
    deviation = values - mean
    parts = np.split(deviation, np.cumsum([len(rows) for rows in documents[:-1]]))
    products = sum((part[1:] * part[:-1]).sum(axis=(0, 2)) for part in parts)
    squares = sum((part[:-1] ** 2).sum(axis=(0, 2)) for part in parts)
    phi = np.divide(products, squares, out=np.zeros_like(products), where=squares > 0)
    return Process(mean, np.clip(phi, 0.0, _PHI_MAX)[:, None], deviation)


def synthesise(
    like: Trace | Sequence[Trace],
    folder: Path,
    tokens: int | None = None,
    steps: int | None = None,
    seed: int = 1,
    *,
    force: bool = False,
) -> Trace:
    """Fit a generator to `like` and write one draw of it as a trace of kind `synthetic`.

    Parameters
    ----------
    like
        The trace to fit, or several of one model; at least two steps each.
    folder
        Where to write; a new folder unless `force` is set.
    tokens, steps
        Length of the new trace, prompt and steps together, and its decode steps; those of the first trace by default.
    seed
        Another seed gives another draw of the same fit.

    Raises
    ------
    TraceError
        If a trace has one step only, or the traces are not of one model or not of different texts.
    UsageError
        If the prompt would be shorter than 68 tokens, or the folder exists.
    """
    likes = (like,) if isinstance(like, Trace) else tuple(like)
    first = likes[0]
    tokens, steps = tokens or first.tokens, steps or first.steps
    _check(likes, tokens, steps)
    source = _source(likes, tokens - steps, steps, generator(seed, "study/synth"))
    with TraceWriter(folder, force=force) as writer:
        for name in _shared(likes, "k", "v"):
            _write_tokens(writer, name, likes, source)
        _write_queries(writer, likes, source, steps)
        writer.put("token_ids", np.concatenate([each.token_ids for each in likes])[source])
        if first.inv_freq is not None:
            writer.put("inv_freq", first.inv_freq)
        return writer.finish(_manifest(likes, folder.name, tokens, steps, seed))


def _check(likes: Sequence[Trace], tokens: int, steps: int) -> None:
    for i, each in enumerate(likes):
        if each.steps < 2:
            raise TraceError("steps: found 1, expected at least 2 to fit how queries go on", Location(each.path))
        if not same_model(likes[0], each):
            found = f"found another model, rotation or shape than in {likes[0].name}, expected traces of one model"
            raise TraceError(f"model: {found}", Location(each.path))
        again = [other.name for other in likes[:i] if same_text(other.token_ids, each.token_ids)]
        if again:
            raise TraceError(f"text: found that of {again[0]} again, expected another document", Location(each.path))
    if tokens - steps < MIN_PROMPT:
        raise UsageError(
            f"--tokens: found {tokens} with {steps} steps, expected at least {steps + MIN_PROMPT}, e.g. --tokens 4096"
        )


def _shared(likes: Sequence[Trace], *names: str) -> list[str]:
    """Return which of the arrays all traces hold."""
    return [name for name in names if all(getattr(each, name) is not None for each in likes)]


def _source(likes: Sequence[Trace], prompt: int, steps: int, rng: np.random.Generator) -> Indices:
    """Return the recorded token that each synthetic one takes its innovation from, counted over all traces.

    Steps take theirs from recorded steps, the last tokens of the prompt from prompt tokens with recorded queries. No
    prompt token takes one from a step: what is decoded would stand in the context before.
    """
    queried, base = _prompt_queries(likes, prompt), _bases([each.tokens for each in likes])
    starts = [max(each.prompt_len - each.prompt_queries, SINKS) + 1 for each in likes]
    spans = {
        "prompt": [(SINKS + 1, each.prompt_len) for each in likes],
        "queried": [(start, each.prompt_len) for start, each in zip(starts, likes, strict=True)],
        "steps": [(each.prompt_len + 1, each.tokens) for each in likes],
    }
    placed = {name: [(b + lo, b + hi) for b, (lo, hi) in zip(base, each, strict=True)] for name, each in spans.items()}
    counts = {"prompt": prompt - queried - SINKS, "queried": queried, "steps": steps}
    drawn = [runs(placed[name], counts[name], rng) for name in counts]
    return np.concatenate([np.arange(SINKS), *drawn])


def _bases(lengths: Sequence[int]) -> Indices:
    """Return where each trace begins when they stand one behind the other."""
    return np.cumsum([0, *lengths[:-1]])


def _prompt_queries(likes: Sequence[Trace], prompt: int) -> int:
    return min(prompt - SINKS, *(each.prompt_queries for each in likes))


def runs(spans: Sequence[tuple[int, int]], count: int, rng: np.random.Generator) -> Indices:
    """Return `count` positions of spans low .. high - 1: topics in random order, all once before any again."""
    rounds = -(-count // sum(high - low for low, high in spans))
    return np.concatenate([np.zeros(0, dtype=np.int64), *(_round(spans, rng) for _ in range(rounds))])[:count]


def _round(spans: Sequence[tuple[int, int]], rng: np.random.Generator) -> Indices:
    """Return all positions of the spans; each span's topics are spread evenly, so that any stretch is of all spans."""
    placed: list[tuple[float, Indices]] = []
    for low, high in spans:
        topics = np.split(np.arange(low, high), np.flatnonzero(rng.random(high - low) < 1 / TOPIC))
        shuffled = [topics[i] for i in rng.permutation(len(topics))]
        sizes = np.array([len(topic) for topic in shuffled])
        places = (np.cumsum(sizes) - sizes * rng.random(len(sizes))) / (high - low)
        placed += zip(places.tolist(), shuffled, strict=True)
    return np.concatenate([topic for _, topic in sorted(placed, key=lambda each: each[0])])


def _rows_of(source: Indices, likes: Sequence[Trace], first: Sequence[int], counts: Sequence[int]) -> Indices:
    """Return the rows of tokens in pools that hold `counts` rows of each trace, from its token `first` on."""
    base = _bases([each.tokens for each in likes])
    owner = np.searchsorted(base, source, side="right") - 1
    return np.asarray(source - (base + first)[owner] + _bases(counts)[owner])


def _write_tokens(writer: TraceWriter, name: str, likes: Sequence[Trace], source: Indices) -> None:
    """Write keys or values; the sinks keep those of the first trace."""
    recorded: list[Array] = [getattr(each, name) for each in likes]
    kept, kv_heads, _, d = recorded[0].shape
    rows = _rows_of(source[SINKS:], likes, [SINKS] * len(likes), [each.tokens - SINKS for each in likes])
    dtype = np.result_type(*recorded)
    for at, out in writer.parts(name, dtype, (kept, kv_heads, len(source), d)):
        out[:SINKS] = recorded[0][at][:SINKS]
        process = fit(*(each[at][SINKS:, None] for each in recorded))
        for where, values in process.path(rows):
            out[SINKS:][where] = values[:, 0]


def _write_queries(writer: TraceWriter, likes: Sequence[Trace], source: Indices, steps: int) -> None:
    """Write the queries of the last prompt tokens and of the steps, and the predicted ones where they are recorded."""
    prompt, first = len(source) - steps, likes[0]
    queried = source[prompt - _prompt_queries(likes, prompt) : prompt]
    counts = [each.prompt_queries for each in likes]
    starts = [each.prompt_len - each.prompt_queries for each in likes]
    before = _rows_of(queried, likes, starts, counts)
    at = _rows_of(source[prompt:], likes, [each.prompt_len for each in likes], [each.steps for each in likes])
    kept, heads, _, d = first.q_prompt.shape
    q = writer.array("q", np.result_type(*(each.q for each in likes)), (steps, kept, heads, d))
    q_prompt = writer.array(
        "q_prompt", np.result_type(*(each.q_prompt for each in likes)), (kept, heads, len(before), d)
    )
    ahead = writer.array("q_ahead", q.dtype, q.shape) if _shared(likes, "q_ahead") else None
    for layer in range(kept):
        q_prompt[layer] = _whole([each.q_prompt[layer].swapaxes(0, 1) for each in likes], before).swapaxes(0, 1)
        q[:, layer] = _whole([each.q[:, layer] for each in likes], at)
        if ahead is not None:
            ahead[:, layer] = q[:, layer] + _whole([_lead(each, layer) for each in likes], at)


def _lead(like: Trace, layer: int) -> Floats:
    """Return by how much predicted queries differ from the true ones, [steps, h, d]."""
    assert like.q_ahead is not None
    return np.asarray(like.q_ahead[:, layer] - like.q[:, layer].astype(np.float64))


def _whole(documents: Sequence[Array], rows: Indices) -> Floats:
    """Return a path [len(rows), h, d] of the process fitted to recorded vectors [n, h, d]."""
    return np.concatenate([values for _, values in fit(*documents).path(rows)])


def _manifest(likes: Sequence[Trace], name: str, tokens: int, steps: int, seed: int) -> dict[str, Any]:
    like = likes[0]
    texts, licences = (dict.fromkeys(getattr(each.provenance, what) for each in likes) for what in ("text", "licence"))
    return {
        "name": name,
        "kind": "synthetic",
        "model": model_fields(like),
        "rope": asdict(like.rope) if like.rope else None,
        "prompt_len": tokens - steps,
        "steps": steps,
        "tokens": tokens,
        "provenance": {
            "recorder": "ghostsim trace synth " + " ".join(f"--like {each.name}" for each in likes),
            "text": f"none; fitted to {'; '.join(texts)}"[:1000],
            "licence": " AND ".join(licences),
            "seed": seed,
        },
    }
