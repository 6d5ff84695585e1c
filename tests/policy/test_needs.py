"""Is every policy refused, in one line, on a trace that lacks what it needs, and on no other?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from ghostsim import bundled
from ghostsim.config.policy import Policy
from ghostsim.errors import TraceError
from ghostsim.policy.evaluate import select
from ghostsim.policy.head import evaluate_group
from ghostsim.policy.needs import unmet
from ghostsim.policy.variants import by_head, for_head, specialised
from ghostsim.study.frontier import frontier
from ghostsim.trace.compose import compose
from ghostsim.trace.format import Trace, open_trace

FOLDER = bundled.folder("scenarios") / "policies"
TEXTS = {file.stem: file.read_text() for file in sorted(FOLDER.glob("*.yaml"))}
POLICIES = {name: Policy.model_validate(yaml.safe_load(text)) for name, text in TEXTS.items()}
NATURAL = open_trace("natural_4k")
PROMPT = NATURAL.prompt_len


def queries(count: int) -> np.ndarray:
    """Return `count` prompt queries of natural_4k: the recorded ones again and again."""
    rows = np.arange(count) % NATURAL.prompt_queries
    return NATURAL.q_prompt[:, :, rows]


COMPLETE = replace(NATURAL, token_class=np.zeros(NATURAL.tokens, dtype=np.uint8), q_prompt=queries(PROMPT))
# What a trace lacks: (its fields, the array that a refusal names, what in a policy's file says that it needs it).
LACKING = {
    "v": ({"v": None}, "(v)", ("values: true", "of: value")),
    "q_ahead": ({"q_ahead": None}, "(q_ahead)", ("lag: layer",)),
    "token_class": ({"token_class": None}, "(token_class)", ("classes: [",)),
    "rope": ({"rope": None, "inv_freq": None}, "(rope)", ("trig:", "frame:", "basis: planes")),
    "all prompt queries": ({"q_prompt": queries(PROMPT - 1)}, "(q_prompt)", ("recover:",)),
    "400 prompt queries": ({"q_prompt": queries(399)}, "(q_prompt)", ("recover:", "window: 400")),
}


def lacks(what: str) -> Trace:
    return replace(COMPLETE, **LACKING[what][0])


def needs(name: str, what: str) -> bool:
    plain = "\n".join(line for line in TEXTS[name].splitlines() if not line.startswith(("summary", "note", "claim")))
    return any(words in plain for words in LACKING[what][2])


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_complete_trace_serves_every_policy(name):
    assert unmet(POLICIES[name], COMPLETE) is None


@pytest.mark.parametrize("what", LACKING)
def test_every_need_is_one_of_some_policy(what):
    assert any(needs(name, what) for name in POLICIES)


@pytest.mark.parametrize("what", LACKING)
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_trace_that_lacks_a_need_is_refused_with_what_it_lacks(name, what):
    trace, policy = lacks(what), POLICIES[name]
    reason = unmet(policy, trace)
    assert (reason is not None) == needs(name, what)
    if reason is None:
        return
    assert LACKING[what][1] in reason
    workload = compose([trace], None, requests=1, steps=1, context=None, seed=1)
    with pytest.raises(TraceError) as caught:
        select({name: policy}, workload, jobs=1)
    assert str(caught.value) == f"{trace.path}: {policy.name}: {reason}"
    assert caught.value.exit_code == 4
    with pytest.raises(TraceError, match="needs"):
        frontier(trace, [policy], steps=1, jobs=1)


@pytest.mark.parametrize("what", LACKING)
def test_what_is_not_refused_needs_nothing_more(what):
    """A policy that looked for what is lacking would fail here."""
    workload = compose([lacks(what)], None, requests=1, steps=2, context=None, seed=1)
    heads = []
    for unit in (4, 5):
        head = workload.head(unit)
        rows = slice(head.context - 900, None)
        cut = {name: getattr(head, name) for name in ("values", "token_class")}
        cut = {name: None if array is None else array[rows] for name, array in cut.items()}
        heads.append(replace(head, context=900, keys=head.keys[rows], prompt_queries=head.prompt_queries[-900:], **cut))
    served = []
    for name, policy in POLICIES.items():
        if not needs(name, what):
            each = specialised(policy, 20, 32, 900)
            served.append(for_head(each, full=False, head_class="local") if by_head(each) else each)
    assert len(evaluate_group(served, heads)) == len(served) > 80


def test_a_composed_context_holds_no_query_of_its_other_documents():
    workload = compose([open_trace("tutorial_4k")], None, requests=1, steps=2, context=6000, seed=1)
    with pytest.raises(
        TraceError, match=r"needs every prompt query \(q_prompt\), the trace holds the last \d+ of 6000"
    ):
        select({"fastgen": POLICIES["fastgen"]}, workload, jobs=1)
