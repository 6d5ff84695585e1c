"""Probes of the flow network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ghostsim.engine.clock import PS_PER_S
from ghostsim.engine.network import Network, Probe

_LOG_LENGTH = 2**13
_ONE_BIN_PS = 2**62


class UtilisationProbe(Probe):
    """Time-weighted use of every resource: its integral and, with `bin_ps`, its course in bins of that width.

    Each change of rates costs one entry of a log, which is summed when it is long or when somebody asks. Bins
    double in width whenever there would be more than `most_bins` of them.
    """

    def __init__(self, network: Network, bin_ps: int | None = None, most_bins: int | None = None) -> None:
        if bin_ps is not None and bin_ps < 1:
            raise ValueError(f"found bins of {bin_ps} ps, expected at least 1")
        self._network = network
        self._bin_ps = bin_ps or _ONE_BIN_PS
        self._most_bins = most_bins
        self._start_ps = int(network.env.now)
        self._times_ps = [self._start_ps]
        self._uses: list[Sequence[float]] = [()]
        self._sums: NDArray[np.float64] = np.zeros((0, 0))
        network.meters.append(self)

    def on_rates(self, now_ps: int, used: Sequence[float]) -> None:
        """Note the rates that hold from now on."""
        self._times_ps.append(now_ps)
        self._uses.append(used)
        if len(self._uses) > _LOG_LENGTH:
            self._sum_log()

    def on_course(self, times_ps: Sequence[int], used: Sequence[Sequence[float]]) -> None:
        """Note the rates of several past instants; the log is summed where single ones would have it summed."""
        at = 0
        while at < len(used):
            until = at + _LOG_LENGTH + 1 - len(self._uses)
            self._times_ps += times_ps[at:until]
            self._uses += used[at:until]
            at = until
            if len(self._uses) > _LOG_LENGTH:
                self._sum_log()

    def bins(self) -> NDArray[np.float64]:
        """Return the units used of each resource in each bin up to now, shape [resources, bins].

        Without `bin_ps` there is one bin. Bins count from time 0; the last one may be unfinished.
        """
        self._times_ps.append(int(self._network.env.now))
        self._uses.append(self._uses[-1])
        self._sum_log()
        return self._sums.T.copy()

    @property
    def bin_ps(self) -> int:
        """Present width of a bin."""
        return self._bin_ps

    def units(self) -> NDArray[np.float64]:
        """Return the units used of each resource since the probe was attached, shape [resources]."""
        return np.asarray(self.bins().sum(axis=1))

    def utilisation(self) -> dict[str, float]:
        """Return the mean share in use of each resource, 0 if no time has passed."""
        seconds = (int(self._network.env.now) - self._start_ps) / PS_PER_S
        resources = self._network.resources.values()
        shares = zip(resources, self.units().tolist(), strict=True)
        return {
            resource.name: min(1.0, units / (resource.capacity * seconds)) if seconds else 0.0
            for resource, units in shares
        }

    def _sum_log(self) -> None:
        times = np.array(self._times_ps)
        state, use = _table(self._uses[:-1], len(self._network.resources))
        self._times_ps, self._uses = self._times_ps[-1:], self._uses[-1:]
        self._widen(int(times[-1]))
        entry, column, elapsed_ps = _cut(times[:-1], times[1:], self._bin_ps)
        self._grow(-(-int(times[-1]) // self._bin_ps), use.shape[1])
        if len(entry):
            units = use[state[entry]] * (elapsed_ps / PS_PER_S)[:, None]
            first = np.flatnonzero(np.diff(column, prepend=-1))
            self._sums[column[first]] += np.add.reduceat(units, first, axis=0)

    def _widen(self, end_ps: int) -> None:
        while self._most_bins is not None and end_ps > self._most_bins * self._bin_ps:
            self._sums = np.pad(self._sums, [(0, len(self._sums) % 2), (0, 0)])
            self._sums = self._sums[::2] + self._sums[1::2]
            self._bin_ps *= 2

    def _grow(self, bins: int, resources: int) -> None:
        more = max(0, bins - len(self._sums)), resources - self._sums.shape[1]
        self._sums = np.pad(self._sums, [(0, more[0]), (0, more[1])])


def _table(log: Sequence[Sequence[float]], width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the row of each entry and the rows: one for each state, whose use is one object."""
    keys = list(map(id, log))
    states = dict(zip(keys, log, strict=True))
    row = {key: i for i, key in enumerate(states)}
    table = np.zeros((len(states), width))
    for key, used in states.items():
        table[row[key], : len(used)] = used
    return np.array([row[key] for key in keys], dtype=np.int64), table


def _cut(
    begin: NDArray[np.int64], end: NDArray[np.int64], bin_ps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut intervals at the edges of bins; return the interval, the bin and the length of every piece."""
    first = begin // bin_ps
    pieces = np.where(end > begin, (end - 1) // bin_ps - first + 1, 0)
    interval = np.repeat(np.arange(len(begin)), pieces)
    column = first[interval] + np.arange(len(interval)) - (np.cumsum(pieces) - pieces)[interval]
    length = np.minimum(end[interval], (column + 1) * bin_ps) - np.maximum(begin[interval], column * bin_ps)
    return interval, column, length
