"""Makes the gallery: finished reports of the bundled scenarios, a picture of each, and a page that lists them.

``python reports/gallery.py`` runs every scenario named below and replaces ``reports/gallery``; with names only those.
Pictures need Debian's chromium. The reports share one copy of Plotly.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from ghostsim.report.facts import facts_of
from ghostsim.report.page import render, write_plotly, write_text
from ghostsim.report.store import RunFolder, load_run
from ghostsim.report.verdict import verdict

GALLERY = Path(__file__).parent / "gallery"
SCENARIOS = ("cxl_pim", "recorded_4k", "filter_sites", "prefetch", "resurrection", "dense_hbm", "serving_chat")
"""Those whose runs take seconds to a minute."""
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars --virtual-time-budget=8000 --window-size=1080,1180 --force-device-scale-factor=0.7"
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
        subprocess.run([chromium, *flags, f"{page.resolve().as_uri()}#speed"], check=True, capture_output=True, timeout=120)


def _index() -> str:
    style = (Path(__file__).parent / "assets" / "report.css").read_text(encoding="utf-8")
    names = [name for name in SCENARIOS if (GALLERY / name / "report.html").is_file()]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>Gallery &ndash; ghostsim</title>\n'
        f"<style>{style}{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Reports of the bundled scenarios</h1>\n"
        "<p>Each is what <code>ghostsim run NAME</code> writes. Make them again with <code>make gallery</code>.</p>\n"
        f'<ul class="gallery">\n{"".join(map(_entry, names))}</ul>\n</main>\n</body>\n</html>\n'
    )


def _entry(name: str) -> str:
    heading = escape((GALLERY / name / "summary.txt").read_text(encoding="utf-8").strip())
    link = f"{name}/report.html"
    return (
        f'<li><h2><a href="{link}">{name}</a></h2><p>{heading}</p>'
        f'<a href="{link}"><img src="{name}.png" alt="Tokens per second and step latency in the report of {name}" loading="lazy"></a></li>\n'
    )


_STYLE = (
    ".gallery { list-style: none; padding: 0; display: grid; gap: 2rem; "
    "grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); } "
    ".gallery img { width: 100%; border: 1px solid var(--line); border-radius: 8px; } .gallery h2 { margin-top: 0; }"
)


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or SCENARIOS)
