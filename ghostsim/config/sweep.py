"""A sweep: one scenario at many points."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from math import prod
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ghostsim.config.base import Strict, Text
from ghostsim.config.ranges import Sample
from ghostsim.config.scenario import Label

Point = dict[str, Any]
_Values = Annotated[tuple[Any, ...], Field(min_length=1)]
_MOST_POINTS = 1_000_000
AXES = ("grid", "zip", "list", "random", "latin_hypercube")


class Sweep(Strict):
    """A scenario and the fields that change over it, by dotted path."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Text | None = None
    summary: Text = "sweep"
    scenario: Text
    runs: tuple[Label, ...] = ()
    """Runs of the scenario to keep; none keeps all."""
    grid: dict[Text, _Values] = Field(default={})
    """Every combination."""
    zip: dict[Text, _Values] = Field(default={})
    """Values that change together."""
    list_: tuple[dict[Text, Any], ...] = Field(default=(), alias="list")
    """Points one by one."""
    random: Sample | None = None
    """Points drawn by chance."""
    latin_hypercube: Sample | None = None
    """Points drawn by chance, spread evenly over the range of each field."""

    @model_validator(mode="after")
    def _describes_points(self) -> Sweep:
        lengths = {path: len(values) for path, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{path} {count}" for path, count in lengths.items())
            raise ValueError(f"found zip lists of unequal length ({text}), expected equal ones")
        if not any(self.axes().values()):
            raise ValueError(f"found no points, expected {_listed()}, e.g. grid: {{workload.batch: [1, 8]}}")
        self._check_paths()
        if self.size > _MOST_POINTS:
            raise ValueError(f"found {self.size} points, expected at most {_MOST_POINTS}")
        return self

    def _check_paths(self) -> None:
        seen: set[str] = set()
        for paths in self.axes().values():
            twice = sorted(seen & set(paths))
            if twice:
                raise ValueError(f"found {twice[0]} in more than one of {_listed('and')}, expected it in one")
            seen |= set(paths)
        axes = self.axes()
        for point in self.list_ or ({},):
            self._check_order([*axes["grid"], *axes["zip"], *point, *axes["random"], *axes["latin_hypercube"]])

    def _check_order(self, paths: Sequence[str]) -> None:
        """Refuse a whole that is set after one of its parts, which it would undo."""
        for i, path in enumerate(paths):
            undone = next((early for early in paths[:i] if early.startswith(f"{path}.")), None)
            if undone is not None:
                raise ValueError(f"found {path} after {undone}, which it would undo, expected it before")

    def axes(self) -> dict[str, list[str]]:
        """Return the dotted paths that each kind of axis sets."""
        sampled = {"random": self.random, "latin_hypercube": self.latin_hypercube}
        return {
            "grid": list(self.grid),
            "zip": list(self.zip),
            "list": list(dict.fromkeys(path for point in self.list_ for path in point)),
            **{name: list(sample.paths()) if sample else [] for name, sample in sampled.items()},
        }

    @property
    def size(self) -> int:
        """Number of points."""
        zipped = len(next(iter(self.zip.values()))) if self.zip else 1
        drawn = prod(sample.n for sample in (self.random, self.latin_hypercube) if sample)
        return prod(map(len, self.grid.values())) * zipped * max(1, len(self.list_)) * drawn

    def expand(self) -> list[Point]:
        """Return the points, every kind of axis with every other, the last one fastest; each maps path to value."""
        grid = [dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())]
        zipped = [dict(zip(self.zip, values, strict=True)) for values in zip(*self.zip.values(), strict=True)]
        drawn = self.random.points(stratified=False) if self.random else []
        spread = self.latin_hypercube.points(stratified=True) if self.latin_hypercube else []
        kinds = [kind or [{}] for kind in (grid, zipped, list(self.list_), drawn, spread)]
        return [{path: value for part in parts for path, value in part.items()} for parts in product(*kinds)]


def _listed(last: str = "or") -> str:
    return f"{', '.join(AXES[:-1])} {last} {AXES[-1]}"


def as_sets(point: Mapping[str, Any]) -> list[str]:
    """Return a point as values for ``--set``."""
    return [f"{path}={json.dumps(value)}" for path, value in point.items()]
