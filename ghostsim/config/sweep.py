"""A sweep: one scenario at many points."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ghostsim.config.base import Strict, Text

Point = dict[str, Any]
_Values = Annotated[tuple[Any, ...], Field(min_length=1)]
_MOST_POINTS = 1_000_000


class Sweep(Strict):
    """A scenario and the fields that change over it, by dotted path."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Text | None = None
    summary: Text = "sweep"
    scenario: Text
    grid: dict[Text, _Values] = Field(default={})
    """Every combination."""
    zip: dict[Text, _Values] = Field(default={})
    """Values that change together."""
    points: tuple[dict[Text, Any], ...] = ()
    """Points that are listed."""

    @model_validator(mode="after")
    def _describes_points(self) -> Sweep:
        lengths = {path: len(values) for path, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{path} {count}" for path, count in lengths.items())
            raise ValueError(f"found zip lists of unequal length ({text}), expected equal ones")
        if not (self.grid or self.zip or self.points):
            raise ValueError("found no points, expected grid, zip or points, e.g. grid: {workload.batch: [1, 8]}")
        self._check_paths()
        if self.size > _MOST_POINTS:
            raise ValueError(f"found {self.size} points, expected at most {_MOST_POINTS}")
        return self

    def _check_paths(self) -> None:
        listed = {path for point in self.points for path in point}
        twice = sorted((set(self.grid) & set(self.zip)) | (set(self.grid) & listed) | (set(self.zip) & listed))
        if twice:
            raise ValueError(f"found {twice[0]} in more than one of grid, zip and points, expected it in one")

    @property
    def size(self) -> int:
        """Number of points."""
        zipped = len(next(iter(self.zip.values()))) if self.zip else 1
        return prod(map(len, self.grid.values())) * zipped * max(1, len(self.points))

    def expand(self) -> list[Point]:
        """Return the points, grid x zip x points, the last one fastest; each maps dotted path to value."""
        grid = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        zipped = [dict(zip(self.zip, values, strict=True)) for values in zip(*self.zip.values(), strict=True)] or [{}]
        listed = self.points or ({},)
        return [{**one, **two, **three} for one, two, three in product(grid, zipped, listed)]


def as_sets(point: Mapping[str, Any]) -> list[str]:
    """Return a point as values for ``--set``."""
    return [f"{path}={json.dumps(value)}" for path, value in point.items()]
