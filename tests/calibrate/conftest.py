"""Kernels on small buffers: on a GPU if there is one, else in Triton's interpreter."""

import os
from importlib.util import find_spec

import pytest

KIB = 1024


def has_gpu():
    if find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415  (an extra)

    return torch.cuda.is_available()


if not has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported


@pytest.fixture
def works():
    pytest.importorskip("triton")
    from ghostsim.calibrate.works import Works  # noqa: PLC0415  (needs Triton)

    device = "cuda" if has_gpu() else "cpu"
    return Works(device, buffer_bytes=256 * KIB, host_bytes=256 * KIB, cold_bytes=KIB, chain=64)
