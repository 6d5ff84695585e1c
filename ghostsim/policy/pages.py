"""Indexes with a record per page of consecutive tokens: boxes, means, balls.

Every record is a vector that meets the query's side in one product: ``score = ask(q) . record``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ghostsim.config.scores import Ball, Box, Mean, Subspaces
from ghostsim.errors import ConfigError
from ghostsim.policy.exact import Array, Block, Floats, softcapped
from ghostsim.policy.indexes import Claim, ball_radius, half, row_norms, unit_roundoff
from ghostsim.policy.units import Units, page_units
from ghostsim.trace.compose import Head

_ROWS = 2048
Summarise = Callable[[Array], Array]
Ask = Callable[[Array, float], Floats]


@dataclass(frozen=True, eq=False)
class PageIndex:
    """Records of whole pages, [pages, width]; the last page of a step is summarised up to the step's own token."""

    table: Array
    page: int
    keys: Array
    summarise: Summarise
    """From keys [pages, page, d] to records [pages, width]."""
    ask: Ask
    """From queries [rows, d] and the scale to their side of the product [rows, width]."""
    claim: Claim | None

    def units(self, c0: int, c1: int) -> Units:
        """Return the pages of the cold tokens."""
        return page_units(c0, c1, self.page)

    def scores(self, block: Block, asked: Array, head: Head) -> Array:
        """Return the score [n, g, pages] of every page up to the step's last; later pages hold -inf."""
        n, g, d = asked.shape
        pages = int(block.positions[-1]) // self.page + 1
        rows = self.ask(asked.reshape(n * g, d), head.scale).astype(self.table.dtype)
        out = np.full((n * g, pages), -np.inf, dtype=self.table.dtype)
        whole = min(pages, len(self.table))
        out[:, :whole] = rows @ self.table[:whole].T
        out = out.reshape(n, g, pages)
        rows = rows.reshape(n, g, -1)
        for i, own in enumerate(block.positions.tolist()):
            last = own // self.page
            partial = self.summarise(self.keys[None, last * self.page : own + 1])
            out[i, :, last] = rows[i] @ partial[0]
            out[i, :, last + 1 :] = -np.inf
        return softcapped(out, head.softcap)


def _paged(keys: Array, page: int, summarise: Summarise, ask: Ask, claim: Claim | None) -> PageIndex:
    """Summarise each whole page of `keys` [n, d]; a partial last page is left to the step."""
    n, d = keys.shape
    pages, per_chunk = n // page, max(1, _ROWS // page)
    parts = [
        summarise(keys[start * page : min(start + per_chunk, pages) * page].reshape(-1, page, d))
        for start in range(0, pages, per_chunk)
    ]
    width = summarise(keys[None, :1]).shape[1]
    table = np.concatenate(parts) if parts else np.empty((0, width), dtype=keys.dtype)
    return PageIndex(table, page, keys, summarise, ask, claim)


# --- boxes ----------------------------------------------------------------------------------------------------


def build_box(keys: Array, box: Box) -> PageIndex:
    """Take the channel-wise extremes of each page, or its centre and mean deviation (ArkVale)."""
    if box.spread == "extremes":
        return _paged(keys, box.page, extremes, ask_box, "score")
    return _paged(keys, box.page, deviations, ask_box, None)


def extremes(pages: Array) -> Array:
    """Return [pages, 2 d + 1]: maxima, minima, and what the product's accumulation may add per ||q||."""
    high, low = pages.max(axis=1), pages.min(axis=1)
    reach = row_norms(np.maximum(np.abs(high), np.abs(low)))
    gamma = unit_roundoff(2 * pages.shape[-1] + 1, pages.dtype)
    return np.concatenate([high, low, (2 * gamma * reach)[:, None]], axis=1)


def deviations(pages: Array) -> Array:
    """Return [pages, 2 d + 1]: centre plus and minus the mean absolute deviation."""
    centre = (pages.max(axis=1) + pages.min(axis=1)) / 2
    mean = np.abs(pages - centre[:, None]).mean(axis=1)
    return np.concatenate([centre + mean, centre - mean, np.zeros_like(centre[:, :1])], axis=1)


def ask_box(queries: Array, scale: float) -> Floats:
    """Return [q+, q-, norm] per query: q+ meets the page's maxima, q- its minima."""
    wide = queries.astype(np.float64) * scale
    norms = np.linalg.norm(wide, axis=1, keepdims=True) * (1 + 1e-6)
    return np.concatenate([np.maximum(wide, 0), np.minimum(wide, 0), norms], axis=1)


# --- means ----------------------------------------------------------------------------------------------------


def build_mean(keys: Array, mean: Mean) -> PageIndex:
    """Take the mean key of each page (ShadowKV's landmarks)."""
    return _paged(keys, mean.page, lambda pages: pages.mean(axis=1), _ask_plain, None)


def _ask_plain(queries: Array, scale: float) -> Floats:
    return np.asarray(queries.astype(np.float64) * scale)


def outlier_pages(keys: Array, page: int, count: int) -> Array:
    """Return the `count` pages of `keys` [n, d] with a key least like the page's mean, by cosine."""
    pages = keys[: len(keys) // page * page].reshape(-1, page, keys.shape[1])
    mean = pages.mean(axis=1, keepdims=True)
    tiny = np.finfo(np.float32).tiny
    cosine = (pages * mean).sum(axis=2) / np.maximum(row_norms(pages) * row_norms(mean), tiny)
    return np.sort(np.argsort(cosine.min(axis=1), kind="stable")[:count])


# --- balls ----------------------------------------------------------------------------------------------------


def build_ball(keys: Array, ball: Ball) -> PageIndex:
    """Take centre and radius of each page: q.c + ||q|| r."""
    return build_subspaces(keys, Subspaces(page=ball.page, parts=1))


def build_subspaces(keys: Array, subspaces: Subspaces) -> PageIndex:
    """Take centre and radius of each page in every slice of the channels: the sum of q_s.c_s + ||q_s|| r_s."""
    d, parts = keys.shape[1], subspaces.parts
    if d % parts:
        raise ConfigError(f"subspaces.parts: found {parts}, expected a divisor of head_dim {d}, e.g. 8")

    def summarise(pages: Array) -> Array:
        centre = half(pages.mean(axis=1)).astype(pages.dtype)
        away = (pages - centre[:, None]).reshape(*pages.shape[:2], parts, d // parts)
        gamma = unit_roundoff(d + parts, pages.dtype)
        size = row_norms(centre.reshape(len(pages), parts, -1))
        return np.concatenate([centre, ball_radius(row_norms(away).max(axis=1), size, gamma)], axis=1)

    def ask(queries: Array, scale: float) -> Floats:
        wide = queries.astype(np.float64) * scale
        norms = np.linalg.norm(wide.reshape(len(wide), parts, -1), axis=2) * (1 + 1e-6)
        return np.concatenate([wide, norms], axis=1)

    return _paged(keys, subspaces.page, summarise, ask, "score")
