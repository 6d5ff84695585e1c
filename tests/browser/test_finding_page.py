"""Does the page of a finding draw what it says, without a network, whatever its texts are?"""

import pytest
from browsing import needs_browser

from ghostsim.config.expressions import Columns
from ghostsim.config.load import load_finding
from ghostsim.findings.answer import answer
from ghostsim.findings.evidence import Gathered
from ghostsim.findings.page import write_answer, write_index
from ghostsim.report.page import write_plotly

FINDING = """
schema: 1
title: "<img src=x onerror=alert(1)>"
question: "Does <b>width</b> help?"
evidence: {grid: {sweep: cxl_link}}
claims: [{name: best, says: "<i>best</i>", value: "min(grid.lanes) / 2", unit: ms, holds: "<= 2"}]
verdict: [{when: best, says: "Yes: <u>{best}</u>."}, {says: "No: {best}."}]
charts:
- {title: lines, x: grid.lanes, y: {"<s>a</s>": grid.ms}, by: grid.kind, log: xy, x_title: lanes, y_title: ms}
- {title: bars, x: grid.kind, y: {a: grid.ms}, kind: bars, x_title: kind, y_title: ms}
- {title: marks, x: grid.ms, y: {a: grid.lanes}, kind: scatter, x_title: ms, y_title: lanes}
not_covered: ["`ghostsim run <x>` does <b>it</b>"]
tables: [{title: "<em>all</em>", columns: {"<tt>ms</tt>": grid.ms, kind: grid.kind}}]
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "width.yaml"
    path.write_text(FINDING)
    columns = Columns(lanes=[4.0, 8.0, 4.0, 8.0], ms=[3.0, 2.0, 5.0, None], kind=["x", "x", "<u>y</u>", "<u>y</u>"])
    found = answer("width", load_finding(path), [Gathered("grid", "ghostsim sweep <cxl>", columns, 4, 1, None)])
    out = tmp_path / "out"
    out.mkdir()
    write_answer(found, out)
    write_index([found], out)
    write_plotly(out)
    return out


@needs_browser
def test_every_figure_renders_offline_without_console_error(folder, visit):
    tab = visit(folder / "width" / "index.html")
    assert tab.drawn() == tab.figures() == {"chart-a", "chart-b", "chart-c"}
    assert tab.said == []


@pytest.mark.parametrize("page", ["width/index.html", "index.html"])
def test_texts_of_a_finding_stay_text(folder, page):
    text = (folder / page).read_text()
    for tag in ("<img", "<b>", "<i>", "<u>", "<s>", "<em>", "<tt>", "<cxl>"):
        assert tag not in text


def test_the_verdict_is_the_heading(folder):
    assert "<h1>Yes: &lt;u&gt;2 ms&lt;/u&gt;.</h1>" in (folder / "width" / "index.html").read_text()


def test_points_that_failed_are_counted(folder):
    assert "1 point failed" in (folder / "width" / "index.html").read_text()


def test_what_stands_in_backticks_is_code(folder):
    page = (folder / "width" / "index.html").read_text()
    assert "<li><code>ghostsim run &lt;x&gt;</code> does &lt;b&gt;it&lt;/b&gt;</li>" in page
