"""Which of several costs nothing beats in every respect."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def undominated(costs: Mapping[Key, tuple[float, ...]]) -> list[Key]:
    """Return the keys whose costs no other's equal or undercut throughout; equals keep each other company."""
    return [
        key
        for key, mine in costs.items()
        if not any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in costs.values())
    ]
