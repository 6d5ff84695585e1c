"""The program of a layer as a table: what it does, in which order, and which engine does it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ghostsim.pipeline.bound import Bound
from ghostsim.plan.plan import OPS, ROLES, Plan

_NAME = re.compile(r"([a-z_]+?)(?:\d+(?:\.\d+)?)?(s\d+)?")
"""What a row does, its request and chunk, its stage of the cascade."""
DOES: Mapping[str, str] = {
    "qkv": "project the token to its query, key and value",
    "write": "append its key and value",
    "cool": "move the token that turns warm out of HBM",
    "age": "move the token that leaves the window out of HBM",
    "retire": "read the token that turns archived from the cold tier",
    "archive": "write it to the archive",
    "ghostify": "make the index record of the token that turned cold",
    "hot": "attend to pinned tokens",
    "warm": "dequantise and attend to pinned tokens",
    "bring_warm": "fetch tokens that are kept warm",
    "attend_warm": "attend to them",
    "refit": "read cold keys to build the index again",
    "rewrite": "write the new index",
    "state": "update the statistics of kept tokens",
    "query": "send queries to the filter",
    "scan": "score index records",
    "score": "score index records, first pass",
    "histogram": "return a histogram of the scores",
    "threshold": "answer with a threshold",
    "filter": "decide, and hand over which tokens survive",
    "read": "fetch survivors",
    "recall": "fetch survivors into the cache",
    "resurrect": "fetch survivors from the archive",
    "ask": "send queries to the cores",
    "attend": "attend to survivors where they lie",
    "foretell": "score index records for a foretold query",
    "foretold": "hand over which tokens it would read",
    "prefetch": "fetch these ahead",
    "survivors": "attend to survivors, merge with the rest",
    "output": "project the output of attention",
    "gate_up": "MLP, first product",
    "down": "MLP, second product",
    "head": "logits, after the last layer",
}
"""What the rows of a program do, by name without request and chunk."""


@dataclass(frozen=True)
class Stage:
    """Rows of a layer that do the same for different requests or chunks; sizes are those of the mean layer."""

    name: str
    does: str
    op: str
    tier: str
    engine: str
    rows: int
    nbytes: float
    links: tuple[str, ...]
    after: tuple[str, ...]
    """Stages that must end first; `(-n)` n layers before."""


def program(plan: Plan, bound: Sequence[Bound]) -> list[Stage]:
    """Return the stages of a layer in the order in which they may start."""
    names = ["".join(_parts(name)) for name in plan.names]
    return [_stage(plan, bound, names, name) for name in dict.fromkeys(names)]


def _stage(plan: Plan, bound: Sequence[Bound], names: Sequence[str], name: str) -> Stage:
    mine, width = [i for i, other in enumerate(names) if other == name], len(names)
    first = mine[0]
    return Stage(
        name=name,
        does=DOES[_parts(name)[0]],
        op=OPS[int(plan.op[first])],
        tier=plan.tiers[ROLES[int(plan.role[first])]],
        engine=bound[first].lane,
        rows=len(mine),
        nbytes=float(np.mean(plan.nbytes.reshape(-1, width)[:, mine].sum(axis=1))),
        links=tuple(link for link, _ in bound[first].links),
        after=tuple(dict.fromkeys(_awaited(plan, names, mine))),
    )


def _parts(name: str) -> tuple[str, str]:
    """Return what a row does, and its stage."""
    found = _NAME.fullmatch(name)
    assert found is not None  # rows are named by `ghostsim.policy.placement`
    return found[1], found[2] or ""


def _awaited(plan: Plan, names: Sequence[str], mine: Sequence[int]) -> Iterable[str]:
    """Name what some rows of the last layer wait for."""
    width = len(names)
    base = len(plan) - width
    for i in mine:
        for before in plan.after[plan.offsets[base + i] : plan.offsets[base + i + 1]].tolist():
            back = (base - before + width - 1) // width
            yield f"{names[before % width]} (-{back})" if back else names[before % width]
