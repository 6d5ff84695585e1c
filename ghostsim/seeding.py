"""Random generators keyed by the path of whoever draws, so that adding a component moves no other."""

from __future__ import annotations

import zlib

import numpy as np


def generator(root: int, path: str) -> np.random.Generator:
    """Return the generator of component `path` under the root seed.

    The key is the CRC-32 of each path element, which unlike ``hash`` is the same in every process.
    """
    key = tuple(zlib.crc32(part.encode()) for part in path.split("/"))
    return np.random.default_rng(np.random.SeedSequence(root, spawn_key=key))
