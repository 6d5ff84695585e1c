"""The command line as a user's shell sees it."""

import os
import subprocess
import sys

import pytest
from tiny import SCENARIO


@pytest.fixture(scope="session")
def selections(tmp_path_factory):
    """Return a cache that lives as long as the tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def beside_tiny(tmp_path, monkeypatch, selections):
    """Return a function that writes a file beside the tiny scenario; what is computed of it is cached."""
    monkeypatch.setenv("GHOSTSIM_CACHE", str(selections))
    (tmp_path / "tiny.yaml").write_text(SCENARIO)

    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.fixture(scope="session")
def ghostsim():
    """Run the program in a process of its own and return what it printed and its exit code."""

    def call(*args, cwd, **env):
        return subprocess.run(
            [sys.executable, "-m", "ghostsim", *map(str, args)], cwd=cwd, capture_output=True, text=True,
            env=os.environ | {"PYTHONHASHSEED": "random"} | env, check=False,
        )  # fmt: skip

    return call


@pytest.fixture
def refused(ghostsim, tmp_path):
    """Assert that a call ends in one line, without a traceback, with an exit code; return the line."""

    def call(code, *args):
        result = ghostsim(*args, cwd=tmp_path)
        assert result.returncode == code, result.stderr
        assert result.stdout == ""
        assert result.stderr.count("\n") == 1, result.stderr
        return result.stderr.rstrip()

    return call
