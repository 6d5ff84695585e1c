"""The `require:` bounds of a scenario, held against metrics.json."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ghostsim.config.scenario import REQUIREMENT
from ghostsim.errors import ConfigError

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq,
}  # fmt: skip


def missed(bounds: Sequence[str], metrics: Mapping[str, Any]) -> list[str]:
    """Return a sentence for every bound that does not hold.

    Raises
    ------
    ConfigError
        If a path names no number of a run.
    """
    return [sentence for bound in bounds if (sentence := _check(bound, metrics["runs"]))]


def _check(bound: str, runs: Mapping[str, Any]) -> str:
    found = REQUIREMENT.match(bound)
    assert found is not None  # the scenario's validator has seen to it
    path, sign, number = found.groups()
    value = figure(path, runs)
    return (
        "" if OPERATORS[sign](value, float(number)) else f"require: found {path} = {value!r}, expected {sign} {number}"
    )


def figure(path: str, runs: Mapping[str, Any], *, total: bool = False) -> float:
    """Return the number of a run at a dotted path, ``LABEL.step_ms.p95``; with `total` a table counts as its sum.

    Raises
    ------
    ConfigError
        If the path names no number.
    """
    node: Any = runs
    rest = path
    while rest and isinstance(node, Mapping):
        key = next((key for key in node if rest == key or rest.startswith(f"{key}.")), None)
        if key is None:
            raise ConfigError(f"require: found {path!r} without {rest!r} in metrics.json, expected {', '.join(node)}")
        node, rest = node[key], rest[len(key) + 1 :]
    if node is None:
        raise ConfigError(f"require: found {path!r}, which this policy does not have, expected the path of a number")
    if total and not rest and isinstance(node, Mapping):
        return sum(_leaves(node))
    if rest or isinstance(node, bool) or not isinstance(node, int | float):
        raise ConfigError(f"require: found {path!r} = {node!r}, expected the path of a number")
    return float(node)


def _leaves(node: Mapping[str, Any]) -> Iterator[float]:
    for value in node.values():
        if isinstance(value, Mapping):
            yield from _leaves(value)
        else:
            yield float(value)
