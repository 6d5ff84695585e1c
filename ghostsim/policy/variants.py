"""One policy, resolved for a layer and a head: dense layers, budgets by layer, heads that are treated apart."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghostsim.config.policy import Heads, Keep, Layers, Policy, Read, Selector
from ghostsim.config.rules import AllRule, TopK
from ghostsim.policy.exact import Floats, Ints
from ghostsim.trace.compose import Workload
from ghostsim.trace.format import Trace
from ghostsim.trace.statistics import CLASSES, statistics

_ALL = AllRule.model_validate({"all": {}})
_STEPS = 16


def specialised(policy: Policy, layer: int, layers: int, prompt: int | None = None) -> Policy:
    """Return the policy as it is in one layer of a target model of `layers` layers, for a prompt of so many tokens."""

    def change(selector: Selector) -> Selector:
        return _selector(selector, layer, layers, prompt)

    keeps = tuple(clause.model_copy(update={"select": change(clause.select)}) for clause in policy.keep)
    return policy.model_copy(update={"keep": keeps, "read": change(policy.read)})


def _selector(selector: Selector, layer: int, layers: int, prompt: int | None) -> Selector:
    """Return a selector with its budget as a number; a dense layer takes everything."""
    if selector.layers.exempt(layer, layers):
        return everything(selector)
    rule = selector.rule
    if isinstance(rule, TopK) and not isinstance(rule.topk, int):
        rule = TopK(topk=rule.topk.at(layer, layers, prompt, selector.pin.window))
    return selector.model_copy(update={"rule": rule, "layers": Layers()})


def everything(selector: Selector) -> Selector:
    """Return a selector that takes every unit."""
    update: dict[str, Any] = {"rule": _ALL, "then": (), "also": (), "less": (), "layers": Layers(), "heads": Heads()}
    if isinstance(selector, Read):
        update |= {"completion": "renormalise", "cache": None, "lag": "none"}
    return selector.model_copy(update=update)


# --- heads ------------------------------------------------------------------------------------------------------


def by_head(policy: Policy) -> bool:
    """Whether a policy treats heads apart."""
    return any(each != Heads() for each in _heads(policy))


def _heads(policy: Policy) -> list[Heads]:
    return [*(clause.select.heads for clause in policy.keep), policy.read.heads]


def for_head(policy: Policy, *, full: bool, head_class: str) -> Policy:
    """Return the policy of a KV head that is, or is not, among the full ones, and of its class."""

    def change(selector: Selector) -> Selector:
        if full and selector.heads.full is not None:
            return everything(selector)
        other: Mapping[str, Any] = selector.heads.classes.get(head_class, {})  # type: ignore[call-overload]
        plain = selector.model_copy(update={"heads": Heads()})
        if not other:
            return plain
        fields = plain.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"heads"}) | dict(other)
        return type(selector).model_validate(fields)

    keeps: tuple[Keep, ...] = tuple(
        clause.model_copy(update={"select": change(clause.select)}) for clause in policy.keep
    )
    return policy.model_copy(update={"keep": keeps, "read": change(policy.read)})


@functools.lru_cache(maxsize=8)
def _profile(trace: Trace) -> tuple[Floats, Ints]:
    """Return the mass beyond the first 4 and last 256 tokens, and the class, of each [kept layer, KV head]."""
    found = statistics(trace, _STEPS)
    kept, heads = found.held_mass.shape
    groups = trace.model.kv_heads
    far = 1 - found.held_mass.reshape(kept, groups, heads // groups).mean(axis=2)
    classes = found.classes.reshape(kept, groups, heads // groups)
    counts = np.stack([(classes == i).sum(axis=2) for i in range(len(CLASSES))])
    return far, counts.argmax(axis=0)


def head_profiles(policy: Policy, workload: Workload) -> tuple[Ints, Ints]:
    """Return which heads take everything, and the class of each, as [requests, layers, KV heads] of the target model.

    A head's class is that of most of its query heads. The full heads are those with the most mass beyond the first 4
    and the last 256 tokens; ties go to the lower layer and head.
    """
    far, classes = np.zeros(workload.unit_of.shape), np.zeros(workload.unit_of.shape, dtype=np.int64)
    units = np.array(workload.heads)
    for request in range(workload.requests):
        reach, kinds = _profile(workload.trace_of(request))
        recorded = units[workload.unit_of[request]]
        far[request] = reach[recorded[..., 1], recorded[..., 2]]
        classes[request] = kinds[recorded[..., 1], recorded[..., 2]]
    share = max((each.full for each in _heads(policy) if each.full is not None), default=0.0)
    full = np.zeros(far.shape, dtype=np.int64)
    count = int(share * far[0].size)
    for request in range(workload.requests):
        order = np.argsort(-far[request].ravel(), kind="stable")[:count]
        full[request].ravel()[order] = 1
    return full, classes
