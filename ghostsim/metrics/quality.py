"""Quality of a Selection over the heads of the target model, and its figures per step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostsim.plan.selection import Selection

Ints = NDArray[np.int64]


def weights(selection: Selection, batch: int) -> Ints:
    """Count how many (request, layer, KV head) of the first `batch` requests each evaluation serves."""
    return np.bincount(selection.unit_of[:batch].ravel(), minlength=selection.attended.shape[0])


def ratio(part: float, whole: float) -> float:
    """Return part / whole; a ratio over nothing is 0."""
    return float(part / whole) if whole else 0.0


def spread(values: NDArray[np.float64]) -> dict[str, float]:
    """Return mean, p99 and max of values, by NumPy's linear quantile."""
    return {"mean": float(values.mean()), "p99": float(np.percentile(values, 99)), "max": float(values.max())}


def quality(selection: Selection, batch: int) -> dict[str, Any]:
    """Return the `quality` block of metrics.json.

    Ratios are over (step, request, layer, KV head); masses over (step, request, layer, query head).
    """
    weight = weights(selection, batch)
    used = weight > 0

    def total(values: Ints) -> int:
        return int((weight * values.reshape(len(weight), -1).sum(axis=1)).sum())

    def expand(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.repeat(values[used], weight[used], axis=0).ravel()

    certified = None
    if selection.certified_mass is not None:
        certified = {key: value for key, value in spread(expand(selection.certified_mass)).items() if key != "p99"}
    read, cold = total(selection.read_tokens), total(selection.cold_tokens)
    return {
        "elimination_rate": ratio(cold - read, cold),
        "resurrection_rate": ratio(read, cold),
        "lost_mass": spread(expand(selection.lost_mass)),
        "certified_mass": certified,
        "false_elimination_rate": ratio(total(selection.top_eliminated), total(selection.top_cold)),
        "false_resurrection_rate": ratio(total(selection.needless_reads), read),
        "violations": None if selection.violations is None else total(selection.violations),
        "output_error": None if selection.output_error is None else spread(expand(selection.output_error)),
    }


def step_quality(selection: Selection, batch: int) -> dict[str, list[Any]]:
    """Return the quality columns of steps.csv, one value per step; None where nothing is claimed."""
    weight = weights(selection, batch)
    used = weight > 0

    def total(values: Ints) -> list[int]:
        per_head = values.reshape(len(weight), selection.steps, -1).sum(axis=2)
        return [int(value) for value in weight @ per_head]

    def over_heads(values: NDArray[np.float64]) -> NDArray[np.float64]:
        wide = np.repeat(values[used], weight[used], axis=0)
        return wide.swapaxes(0, 1).reshape(selection.steps, -1)

    lost = over_heads(selection.lost_mass)
    none: list[None] = [None] * selection.steps
    certified = None if selection.certified_mass is None else over_heads(selection.certified_mass)
    violated = None if selection.violated_mass is None else over_heads(selection.violated_mass)
    return {
        "attended_tokens": total(selection.attended),
        "hot_tokens": total(selection.hot_tokens),
        "cold_tokens": total(selection.cold_tokens),
        "read_tokens": total(selection.read_tokens),
        "lost_mass_mean": lost.mean(axis=1).tolist(),
        "lost_mass_p99": np.percentile(lost, 99, axis=1).tolist(),
        "lost_mass_max": lost.max(axis=1).tolist(),
        "certified_mass_max": none if certified is None else certified.max(axis=1).tolist(),
        "violations": none if selection.violations is None else total(selection.violations),
        "bound_checks": none if selection.violations is None else total(selection.bound_checks),
        "violated_mass_mean": none if violated is None else violated.mean(axis=1).tolist(),
    }


def step_state(selection: Selection, batch: int) -> dict[str, list[float]]:
    """Return the state of the cache per step, in tokens as the mean over KV heads; the four sum to the context.

    Hot tokens are pinned, cold ones judged at every step, archived ones kept in clusters, evicted ones gone.
    """
    weight = weights(selection, batch)
    hot, archived = selection.hot_tokens, selection.archive_tokens
    evicted = selection.attended - selection.stored_tokens
    states = {"hot": hot, "cold": selection.cold_tokens - evicted - archived, "archived": archived, "evicted": evicted}
    return {f"tokens_{name}": (weight @ each / weight.sum()).tolist() for name, each in states.items()}
