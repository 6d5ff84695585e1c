"""Renders answers: a page for each finding, and an index of their verdicts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from ghostsim.findings.answer import Answer, Curve, Drawn, Held
from ghostsim.findings.evidence import Gathered
from ghostsim.report.figure import Figure, Table, Trace, View, axis, fill, log_axis, plot, run_mark, short
from ghostsim.report.page import whole_page, write_text
from ghostsim.report.words import number, plural

_HEIGHT = 420
_INDEX = "index.html"
OUTCOMES = {True: "holds", False: "does not hold", None: ""}


def write_answer(found: Answer, folder: Path) -> None:
    """Write the page of a finding and the pages of its evidence, each into a folder of its own below `folder`."""
    pages = {each.name: page_name(each) for each in found.evidence if each.page is not None}
    for each in found.evidence:
        if each.page is not None:
            _place(folder / pages[each.name], each.page.read_text(encoding="utf-8"))
    _place(folder / found.name, _render(found, pages))


def page_name(evidence: Gathered) -> str:
    """Return the folder of a piece of evidence: its command without options' dashes."""
    return "-".join(evidence.command.removeprefix("ghostsim ").replace("--", "").replace("/", "_").split())[:100]


def _place(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    write_text(folder / _INDEX, text)


def _render(found: Answer, pages: Mapping[str, str]) -> str:
    figures = [_figure(drawn, index) for index, drawn in enumerate(found.charts)]
    return whole_page(
        "finding.html.j2",
        "directory",
        [("Figures", figures)] if figures else [],
        title=found.finding.title,
        heading=found.headline,
        found=found,
        claims=_claims(found.claims),
        evidence=[(each, pages.get(each.name)) for each in found.evidence],
        points=plural(found.points, "point"),
        tables=[(title, _table(columns)) for title, columns in found.tables],
    )


def _claims(claims: Sequence[Held]) -> Table:
    """Return the claims as rows, without columns that are empty throughout."""
    header = ["Claim", "As published", "Corrected", "Found", "Must be", "Verdict", "Note"]
    rows = [
        [each.claim.says, each.claim.published or "", each.claim.corrected or "", each.text, each.bar,
         OUTCOMES[each.holds], each.claim.note or ""]
        for each in claims
    ]  # fmt: skip
    used = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return Table([header[i] for i in used], [[row[i] for i in used] for row in rows])


def _table(columns: Mapping[str, Sequence[Any]]) -> Table:
    rows = zip_longest(*columns.values(), fillvalue="")
    return Table(list(columns), [[_cell(cell) for cell in row] for row in rows])


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e9:
        return f"{value:,.0f}"
    if isinstance(value, int | float):
        return "-" if math.isnan(value) else number(float(value), 4)
    return str(value)


# --- charts ------------------------------------------------------------------------------------------------------


def _figure(drawn: Drawn, index: int) -> Figure:
    chart = drawn.chart
    traces = [_trace(curve, i, chart.kind) for i, curve in enumerate(drawn.curves)]
    layout = {
        "xaxis": _axis(chart.x_title, _xs(drawn), "x" in chart.log),
        "yaxis": _axis(chart.y_title, _ys(drawn), "y" in chart.log),
    }
    view = View("", plot(traces, _HEIGHT, **layout))
    return Figure(f"chart-{ascii_lowercase[index]}", chart.title, chart.caption or "", [view], _numbers(drawn))


def _axis(title: str, values: Sequence[Any], log: bool) -> dict[str, Any]:
    numbers = [each for each in values if isinstance(each, int | float)]
    if log and numbers:
        return log_axis(title, numbers)
    return axis(title) if len(numbers) == len(values) else axis(title, type="category")


def _xs(drawn: Drawn) -> list[Any]:
    return [x for curve in drawn.curves for x in curve.x]


def _ys(drawn: Drawn) -> list[Any]:
    return [y for curve in drawn.curves for y in curve.y]


def _trace(curve: Curve, index: int, kind: str) -> Trace:
    points = {
        "x": [short(x) if isinstance(x, float) else x for x in curve.x],
        "y": [short(y) for y in curve.y],
    }
    if kind == "bars":
        return {"type": "bar", "name": curve.name, "marker": fill(index), **points}
    return run_mark(curve.name, index, mode="markers" if kind == "scatter" else "lines+markers", **points)


def _numbers(drawn: Drawn) -> Table:
    rows = [[curve.name, _cell(x), _cell(y)] for curve in drawn.curves for x, y in zip(curve.x, curve.y, strict=True)]
    return Table(["Curve", drawn.chart.x_title, drawn.chart.y_title], rows)


# --- the index ---------------------------------------------------------------------------------------------------


def write_index(answers: Sequence[Answer], folder: Path) -> None:
    """Write the page that lists the verdicts."""
    counts = {each.name: _count(each) for each in answers}
    page = whole_page(
        "findings.html.j2", "directory", [], title="Findings", heading="Findings", findings=answers, counts=counts
    )
    write_text(folder / _INDEX, page)


def _count(found: Answer) -> str:
    judged = [each.holds for each in found.claims if each.holds is not None]
    return f"{sum(judged)} of {plural(len(judged), 'claim')} hold; {plural(found.points, 'point')}"


def as_data(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the answers as an object with `schema` 1."""
    return {
        "schema": 1,
        "points": sum(each.points for each in answers),
        "findings": {each.name: _data(each) for each in answers},
    }


def _data(found: Answer) -> dict[str, Any]:
    return {
        "title": found.finding.title,
        "question": found.finding.question,
        "headline": found.headline,
        "verdict": found.verdict,
        "points": found.points,
        "claims": {
            each.claim.name: {"says": each.claim.says, "value": each.value, "holds": each.holds}
            for each in found.claims
        },
        "evidence": [each.command for each in found.evidence],
    }
