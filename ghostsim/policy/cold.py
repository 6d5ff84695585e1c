"""Hot and cold tokens of a step, and what a certificate makes of the cold ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ghostsim.config.policy import Pin, Policy
from ghostsim.config.rules import Certify, Presume
from ghostsim.policy.exact import Array, Block, wide_sum
from ghostsim.policy.rules import CLIP, Ledger, Mask, ledger, spend
from ghostsim.policy.units import Units


@dataclass(frozen=True)
class Pins:
    """The PIN set of a policy: of READ, else of the first clause that evicts and keeps its pins for good."""

    pin: Pin
    page: int
    at_prefill: bool

    def cold(self, begin: int, own: int, context: int) -> tuple[int, int]:
        """Return the range [c0, c1) of attended positions outside the pins; the own token is always hot."""
        newest = context - 1 if self.at_prefill else own
        c1 = min(own, newest + 1 - self.pin.window)
        pages = max(self.pin.window_pages, int(self.pin.last_page))
        if pages:
            c1 = min(c1, (own // self.page - pages + 1) * self.page)
        c0 = min(max(begin, self.pin.sinks, self.pin.sink_pages * self.page), own)
        return c0, max(c0, c1)


def pins_of(policy: Policy) -> Pins:
    """Return the PIN set that divides hot from cold."""
    if policy.read.pin != Pin():
        return Pins(policy.read.pin, policy.read.page, at_prefill=False)
    if any(keep.everything for keep in policy.keep):
        return Pins(Pin(), 1, at_prefill=False)
    lasting = [keep for keep in policy.keep if keep.every != "prefill_end" or keep.generated]
    if not lasting:
        return Pins(Pin(), 1, at_prefill=False)
    return Pins(lasting[0].select.pin, 1, at_prefill=lasting[0].every == "prefill_end")


def fitting_rows(pins: Pins, context: int) -> slice:
    """Return the prompt positions outside the pins when prefill ends, on which indexes are fitted."""
    start, stop = pins.pin.sinks, context - pins.pin.window
    return slice(start, stop) if stop - start > 1 else slice(0, context)


@dataclass(frozen=True, eq=False)
class Cold:
    """The cold positions c0 .. c1 of one step."""

    block: Block
    step: int
    c0: int
    c1: int

    @property
    def size(self) -> int:
        """Cold tokens."""
        return self.c1 - self.c0

    @property
    def weights(self) -> Array:
        """[g, tokens] exp(score - peak)."""
        return self.block.weights[self.step, :, self.c0 : self.c1]

    @property
    def total(self) -> npt.NDArray[np.float64]:
        """[g] softmax sum over all attended positions."""
        return np.asarray(self.block.total[self.step])

    def hot_total(self) -> npt.NDArray[np.float64]:
        """[g] softmax sum over the hot positions, kept above zero where all of them underflow."""
        row = self.block.weights[self.step]
        hot = wide_sum(row[:, : self.c0]) + wide_sum(row[:, self.c1 :])
        return np.maximum(hot, np.finfo(np.float32).tiny)


def _slack(dtype: npt.DTypeLike) -> float:
    """Return the relative error that exp and the sums may make, by which certificates are widened."""
    return 8e-6 if np.dtype(dtype) == np.float32 else 1e-12


def exponentials(bounds: Array, cold: Cold) -> tuple[Array, Array]:
    """Return (bound - peak, its exponential), cut off where any budget is long spent."""
    shifted = np.subtract(bounds, cold.block.peak[cold.step][:, None])
    np.minimum(shifted, CLIP, out=shifted)
    return shifted, np.exp(shifted)


def certified_read(
    rule: Certify | Presume,
    shifted: Array,
    bound_weights: Array,
    cold: Cold,
    units: Units,
    alive: Mask | None = None,
    gone: npt.NDArray[np.float64] | float = 0.0,
) -> Mask:
    """Return the units [n] that the query heads of a group read, each by its own certificate.

    `alive` [tokens] is what earlier stages have left, `gone` [g] the exact softmax sum of what they have left out.
    """
    tau = rule.eps / (1 - rule.eps)
    mass = bound_weights if units.sizes is None else bound_weights * units.sizes
    allowance = tau / (1 + _slack(mass.dtype))
    largest = 1 if units.sizes is None else int(units.sizes.max(initial=1))
    if rule.form == "staged":
        # U <= tau Z_S with Z_S = Z - (exact sum of the rest): both sums run over what is left unread.
        weights = cold.weights if alive is None else cold.weights * alive
        costs = units.sums(weights) * mass.dtype.type(tau)
        costs += mass
        read = _spend(shifted, costs, allowance * (cold.total - gone), largest * (1 + tau))
    elif rule.form == "one_pass":
        read = _spend(shifted, mass, allowance * cold.hot_total(), largest)
    else:
        theta = np.log(cold.hot_total()) + np.log(allowance / max(1, cold.size))
        read = shifted >= theta[:, None]
    return np.asarray(read.any(axis=0))


def _spend(bounds: Array, costs: Array, limits: npt.NDArray[np.float64], spread: float) -> Mask:
    limits = np.maximum(limits, np.finfo(np.float32).tiny)
    return spend(ledger(bounds, costs, limits, spread), 0, bounds.shape[1])


def bound_on(unread: Mask, bound_weights: Array, units: Units) -> npt.NDArray[np.float64]:
    """Return U [g], the sum of exp(bound - peak) over the units left unread, rounded up."""
    mass = bound_weights if units.sizes is None else bound_weights * units.sizes
    return masked_sum(mass, unread) * (1 + _slack(mass.dtype))


def certificate(upper: npt.NDArray[np.float64], lost: npt.NDArray[np.float64], cold: Cold) -> npt.NDArray[np.float64]:
    """Return U / (Z_S + U) per query head [g], rounded up."""
    share = upper / (cold.total - lost + upper)
    return np.minimum(1.0, np.where(upper > 0, np.nextafter(share, np.inf), 0.0))


def masked_sum(rows: Array, mask: Mask) -> npt.NDArray[np.float64]:
    """Sum `rows` [g, n] over a mask [n], in float64."""
    if not mask.any():
        return np.zeros(len(rows))
    return wide_sum(rows * mask.astype(rows.dtype))


class Oracle:
    """What the staged rule on exact scores reads at one step; policies with the same eps share the sorting."""

    def __init__(self, block: Block, step: int) -> None:
        begin, own = int(block.begins[step]), int(block.positions[step])
        self._all = Cold(block, step, begin, own + 1)
        self._books: dict[float, Ledger] = {}
        self._reads: dict[tuple[float, int, int], Mask] = {}

    def read(self, eps: float, c0: int, c1: int) -> Mask:
        """Return the cold tokens [c1 - c0] that some query head of the group reads."""
        key = (eps, c0, c1)
        if key not in self._reads:
            begin = self._all.c0
            self._reads[key] = np.asarray(spend(self._book(eps), c0 - begin, c1 - begin).any(axis=0))
        return self._reads[key]

    def _book(self, eps: float) -> Ledger:
        if eps not in self._books:
            everything, tau = self._all, eps / (1 - eps)
            scores = everything.block.scores[everything.step, :, everything.c0 : everything.c1]
            shifted, weights = exponentials(scores, everything)
            weights *= 1 + tau
            limits = tau / (1 + _slack(weights.dtype)) * everything.total
            self._books[eps] = ledger(shifted, weights, limits, 1 + tau)
        return self._books[eps]
