"""Ranges and choices that a field may be drawn from, by a sweep or by a search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ghostsim import seeding, units
from ghostsim.config.base import Count, MisfitError, Strict, Text, Whole

_DIGITS = 6
End = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True)] | Text


class Range(Strict):
    """Numbers between two ends, both included: whole ones if both ends are, quantities in the unit of `from`."""

    from_: End = Field(alias="from")
    to: End
    scale: Literal["linear", "log"] = "linear"
    """Whether equal differences or equal ratios are equally likely."""

    @model_validator(mode="after")
    def _has_two_ends(self) -> Range:
        low, high = self.ends
        if not low < high:
            raise MisfitError(f"found {self.to!r}, expected more than from ({self.from_!r})", "to")
        if self.scale == "log" and low <= 0:
            raise MisfitError(f"found {self.from_!r} on a log scale, expected more than 0", "from")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends as numbers, in the unit of `from`."""
        (low, unit), (high, other) = _parsed(self.from_, "from"), _parsed(self.to, "to")
        return low, high * _factor(other, unit, self.to)

    @property
    def whole(self) -> bool:
        """Whether the field takes whole numbers."""
        return isinstance(self.from_, int) and isinstance(self.to, int)

    def said(self, number: float) -> int | float | str:
        """Return a number of the range as a document has it."""
        if self.whole:
            return round(number)
        low, high = self.ends
        text = f"{min(max(number, low), high):.{_DIGITS}g}"
        unit = _parsed(self.from_, "from")[1]
        return f"{text} {unit}" if unit else float(text)

    def at(self, share: float) -> int | float | str:
        """Return the value below which `share` (0 to 1) of the range lies."""
        low, high = self.ends
        if self.whole:
            low, high = low - 0.5, high + 0.5
        if self.scale == "log":
            return self.said(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
        return self.said(low + share * (high - low))


def _parsed(end: float | str, key: str) -> tuple[float, str]:
    if not isinstance(end, str):
        return float(end), ""
    found = units.split(end)
    if found is None:
        raise MisfitError(f"found {end!r}, expected a number, or a quantity with its unit, e.g. '10 GB/s'", key)
    return found


def _factor(unit: str, other: str, end: object) -> float:
    """Return how many of `other` one of `unit` is."""
    if unit == other:
        return 1.0
    dimension = units.dimension_of(other)
    if dimension is None or unit not in dimension.units:
        raise MisfitError(f"found {end!r}, expected {dimension.one if dimension else 'a number'}, as from", "to")
    return dimension.units[unit] / dimension.units[other]


Choices = Annotated[tuple[Any, ...], Field(min_length=1)]


def _form(value: Any) -> str:
    return "range" if isinstance(value, Mapping | Range) else "choices"


Axis = Annotated[Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_form)]
"""What a field may be: a range, or one of the values that are listed."""
Axes = Annotated[dict[Text, Axis], Field(min_length=1)]
"""Axes by dotted path; a key with several paths, separated by commas, gives all of them one value."""


def paths(key: str) -> list[str]:
    """Return the dotted paths that a key of `Axes` names."""
    return [path.strip() for path in key.split(",")]


def value_at(axis: Axis, share: float) -> Any:
    """Return the value of an axis at `share`, from 0 up to 1."""
    return axis.at(share) if isinstance(axis, Range) else axis[min(int(share * len(axis)), len(axis) - 1)]


class Sample(Strict):
    """Points drawn by chance; each field has a stream of its own, so that another field moves none."""

    n: Annotated[Count, Field(le=1_000_000)]
    seed: Whole = 1
    fields: Axes

    def paths(self) -> Iterator[str]:
        """Yield the dotted paths that are set."""
        for key in self.fields:
            yield from paths(key)

    def points(self, *, stratified: bool) -> list[dict[str, Any]]:
        """Return the points, which map dotted path to value.

        `stratified` is a Latin hypercube: of n equal parts of each field's range each holds one point.
        """
        shares = {key: self._shares(key, stratified=stratified) for key in self.fields}
        return [
            {path: value_at(axis, shares[key][i]) for key, axis in self.fields.items() for path in paths(key)}
            for i in range(self.n)
        ]

    def _shares(self, key: str, *, stratified: bool) -> list[float]:
        draw = seeding.generator(self.seed, f"sample/{key}")
        shares = draw.random(self.n)
        if stratified:
            shares = (draw.permutation(self.n) + shares) / self.n
        return [float(share) for share in shares]
