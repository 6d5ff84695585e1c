"""Figures of a serving run: latency per request, goodput under the promise, queues and memory over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostsim.config.serving import Slo
from ghostsim.engine.clock import PS_PER_MS, PS_PER_S
from ghostsim.pipeline.serving import Job, Log, Server
from ghostsim.pipeline.settling import Settling

Floats = NDArray[np.float64]

_BATCHES = 20
_STUDENT_19 = 2.093
"""97.5 % quantile of Student's t with 19 degrees of freedom."""
_BINS = 200


@dataclass(frozen=True)
class Served:
    """A finished serving run."""

    server: Server
    jobs: Sequence[Job]
    """In the order of arrival."""
    slo: Slo
    surface: Mapping[str, Any]
    """What the grid of decode steps cost, and how far it is off."""
    block_tokens: int
    keeps_nothing: bool
    """Whether a prefix cache was asked for that the policy does not allow."""
    settling: Settling


def ttft_ms(job: Job) -> float:
    """Return the time to the first token."""
    return (job.first_token_ps - job.arrival_ps) / PS_PER_MS


def tpot_ms(job: Job) -> float:
    """Return the mean time per output token after the first, 0 if there is no other."""
    return (job.finish_ps - job.first_token_ps) / max(1, job.output_tokens - 1) / PS_PER_MS


def e2e_ms(job: Job) -> float:
    """Return the time from arrival to the last token."""
    return (job.finish_ps - job.arrival_ps) / PS_PER_MS


def settle_ms(job: Job) -> float:
    """Return the part of it in which the prompt was computed, but its KV and index not yet in their tiers."""
    return (job.first_token_ps - job.prefilled_ps) / PS_PER_MS


def settled_bytes(served: Served) -> dict[str, dict[str, int]]:
    """Return what prompts left in each tier: cold KV and index records, of repeated attempts again."""
    found: dict[str, dict[str, int]] = {}
    for (begin, end), times in served.server.settled.items():
        amount = served.settling.amount(end) - served.settling.amount(begin)
        for tier, causes in served.settling.tier_bytes(amount).items():
            own = found.setdefault(tier, dict.fromkeys(causes, 0))
            for cause, nbytes in causes.items():
                own[cause] += times * nbytes
    return found


def meets(job: Job, slo: Slo) -> bool:
    """Tell whether a request got what it was promised."""
    return not job.rejected and ttft_ms(job) * PS_PER_MS <= slo.ttft and tpot_ms(job) * PS_PER_MS <= slo.tpot


def half_width(values: Floats) -> float | None:
    """Return the half width of the 95 % confidence interval of the mean, by 20 batch means; none below 200 values.

    Consecutive values of a queue are not independent; the means of long batches nearly are.
    """
    size = len(values) // _BATCHES
    if size < 10:
        return None
    means = values[len(values) - size * _BATCHES :].reshape(_BATCHES, size).mean(axis=1)
    return float(_STUDENT_19 * means.std(ddof=1) / math.sqrt(_BATCHES))


def spread(values: Floats) -> dict[str, float | int | None]:
    """Return mean with its confidence, percentiles and number of values; zeros of none."""
    if not len(values):
        return {"mean": 0.0, "mean_ci95": None, "p50": 0.0, "p95": 0.0, "p99": 0.0, "max": 0.0, "n": 0}
    quantiles = {f"p{q}": float(np.percentile(values, q)) for q in (50, 95, 99)}
    return {"mean": float(values.mean()), "mean_ci95": half_width(values), **quantiles, "max": float(values.max()),
            "n": len(values)}  # fmt: skip


def serving_metrics(served: Served) -> dict[str, Any]:
    """Return the `serving` block of a run in metrics.json."""
    done = [job for job in served.jobs if not job.rejected]
    server, log = served.server, served.server.log
    first = min((job.arrival_ps for job in served.jobs), default=0)
    last = max((job.finish_ps for job in done), default=first)
    seconds = max(1, last - first) / PS_PER_S
    good = sum(meets(job, served.slo) for job in done)
    several = [job for job in done if job.output_tokens > 1]
    return {
        "requests": len(served.jobs),
        "completed": len(done),
        "rejected": len(served.jobs) - len(done),
        "preemptions": sum(job.preemptions for job in done),
        "duration_s": seconds,
        "ttft_ms": spread(np.array([ttft_ms(job) for job in done])),
        "tpot_ms": spread(np.array([tpot_ms(job) for job in several])),
        "e2e_ms": spread(np.array([e2e_ms(job) for job in done])),
        "requests_per_s": len(done) / seconds,
        "output_tokens_per_s": sum(job.decoded_tokens for job in done) / seconds,
        "goodput_per_s": good / seconds,
        "slo_share": good / max(1, len(served.jobs)),
        "in_system_mean": log.area / max(1, last - first),
        "waiting_mean": _waiting_area(log) / max(1, last - first),
        "iterations": server.iterations,
        "busy_share": server.busy_ps / max(1, last - first),
        "prompt_tokens": sum(job.prompt_tokens for job in done),
        "prefilled_tokens": sum(job.prefilled_tokens for job in done),
        "decoded_tokens": sum(job.decoded_tokens for job in done),
        "prefix": _prefix(served, done),
        "bulk_bytes": {
            tier: {direction: server.channels[tier, write].nbytes for direction, write in _DIRECTIONS}
            for tier in (server.cache.below if server.cache else ())
        },
        "settle_ms": spread(np.array([settle_ms(job) for job in done])),
        "settled_bytes": settled_bytes(served),
        "kv_bytes_mean": _mean_sizes(served),
        "kv_capacity_bytes": dict(server.memory.capacity) | _room_below(served),
        "step_surface": dict(served.surface),
    }


