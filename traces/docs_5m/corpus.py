"""Collects the training text from installed Debian packages, all of it under permissive licences.

    apt-get install python3.11-doc libpython3.11-stdlib postgresql-doc-15 sqlite3-doc jargon-text
    python traces/docs_5m/corpus.py CORPUS

writes CORPUS/train/*.txt and CORPUS/heldout/*.txt. Documents are held out by a hash of their name, and some by name
because traces are recorded of them.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from tasks import server_log

HELD_OUT = {"python/whatsnew/3.10", "python/library/socket", "postgresql/app-psql", "stdlib/tarfile"}
"""Documents that traces are recorded of."""
HELD_OUT_SHARE = 0.02
BLOCKS = {"p", "div", "li", "tr", "pre", "h1", "h2", "h3", "h4", "dt", "dd", "table", "br"}
LOGS, LOG_LINES = 250, 300


class Text(HTMLParser):
    """The words of an HTML page, a line per block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Start a line at a block."""
        self.hidden += tag in {"script", "style"}
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Show text again after a script."""
        self.hidden -= tag in {"script", "style"}

    def handle_data(self, data: str) -> None:
        """Keep visible text."""
        if not self.hidden:
            self.parts.append(data)


def html_text(path: Path) -> str:
    """Return the visible text of a page."""
    parser = Text()
    parser.feed(path.read_text(encoding="utf-8", errors="replace"))
    return re.sub(r"\n\s*\n+", "\n\n", "".join(parser.parts)).strip()


def documents(root: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every document."""
    share = root / "usr/share/doc"
    sources = share / "python3.11/html/_sources"
    for path in sorted(sources.rglob("*.rst.txt")):
        yield f"python/{path.relative_to(sources)}".removesuffix(".rst.txt"), path.read_text(encoding="utf-8")
    library = root / "usr/lib/python3.11"
    for path in sorted([*library.glob("*.py"), *library.glob("[a-z]*/*.py")]):
        if not {"test", "tests", "dist-packages", "lib2to3", "encodings"} & set(path.parts):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield f"stdlib/{path.relative_to(library)}".removesuffix(".py"), text
    for package, name in (("postgresql-doc-15/html", "postgresql"), ("sqlite3", "sqlite")):
        for path in sorted((share / package).rglob("*.html")):
            yield f"{name}/{path.relative_to(share / package)}".removesuffix(".html"), html_text(path)
    with gzip.open(share / "jargon-text/jargon.txt.gz", "rt", encoding="utf-8", errors="replace") as file:
        yield "jargon/jargon", file.read()
    for seed in range(LOGS):
        yield f"log/{seed:03}", server_log(np.random.default_rng(seed), LOG_LINES)


def held_out(name: str) -> bool:
    """Say whether a document is kept from training."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return name in HELD_OUT or digest < HELD_OUT_SHARE


def collect(root: Path, out: Path) -> dict[str, int]:
    """Write the documents; return the bytes of each part."""
    sizes = {"train": 0, "heldout": 0}
    for name, text in documents(root):
        part = "heldout" if held_out(name) else "train"
        path = out / part / f"{name.replace('/', '.')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sizes[part] += len(text.encode())
    return sizes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the packages are unpacked")
    asked = parser.parse_args()
    print(collect(asked.root, asked.out))
