"""Does a machine without what a calibration needs say so in one line, and write nothing?"""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from ghostsim.calibrate import gpu
from ghostsim.errors import GhostsimError


def test_without_torch_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda _: None)
    with pytest.raises(GhostsimError, match=r'found no torch, .*pip install "ghostsim\[record\]"') as found:
        gpu.find_gpu()
    assert found.value.exit_code == 1


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_without_a_gpu_it_says_what_it_needs(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "ghostsim", "calibrate", "gpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "expected an NVIDIA GPU with its driver and a CUDA build of torch" in done.stderr
    assert list(tmp_path.iterdir()) == []
