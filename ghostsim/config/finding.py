"""A finding: a question, the evidence that is gathered for it, the claims held against it, and the verdict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import Formatter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ghostsim.config.base import Count, MisfitError, Strict, Text, Whole
from ghostsim.config.expressions import names, parse

KINDS = ("sweep", "run", "search", "audit", "frontier", "perplexity")
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]
_BAR = re.compile(r"^\s*(<=|>=|<|>|==)\s*([+-]?[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]{1,2})?)\s*$")


class Evidence(Strict):
    """Something that the tool computes; one of `KINDS`."""

    sweep: Text | None = None
    """A sweep: a table of its finished points."""
    run: Text | None = None
    """A scenario: its metrics.json."""
    search: Text | None = None
    """A search: what ``ghostsim search --json`` prints."""
    audit: Text | None = None
    """A trace: what ``ghostsim audit --json`` prints."""
    frontier: Text | None = None
    """A trace: the table of ``ghostsim frontier``."""
    perplexity: Text | None = None
    """A model: what ``ghostsim perplexity --json`` prints."""
    policies: tuple[Text, ...] = ()
    """Of a frontier (none takes the whole library) or of perplexity."""
    steps: Count = 32
    drift: bool = False
    tree: bool = False
    text: Text | None = None
    """File that the model of `perplexity` reads."""
    prompt: Count = 3968
    facts: Whole = 0
    recorded: Text | None = None
    """File with the result of `perplexity`, for machines without torch."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Evidence:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"found {' and '.join(given) or 'no evidence'}, expected one of {', '.join(KINDS)}")
        if self.perplexity is not None and (self.text is None or not self.policies):
            raise MisfitError("found perplexity without text or policies, expected both", "perplexity")
        return self

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def subject(self) -> str:
        """The sweep, scenario, search, trace or model that it is about."""
        return str(getattr(self, self.kind))


class Claim(Strict):
    """A statement about a number; with `holds` it is true or false."""

    name: Name
    says: Text
    published: Text | None = None
    corrected: Text | None = None
    value: Text
    unit: Annotated[str, Field(max_length=30)] = ""
    holds: Text | None = None
    note: Text | None = None

    @property
    def bar(self) -> tuple[str, float] | None:
        """Operator and number that the value must meet."""
        found = _BAR.match(self.holds) if self.holds else None
        return (found[1], float(found[2])) if found else None


class Branch(Strict):
    """A verdict, and when it is the one."""

    when: Text | None = None
    says: Text


class Chart(Strict):
    """A figure: curves or bars over `x`, one per entry of `y` and value of `by`."""

    title: Text
    caption: Text | None = None
    x: Text
    y: Annotated[dict[Text, Text], Field(min_length=1)]
    by: Text | None = None
    kind: Literal["lines", "bars", "scatter"] = "lines"
    log: Literal["", "x", "y", "xy"] = ""
    x_title: Text
    y_title: Text


class Rows(Strict):
    """A table; its columns are as long as the longest."""

    title: Text
    columns: Annotated[dict[Text, Text], Field(min_length=1)]


class Finding(Strict):
    """A question about GhostKV or its rivals, answered by what ghostsim computes."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Name | None = None
    title: Text
    question: Text
    evidence: dict[Name, Evidence] = Field(default={})
    values: dict[Name, Text] = Field(default={})
    """Expressions that later ones may use."""
    claims: Annotated[tuple[Claim, ...], Field(min_length=1)]
    verdict: Annotated[tuple[Branch, ...], Field(min_length=1)]
    """The first whose `when` is true; ``{name}`` stands for the value of a claim."""
    charts: Annotated[tuple[Chart, ...], Field(max_length=26)] = ()
    tables: tuple[Rows, ...] = ()
    not_covered: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Finding:
        for path, text, known in self._expressions():
            try:
                unknown = sorted(names(parse(text)) - known)
            except ValueError as error:
                raise MisfitError(str(error), *path) from None
            if unknown:
                raise MisfitError(f"found the name {unknown[0]!r}, expected one of {', '.join(sorted(known))}", *path)
        self._check_claims()
        self._check_verdict()
        return self

    def _expressions(self) -> Iterator[tuple[tuple[str | int, ...], str, set[str]]]:
        """Yield place, text and known names of every expression."""
        known = set(self.evidence)
        for name, text in self.values.items():
            yield ("values", name), text, set(known)
            known.add(name)
        for i, claim in enumerate(self.claims):
            yield ("claims", i, "value"), claim.value, known
        for i, branch in enumerate(self.verdict):
            if branch.when is not None:
                yield ("verdict", i, "when"), branch.when, {each.name for each in self.claims}
        for i, chart in enumerate(self.charts):
            parts = {"x": chart.x} | ({"by": chart.by} if chart.by else {})
            yield from ((("charts", i, key), text, known) for key, text in parts.items())
            yield from ((("charts", i, "y", key), text, known) for key, text in chart.y.items())
        for i, rows in enumerate(self.tables):
            yield from ((("tables", i, "columns", key), text, known) for key, text in rows.columns.items())

    def _check_claims(self) -> None:
        seen: set[str] = set()
        for i, claim in enumerate(self.claims):
            if claim.name in seen:
                raise MisfitError(f"found a second claim named {claim.name!r}, expected other names", "claims", i)
            seen.add(claim.name)
            if claim.holds is not None and claim.bar is None:
                message = f"found {claim.holds!r}, expected OP NUMBER with OP one of <= < >= > ==, e.g. '<= 1'"
                raise MisfitError(message, "claims", i, "holds")

    def _check_verdict(self) -> None:
        known = {claim.name for claim in self.claims}
        for i, branch in enumerate(self.verdict):
            try:
                named = {field for _, field, _, _ in Formatter().parse(branch.says) if field is not None}
            except ValueError:
                raise MisfitError("found a lone brace, expected {NAME} of a claim", "verdict", i, "says") from None
            if named - known:
                message = f"found {{{min(named - known)}}}, expected the name of a claim: {', '.join(sorted(known))}"
                raise MisfitError(message, "verdict", i, "says")
        if self.verdict[-1].when is not None:
            raise MisfitError("found no verdict for all other cases, expected a last one without when", "verdict")
