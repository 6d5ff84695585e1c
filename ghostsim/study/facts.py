"""Invented facts, planted in a prompt and asked for after it: what a model has to remember word for word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ghostsim.errors import UsageError
from ghostsim.seeding import generator

Ids = npt.NDArray[np.int32]
Random = np.random.Generator

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "st", "tr")
_VOWELS = ("a", "e", "i", "o", "u")


@dataclass(frozen=True, eq=False)
class Fact:
    """Question and answer as tokens; one after the other they state the fact."""

    question: Ids
    answer: Ids

    @property
    def statement(self) -> Ids:
        """The fact as it is planted."""
        return np.concatenate([self.question, self.answer])


@dataclass(frozen=True, eq=False)
class Script:
    """What a model reads, and by decode step the token that should follow.

    The first `text_steps` steps follow the text; then come the questions, each with its answer. `answers` are the steps
    that have to name the tokens of each answer.
    """

    ids: Ids
    targets: Ids
    prompt_len: int
    text_steps: int
    answers: tuple[slice, ...] = ()

    @property
    def steps(self) -> int:
        """Decode steps in all."""
        return len(self.targets)


def invented(count: int, seed: int) -> list[tuple[str, str]]:
    """Return the questions and answers of `count` facts, no two about the same name."""
    random = generator(seed, "study/facts")
    names: list[str] = []
    while len(names) < count:
        name = _name(random)
        names += [name] if name not in names else []
    return [(f" The code of {name} is", f" {random.integers(1000, 10000)}.") for name in names]


def _name(random: Random) -> str:
    syllables = (_pick(random, _ONSETS) + _pick(random, _VOWELS) for _ in range(int(random.integers(2, 4))))
    return "".join(syllables).capitalize()


def _pick(random: Random, options: Sequence[str]) -> str:
    return options[int(random.integers(len(options)))]


def encoded(texts: Sequence[tuple[str, str]], encode: Callable[[str], Ids]) -> list[Fact]:
    """Return facts as tokens; questions and answers are encoded apart, so that a question never hints at its answer."""
    return [Fact(encode(question), encode(answer)) for question, answer in texts]


def script(ids: Ids, prompt_len: int, steps: int, facts: Sequence[Fact] = (), seed: int = 1) -> Script:
    """Return the script of a text of at least prompt_len + steps + 1 tokens, with facts planted and asked for.

    Raises
    ------
    UsageError
        If the facts take more than half of the prompt.
    """
    following, random = ids[prompt_len + 1 : prompt_len + steps + 1], generator(seed, "study/script")
    if not facts:
        return Script(ids[: prompt_len + steps], following, prompt_len, steps)
    prompt = planted(ids[:prompt_len], facts, random)
    asked = [facts[i] for i in random.permutation(len(facts))]
    questions = np.concatenate([fact.statement for fact in asked])
    return Script(
        ids=np.concatenate([prompt, ids[prompt_len : prompt_len + steps], questions[:-1]]),
        targets=np.concatenate([following, questions[1:]]),
        prompt_len=prompt_len,
        text_steps=steps,
        answers=_answers(asked, steps),
    )


def planted(prompt: Ids, facts: Sequence[Fact], random: Random) -> Ids:
    """Return a prompt of the same length with facts at random places; what follows the first token makes room."""
    room = sum(len(fact.statement) for fact in facts)
    if room > len(prompt) // 2:
        raise UsageError(
            f"--facts: found {len(facts)} facts of {room} tokens, expected at most half of the {len(prompt)} tokens "
            "of the prompt"
        )
    text = np.concatenate([prompt[:1], prompt[1 + room :]])
    places = np.sort(random.integers(1, len(text) + 1, len(facts)))
    parts = zip(np.split(text, places), [*(fact.statement for fact in facts), text[:0]], strict=True)
    return np.concatenate([piece for pair in parts for piece in pair])


def _answers(asked: Sequence[Fact], first: int) -> tuple[slice, ...]:
    """Return the steps that predict the answers of questions whose first token is step `first`."""
    lengths = [(len(fact.question), len(fact.answer)) for fact in asked]
    starts = first + np.cumsum([0, *(sum(pair) for pair in lengths)])
    begins = [int(start) + question - 1 for start, (question, _) in zip(starts, lengths, strict=False)]
    return tuple(slice(begin, begin + answer) for begin, (_, answer) in zip(begins, lengths, strict=True))
