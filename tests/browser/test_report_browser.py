"""Does a browser draw the report, offline, without an error, and without running what a file smuggles in?"""

import re

import pytest
from browsing import CHROMIUM, browse, drawn, figures

from ghostsim.report.page import render_compare, write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


def test_every_figure_renders_offline_without_console_error(run_folder, tmp_path):
    dom, console = browse(write_report(run_folder), tmp_path / "profile")
    assert len(figures(dom)) == 18
    assert drawn(dom) == figures(dom)
    assert console == []


@pytest.mark.slow
def test_dark_scheme_changes_the_ink_of_figures(run_folder, tmp_path):
    page = write_report(run_folder)
    light, _ = browse(page, tmp_path / "light")
    dark, _ = browse(page, tmp_path / "dark", "--blink-settings=preferredColorScheme=0")
    assert drawn(dark) == figures(dark)
    assert ink(dark) != ink(light)


def ink(dom):
    """Return the colour of the first axis title."""
    return re.search(r'class="xtitle"[^>]*fill: (rgb\([^)]*\))', dom)[1]


def test_a_run_picked_by_address_stands_out_in_every_figure_and_table(run_folder, tmp_path):
    dom, console = browse(write_report(run_folder), tmp_path / "profile", fragment="#run=quest")
    assert re.findall(r'<button[^>]*data-run="([^"]*)"[^>]*aria-pressed="true"', dom) == ["quest"]
    assert re.search(r'<tr class="on"><th scope="row">quest</th>', dom)
    assert not re.search(r'<tr class="on"><th scope="row">(?!quest<)', dom)
    parts = dict(re.findall(r'<figure id="([a-z-]+)"[^>]*>(.*?)</figure>', dom, re.DOTALL))
    assert "fill-opacity: 0.22" in parts["throughput"]
    assert "opacity: 0.15" in parts["quality"]
    assert "opacity: 0.15" in parts["frontier"]
    assert console == []


def test_shared_script_draws_too(run_folder, tmp_path):
    dom, console = browse(write_report(run_folder, "directory"), tmp_path / "profile")
    assert drawn(dom) == figures(dom)
    assert console == []


def test_hostile_names_stay_text(hostile_folder, tmp_path):
    dom, console = browse(write_report(hostile_folder), tmp_path / "profile")
    assert drawn(dom) == figures(dom)
    assert re.search("<body[^>]*>", dom)[0] == "<body>"
    assert not re.search(r"<img\b", dom)
    assert console == []


def test_compare_page_renders(run_folder, tmp_path):
    page = tmp_path / "compare.html"
    page.write_text(render_compare([run_folder, run_folder]), encoding="utf-8")
    dom, console = browse(page, tmp_path / "profile")
    assert drawn(dom) == figures(dom) == {"compare-throughput", "compare-latency"}
    assert console == []
