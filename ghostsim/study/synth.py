"""Synthetic traces fitted to recorded ones.

Per head, queries, keys and values before rotation are a mean plus a deviation that follows a first-order
autoregression, r_t = phi r_{t-1} + e_t: queries wander about fixed centres, which RoPE turns into a distance preference
of each head. The innovations e are the recorded ones, cut into runs of geometric length, the topics, which are put in
random order (after the stationary bootstrap of Politis and Romano, 1994), at the same recorded positions for all layers
and heads, so that spectra, heavy tails and what a query has to do with its neighbours' keys stay as recorded. The first
four tokens keep their recorded keys: they are the sinks. No query refers to one token further back than its topic.

Of several documents each draw takes one, in turn by its seed, and then its topics: resampling in two stages, as
documents differ more than their parts do. Draws certify away what the documents they are fitted to do, within 2 points
of 100 at every width of sketches and keys; how far another document is from those no draw can know: prose, a manual and
planted facts agree within a point on 8-bit keys, source code is 11 points above them. Topics of several documents mixed
in one draw were tried: their keys fill 5 % more dimensions than those of any of them and retrieval heads keep 12 % more
of their best tokens.
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


def fit(rows: Array) -> Process:
    """Fit vectors [n, h, d] of consecutive positions, n >= 2."""
    values = rows.astype(np.float64)
    mean = values.mean(axis=0)
    deviation = values - mean
    products = (deviation[1:] * deviation[:-1]).sum(axis=(0, 2))
    squares = (deviation[:-1] ** 2).sum(axis=(0, 2))
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
        The trace to fit, or several of one model; at least two steps each. Seed s draws from number s modulo their
        count, so that as many consecutive seeds draw from each once.
    folder
        Where to write; a new folder unless `force` is set.
    tokens, steps
        Length of the new trace, prompt and steps together, and its decode steps; those of the drawn trace by default.
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
    _check(likes)
    like = likes[seed % len(likes)]
    tokens, steps = tokens or like.tokens, steps or like.steps
    if tokens - steps < MIN_PROMPT:
        raise UsageError(
            f"--tokens: found {tokens} with {steps} steps, expected at least {steps + MIN_PROMPT}, e.g. --tokens 4096"
        )
    source = _source(like, tokens - steps, steps, generator(seed, "study/synth"))
    with TraceWriter(folder, force=force) as writer:
        for name in ("k", "v") if like.v is not None else ("k",):
            _write_tokens(writer, name, like, source)
        _write_queries(writer, like, source, steps)
        writer.put("token_ids", like.token_ids[source])
        if like.inv_freq is not None:
            writer.put("inv_freq", like.inv_freq)
        return writer.finish(_manifest(like, folder.name, tokens, steps, seed))


def _check(likes: Sequence[Trace]) -> None:
    for i, each in enumerate(likes):
        if each.steps < 2:
            raise TraceError("steps: found 1, expected at least 2 to fit how queries go on", Location(each.path))
        if not same_model(likes[0], each):
            found = f"found another model, rotation or shape than in {likes[0].name}, expected traces of one model"
            raise TraceError(f"model: {found}", Location(each.path))
        again = [other.name for other in likes[:i] if same_text(other.token_ids, each.token_ids)]
        if again:
            raise TraceError(f"text: found that of {again[0]} again, expected another document", Location(each.path))


def _source(like: Trace, prompt: int, steps: int, rng: np.random.Generator) -> Indices:
    """Return the recorded position that each synthetic one takes its innovation from, [prompt + steps].

    Steps take theirs from recorded steps, the last tokens of the prompt from prompt tokens with recorded queries. No
    prompt token takes one from a step: what is decoded would stand in the context before.
    """
    queried = _prompt_queries(like, prompt)
    first = max(like.prompt_len - like.prompt_queries, SINKS) + 1
    return np.concatenate(
        [
            np.arange(SINKS),
            runs(SINKS + 1, like.prompt_len, prompt - queried - SINKS, rng),
            runs(first, like.prompt_len, queried, rng),
            runs(like.prompt_len + 1, like.tokens, steps, rng),
        ]
    )


def _prompt_queries(like: Trace, prompt: int) -> int:
    return min(like.prompt_queries, prompt - SINKS)


def runs(low: int, high: int, count: int, rng: np.random.Generator) -> Indices:
    """Return `count` positions in low .. high - 1: topics in random order, none twice before all have been."""
    rounds = [_round(low, high, rng) for _ in range(-(-count // (high - low)))]
    return np.concatenate([np.zeros(0, dtype=np.int64), *rounds])[:count]


def _round(low: int, high: int, rng: np.random.Generator) -> Indices:
    topics = np.split(np.arange(low, high), np.flatnonzero(rng.random(high - low) < 1 / TOPIC))
    return np.concatenate([topics[i] for i in rng.permutation(len(topics))])


def _write_tokens(writer: TraceWriter, name: str, like: Trace, source: Indices) -> None:
    """Write keys or values; the sinks keep theirs."""
    recorded: Array = getattr(like, name)
    kept, kv_heads, _, d = recorded.shape
    for at, out in writer.parts(name, recorded.dtype, (kept, kv_heads, len(source), d)):
        out[:SINKS] = recorded[at][:SINKS]
        process = fit(recorded[at][SINKS:, None])
        for where, values in process.path(source[SINKS:] - SINKS):
            out[SINKS:][where] = values[:, 0]


def _write_queries(writer: TraceWriter, like: Trace, source: Indices, steps: int) -> None:
    """Write the queries of the last prompt tokens and of the steps, and the predicted ones where they are recorded."""
    prompt, at = len(source) - steps, source[len(source) - steps :] - like.prompt_len
    before = source[prompt - _prompt_queries(like, prompt) : prompt] - (like.prompt_len - like.prompt_queries)
    kept, heads, _, d = like.q_prompt.shape
    q = writer.array("q", like.q.dtype, (steps, kept, heads, d))
    q_prompt = writer.array("q_prompt", like.q_prompt.dtype, (kept, heads, len(before), d))
    ahead = None if like.q_ahead is None else writer.array("q_ahead", like.q_ahead.dtype, q.shape)
    for layer in range(kept):
        q_prompt[layer] = _whole(like.q_prompt[layer].swapaxes(0, 1), before).swapaxes(0, 1)
        q[:, layer] = _whole(like.q[:, layer], at)
        if ahead is not None and like.q_ahead is not None:
            ahead[:, layer] = q[:, layer] + _whole(like.q_ahead[:, layer] - like.q[:, layer].astype(np.float64), at)


def _whole(recorded: Array, rows: Indices) -> Floats:
    """Return a path [len(rows), h, d] of the process fitted to `recorded` [n, h, d]."""
    return np.concatenate([values for _, values in fit(recorded).path(rows)])


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
            "text": f"none; fitted to {like.provenance.text}"[:1000],
            "licence": like.provenance.licence,
            "seed": seed,
        },
    }
