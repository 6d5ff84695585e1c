"""The rows of a `Selection` that one head fills."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import Policy
from ghostsim.config.scores import kind_of
from ghostsim.plan.selection import GROUPS, Bits, Floats, Ints
from ghostsim.policy.formats import codec_known

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
    read_groups: Ints
    archive_tokens: Ints
    archive_runs: Ints
    scanned: Ints
    scan_bytes: Ints
    stream_tokens: Ints
    stream_bytes: Ints
    state_bytes: Ints
    refit_bytes: Ints
    rewritten_bytes: Ints
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


@dataclass(frozen=True)
class Sizes:
    """Lengths of the axes of a head's rows."""

    steps: int
    q_per_kv: int
    stages: int
    streams: int
    tokens: int


def claims(policy: Policy) -> bool:
    """Whether every READ score of a policy claims to bound the exact score from above."""
    scores = [each.score for each in policy.read.cascade if each.score is not None]
    return bool(scores) and all(kind_of(score) in _CLAIMING for score in scores) and policy.read.lag == "none"


def absent(policy: Policy, *, values: bool) -> frozenset[str]:
    """Return the fields that a policy does not have, on heads with or without `values`."""
    there = {
        "certified_mass": policy.read.certified,
        "violations": claims(policy),
        "violated_mass": claims(policy),
        "output_error": values and codec_known(policy) and policy.read.completion != "state",
    }
    return frozenset(name for name, present in there.items() if not present)


def empty_rows(policy: Policy, sizes: Sizes, *, values: bool) -> HeadRows:
    """Return rows of zeros."""
    step, query = (sizes.steps,), (sizes.steps, sizes.q_per_kv)
    missing = absent(policy, values=values)

    def whole(*shape: int) -> Ints:
        return np.zeros(shape, dtype=np.int64)

    def mass(name: str) -> Floats | None:
        return None if name in missing else np.zeros(query)

    return HeadRows(
        attended=whole(*step),
        hot_tokens=whole(*step),
        cold_tokens=whole(*step),
        stored_tokens=whole(*step),
        read_tokens=whole(*step),
        read_runs=whole(*step),
        read_groups=whole(*step, GROUPS),
        archive_tokens=whole(*step),
        archive_runs=whole(*step),
        scanned=whole(sizes.stages, *step),
        scan_bytes=whole(sizes.stages, *step),
        stream_tokens=whole(sizes.streams, *step),
        stream_bytes=whole(sizes.streams, *step),
        state_bytes=whole(*step),
        refit_bytes=whole(*step),
        rewritten_bytes=whole(*step),
        lost_mass=np.zeros(query),
        certified_mass=mass("certified_mass"),
        violations=None if "violations" in missing else whole(*query),
        violated_mass=mass("violated_mass"),
        bound_checks=whole(*query),
        top_cold=whole(*query),
        top_eliminated=whole(*query),
        needless_reads=whole(*step),
        oracle_reads=whole(*step),
        output_error=mass("output_error"),
        sets=np.zeros((sizes.steps, (sizes.tokens + 7) // 8), dtype=np.uint8),
    )
