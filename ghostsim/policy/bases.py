"""Bases of sketches: m orthonormal directions [d, m], fitted on prompt keys and prompt queries.

A bound with a residual norm is sound for any basis, so a badly fitted one costs bytes and never correctness. No closed
form is best: the tightest on queries that are not evaluated should be kept.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ghostsim.seeding import generator

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
BasisKind = Literal["random", "pca", "query", "symmetric", "summed"]

_SEED = 0
_FIT_ROWS = 16384


def sampled(rows: Array) -> Array:
    """Return `rows` evenly thinned where there are many: a covariance of 128 channels needs no million keys."""
    return rows[:: max(1, len(rows) // _FIT_ROWS)]


def second_moment(rows: Array, *, centred: bool = False) -> Floats:
    """Return the sum of x x^T [d, d] over `rows` [..., d], evenly sampled; about their mean if `centred`."""
    sample = sampled(rows.reshape(-1, rows.shape[-1]))
    sample = sample.astype(np.result_type(sample, np.float32), copy=False)  # squares of 300 are beyond fp16
    if centred:
        sample = sample - sample.mean(axis=0)
    moment = (sample.T @ sample).astype(np.float64)
    return np.asarray((moment + moment.T) / 2)


def top_eigenvectors(moment: Floats, m: int) -> Floats:
    """Return the eigenvectors [d, m] of the m largest eigenvalues of a symmetric matrix [d, d]."""
    _, vectors = np.linalg.eigh(moment)
    return np.ascontiguousarray(vectors[:, ::-1][:, :m])


def random_basis(d: int, m: int) -> Floats:
    """Return m orthonormal directions [d, m] from a Gaussian matrix."""
    gaussian = generator(_SEED, f"policy/sketch/{d}x{m}").standard_normal((d, m))
    return np.linalg.qr(gaussian)[0]


def principal_basis(keys: Array, m: int, *, centred: bool = False) -> Floats:
    """Return the m top eigenvectors [d, m] of the second moment of `keys` [..., d], about their mean if `centred`."""
    return top_eigenvectors(second_moment(keys, centred=centred), m)


def query_basis(queries: Array, m: int) -> Floats:
    """Return the m top eigenvectors [d, m] of the second moment of `queries` [..., d]."""
    return top_eigenvectors(second_moment(queries), m)


def symmetric_basis(keys: Array, queries: Array, m: int, *, centred: bool = False) -> Floats:
    """Return the m top eigenvectors [d, m] of Cq^1/2 Ck Cq^1/2.

    Parameters
    ----------
    keys, queries
        [..., d]; Ck and Cq are their second moments, Ck about the mean if `centred`.
    """
    values, vectors = np.linalg.eigh(second_moment(queries))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ second_moment(keys, centred=centred) @ root
    return top_eigenvectors((product + product.T) / 2, m)


def summed_basis(keys: Array, queries: Array, m: int, *, centred: bool = False) -> Floats:
    """Return the m top eigenvectors [d, m] of Cq / tr Cq + Ck / tr Ck, with the moments of `symmetric_basis`."""
    return top_eigenvectors(_unit_trace(second_moment(queries)) + _unit_trace(second_moment(keys, centred=centred)), m)


def _unit_trace(moment: Floats) -> Floats:
    return moment / max(float(np.trace(moment)), float(np.finfo(np.float64).tiny))


def fitted_basis(kind: BasisKind, keys: Array, queries: Array, m: int, *, centred: bool = False) -> Floats:
    """Return the basis [d, m] of a kind for prompt `keys` and `queries` [..., d]."""
    match kind:
        case "random":
            return random_basis(keys.shape[-1], m)
        case "pca":
            return principal_basis(keys, m, centred=centred)
        case "query":
            return query_basis(queries, m)
        case "symmetric":
            return symmetric_basis(keys, queries, m, centred=centred)
        case "summed":
            return summed_basis(keys, queries, m, centred=centred)
