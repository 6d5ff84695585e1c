"""Do planted facts leave the length of the prompt, its beginning and the text that follows it as they are?"""

from __future__ import annotations

import numpy as np
import pytest

from ghostsim.errors import UsageError
from ghostsim.study.facts import Fact, invented, planted, script

TEXT = np.arange(200, dtype=np.int32)
FACTS = [Fact(np.array([1000 + i, 1001 + i]), np.array([2000 + i])) for i in range(0, 40, 10)]


def runs_of(ids):
    """Return the facts that stand in a text in one piece."""
    pieces = np.lib.stride_tricks.sliding_window_view(ids, 3).tolist()
    return [fact for fact in FACTS if fact.statement.tolist() in pieces]


def test_prompt_keeps_its_length_its_first_token_and_its_end():
    asked = script(TEXT, 100, 50, FACTS)
    text = asked.ids[:100][asked.ids[:100] < 1000]
    assert text.tolist() == [0, *range(13, 100)]


def test_every_fact_stands_whole_in_the_prompt():
    assert runs_of(script(TEXT, 100, 50, FACTS).ids[:100]) == FACTS


def test_the_text_goes_on_after_the_prompt_and_questions_come_last():
    asked = script(TEXT, 100, 50, FACTS)
    assert asked.ids[100:150].tolist() == list(range(100, 150))
    assert asked.targets[:50].tolist() == list(range(101, 151))
    assert runs_of(np.append(asked.ids[150:], asked.targets[-1])) == FACTS


def test_answers_are_due_right_after_their_questions():
    asked = script(TEXT, 100, 50, FACTS)
    assert sorted(int(asked.targets[steps][0]) for steps in asked.answers) == [2000, 2010, 2020, 2030]
    assert [int(asked.ids[100 + steps.start]) for steps in asked.answers] == [
        int(asked.targets[steps][0]) - 999 for steps in asked.answers
    ]


def test_facts_stand_all_over_the_prompt():
    places = [np.argmax(planted(TEXT[:100], FACTS[:1], np.random.default_rng(seed)) >= 1000) for seed in range(300)]
    assert (min(places), max(places)) == (1, 97)


def test_another_seed_is_another_script():
    scripts = [script(TEXT, 100, 50, FACTS, seed).ids.tolist() for seed in (1, 1, 2)]
    assert scripts[0] == scripts[1] != scripts[2]


def test_without_facts_the_text_is_as_it_is():
    asked = script(TEXT, 100, 50)
    assert (asked.ids.tolist(), asked.targets.tolist()) == (list(range(150)), list(range(101, 151)))


def test_no_two_facts_are_about_the_same_name():
    questions = [question for question, _ in invented(500, 1)]
    assert len(set(questions)) == 500


def test_too_many_facts_are_refused():
    with pytest.raises(UsageError, match="found 4 facts of 12 tokens, expected at most half of the 20"):
        script(TEXT, 20, 50, FACTS)
