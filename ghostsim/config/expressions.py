"""Expressions over evidence: a small, NumPy-like part of Python that names, slices and compares figures.

``max(latency.ghostkv.step_ms.p95[latency.workload.batch >= 4])``: names and dotted paths, ``x["key"]``, ``list[-1]``,
masks, arithmetic, comparisons, ``and``, ``or``, ``not``, and the functions of `FUNCTIONS`. Nothing else is evaluated.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "min": np.min, "max": np.max, "mean": np.mean, "median": np.median, "sum": np.sum, "abs": np.abs,
    "any": np.any, "all": np.all, "len": np.size, "sorted": np.sort, "argmin": np.argmin, "argmax": np.argmax,
}  # fmt: skip
"""What an expression may call, each with one value; ``min`` and ``max`` also take several."""
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.BitAnd: operator.and_, ast.BitOr: operator.or_,
}  # fmt: skip
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg, ast.Not: operator.not_, ast.Invert: operator.invert,
}  # fmt: skip
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.Name, ast.Attribute, ast.Subscript,
    ast.Constant, ast.Load, ast.And, ast.Or, *_BINARY, *_UNARY, *_COMPARE,
)  # fmt: skip
_LONGEST = 2000


class Columns(dict[str, Any]):
    """A table: columns by dotted name, each an array of numbers or of texts."""


def parse(text: str) -> ast.expr:
    """Read an expression.

    Raises
    ------
    ValueError
        If it is none, or holds what expressions may not.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval") if len(text) <= _LONGEST else None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if tree is None:
        raise ValueError(f"found {text[:80]!r}, expected an expression, e.g. 'max(a.step_ms.p95 / b.step_ms.p95)'")
    for node in ast.walk(tree):
        _check(node)
    return tree.body


def _check(node: ast.AST) -> None:
    if not isinstance(node, _ALLOWED):
        raise ValueError(f"found {type(node).__name__} in an expression, expected names, figures and arithmetic")
    if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
        raise ValueError(f"found a call of {ast.unparse(node.func)!r}, expected one of {', '.join(FUNCTIONS)}")
    if isinstance(node, ast.Call) and (not node.args or node.keywords):
        raise ValueError(f"found {ast.unparse(node)!r}, expected a function of one or more values")
    if isinstance(node, ast.Constant) and not isinstance(node.value, bool | int | float | str):
        raise ValueError(f"found {node.value!r} in an expression, expected a number or a text")


def names(tree: ast.expr) -> set[str]:
    """Return the names that an expression takes from outside."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}


def evaluate(tree: ast.expr, scope: Mapping[str, Any]) -> Any:
    """Return the value of an expression: a number, a truth, a text, or an array of these.

    Parameters
    ----------
    scope
        Values by name: numbers, arrays, `Columns`, or documents (mappings and lists as JSON has them).

    Raises
    ------
    ValueError
        If a path leads nowhere or an operation does not fit its values.
    """
    try:
        with np.errstate(all="ignore"):
            return _plain(_value(tree, scope))
    except (TypeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise ValueError(f"found {ast.unparse(tree)!r}, which does not fit its values ({error})") from None


def _value(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
        return _array(_found(node, scope))
    if isinstance(node, ast.Call):
        return _called(node, [_value(each, scope) for each in node.args])
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand, scope))
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_value(node.left, scope), _value(node.right, scope))
    if isinstance(node, ast.BoolOp):
        truths = (bool(_value(each, scope)) for each in node.values)
        return all(truths) if isinstance(node.op, ast.And) else any(truths)
    assert isinstance(node, ast.Compare)
    return _compared(node, scope)


def _called(node: ast.Call, given: Sequence[Any]) -> Any:
    function = FUNCTIONS[ast.unparse(node.func)]
    if len(given) > 1 and function not in (np.min, np.max):
        raise TypeError("one value expected")
    if len(given) == 1 and np.size(given[0]) == 0 and function not in (np.size, np.any, np.all, np.sum):
        raise TypeError("nothing is left to take it of")
    return function(given if len(given) > 1 else given[0])


def _compared(node: ast.Compare, scope: Mapping[str, Any]) -> Any:
    values = [_value(each, scope) for each in (node.left, *node.comparators)]
    pairs = [_COMPARE[type(op)](*pair) for op, pair in zip(node.ops, itertools.pairwise(values), strict=True)]
    found = pairs[0]
    for each in pairs[1:]:
        found = found & each
    return found


def _found(node: ast.expr, scope: Mapping[str, Any]) -> Any:
    """Return what a path leads to: in a table a column, in a document anything."""
    root, keys = _path(node)
    value = scope[root.id] if isinstance(root, ast.Name) else _value(root, scope)
    told = root.id if isinstance(root, ast.Name) else ast.unparse(root)
    while keys:
        value, keys, told = _step(value, keys, told, scope)
    return value


def _path(node: ast.expr) -> tuple[ast.expr, list[ast.expr | str]]:
    keys: list[ast.expr | str] = []
    while isinstance(node, ast.Attribute | ast.Subscript):
        keys.append(node.attr if isinstance(node, ast.Attribute) else _key(node.slice))
        node = node.value
    return node, keys[::-1]


def _key(index: ast.expr) -> ast.expr | str:
    return index.value if isinstance(index, ast.Constant) and isinstance(index.value, str) else index


def _step(
    value: Any,
    keys: list[ast.expr | str],
    told: str,
    scope: Mapping[str, Any],
) -> tuple[Any, list[ast.expr | str], str]:
    """Follow one key of a path (in a table all that name a column); return what is there and the keys that are left."""
    if isinstance(value, Columns):
        texts = list(_leading(keys))
        count = next((n for n in range(len(texts), 0, -1) if ".".join(texts[:n]) in value), 0)
        if not count:
            raise ValueError(f"found no column {'.'.join(texts)!r} in {told}, expected e.g. {_some(value)}")
        return value[".".join(texts[:count])], keys[count:], f"{told}.{'.'.join(texts[:count])}"
    key = keys[0]
    if not isinstance(key, str):
        return _array(value)[_index(_value(key, scope))], keys[1:], f"{told}[...]"
    if isinstance(value, Mapping) and key in value:
        return value[key], keys[1:], f"{told}.{key}"
    if isinstance(value, list) and value and all(isinstance(each, Mapping) and key in each for each in value):
        return [each[key] for each in value], keys[1:], f"{told}.{key}"
    raise ValueError(f"found no {key!r} in {told}, expected {_some(value)}")


def _leading(keys: Sequence[ast.expr | str]) -> Iterator[str]:
    for key in keys:
        if not isinstance(key, str):
            return
        yield key


def _index(index: Any) -> Any:
    return int(index) if np.ndim(index) == 0 and not isinstance(index, np.ndarray | bool) else index


def _some(value: object) -> str:
    keys = [str(key) for key in value] if isinstance(value, Mapping) else []
    return (", ".join(keys[:12]) + (", ..." if len(keys) > 12 else "")) or "a mapping"


def _array(value: Any) -> Any:
    """Return a list of plain values as an array; a missing number is NaN."""
    if isinstance(value, list) and not any(isinstance(each, Mapping | list) for each in value):
        if any(isinstance(each, str) for each in value):
            return np.array(["" if each is None else str(each) for each in value])
        return np.array([math.nan if each is None else each for each in value])
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
