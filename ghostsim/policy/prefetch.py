"""Prefetch: what a policy would read for a foretold query, against what it reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ghostsim.config.policy import Policy
from ghostsim.config.scenario import Prefetch
from ghostsim.plan.selection import Selection
from ghostsim.policy.cold import Pins, pins_of
from ghostsim.trace.compose import Workload

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Prefetched:
    """Cold tokens per row and step of a Selection that were foretold, and what foretelling them looked at."""

    tokens: Ints
    """[U, S] tokens that are brought ahead."""
    hits: Ints
    """[U, S] of these, the ones that are read."""
    scanned: Ints
    """[C, U, S] records of each index stage that the foretold query meets."""
    scan_bytes: Ints
    """[C, U, S] their bytes."""


def foretold(selection: Selection, predicted: Selection, policy: Policy, workload: Workload, most: int) -> Prefetched:
    """Compare the reads of a policy with those for foretold queries.

    Parameters
    ----------
    predicted
        The same policy on `workload.predicting(...)`.
    most
        Tokens of one KV head and layer that the buffer holds; of more the newest are brought.
    """
    pins = pins_of(policy)
    tokens, hits = np.zeros_like(selection.read_tokens), np.zeros_like(selection.read_tokens)
    for row, window in enumerate(_windows(selection, workload)):
        for step in range(selection.steps):
            at = row, step
            tokens[at], hits[at] = _compare(selection, predicted, at, pins, workload, window, most)
    return Prefetched(tokens, hits, predicted.scanned, predicted.scan_bytes)


@dataclass(frozen=True)
class Ahead:
    """What the program of a layer brings ahead, summed over KV heads.

    A place is a layer of a step; a row at one place serves the place `shift` later.
    """

    shift: int
    scans: bool
    """Whether foretelling costs a scan of the index."""
    hits: Ints
    """[requests, steps, layers] tokens that have arrived or are on their way when they are asked for."""
    tokens: Ints
    """[steps, layers] tokens that are brought for the later place."""
    scanned: tuple[Ints, ...]
    """[steps, layers] records of each index stage that are looked at for the later place."""
    scan_bytes: tuple[Ints, ...]


def ahead_of(found: Prefetched, selection: Selection, prefetch: Prefetch, batch: int) -> Ahead:
    """Lay a prefetch out over the places of a decode; what nobody could foretell is not brought."""
    layers = selection.unit_of.shape[1]
    rows = selection.unit_of[:batch]
    shift = 1 if prefetch.by == "layer_ahead" else prefetch.ahead * layers

    def per_request(values: Ints) -> Ints:
        summed = np.asarray(values[rows].sum(axis=2, dtype=np.int64).swapaxes(1, 2))
        return _known(summed, prefetch)

    def served_later(values: Ints) -> Ints:
        flat = per_request(values).sum(axis=0).ravel()
        return np.concatenate([flat[shift:], np.zeros(min(shift, len(flat)), np.int64)]).reshape(-1, layers)

    return Ahead(
        shift=shift,
        scans=prefetch.by != "oracle",
        hits=per_request(found.hits),
        tokens=served_later(found.tokens),
        scanned=tuple(served_later(each) for each in found.scanned),
        scan_bytes=tuple(served_later(each) for each in found.scan_bytes),
    )


def _known(values: Ints, prefetch: Prefetch) -> Ints:
    """Blank the places [requests, steps, layers] before which there was no time to foretell anything."""
    values = values.copy()
    if prefetch.by == "layer_ahead":
        values[:, :, 0] = 0
    else:
        values[:, : prefetch.ahead] = 0
    return values


def _windows(selection: Selection, workload: Workload) -> list[int | None]:
    """Return the sliding window of the layer that each row stands for."""
    flat_rows, flat_units = selection.unit_of.ravel(), workload.unit_of.ravel()
    unit_of_row = dict(zip(flat_rows.tolist(), flat_units.tolist(), strict=True))
    heads = [workload.heads[unit_of_row[row]] for row in range(len(selection.attended))]
    return [workload.trace_of(request).model.window[layer] for request, layer, _ in heads]


def _compare(
    selection: Selection,
    predicted: Selection,
    at: tuple[int, int],
    pins: Pins,
    workload: Workload,
    window: int | None,
    most: int,
) -> tuple[int, int]:
    own = workload.context + at[1]
    c0, c1 = pins.cold(0 if window is None else max(0, own + 1 - window), own, workload.context)
    read, ahead = (_bits(each, at, c0, c1) for each in (selection, predicted))
    chosen = np.flatnonzero(ahead)[-most:]
    return len(chosen), int(np.count_nonzero(read[chosen]))


def _bits(selection: Selection, at: tuple[int, int], c0: int, c1: int) -> NDArray[np.uint8]:
    """Return which of the positions c0 .. c1 are read."""
    first = c0 // 8
    packed = selection.sets[at[0], at[1], first : -(-c1 // 8)]
    return np.unpackbits(packed, bitorder="little")[c0 - 8 * first : c1 - 8 * first]
