"""Quality of one policy on a recorded trace in depth: over all cells, per layer, per class of heads and per step.

A cell is one (layer, query head, step). What is counted per KV head counts for each of its query heads.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import Policy
from ghostsim.metrics.quality import ratio, spread
from ghostsim.plan.selection import Selection
from ghostsim.policy.cold import Pins, pins_of
from ghostsim.policy.evaluate import layout
from ghostsim.policy.exact import TOP, blocks, top_positions
from ghostsim.trace.compose import Head, Workload
from ghostsim.trace.statistics import CLASSES, statistics

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

COLUMNS = ("scope", "key", "measure", "value")
DEFINITIONS: Mapping[str, str] = {
    "top32_of_attended": "of the exact top 32 of all attended tokens, those not read (ghostkv-lab, frontier)",
    "cold_in_top32": "of the cold tokens in that top 32, those not read (false_elimination_rate of metrics.json)",
    "top32_of_cold": "of the exact top 32 of the cold tokens, those not read (ghostkv-lab, simulator)",
    "needed_by_oracle": "of the cold tokens that the oracle at the same eps reads, those not read",
}
"""The literature's false elimination rates: how many of which tokens are relevant but not read."""


@dataclass(frozen=True, eq=False)
class Cells:
    """What is known of every cell, [layers, query heads, steps]; None where a policy or trace has no such thing."""

    lost: Array
    certified: Array | None
    violations: Array | None
    checks: Array
    output_error: Array | None
    cold: Array
    read: Array
    needless: Array
    oracle: Array
    false: Mapping[str, tuple[Array, Array]]
    """By definition: tokens falsely eliminated, tokens that are relevant."""


def depth(policy: Policy, workload: Workload, selection: Selection) -> dict[str, Any]:
    """Return the quality of a Selection of a recorded trace by scope and key.

    Parameters
    ----------
    policy, workload
        What the Selection was made of; the workload is one request, as it was recorded.

    Returns
    -------
    depth
        `all`, and by key `layer` (index of the kept layer), `class` (of query heads, by the rule of `trace info`) and
        `step`. Ratios are of sums over the scope; a ratio over nothing is 0.
    """
    cells = _cells(policy, workload, selection)
    classes = statistics(workload.trace_of(0)).classes
    names = [CLASSES[i] for i in np.unique(classes)]
    layers, _, steps = cells.lost.shape
    everywhere = np.ones(cells.lost.shape, dtype=bool)
    return {
        "all": measured(cells, everywhere),
        "layer": {str(n): measured(cells, _only(everywhere, n, 0)) for n in range(layers)},
        "class": {name: measured(cells, everywhere & (classes == CLASSES.index(name))[..., None]) for name in names},
        "step": {str(n): measured(cells, _only(everywhere, n, 2)) for n in range(steps)},
    }


def _only(everywhere: Mask, index: int, along: int) -> Mask:
    """Return the cells with one index along an axis."""
    mask = np.zeros_like(everywhere)
    mask[(slice(None),) * along + (index,)] = True
    return mask


# --- cells --------------------------------------------------------------------------------------------------


def _cells(policy: Policy, workload: Workload, selection: Selection) -> Cells:
    def wide(values: Array) -> Array:
        return by_query_head(selection, values)

    def perhaps(values: Array | None) -> Array | None:
        return None if values is None else wide(values)

    relevant, gone = top_of_cold(policy, workload, selection)
    missed = selection.oracle_reads - (selection.read_tokens - selection.needless_reads)
    eliminated = wide(selection.top_eliminated)
    return Cells(
        lost=wide(selection.lost_mass),
        certified=perhaps(selection.certified_mass),
        violations=perhaps(selection.violations),
        checks=wide(selection.bound_checks),
        output_error=perhaps(selection.output_error),
        cold=wide(selection.cold_tokens),
        read=wide(selection.read_tokens),
        needless=wide(selection.needless_reads),
        oracle=wide(selection.oracle_reads),
        false={
            "top32_of_attended": (eliminated, wide(np.minimum(selection.attended, TOP))),
            "cold_in_top32": (eliminated, wide(selection.top_cold)),
            "top32_of_cold": (wide(gone), wide(relevant)),
            "needed_by_oracle": (wide(missed), wide(selection.oracle_reads)),
        },
    )


