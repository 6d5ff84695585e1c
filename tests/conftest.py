"""What all tests share: one BLAS thread, as in every command, helpers that lie beside this file, and turns.

A test that measures speed has the machine to itself: other workers wait for it between their tests.
"""

import fcntl
import os
import sys
from pathlib import Path

import pytest

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

sys.path.insert(0, str(Path(__file__).parent))

ROOM, DOOR = (os.open(folder, os.O_RDONLY) for folder in (Path(__file__).parent, Path(__file__).parent / "bench"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Run a bench alone: whoever wants in goes through the door, where a bench stands until the room is its own."""
    how = fcntl.LOCK_EX if item.get_closest_marker("bench") else fcntl.LOCK_SH
    fcntl.flock(DOOR, how)
    fcntl.flock(ROOM, how)
    fcntl.flock(DOOR, fcntl.LOCK_UN)
    try:
        return (yield)
    finally:
        fcntl.flock(ROOM, fcntl.LOCK_UN)