def _waiting_area(log: Log) -> int:
    """Return the integral of the number that waits, in request picoseconds."""
    return sum(waiting * (after[0] - now) for (now, waiting, *_), after in pairwise(log.rows))


_DIRECTIONS = (("read", False), ("written", True))


def _prefix(served: Served, done: Sequence[Job]) -> dict[str, Any] | None:
    cache = served.server.cache
    if cache is None:
        return None
    home = served.server.memory.home
    return {
        "block_tokens": served.block_tokens,
        "hit_tokens": sum(job.hit_tokens for job in done),
        "hit_blocks": {tier or home: cache.hits[tier] for tier in ("", *cache.below)},
        "missed_blocks": cache.counts["missed"],
        "evicted_blocks": cache.counts["evicted"],
        "dropped_blocks": cache.counts["dropped"],
        "spilled_blocks": cache.counts["returned"],
    }


def _room_below(served: Served) -> dict[str, int]:
    cache = served.server.cache
    return {} if cache is None else {tier: blocks * cache.block_bytes for tier, blocks in cache.room.items()}


def _mean_sizes(served: Served) -> dict[str, float]:
    rows = over_time(served)
    return {tier: float(np.mean(rows[f"kv_bytes_{tier}"])) for tier in served.server.log.tiers}


def over_time(served: Served) -> dict[str, Floats]:
    """Return time-weighted means in equal bins: `time_s` (their ends), `waiting`, `in_service`, `kv_bytes_TIER`."""
    log = served.server.log
    table = np.array(log.rows, np.float64).reshape(-1, 3 + len(log.tiers))
    first = min((job.arrival_ps for job in served.jobs), default=0)
    last = max((job.finish_ps for job in served.jobs), default=0)
    edges = np.linspace(first, max(last, first + 1), _BINS + 1)
    lasting = np.diff(table[:, 0], append=max(edges[-1], table[-1, 0]))
    areas = np.concatenate([np.zeros((1, table.shape[1] - 1)), np.cumsum(table[:, 1:] * lasting[:, None], axis=0)])
    times = np.append(table[:, 0], table[-1, 0] + lasting[-1])
    # np.interp needs ascending times: of equal ones the last holds, which has the whole area so far
    bins = np.column_stack([np.diff(np.interp(edges, times, area)) for area in areas.T]) / np.diff(edges)[:, None]
    names = ("waiting", "in_service", *(f"kv_bytes_{tier}" for tier in log.tiers))
    return {"time_s": edges[1:] / PS_PER_S, **dict(zip(names, bins.T, strict=True))}


def request_rows(label: str, served: Served) -> list[dict[str, Any]]:
    """Return the rows of requests.csv of a run; a time that never came is empty."""
    return [_request_row(label, job, served.slo) for job in served.jobs]


def _request_row(label: str, job: Job, slo: Slo) -> dict[str, Any]:
    def seconds(ps: int) -> float | str:
        return "" if ps < 0 else ps / PS_PER_S

    figures = {} if job.rejected else {"ttft_ms": ttft_ms(job), "tpot_ms": tpot_ms(job), "e2e_ms": e2e_ms(job)}
    return {
        "label": label,
        "request": job.index,
        "arrival_s": seconds(job.arrival_ps),
        "admitted_s": seconds(job.admitted_ps),
        "first_token_s": seconds(job.first_token_ps),
        "finish_s": seconds(job.finish_ps),
        "ttft_ms": "", "tpot_ms": "", "e2e_ms": "",
        **figures,
        "prompt_tokens": job.prompt_tokens,
        "output_tokens": job.output_tokens,
        "hit_tokens": job.hit_tokens,
        "prefilled_tokens": job.prefilled_tokens,
        "preemptions": job.preemptions,
        "met_slo": int(meets(job, slo)),
        "rejected": int(job.rejected),
    }  # fmt: skip
