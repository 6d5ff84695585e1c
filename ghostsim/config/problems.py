"""Turns what validation found into one line: ``FILE:LINE:COL: path: what was found, what was expected``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from ghostsim.config import fields
from ghostsim.config.base import MisfitError
from ghostsim.config.document import Node, TreePath
from ghostsim.config.scenario import Run, Scenario
from ghostsim.errors import ConfigError, Location

_LONGEST_KEY = 80


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    at: Location
    path: TreePath
    message: str
    kind: str = "value_error"
    """Its name in pydantic."""

    def error(self, more: int = 0) -> ConfigError:
        """Return the exception that says so."""
        dotted = dotted_path(self.path)
        rest = f" (and {more} more)" if more else ""
        return ConfigError(f"{dotted}: {self.message}{rest}" if dotted else self.message + rest, self.at)


def dotted_path(path: TreePath) -> str:
    """Return a path as a message shows it: long keys are cut."""
    return ".".join(text if len(text) <= _LONGEST_KEY else f"{text[: _LONGEST_KEY - 3]}..." for text in map(str, path))


def first_error(problems: Iterable[Problem], main: Location) -> ConfigError:
    """Return the error of the problem that comes first in the file, with the number of the others."""
    unique: dict[tuple[TreePath, str], Problem] = {}
    for problem in _causes(list(problems)):
        unique.setdefault((problem.path[-1:], problem.message), problem)
    places: dict[Location, Problem] = {}
    for problem in unique.values():
        known = places.setdefault(problem.at, problem)
        if known.path == problem.path:
            places[problem.at] = replace(known, message=_either(known.message, problem.message))
    found = sorted(places.values(), key=lambda problem: _order(problem, main))
    return found[0].error(len(found) - 1)


def _causes(problems: list[Problem]) -> list[Problem]:
    """Leave out what follows from other problems.

    A wrong kind makes every key wrong, an unknown key is likely the one that is missing, and a list of entries
    that are all invalid counts as empty.
    """
    kinds = {problem.path[:-1] for problem in problems if problem.path[-1:] == ("kind",) and problem.kind != "missing"}
    misspelt = {problem.path[:-1] for problem in problems if problem.kind == "extra_forbidden"}
    above = {problem.path[:length] for problem in problems for length in range(len(problem.path))}
    return [
        problem
        for problem in problems
        if not (problem.path[-1:] != ("kind",) and any(problem.path[: len(kind)] == kind for kind in kinds))
        and not (problem.kind == "missing" and problem.path[:-1] in misspelt)
        and not (problem.kind == "too_short" and problem.path in above)
    ]


def _either(one: str, two: str) -> str:
    """Join what two members of a choice expected of one value."""
    (found, expected), (found_too, expected_too) = (text.partition(", expected ")[::2] for text in (one, two))
    if found != found_too or expected == expected_too:
        return one
    first, _, example = expected.partition(", e.g. ")
    return f"{found}, expected {first} or {expected_too.partition(', e.g. ')[0]}" + (
        f", e.g. {example}" * bool(example)
    )


def _order(problem: Problem, main: Location) -> tuple[bool, bool, str, int, int]:
    """Sort the command line first, then the main file, then the files it names."""
    at = problem.at
    return (at.line is not None, at.file != main.file, str(at.file), at.line or 0, at.column or 0)


def shown(value: object) -> str:
    """Return a value as a message shows it."""
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def unknown_key(key: str, choices: Sequence[str], model: type[BaseModel] | None = None) -> str:
    """Return the message for a key that is not one of `choices`."""
    close = difflib.get_close_matches(key, choices, 1, 0.5)
    if model is Scenario and key in Run.model_fields:
        return f"found the unknown key {key!r}, expected it in a run, did you mean runs.LABEL.{key}"
    hint = f", did you mean {close[0]!r}" if close else ""
    return f"found the unknown key {shown(key)}, expected one of {', '.join(choices)}{hint}"


def describe(error: ErrorDetails, root: Node, annotation: Any, prefix: TreePath) -> Problem:
    """Return one pydantic error about ``root`` (which stands at `prefix`) as a problem with its place."""
    extra = _extra_path(error)
    path, parent, node, above = _follow(root, annotation, (*_without_tags(root, annotation, error["loc"]), *extra))
    key = str(path[-1]) if path else ""
    if node is None and error["type"] == "extra_forbidden":
        node = parent
    at = _place(error["type"], parent, node, key)
    return Problem(at, (*prefix, *path), _message(error, above, parent, node, key), error["type"])


def _extra_path(error: ErrorDetails) -> TreePath:
    context = error.get("ctx", {})
    if error["type"] == "union_tag_invalid" and "kind" in context["discriminator"]:
        return ("kind",)
    if error["type"] == "quantity_key":
        return (context["key"], context["found"])
    if error["type"] == "unsourced":
        return (context["key"],)
    return getattr(context.get("error"), "path", ())


def _follow(root: Node, annotation: Any, loc: TreePath) -> tuple[TreePath, Node, Node | None, Any]:
    """Walk a location, leaving out what is no part of the document.

    Returns the path, the node above its end, the node at its end (none if it is missing) and the type above.
    """
    path: TreePath = ()
    above, parent, node = annotation, root, root
    for index, key in enumerate(loc):
        below = node.step(key)
        if below is not None:
            above, parent, node = (annotation, node, below)
            path = (*path, key)
            annotation = fields.child(annotation, parent, key)
        elif index == len(loc) - 1 and _is_missing(annotation, node, key):
            return (*path, key), node, None, annotation
    return path, parent, node, above


def _without_tags(root: Node, annotation: Any, loc: TreePath) -> TreePath:
    """Leave out of a location the names of the members of choices."""
    kept: TreePath = ()
    node: Node | None = root
    is_tag = len(fields.models(annotation)) > 1
    for key in loc:
        if is_tag:
            is_tag = False
            continue
        kept = (*kept, key)
        annotation = fields.child(annotation, node, key) if node else None
        node = node.step(key) if node else None
        is_tag = len(fields.models(annotation)) > 1
    return kept


def _is_missing(annotation: Any, node: Node, key: str | int) -> bool:
    model = fields.model_of(annotation, node)
    return model is not None and str(key) in fields.fields(model)


def _place(kind: str, parent: Node, node: Node | None, key: str) -> Location:
    if node is None:
        return parent.at
    if kind in ("extra_forbidden", "quantity_key"):
        return parent.keys.get(key, node.at)
    inner = node.map.get("value")
    return inner.at if inner is not None and kind != "unsourced" else node.at


_PLAIN = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "string_too_long": "a shorter text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "mapping_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
}
_BOUNDS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "of at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "of at most"),
}


def _message(error: ErrorDetails, above: Any, parent: Node, node: Node | None, key: str) -> str:
    kind, context = error["type"], error.get("ctx", {})
    model = fields.model_of(above, parent)
    sample = fields.example(fields.fields(model).get(key) if model else None)
    such_as = f", e.g. {key}: {sample}" if sample else ""
    match kind:
        case "missing":
            text = _missing(key, error["loc"][-1], such_as)
        case "extra_forbidden":
            text = unknown_key(key, list(fields.fields(model)) if model else [], model)
        case "unsourced" | "quantity_key":
            text = error["msg"]
        case "value_error":
            text = _as_written(str(context["error"]), node, error["input"])
            done = "e.g." in text or isinstance(context["error"], MisfitError)
            text = text if done else text + such_as
        case "union_tag_not_found":
            choices = fields.tags(fields.child(above, parent, key) if key else above)
            text = f"found {shown(error['input'])} of no known kind, expected {' or '.join(choices)}"
        case _:
            found = shown(_written(node, error["input"]))
            text = f"found {found}, expected {_expected(kind, context, error['msg'])}{such_as}"
    return text


def _missing(key: str, last: str | int, such_as: str) -> str:
    if isinstance(last, int):
        return f"found a list of {last}, expected more entries"
    return f"found no key {key!r}, expected it{such_as}"


_CONVERTED = re.compile(r"^found (-?[0-9.]+(e[-+]?[0-9]+)?|\{.*\})(?=,)")


def _as_written(text: str, node: Node | None, value: object) -> str:
    """Return a message that shows what stands in the file instead of what it was converted to."""
    if text.startswith(f"found {value!r}"):
        return text.replace(repr(value), shown(value), 1)
    inner = node.map.get("value", node) if node is not None else None
    return _CONVERTED.sub(lambda _: f"found {shown(inner.plain())}", text) if inner is not None else text


def _written(node: Node | None, value: object) -> object:
    return node.value if node is not None and not isinstance(node.value, Mapping) else value


_OTHER = {
    "literal_error": "one of {expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


def _expected(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"a number {words} {context[name]}"
    if kind in _OTHER:
        return _OTHER[kind].format(**context)
    return message[:1].lower() + message[1:]
