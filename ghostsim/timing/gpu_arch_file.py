"""Reads the kernel constants of a GPU architecture, ``hwmodels/gpu/arch/NAME.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ghostsim import bundled
from ghostsim.errors import ConfigError, Location
from ghostsim.timing.gpu_kernels import AttentionParams, GemmParams
from ghostsim.units import DURATION

_PS_PER_US = 1_000_000
T = TypeVar("T", AttentionParams, GemmParams)


@dataclass(frozen=True)
class GpuArch:
    """Kernel constants of one architecture, by kernel family."""

    name: str
    attention: Mapping[str, AttentionParams]
    gemm: Mapping[str, GemmParams]

    def attention_params(self, family: str, q_heads: int, kv_heads: int) -> AttentionParams:
        """Return the constants for `family`, of its own kernel for one query head per KV head if it has one.

        Raises
        ------
        KeyError
            If the architecture has no such family.
        """
        own = f"{family}_mha"
        return self.attention[own if q_heads == kv_heads and own in self.attention else family]


def arch_path(name: str) -> Path:
    """Return the file of architecture `name`."""
    return bundled.folder("hwmodels") / "gpu" / "arch" / f"{name}.yaml"


@cache
def load_arch(name: str) -> GpuArch:
    """Return the kernel constants of `name`; a file or a family that says ``like: X`` takes those of X.

    Raises
    ------
    ConfigError
        If there is no such architecture or its file misses a constant.
    """
    path = arch_path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"found GPU architecture {name!r}, expected one of {known}, e.g. 'sm_90'")
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "like" in data:
        like = load_arch(data["like"])
        return GpuArch(name, like.attention, like.gemm)
    attention = {family: _block(path, data["attention"], family, AttentionParams) for family in data["attention"]}
    gemm = {family: _block(path, data["gemm"], family, GemmParams) for family in data["gemm"]}
    return GpuArch(name, attention, gemm)


def _block(path: Path, families: Mapping[str, Mapping[str, Any]], family: str, params: type[T]) -> T:
    block = families[family]
    if "like" in block:
        return _block(path, families, block["like"], params)
    try:
        return params(**{field.name: _number(block, field.name) for field in fields(params)})  # type: ignore[arg-type]
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{family}: found {error}, expected a duration, e.g. '17.2 us'", Location(path)) from None


def _number(block: Mapping[str, Any], name: str) -> float:
    """Return a constant; ``floor_us`` is written ``floor: "17.2 us"`` in the file."""
    if name.endswith("_us"):
        return DURATION.parse(block[name.removesuffix("_us")]) / _PS_PER_US
    return block[name]  # type: ignore[no-any-return]
