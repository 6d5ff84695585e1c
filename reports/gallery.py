"""Makes the gallery: finished reports of the bundled scenarios, a picture of each, and a page that lists them.

``python reports/gallery.py`` runs every scenario named below and replaces ``reports/gallery``; with names only those.
Pictures need Debian's chromium. The reports share one copy of Plotly.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from ghostsim.report.facts import facts_of
from ghostsim.report.page import render, write_plotly, write_text
from ghostsim.report.store import RunFolder, load_run
from ghostsim.report.verdict import verdict

GALLERY = Path(__file__).parent / "gallery"
SCENARIOS = (
    "cxl_pim", "recorded_4k", "filter_sites", "prefetch", "resurrection", "dense_hbm", "serving_chat", "serving_agents",
)  # fmt: skip
"""Those whose runs take seconds to a minute."""
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=8000 "
    "--window-size=1080,2060 --force-device-scale-factor=0.55"
)


def main(names: tuple[str, ...]) -> None:
    """Make the reports of some scenarios, and the list of all that are there."""
    GALLERY.mkdir(exist_ok=True)
    write_plotly(GALLERY)
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            run = Path(scratch) / name
            command = [sys.executable, "-m", "ghostsim", "run", name, "--out", str(run), "--quiet"]
            subprocess.run(command, check=True)
            _publish(name, run)
    write_text(GALLERY / "index.html", _index())


def _publish(name: str, run: Path) -> None:
    page = GALLERY / name / "report.html"
    page.parent.mkdir(exist_ok=True)
    write_text(page, render(run, "directory"))
    (page.parent / "summary.txt").write_text(_heading(load_run(run)) + "\n", encoding="utf-8")
    _picture(page, GALLERY / f"{name}.png")


def _heading(run: RunFolder) -> str:
    return verdict(run.metrics, facts_of(run)).heading


def _picture(page: Path, target: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("found no chromium, expected it for the pictures, e.g. apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        flags = [*_FLAGS.split(), f"--user-data-dir={profile}", f"--screenshot={target}"]
        command = [chromium, *flags, page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def _index() -> str:
    headings = {name: GALLERY / name / "summary.txt" for name in SCENARIOS}
    reports = {name: path.read_text(encoding="utf-8").strip() for name, path in headings.items() if path.is_file()}
    findings = (GALLERY / "findings" / "index.html").is_file()  # `make findings` writes them
    root = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(root / "templates"), autoescape=True, trim_blocks=True)
    style = Markup((root / "assets" / "report.css").read_text(encoding="utf-8"))  # noqa: S704  (our own file)
    return environment.get_template("gallery.html.j2").render(reports=reports, style=style, findings=findings)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or SCENARIOS)
