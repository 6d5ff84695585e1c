"""Text that needs a memory: server logs, copied passages and planted facts, all drawn from a seeded generator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
Random = np.random.Generator

ONSETS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr"]
VOWELS = ["a", "e", "i", "o", "u"]
PATHS = ["orders", "users", "carts", "items", "search", "login", "reports", "media", "stock", "prices"]
LEVELS = ["DEBUG", "INFO", "INFO", "INFO", "WARN", "ERROR"]
PARTS = ["gateway", "auth", "ledger", "cache", "worker", "index"]


def pick(random: Random, options: list[str]) -> str:
    """Return one of the options."""
    return options[int(random.integers(len(options)))]


def name_of(random: Random) -> str:
    """Return an invented name of two or three syllables."""
    return "".join(pick(random, ONSETS) + pick(random, VOWELS) for _ in range(int(random.integers(2, 4)))).capitalize()


def fact(random: Random) -> tuple[str, str]:
    """Return the question and the answer of an invented fact; together they state it."""
    return f" The code of {name_of(random)} is", f" {random.integers(1000, 10000)}."


# --- server logs ---------------------------------------------------------------------------------------------


def server_log(random: Random, lines: int) -> str:
    """Return log lines of requests that open, work and close, so that later lines repeat earlier ids.

    Users, paths and request ids come back; what a `close` line says is decided by the `open` line of its request.
    """
    users = [name_of(random).lower() for _ in range(12)]
    clock, running, out = int(random.integers(86_400_000)), list[tuple[str, str, str]](), []
    for _ in range(lines):
        clock += int(random.exponential(700)) + 1
        if not running or (len(running) < 12 and random.random() < 0.3):
            user = users[min(int(random.zipf(1.6)) - 1, 11)]
            running.append(
                (f"{random.integers(1 << 24):06x}", user, f"/v1/{pick(random, PATHS)}/{random.integers(9999)}")
            )
            out.append(f"{stamp(clock)} INFO gateway open req={running[-1][0]} user={user} path={running[-1][2]}")
            continue
        at = int(random.integers(len(running)))
        if random.random() < 0.35:
            request, user, path = running.pop(at)
            out.append(f"{stamp(clock)} INFO gateway close req={request} user={user} path={path} status=200")
        else:
            out.append(f"{stamp(clock)} {pick(random, LEVELS)} {work(random)} req={running[at][0]}")
    return "\n".join(out) + "\n"


def work(random: Random) -> str:
    """Return what a part of the server did."""
    did = pick(random, ["read", "wrote", "locked", "retried", "checked"])
    return f"{pick(random, PARTS)} {did} {random.integers(1, 64)} rows in {random.integers(1, 90)} ms"


def stamp(clock_ms: int) -> str:
    """Return the time of day."""
    seconds, ms = divmod(clock_ms % 86_400_000, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{ms:03}"


# --- rows of tokens ------------------------------------------------------------------------------------------


def with_copies(random: Random, row: Tokens, share: float = 0.3) -> Tokens:
    """Return the row with earlier passages copied over later places until about `share` of it is copied."""
    row, left = row.copy(), int(share * len(row))
    while left > 0:
        size = min(int(np.exp(random.uniform(np.log(16), np.log(max(len(row) // 5, 17))))), len(row) // 3)
        lag = int(np.exp(random.uniform(np.log(size), np.log(len(row) - size - 1))))
        end = int(random.integers(size + lag, len(row) + 1))
        row[end - size : end] = row[end - size - lag : end - lag]
        left -= size
    return row


def with_facts(random: Random, row: Tokens, facts: list[tuple[Tokens, Tokens]]) -> Tokens:
    """Return a row of the same length with facts stated in its first half and asked again, shuffled, in its second.

    `facts` are (question, answer) as tokens; a question is always followed by its answer.
    """
    half = len(row) // 2
    stated = np.sort(random.integers(1, half, len(facts)))
    asked = np.sort(random.integers(half, len(row), len(facts)))
    places = [*zip(stated, facts, strict=True), *zip(asked, random.permutation(len(facts)), strict=True)]
    out, at = [], 0
    for place, piece in places:
        out += [row[at:place], *(piece if isinstance(piece, tuple) else facts[piece])]
        at = place
    return np.concatenate([*out, row[at:]])[: len(row)]
