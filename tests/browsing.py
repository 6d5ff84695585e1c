"""A headless browser: draws a page without a network, and returns what it became and what it said."""

import os
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def needs_browser(test):
    """Mark a test that needs a browser."""
    return pytest.mark.browser(pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")(test))


FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --virtual-time-budget=10000 "
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost"
)


def browse(page, profile, *more, fragment=""):
    """Return the DOM after scripts ran, and what the console said."""
    flags = re.split(r" (?=--)", FLAGS)
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={profile}", *more, "--dump-dom", page.as_uri() + fragment],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env=os.environ | {"LANG": "C.UTF-8"},
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def drawn(dom):
    """Return the figures whose drawing is there."""
    parts = re.findall(r'<figure id="([a-z-]+)"[^>]*>(.*?)</figure>', dom, re.DOTALL)
    return {key for key, body in parts if 'class="main-svg"' in body or 'class="topology"' in body}


def figures(dom):
    return set(re.findall(r'<figure id="([a-z-]+)"[^>]*>', dom))
