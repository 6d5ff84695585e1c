"""Multi-turn agent sessions: requests that send a growing history again with every turn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ghostsim.errors import UsageError
from ghostsim.seeding import generator
from ghostsim.trace.requests import (
    LARGEST_INT,
    LARGEST_TOKENS,
    MOONCAKE_BLOCK_TOKENS,
    PS_PER_MS,
    PS_PER_S,
    Blocks,
    Ints,
    Requests,
    blocks_of,
)


@dataclass(frozen=True)
class AgentTurns:
    """How long the turns of an agent are; the defaults are assumptions, of no recorded origin.

    Parameters
    ----------
    system_tokens
        Length of the system prompt, which all sessions share.
    task_tokens, result_tokens, output_tokens
        Mean lengths of the task, of a tool's result and of the model's output; lognormal, at least one token each.
    spread
        Standard deviation of the logarithm of these lengths; 0 gives the means themselves.
    session_gap_ps, tool_ps
        Mean time between the starts of sessions, and of a tool; exponential.
    output_token_ps
        Assumed time to generate a token of output.
    block_tokens
        Tokens per prefix block.
    """

    system_tokens: int = 2048
    task_tokens: int = 2048
    result_tokens: int = 1024
    output_tokens: int = 256
    spread: float = 1.0
    session_gap_ps: int = 2 * PS_PER_S
    tool_ps: int = 5 * PS_PER_S
    output_token_ps: int = 20 * PS_PER_MS
    block_tokens: int = MOONCAKE_BLOCK_TOKENS

    def __post_init__(self) -> None:
        for name in ("task_tokens", "result_tokens", "output_tokens", "block_tokens"):
            _in_range(name, getattr(self, name), 1, LARGEST_TOKENS)
        for name in ("session_gap_ps", "tool_ps", "output_token_ps"):
            _in_range(name, getattr(self, name), 0, 10**17)
        _in_range("system_tokens", self.system_tokens, 0, LARGEST_TOKENS)
        _in_range("spread", self.spread, 0, 3)


def agent_sessions(seed: int, sessions: int, turns: int, shape: AgentTurns | None = None) -> Requests:
    """Make the requests of agents that call tools: every turn sends the whole history again, and the history grows.

    A session's first prompt is the system prompt and a task. Each further prompt is the one before, the model's output
    and the result of a tool. Sessions start as a Poisson process. The next turn comes when the output has been made and
    the tool has run, at the times of `shape` whatever the simulated system does: arrivals are open loop. The draws of a
    session are its own, so that more sessions leave those before them as they are.

    A full block keeps its id over the turns of its session, and over sessions if it holds system prompt alone; a
    partial last block gets a new id each turn. Ids count from 0 in the order in which they first arrive.

    Raises
    ------
    UsageError
        If a number is out of its range.
    """
    shape = shape or AgentTurns()
    _in_range("sessions", sessions, 1, 10**6)
    _in_range("turns", turns, 1, 10**6)
    made = [_session(generator(seed, f"requests/session{number}"), turns, shape) for number in range(sessions)]
    gaps = generator(seed, "requests/starts").exponential(shape.session_gap_ps, sessions)
    waits, prompts, outputs = (np.stack(column) for column in zip(*made, strict=True))
    arrivals = _arrivals(gaps, waits)
    order = np.argsort(arrivals.ravel(), kind="stable")
    blocks = _session_blocks(prompts, shape.system_tokens // shape.block_tokens, shape.block_tokens)
    return Requests(
        arrivals.ravel()[order],
        prompts.ravel()[order],
        outputs.ravel()[order],
        np.repeat(np.arange(sessions, dtype=np.int64), turns)[order],
        _numbered(blocks_of(shape.block_tokens, [blocks[index] for index in order.tolist()])),
    )


def _in_range(name: str, value: float, smallest: int, largest: int) -> None:
    if not smallest <= value <= largest:
        option = name.replace("_", "-")
        raise UsageError(f"--{option}: found {value}, expected a number from {smallest} to {largest}")


def _session(draw: np.random.Generator, turns: int, shape: AgentTurns) -> tuple[npt.NDArray[np.float64], Ints, Ints]:
    """Return the waiting time before each turn in ps, the prompt and the output lengths, each [turns]."""
    prompts, outputs, waits = np.empty(turns, np.int64), np.empty(turns, np.int64), np.zeros(turns)
    prompts[0] = shape.system_tokens + _length(draw, shape.task_tokens, shape.spread)
    for turn in range(turns):
        if turn:
            prompts[turn] = prompts[turn - 1] + outputs[turn - 1] + _length(draw, shape.result_tokens, shape.spread)
            waits[turn] = float(outputs[turn - 1]) * shape.output_token_ps + draw.exponential(shape.tool_ps)
        outputs[turn] = _length(draw, shape.output_tokens, shape.spread)
    return waits, prompts, outputs


def _arrivals(gaps: npt.NDArray[np.float64], waits: npt.NDArray[np.float64]) -> Ints:
    """Return arrivals in ps [sessions, turns]; the first session starts at 0."""
    gaps[0] = 0.0
    last = gaps.sum() + waits.sum(axis=1).max()
    if last >= LARGEST_INT:
        message = f"found {last / PS_PER_S / 86400:.3g} days of sessions, expected at most 106.7 (64-bit picoseconds)"
        raise UsageError(f"--sessions: {message}")
    starts, since = (np.cumsum(np.rint(times).astype(np.int64), axis=-1) for times in (gaps, waits))
    return np.asarray(starts[:, None] + since, dtype=np.int64)


def _length(draw: np.random.Generator, mean: int, spread: float) -> int:
    drawn = math.exp(math.log(mean) - spread**2 / 2 + spread * draw.standard_normal())
    return min(max(1, round(drawn)), LARGEST_TOKENS)


def _session_blocks(prompts: Ints, shared: int, block_tokens: int) -> list[list[int]]:
    """Return ids for each (session, turn) in row-major order; the first `shared` are those of all sessions."""
    free, made = shared, []
    for lengths in prompts:
        first, free = free, free + int(lengths[-1]) // block_tokens - shared
        for length in lengths.tolist():
            full, partial = divmod(length, block_tokens)
            own = range(first, first + full - shared)
            made.append([*range(shared), *own, *([free] if partial else [])])
            free += bool(partial)
    return made


def _numbered(blocks: Blocks) -> Blocks:
    """Number the ids from 0 in the order in which they first appear."""
    _, first, inverse = np.unique(blocks.ids, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return Blocks(blocks.block_tokens, rank[inverse], blocks.offsets)
