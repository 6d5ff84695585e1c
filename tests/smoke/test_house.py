"""Is the house in order: top level, layers, style, types, and documents that say what is there?"""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ghostsim.config import catalogue

ROOT = Path(__file__).resolve().parents[2]
TOP = {
    *("ghostsim", "hwmodels", "traces", "scenarios", "reports", "tests", ".ci"),
    *("pyproject.toml", "README.md", "CONTRIBUTING.md", "LICENSE", "NOTICE", "Makefile", ".gitignore"),
}
TEXTS = (".py", ".md", ".yaml", ".toml", ".j2", ".js", ".css", ".html")


def ignored(name: str) -> bool:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return any(fnmatch.fnmatch(name, line.strip("/")) for line in lines)


def files() -> list[Path]:
    tops = sorted(TOP - {".ci"})
    walked = (path for top in tops for path in ((ROOT / top).rglob("*") if (ROOT / top).is_dir() else [ROOT / top]))
    return [path for path in walked if path.is_file() and not any(ignored(part) for part in path.parts[-4:])]


def program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_top_level_holds_exactly_what_it_should():
    found = {path.name for path in ROOT.iterdir() if path.name != ".git" and not ignored(path.name)}
    assert found == TOP


def test_layers_of_the_house_hold():
    found = program("lint-imports", "--no-cache", "--no-logo")
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_package_is_a_layer():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    entries = {path.stem for path in (ROOT / "ghostsim").iterdir() if path.name not in {"__init__.py", "py.typed"}}
    rooms = {name for name in entries if not name.startswith("_")}
    assert sorted(rooms - set(re.findall(r"ghostsim\.(\w+)", text))) == []


@pytest.mark.slow
def test_style_is_clean():
    for arguments in (("check",), ("format", "--check")):
        found = program("ruff", *arguments, "ghostsim", "tests")
        assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.slow
def test_types_are_sound():
    found = program("mypy")
    assert found.returncode == 0, found.stdout + found.stderr


def test_names_of_test_files_are_unique():
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_text_names_a_folder_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w.{])/(?:root|work|home)/\w")
    texts = [path for path in files() if path.suffix in TEXTS and path != Path(__file__).resolve()]
    assert [path.name for path in texts if pattern.search(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "hwmodels/README.md"])
def test_documents_name_only_what_exists(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:ghostsim|hwmodels|scenarios|traces|reports|tests|\.ci)/[\w./-]*[\w-]", text))
    assert sorted(name for name in named if not re.search(r"[A-Z]{4}", name) and not (ROOT / name).exists()) == []


def test_ci_runs_the_command_of_the_readme():
    pattern = re.search(r"grep -m1 -E '([^']+)' README", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert pattern
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    (command,) = [line.strip() for line in lines if re.search(pattern[1], line)]
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith("pytest")


def test_wheel_takes_every_data_folder():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("hwmodels", "traces", "scenarios"):
        assert f'{name} = "ghostsim/_bundled/{name}"' in text


OVER_SCENARIOS = sorted(path for kind in ("sweeps", "searches") for path in (ROOT / "scenarios" / kind).glob("*.yaml"))


@pytest.mark.parametrize("path", OVER_SCENARIOS, ids=lambda path: path.stem)
def test_sweeps_and_searches_name_bundled_scenarios(path):
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["scenario"] in catalogue.files("scenario")
