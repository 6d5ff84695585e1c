"""The rows of a `Selection` that one head fills."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import Certify, Policy, kind_of
from ghostsim.plan.selection import Bits, Floats, IndexStage, Ints

_CLAIMING = ("exact", "upper-bound", "claimed")


@dataclass(frozen=True, eq=False)
class HeadRows:
    """The rows of a `Selection` that one head fills: its fields without the axis U."""

    attended: Ints
    hot_tokens: Ints
    cold_tokens: Ints
    stored_tokens: Ints
    read_tokens: Ints
    read_runs: Ints
    scanned: Ints
    lost_mass: Floats
    certified_mass: Floats | None
    violations: Ints | None
    violated_mass: Floats | None
    bound_checks: Ints
    top_cold: Ints
    top_eliminated: Ints
    needless_reads: Ints
    oracle_reads: Ints
    output_error: Floats | None
    sets: Bits

    def positions(self, step: int) -> npt.NDArray[np.int32]:
        """Return the positions attended at a step, ascending."""
        return np.flatnonzero(np.unpackbits(self.sets[step], bitorder="little")).astype(np.int32)


def claims(policy: Policy) -> bool:
    """Whether the READ score of a policy claims to bound the exact score from above."""
    return policy.read.score is not None and kind_of(policy.read.score) in _CLAIMING


def empty_rows(
    policy: Policy, stages: tuple[IndexStage, ...], shape: tuple[int, int], tokens: int, values: bool
) -> HeadRows:
    """Return rows of zeros for `shape` = (steps, query heads)."""
    steps, g = shape
    certified, claimed = isinstance(policy.read.rule, Certify), claims(policy)
    per_step = [np.zeros(steps, dtype=np.int64) for _ in range(8)]
    per_query = [np.zeros((steps, g), dtype=np.int64) for _ in range(4)]
    per_mass = [np.zeros((steps, g)) for _ in range(4)]
    return HeadRows(
        attended=per_step[0],
        hot_tokens=per_step[1],
        cold_tokens=per_step[2],
        stored_tokens=per_step[3],
        read_tokens=per_step[4],
        read_runs=per_step[5],
        scanned=np.zeros((len(stages), steps), dtype=np.int64),
        lost_mass=per_mass[0],
        certified_mass=per_mass[1] if certified else None,
        violations=per_query[0] if claimed else None,
        violated_mass=per_mass[2] if claimed else None,
        bound_checks=per_query[1],
        top_cold=per_query[2],
        top_eliminated=per_query[3],
        needless_reads=per_step[6],
        oracle_reads=per_step[7],
        output_error=per_mass[3] if values else None,
        sets=np.zeros((steps, (tokens + 7) // 8), dtype=np.uint8),
    )
