"""A headless browser without a network: what a page became, what it said, and how it answers clicks and keys."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_PATIENCE_MS = 120_000
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--host-resolver-rules=MAP * ~NOTFOUND")


def needs_browser(test):
    """Mark a test that needs a browser."""
    missing = CHROMIUM is None or find_spec("playwright") is None
    return pytest.mark.browser(pytest.mark.skipif(missing, reason="no chromium or playwright on this machine")(test))


@dataclass(frozen=True)
class Tab:
    """An open page, and the errors of its console and its scripts."""

    page: Any
    said: list[str] = field(default_factory=list)

    def figures(self) -> set[str]:
        """Return the figures of the page."""
        return self._keys("figure[id]")

    def drawn(self) -> set[str]:
        """Return the figures whose drawing is there."""
        return self._keys("figure[id]:has(.main-svg, .topology)")

    def trace(self, figure: str, name: str) -> dict[str, Any]:
        """Return how a trace of a drawing looks now: visible, opacity."""
        script = "([key, name]) => document.querySelector(`#${key} .plot`).data.find((one) => one.name === name)"
        return self.page.evaluate(script, [figure, name])

    def _keys(self, selector: str) -> set[str]:
        return {each.get_attribute("id") for each in self.page.locator(selector).all()}


@contextmanager
def browser() -> Iterator[Any]:
    """Start chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


@contextmanager
def visited(started, path, fragment="", **options) -> Iterator[Tab]:
    """Open a file in a window of its own and wait until all its figures are drawn."""
    from playwright.sync_api import expect

    context = started.new_context(offline=True, **options)
    context.set_default_timeout(_PATIENCE_MS)
    tab = Tab(context.new_page())
    tab.page.on("console", lambda line: tab.said.append(line.text) if line.type == "error" else None)
    tab.page.on("pageerror", lambda error: tab.said.append(str(error)))
    tab.page.goto(path.as_uri() + fragment)
    expect(tab.page.locator(".plot:not(.js-plotly-plot)")).to_have_count(0, timeout=_PATIENCE_MS)
    yield tab
    context.close()
