"""How far draws of the synthetic generator are from a recorded document that they were not fitted to.

Run as a script over the traces of one model, best of one kind of text, it leaves each out in turn:
``python tests/held_out.py TRACE TRACE TRACE ...``.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ghostsim.config.load import load_policy
from ghostsim.policy.head import evaluate_heads
from ghostsim.study.synth import synthesise
from ghostsim.trace.compose import Head, compose
from ghostsim.trace.format import Trace, open_trace
from ghostsim.trace.statistics import CLASSES, TOPS, TraceStatistics, head_classes, statistics

SEEDS = range(1, 6)
STEPS = 128
WINDOWS, WINDOW = 4, 8  # of steps, and steps in each
CURVE_SEEDS, LENGTH = range(1, 3), (4096, 128)
LIMIT, POINTS = 0.10, 0.05
ENERGIES = (8, 32)

Key = tuple[str, str]
"""Head class and target."""


@dataclass(frozen=True)
class Cell:
    """A target of one class of heads: relative difference from the document left out."""

    drawn: float
    """Of the mean over the seeds."""
    worst_seed: float
    """Of the seed that is furthest away."""
    recorded: float
    """Of the mean of the documents that were fitted: what a perfect generator would show."""

    @property
    def misses(self) -> bool:
        """Whether the draws are too far away."""
        return abs(self.drawn) > LIMIT

    @property
    def own_fault(self) -> bool:
        """Whether they are also further than the fitted documents are themselves."""
        return self.misses and abs(self.drawn) > abs(self.recorded) + LIMIT


def per_head(found: TraceStatistics) -> dict[str, np.ndarray]:
    """Return every target for each query head, [kept layers, query heads]."""
    group = found.classes.shape[1] // found.key_norm.shape[1]
    reached = np.cumsum(found.key_energy, axis=-1)
    of_keys = {
        "key norm": found.key_norm,
        "key rank": found.key_rank[..., 0],
        "key rank rotated": found.key_rank[..., 1],
        **{f"key energy in {n}": reached[..., 0, n - 1] for n in ENERGIES},
        **{f"key energy in {n}, rotated": reached[..., 1, n - 1] for n in ENERGIES},
    }
    return {
        **{f"top {count}": found.top_mass[..., i] for i, count in enumerate(TOPS)},
        "participation": found.participation,
        "overlap": found.persistence[..., 0],
        "query norm": found.query_norm,
        **{name: np.repeat(values, group, axis=1) for name, values in of_keys.items()},
    }


def targets(found: TraceStatistics, classes: np.ndarray) -> dict[Key, float]:
    """Return the mean of every target over the heads of each class."""
    named = {name: i for i, name in enumerate(CLASSES) if (classes == i).any()}
    heads = per_head(found)
    return {
        (name, what): float(values[classes == i].mean()) for name, i in named.items() for what, values in heads.items()
    }


def mean_of(each: Iterable[Mapping[Key, float]]) -> dict[Key, float]:
    """Return the mean of each target."""
    listed = list(each)
    return {key: float(np.mean([one[key] for one in listed])) for key in listed[0]}


def off(found: Mapping[Key, float], reference: Mapping[Key, float]) -> dict[Key, float]:
    """Return the relative difference of each target."""
    return {key: found[key] / reference[key] - 1 for key in reference}


def pooled_classes(found: Sequence[TraceStatistics]) -> np.ndarray:
    """Return the class of each head by its masses over several documents."""
    return head_classes(
        *(
            np.mean([getattr(each, name) for each in found], axis=0)
            for name in ("quiet_mass", "held_mass", "spiky_steps")
        )
    )


def compare(
    fitted: Sequence[TraceStatistics], drawn: Sequence[TraceStatistics], left_out: TraceStatistics
) -> dict[Key, Cell]:
    """Compare draws, one per seed, and the documents they are fitted to with the one left out."""
    classes = pooled_classes(fitted)
    reference, seeds = targets(left_out, classes), [targets(each, classes) for each in drawn]
    mean, worst = off(mean_of(seeds), reference), [off(each, reference) for each in seeds]
    recorded = off(mean_of(targets(each, classes) for each in fitted), reference)
    furthest = {key: max((each[key] for each in worst), key=abs) for key in reference}
    return {key: Cell(mean[key], furthest[key], recorded[key]) for key in reference}


def draws(fitted: Sequence[Trace], folder: Path, length: tuple[int, int], seeds: Iterable[int] = SEEDS) -> list[Trace]:
    """Return a draw per seed of (tokens, steps)."""
    return [synthesise(fitted, folder / f"seed{seed}", *length, seed=seed) for seed in seeds]


def curves(trace: Trace, windows: int = WINDOWS) -> dict[str, float]:
    """Return the share of cold tokens certified away by sketches of 8 to 64 dimensions and by keys of 2 to 8 bits.

    Looked at are windows of consecutive steps spread evenly over the decode: what its first steps attend is not what
    the document does. In the first 128 of the 1,024 steps of facts_4k 8-bit keys rule out 4 points more than in all.
    """
    names = {
        **{f"sketch {n}": ("ghostkv_sketch", f"read.score.sketch.dims={n}") for n in (8, 16, 32, 64)},
        **{f"qkeys {n}": ("ghostkv", f"read.score.qkeys.bits={n}") for n in (2, 3, 4, 8)},
    }
    policies = [load_policy(name, (change,)).value for name, change in names.values()]
    workload = compose([trace], None, requests=1, steps=None, context=None, seed=0)
    rows = [
        evaluate_heads(policies, part)
        for unit in range(len(workload.heads))
        for part in _parts(workload.head(unit), windows)
    ]
    read, cold = (
        np.array([[getattr(r, what).sum() for r in part] for part in rows]).sum(axis=0)
        for what in ("read_tokens", "cold_tokens")
    )
    return dict(zip(names, (1 - read / cold).tolist(), strict=True))


def _parts(head: Head, windows: int) -> Iterator[Head]:
    """Cut a head to windows of its decode, each as if its prompt ended there."""
    steps = len(head.queries)
    for first in np.linspace(0, steps - WINDOW, windows).astype(int).tolist():
        end, at = head.context + first, slice(first, first + WINDOW)
        yield replace(
            head, context=end, keys=head.keys[: end + WINDOW], values=None, queries=head.queries[at], q_ahead=None
        )


@dataclass(frozen=True)
class Apart:
    """How far a certified share is from that of the document left out, as a difference of shares."""

    drawn: float
    """Of the mean draw, each fitted document counting alike."""
    recorded: float
    """Of the mean of the fitted documents: what a perfect generator would show."""


def curves_apart(
    recorded: Mapping[str, Mapping[str, float]], drawn: Mapping[str, Mapping[str, float]], left_out: str
) -> dict[str, Apart]:
    """Compare the mean curves of the documents but one, and of their draws, with those of the one left out."""
    fitted, reference = [name for name in recorded if name != left_out], recorded[left_out]
    return {
        index: Apart(*(float(np.mean([each[name][index] for name in fitted])) - share for each in (drawn, recorded)))
        for index, share in reference.items()
    }


def mean_curves(trace: Trace, folder: Path, seeds: Iterable[int], length: tuple[int, int]) -> dict[str, float]:
    """Return the mean curves of draws of one document; a draw of several documents is one of one of them."""
    found = [curves(each) for each in draws([trace], folder, length, seeds)]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def leave_one_out(traces: Sequence[Trace], left_out: int) -> dict[Key, Cell]:
    """Fit all traces but one; return how far the draws are from it."""
    other, fitted = traces[left_out], [each for i, each in enumerate(traces) if i != left_out]
    with tempfile.TemporaryDirectory() as folder:
        made = draws(fitted, Path(folder), (other.tokens, other.steps))
        return compare(
            [statistics(t, STEPS) for t in fitted], [statistics(t, STEPS) for t in made], statistics(other, STEPS)
        )


def report(name: str, cells: Mapping[Key, Cell], apart: Mapping[str, Apart]) -> str:
    """Return what misses, and how far the curves are apart."""
    missed = {key: cell for key, cell in cells.items() if cell.misses}
    fault = sum(cell.own_fault for cell in missed.values())
    lines = [
        f"{name}: {len(missed)} of {len(cells)} targets miss {LIMIT:.0%}, {fault} of them by the generator's fault"
    ]
    for (kind, what), cell in missed.items():
        seeds, documents = f"worst seed {cell.worst_seed:+8.1%}", f"documents {cell.recorded:+8.1%}"
        lines.append(f"  {kind:16}{what:26}{cell.drawn:+8.1%}  {seeds}  {documents}")
    points = ", ".join(f"{index} {100 * at.drawn:+.1f} ({100 * at.recorded:+.1f})" for index, at in apart.items())
    return "\n".join([*lines, f"  certified away, points apart (of the documents themselves): {points}"])


def main(names: Sequence[str]) -> None:
    """Print a report for each trace left out."""
    traces = [open_trace(name) for name in names]
    recorded = {trace.name: curves(trace) for trace in traces}
    with tempfile.TemporaryDirectory() as folder:
        drawn = {t.name: mean_curves(t, Path(folder) / t.name, CURVE_SEEDS, LENGTH) for t in traces}
    for i, trace in enumerate(traces):
        print(report(trace.name, leave_one_out(traces, i), curves_apart(recorded, drawn, trace.name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
