"""What a platform's models were measured against: the probes its parts rely on, with the errors found there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from ghostsim import bundled
from ghostsim.accuracy.kernels import gpu, gpu_names

_PROBES = {
    "dram": ("dram_bandwidth", "dram_gather"),
    "gpu_arch": ("gpu_decode_attention", "gpu_gemm"),
    "upmem": ("upmem_mram_dma",),
}
"""The probes that a model in the simulation is measured by, by kind of part."""
_CONTAINERS = frozenset({"platform", "gpu", "host_cpu"})
"""Kinds whose own figures are inputs; the models are those of the parts inside."""


@dataclass(frozen=True)
class Reliance:
    """A model that a part relies on, and the errors of the probe; fractions.

    `own` says whether the rows are of this part (of GPUs: of its architecture) or, failing that, of all parts.
    """

    part: str
    probe: str
    own: bool
    rows: int
    median: float
    p90: float


@cache
def stored_errors() -> Mapping[str, Any]:
    """Return what ``ghostsim accuracy --json`` printed for the bundled tables."""
    path = bundled.folder("hwmodels") / "reference" / "accuracy.json"
    probes: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["probes"]
    return probes


def reliances(platform: Mapping[str, Any]) -> list[Reliance]:
    """Return the models that the parts of an effective platform rely on, each part once, in its order."""
    parts = dict.fromkeys((str(part["kind"]), str(part["name"])) for part in _parts(platform))
    return [_reliance(kind, name, probe) for kind, name in parts for probe in _PROBES.get(kind, ())]


def unmeasured(platform: Mapping[str, Any]) -> list[str]:
    """Return the parts whose model no table measures: links, switches, expanders, drives."""
    parts = dict.fromkeys((str(part["kind"]), str(part["name"])) for part in _parts(platform))
    return [name for kind, name in parts if kind not in _PROBES and kind not in _CONTAINERS]


def _parts(node: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401  (any node of a document)
    if isinstance(node, Mapping):
        if isinstance(node.get("kind"), str) and "name" in node:
            yield node
        for child in node.values():
            yield from _parts(child)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for child in node:
            yield from _parts(child)


def _reliance(kind: str, name: str, probe: str) -> Reliance:
    found = stored_errors()[probe]
    own = [errors for part, errors in found["parts"].items() if _is_of(kind, name, part)]
    errors = own[0] if own else found
    return Reliance(name, probe, bool(own), errors["n"], errors["median"], errors["p90"])


def _is_of(kind: str, name: str, part: str) -> bool:
    if kind == "gpu_arch":
        return part in gpu_names() and gpu(part).architecture.name == name
    return kind == "upmem" or part == name
