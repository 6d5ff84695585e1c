import sys
from pathlib import Path

import numpy as np
import pytest

from ghostsim.trace.record import Recording, record

sys.path.insert(0, str(Path(__file__).parent))

PROMPT, STEPS = 128, 31


def write_ids(file, count=160, vocabulary=97):
    """Write random token ids that keep clear of the special ones."""
    np.save(file, np.random.default_rng(3).integers(3, vocabulary, count))
    return file


@pytest.fixture
def token_file(tmp_path):
    return lambda name, *size, **limits: write_ids(tmp_path / name, *size, **limits)


@pytest.fixture
def recorded(tmp_path):
    """Record a tiny model, with a text of random tokens unless one is given."""

    def make(model, name="trace", say=lambda _: None, ids=None, **changes):
        text = ids or write_ids(tmp_path / "ids.npy")
        fields = {"prompt_len": PROMPT, "steps": STEPS} | changes
        return record(Recording(model=str(model), text=text, out=tmp_path / name, **fields), say)

    return make
