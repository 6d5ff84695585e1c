"""NVMe solid-state drives: what channels, dies, controller, queues and link let through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

SECTOR_BYTES = 4096
"""What a channel moves at least, one error-correction codeword; the array always reads a page."""


@dataclass(frozen=True)
class NvmeSpec:
    """One drive."""

    channels: int
    dies_per_channel: int
    page_bytes: int
    """Unit that a read takes from the flash array."""
    t_read_ps: int
    """Array read of one page (tR)."""
    t_program_ps: int
    """Array program of one page (tPROG)."""
    channel_bytes_per_s: float
    controller_iops: float
    pcie_bytes_per_s: float
    queue_pairs: int
    queue_depth: int
    overhead_ps: int
    """Host software, doorbell, controller and completion of one command."""
    retry_share: float = 0.0
    """Reads that wait for a second read of their page, or for garbage collection on their die."""
    retry_ps: int = 0
    """How much longer these take."""

    @property
    def dies(self) -> int:
        """Flash dies, each with one array operation at a time."""
        return self.channels * self.dies_per_channel


def pages(spec: NvmeSpec, io_bytes: int) -> int:
    """Return the flash pages that an aligned read of `io_bytes` touches."""
    return math.ceil(io_bytes / spec.page_bytes)


def channel_bytes(piece_bytes: float, page_bytes: int) -> int:
    """Return the bytes that channels move for a piece: whole codewords."""
    codeword = min(SECTOR_BYTES, page_bytes)
    return math.ceil(piece_bytes / codeword) * codeword


def slow_share(retry_share: float, reads: int) -> float:
    """Return the probability that at least one of some reads is a slow one."""
    return float(1 - (1 - retry_share) ** reads)


def read_amplification(spec: NvmeSpec, record_bytes: int) -> float:
    """Return the bytes read from flash per byte asked for, for aligned random records."""
    return pages(spec, record_bytes) * spec.page_bytes / record_bytes


def idle_latency_ps(spec: NvmeSpec, io_bytes: int) -> int:
    """Return the latency of one read on an idle drive.

    The pages of a read lie on different dies and channels: arrays work in parallel, each channel and the link in turn.
    """
    on_channel = math.ceil(pages(spec, io_bytes) / spec.channels) * min(
        spec.page_bytes, channel_bytes(io_bytes, spec.page_bytes)
    )
    rounds = math.ceil(pages(spec, io_bytes) / spec.dies)
    transfer = on_channel / spec.channel_bytes_per_s + io_bytes / spec.pcie_bytes_per_s
    return spec.overhead_ps + rounds * spec.t_read_ps + round(transfer * 1e12)


def _busy_dies(spec: NvmeSpec, page_reads: float) -> float:
    """Return the expected busy dies when `page_reads` page reads fall on random dies."""
    return float(spec.dies * (1 - (1 - 1 / spec.dies) ** page_reads)) if spec.dies > 1 else min(1.0, page_reads)


def random_read_iops(spec: NvmeSpec, io_bytes: int, outstanding: int) -> float:
    """Return the random reads per second with `outstanding` commands in flight.

    The least of: Little's law at the idle latency, dies (random addresses leave some idle while others queue),
    channels, controller and link. Commands beyond the queues wait outside.
    """
    in_flight = min(outstanding, spec.queue_pairs * spec.queue_depth)
    touched = pages(spec, io_bytes)
    flash_bytes = channel_bytes(io_bytes, spec.page_bytes)
    return min(
        in_flight / (idle_latency_ps(spec, io_bytes) * 1e-12),
        _busy_dies(spec, in_flight * touched) / (spec.t_read_ps * 1e-12) / touched,
        spec.channels * spec.channel_bytes_per_s / flash_bytes,
        spec.controller_iops,
        spec.pcie_bytes_per_s / io_bytes,
    )


def stream_bandwidth(spec: NvmeSpec, op: Literal["read", "write"] = "read") -> float:
    """Return the bandwidth of a long sequential transfer in bytes/s: dies, channels or link."""
    array_ps = spec.t_read_ps if op == "read" else spec.t_program_ps
    dies = spec.dies * spec.page_bytes / (array_ps * 1e-12)
    return min(dies, spec.channels * spec.channel_bytes_per_s, spec.pcie_bytes_per_s)


def mean_latency_ps(spec: NvmeSpec, io_bytes: int, outstanding: int) -> int:
    """Return the mean latency of a closed loop of `outstanding` random reads (Little's law); slow ones left out."""
    return round(outstanding / random_read_iops(spec, io_bytes, outstanding) * 1e12)


def _waiting(spec: NvmeSpec, others: int, quantile: float) -> float:
    """Return a quantile of how many of `others` page reads fall on the die of a given one (binomial)."""
    share = 1 / spec.dies
    mean, spread = others * share, math.sqrt(others * share * (1 - share))
    if mean > 50:
        return mean + NormalDist().inv_cdf(quantile) * spread
    term = (1 - share) ** others if share < 1 else float(others == 0)
    below, count = term, 0
    while below < quantile and count < others:
        term *= (others - count) / (count + 1) * share / (1 - share) if share < 1 else 1.0
        count += 1
        below += term
    return count


def tail_latency_ps(spec: NvmeSpec, io_bytes: int, outstanding: int, quantile: float = 0.99) -> int:
    """Return a high quantile of the latency in the same loop: reads that queue on the same die, and slow ones.

    Never below the mean, nor below 1.14 idle latencies, the p99 over the mean of a client drive at queue depth 1
    (49.2 and 56.1 us).
    """
    idle = idle_latency_ps(spec, io_bytes)
    waiting = _waiting(spec, (outstanding - 1) * pages(spec, io_bytes), quantile)
    usual = max(
        round(1.14 * idle),
        round(idle + waiting * spec.t_read_ps),
        mean_latency_ps(spec, io_bytes, outstanding),
    )
    return usual + spec.retry_ps if spec.retry_share > 1 - quantile else usual
