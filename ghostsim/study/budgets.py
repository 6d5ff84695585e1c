"""One policy at several budgets: its curve of what it loses against what it moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ghostsim.config.policy import Keep, Policy, Read, Selector
from ghostsim.config.rules import Certify, NoneRule, Profile, Pyramid, Rule, TopFrac, TopK

FACTORS = (0.25, 0.5, 1.0, 2.0)
EPS = (0.1, 0.01, 0.001)
OWN = "own"

_S = TypeVar("_S", bound=Selector)


def swept(policy: Policy) -> dict[str, Policy]:
    """Return a policy as its file has it (`own`) and at other budgets, by label; equal ones once.

    A promise is set to each of `EPS` (shared out among the stages as in the file). Else the main budget is multiplied
    by `FACTORS`: that of the last READ stage with one, else those of KEEP: topk, topfrac, the share of full heads, or
    the window of a clause that keeps nothing but pins. A policy without a budget has its own point only.
    """
    found = {OWN: policy}
    for label, other in _others(policy):
        if other not in found.values():
            found[label] = other
    return found


def _others(policy: Policy) -> Iterator[tuple[str, Policy]]:
    if policy.read.eps is not None:
        for eps in EPS:
            yield f"eps {eps:g}", promised(policy, eps)
        return
    for factor in FACTORS:
        yield f"x{factor:g}", scaled(policy, factor)


def promised(policy: Policy, eps: float) -> Policy:
    """Return a policy that promises to lose at most `eps`."""
    before = policy.read.eps
    assert before is not None
    if eps == before:
        return policy

    def change(selector: _S) -> _S:
        assert isinstance(selector.rule, Certify)
        rule = selector.rule.model_copy(update={"certify": selector.rule.certify * eps / before})
        return selector.model_copy(update={"rule": rule})

    read = change(policy.read).model_copy(update={"then": tuple(change(each) for each in policy.read.then)})
    return policy.model_copy(update={"read": read})


def scaled(policy: Policy, factor: float) -> Policy:
    """Return a policy with its main budget multiplied."""
    read = _scaled_read(policy.read, factor)
    if read is not None:
        return policy.model_copy(update={"read": read})
    evicts = not any(clause.everything for clause in policy.keep)
    return policy.model_copy(update={"keep": tuple(_scaled_keep(clause, factor, evicts) for clause in policy.keep)})


def _scaled_read(read: Read, factor: float) -> Read | None:
    """Return READ with the budget of its last stage that has one; None if none has."""
    for place in reversed(range(len(read.then))):
        if isinstance(read.then[place].rule, TopK | TopFrac):
            stages: Sequence[Selector] = read.then
            changed = _scaled(stages[place], factor)
            return read.model_copy(update={"then": (*stages[:place], changed, *stages[place + 1 :])})
    if isinstance(read.rule, TopK | TopFrac) or (isinstance(read.rule, NoneRule) and read.pin.window):
        return _scaled(read, factor)
    return None


def _scaled_keep(clause: Keep, factor: float, evicts: bool) -> Keep:
    if clause.first or (isinstance(clause.select.rule, NoneRule) and not evicts):
        return clause
    return clause.model_copy(update={"select": _scaled(clause.select, factor)})


def _scaled(selector: _S, factor: float) -> _S:
    update: dict[str, Any] = {}
    if selector.heads.full is not None:
        update["heads"] = selector.heads.model_copy(update={"full": min(1.0, factor * selector.heads.full)})
    elif isinstance(selector.rule, NoneRule):
        window = max(1, int(factor * selector.pin.window)) if selector.pin.window else 0
        update["pin"] = selector.pin.model_copy(update={"window": window})
    else:
        update["rule"] = _scaled_rule(selector.rule, factor)
    return selector.model_copy(update=update)


def _scaled_rule(rule: Rule, factor: float) -> Rule:
    match rule:
        case TopK(topk=int(tokens)):
            return TopK(topk=max(1, int(factor * tokens)))
        case TopK(topk=Pyramid() as pyramid):
            return TopK(topk=pyramid.model_copy(update={"tokens": max(1, int(factor * pyramid.tokens))}))
        case TopK(topk=Profile(profile=budgets)):
            return TopK(topk=Profile(profile=tuple(int(factor * tokens) for tokens in budgets)))
        case TopFrac(topfrac=share, most=most):
            limit = None if most is None else max(1, int(factor * most))
            return TopFrac(topfrac=min(1.0, factor * share), most=limit)
        case _:
            return rule