def by_query_head(selection: Selection, values: Array) -> Array:
    """Lay out `values` [U, S] or [U, S, g] as [layers, query heads, S] of the first request."""
    rows = values[selection.unit_of[0]]
    if rows.ndim == 3:
        rows = np.repeat(rows[..., None], selection.lost_mass.shape[2], axis=3)
    layers, kv_heads, steps, group = rows.shape
    return np.asarray(rows.swapaxes(2, 3).reshape(layers, kv_heads * group, steps))


def top_of_cold(policy: Policy, workload: Workload, selection: Selection) -> tuple[Array, Array]:
    """Count the exact top 32 of the cold tokens, and those of them that are not read, [U, S, g] each."""
    relevant = np.zeros(selection.lost_mass.shape, dtype=np.int64)
    gone = np.zeros_like(relevant)
    plan = layout(policy, workload)
    for row, (unit, variant) in enumerate(plan.rows):
        pins = pins_of(plan.variants[variant])
        for step, j, best in _best_cold(workload.head(unit), pins):
            read = np.unpackbits(selection.sets[row, step], bitorder="little")
            relevant[row, step, j] = len(best)
            gone[row, step, j] = len(best) - np.count_nonzero(read[best])
    return relevant, gone


def _best_cold(head: Head, pins: Pins) -> Iterator[tuple[int, int, Array]]:
    """Yield (step, query head, positions) of the highest scores outside the pins."""
    for block in blocks(head):
        for i, (begin, own) in enumerate(zip(block.begins.tolist(), block.positions.tolist(), strict=True)):
            c0, c1 = pins.cold(begin, own, head.context)
            for j, scores in enumerate(block.scores[i, :, c0:c1]):
                yield block.first + i, j, top_positions(scores, TOP) + c0


# --- measures -----------------------------------------------------------------------------------------------


def measured(cells: Cells, mask: Mask) -> dict[str, Any]:
    """Return the measures of some cells."""

    def total(values: Array) -> int:
        return int(values[mask].sum())

    def spread_of(values: Array | None) -> dict[str, float] | None:
        return None if values is None else spread(values[mask])

    cold, read, broken = total(cells.cold), total(cells.read), cells.violations
    return {
        "query_heads": int(mask.any(axis=2).sum()),
        "lost_mass": spread_of(cells.lost),
        "worst_head": _worst(cells, mask),
        "certified_mass": spread_of(cells.certified),
        "elimination_rate": ratio(cold - read, cold),
        "elimination_of_oracle": ratio(cold - read, cold - total(cells.oracle)),
        "false_elimination": {name: ratio(total(part), total(of)) for name, (part, of) in cells.false.items()},
        "false_resurrection_rate": ratio(total(cells.needless), read),
        "violations": None if broken is None else total(broken),
        "violation_rate": None if broken is None else ratio(total(broken), total(cells.checks)),
        "output_error": spread_of(cells.output_error),
    }


def _worst(cells: Cells, mask: Mask) -> dict[str, Any]:
    """Return the cell that loses most, the first of equals, with its certificate beside it."""
    at = np.unravel_index(int(np.where(mask, cells.lost, -1.0).argmax()), mask.shape)
    layer, head, step = (int(index) for index in at)
    certified = None if cells.certified is None else float(cells.certified[at])
    lost = float(cells.lost[at])
    return {"layer": layer, "q_head": head, "step": step, "lost_mass": lost, "certified_mass": certified}


# --- the file -------------------------------------------------------------------------------------------------


def write_depth(found: Mapping[str, Any], folder: Path) -> None:
    """Write depth.csv: a row per measure; an empty value means that there is no such thing."""
    with (folder / "depth.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for scope, keys in found.items():
            for key, measures in {"all": keys}.items() if scope == "all" else keys.items():
                writer.writerows((scope, key, name, value) for name, value in _flat(measures))


def _flat(measures: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, value in full) of nested measures; one that is missing has no names below it."""
    for name, value in measures.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", "" if value is None else repr(value)
