"""`ghostsim calibrate gpu`: from the GPU of this machine to a folder with its table and its part."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ghostsim.accuracy.report import AccuracyResult, accuracy
from ghostsim.calibrate.measure import Clock, Progress, measure
from ghostsim.calibrate.output import PART, TABLE, write
from ghostsim.calibrate.points import Machine
from ghostsim.config.load import load_gpu
from ghostsim.errors import GhostsimError


def find_gpu() -> tuple[Clock, Machine]:
    """Return a clock and the description of this machine's first GPU.

    Raises
    ------
    GhostsimError
        If torch, Triton or a CUDA GPU is missing.
    """
    if find_spec("torch") is None:
        raise GhostsimError('found no torch, expected a CUDA build of it: pip install "ghostsim[record]"')
    import torch  # noqa: PLC0415  (an extra)

    expected = "expected an NVIDIA GPU with its driver and a CUDA build of torch"
    if torch.version.cuda is None:
        raise GhostsimError(f"found torch {torch.__version__} without CUDA, {expected}")
    if not torch.cuda.is_available():
        raise GhostsimError(f"found torch {torch.__version__} but no GPU that it can use, {expected}")
    if find_spec("triton") is None:
        raise GhostsimError("found no triton, expected it beside torch, as in its CUDA builds: pip install triton")
    from ghostsim.calibrate.cuda import CudaClock, machine  # noqa: PLC0415  (needs what was just looked for)

    described = machine()
    return CudaClock(described), described


def calibrate(clock: Clock, machine: Machine, folder: Path, name: str, say: Progress) -> AccuracyResult:
    """Measure all points and write table and part into a folder; return how well the part predicts the table."""
    write(folder, machine, measure(clock, machine, say), name)
    return accuracy([folder / TABLE], [load_gpu(folder / PART)])
