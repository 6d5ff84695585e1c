"""Does the wheel install cleanly, carry its data, and run from an empty folder?"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
DATA = (
    *("hwmodels/platform/h100_cxl_pim.yaml", "hwmodels/gpu/arch/sm_90.yaml", "hwmodels/reference/dram_timings.csv"),
    *(
        "scenarios/cxl_pim.yaml",
        "scenarios/policies/ghostkv.yaml",
        "scenarios/outside/policies.yaml",
        "traces/natural_4k/q.npy",
        "traces/README.md",
    ),
)


def execute(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    environment.setdefault("GHOSTSIM_CACHE", str(cwd.parent / "cache"))
    found = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{command}\n{found.stdout}\n{found.stderr}"
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    execute(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the programs of a clean environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    execute(folder / "bin" / "python", "-m", "pip", "install", "-q", wheel, cwd=folder)
    return folder / "bin"


def test_wheel_puts_one_package_on_the_path(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"ghostsim"}


@pytest.mark.parametrize("name", DATA)
def test_wheel_carries_its_data(wheel, name):
    assert f"ghostsim/_bundled/{name}" in zipfile.ZipFile(wheel).namelist()


def test_wheel_carries_every_data_file_of_the_checkout(wheel):
    here = {
        path.relative_to(ROOT).as_posix()
        for folder in ("hwmodels", "scenarios", "traces")
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
    }
    names = zipfile.ZipFile(wheel).namelist()
    assert here == {
        name.removeprefix("ghostsim/_bundled/")
        for name in names
        if name.startswith(tuple(f"ghostsim/_bundled/{folder}/" for folder in ("hwmodels", "scenarios", "traces")))
    }


def test_wheel_carries_licence_and_types(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "ghostsim/py.typed" in names
    for name in ("LICENSE", "NOTICE"):
        assert any(entry.endswith(f".dist-info/licenses/{name}") for entry in names)


def test_wheel_has_no_tests_or_caches(wheel):
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "__pycache__" in name or "/tests/" in name]


def test_installed_program_lists_the_catalogue(installed, tmp_path):
    assert "h100_cxl_pim" in execute(installed / "ghostsim", "list", "platforms", cwd=tmp_path).stdout


def test_installed_program_runs_the_main_scenario(installed, tmp_path):
    found = execute(installed / "ghostsim", "run", "cxl_pim", cwd=tmp_path)
    folder = tmp_path / found.stderr.splitlines()[-1]
    for name in ("manifest.json", "config.yaml", "metrics.json", "steps.csv", "timeline.json.gz", "report.html"):
        assert (folder / name).stat().st_size > 0


def test_installed_environment_is_consistent(installed, tmp_path):
    execute(installed / "python", "-m", "pip", "check", cwd=tmp_path)
