"""Indexes of READ that take their bound from `bounds`: sketches in every other form, and ellipsoids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ghostsim.config.scores import Ellipsoid, Sketch
from ghostsim.errors import ConfigError
from ghostsim.policy import bounds
from ghostsim.policy.bases import fitted_basis
from ghostsim.policy.exact import Array, Block, Floats, softcapped
from ghostsim.policy.indexes import Claim
from ghostsim.policy.units import Units, page_units, token_units
from ghostsim.seeding import generator
from ghostsim.trace.compose import Head
from ghostsim.trace.format import Rope

Estimator = bounds.ResidualSketch | bounds.QuantisedSketch | bounds.PageLocalSketch


@dataclass(frozen=True, eq=False)
class BoundIndex:
    """The upper bound of a record per token, or, with `page`, of one per page."""

    bound: bounds.Index
    page: int = 1
    claim: Claim | None = "score"

    def units(self, c0: int, c1: int) -> Units:
        """Return the cold tokens, or their pages."""
        return token_units(c0, c1) if self.page == 1 else page_units(c0, c1, self.page)

    def scores(self, block: Block, asked: Array, head: Head) -> Array:
        """Return the bound, or the estimate where there is none, [n, g, units] for the queries `asked` [n, g, d]."""
        n, g, d = asked.shape
        rows = asked.reshape(n * g, d)
        if self.claim is None:
            assert isinstance(self.bound, Estimator)
            products = self.bound.estimate(rows)
        else:
            products = self.bound.upper(rows)
        part = products[:, : block.scores.shape[-1] : self.page] * head.scale
        # The bound is computed in float64; rounding it to the scores' type must not lower it.
        raised = np.nextafter(part.astype(block.scores.dtype), block.scores.dtype.type(np.inf))
        return softcapped(raised.reshape(n, g, -1), head.softcap)


def build_ellipsoid(keys: Array, ellipsoid: Ellipsoid) -> BoundIndex:
    """Enclose the keys of each page in an ellipsoid of one shape."""
    labels = bounds.page_labels(len(keys), ellipsoid.page)
    return BoundIndex(bounds.Ellipsoids.fit(keys, labels), ellipsoid.page)


def build_special(head: Head, fit: slice, sketch: Sketch) -> BoundIndex:
    """Build a sketch with frames, anchors, residual blocks, codes with other error terms, or in integers.

    Raises
    ------
    ConfigError
        If the sketch needs RoPE and the trace has none, or is wider than the head.
    """
    if sketch.dims > head.keys.shape[1]:
        raise ConfigError(f"sketch.dims: found {sketch.dims}, expected at most head_dim {head.keys.shape[1]}, e.g. 32")
    claim: Claim | None = None if sketch.residual == "none" else "score"
    if sketch.basis == "planes":
        return BoundIndex(_planes(head, fit, sketch))
    if sketch.frame is None:
        return BoundIndex(_sketch(head.keys, head.prompt_queries, fit, sketch), 1, claim)
    rope, inv_freq = rotation(head)
    keys = bounds.local_frames(head.keys, rope, inv_freq, sketch.frame)
    inside = _sketch(keys, unrotated_queries(head), fit, sketch)
    assert isinstance(inside, bounds.ResidualSketch | bounds.QuantisedSketch)
    return BoundIndex(bounds.PageLocalSketch(sketch.frame, 0, rope, inv_freq, inside), 1, claim)


def _sketch(keys: Array, queries: Array, fit: slice, sketch: Sketch) -> bounds.Index:
    matrix, mean = _matrix(keys, queries, fit, sketch), keys[fit].mean(axis=0) if sketch.centred else None
    if sketch.anchor:
        return bounds.AnchoredSketch.fit(keys, bounds.page_labels(len(keys), sketch.anchor), matrix)
    if sketch.bits == 16:
        return bounds.ResidualSketch.fit(keys, matrix, mean=mean, blocks=sketch.blocks)
    if sketch.integer:
        return bounds.IntegerSketch.fit(keys, matrix, sketch.bits, mean=mean, ranges=keys[fit])
    return bounds.QuantisedSketch.fit(keys, matrix, sketch.bits, sketch.form, mean=mean, ranges=keys[fit])


def _matrix(keys: Array, queries: Array, fit: slice, sketch: Sketch) -> Floats:
    d, m = keys.shape[1], sketch.dims
    if sketch.basis == "gaussian":
        return bounds.gaussian_matrix(generator(0, f"policy/gaussian/{d}x{m}"), d, m)
    assert sketch.basis != "planes"
    return fitted_basis(sketch.basis, keys[fit], queries, m, centred=sketch.centred)


def _planes(head: Head, fit: slice, sketch: Sketch) -> bounds.Index:
    """Keep the rotation planes whose queries and keys have the most energy."""
    rope, _ = rotation(head)
    planes = bounds.plane_channels(rope, head.keys.shape[1])
    energy = np.square(head.keys[fit]).sum(axis=0) * np.square(head.prompt_queries).sum(axis=(0, 1))
    order = np.argsort([-energy[plane].sum() for plane in planes], kind="stable")
    return bounds.plane_sketch(head.keys, rope, np.sort(order[: max(1, sketch.dims // 2)]).tolist())


def rotation(head: Head) -> tuple[Rope, Array]:
    """Return how a head's queries and keys are rotated, or refuse one that is not."""
    if head.rope is None or head.inv_freq is None:
        raise ConfigError("score: found a trace without RoPE, expected one with it for frames, planes and trig")
    return head.rope, head.inv_freq


def unrotated_queries(head: Head) -> Floats:
    """Return the prompt queries [W, g, d] as they were before rotation."""
    count = len(head.prompt_queries)
    ages = np.arange(head.context - count, head.context)[:, None]
    return bounds.turned_back(head.prompt_queries, ages, *rotation(head))
