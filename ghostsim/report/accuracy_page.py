"""Renders how far the models are from measurements: one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostsim.accuracy.fitted import fitted_constants
from ghostsim.accuracy.report import BARS, TITLES, AccuracyResult, Errors, Prediction
from ghostsim.report.figure import PALETTE, SYMBOLS, Figure, Table, Trace, View, axis, plot, short
from ghostsim.report.page import whole_page
from ghostsim.report.words import listing, plural

_WORST = 5
_BANDS = ((0.1, "dash"), (0.2, "dot"))
_GREY = "#8c8c8c"
_BIN = 2.5
_WIDEST = 40.0
"""Bins of the histogram and its ends, in per cent."""
_GUIDE = (
    "Left of each figure every point is a row of a table. On the line the model is right; the dashed lines are 10 % "
    "off, the dotted ones 20 %. On the right the signed errors are counted; the outer bars hold all beyond "
    f"{_WIDEST:.0f} %."
)
_STATISTICS = ("Rows", "Skipped", "Median error", "90th percentile", "Largest", "Bias", "Bar: median / p90")
_METHOD = [
    "Every row of a table is asked of the models that the simulation uses, under the conditions of the row.",
    "Error is |predicted - measured| / measured; bias is the median of (predicted - measured) / measured.",
    "Percentiles interpolate linearly. A row is skipped only if no model knows its controller's settings.",
    (
        "The DRAM models have no fitted constant. Constants of GPU kernels belong to a kernel family on an "
        "architecture, never to a part: a GPU without rows takes its data sheet and those of its architecture, and is "
        "held to 15 / 40 %."
    ),
    (
        "Constants are fitted to the bundled tables, so their errors there flatter them; the errors on rows that were "
        "held out say what to expect of another table."
    ),
]


def render_accuracy(found: AccuracyResult) -> str:
    """Return the page as HTML that needs nothing but a browser; the same predictions give the same bytes."""
    probes = found.probes()
    return whole_page(
        "accuracy.html.j2",
        "embed",
        [("Predicted against measured", [_figure(found, probe, parts) for probe, parts in probes.items()])],
        title="accuracy of the models",
        heading=heading(found),
        summary=_summary(found),
        guide=_GUIDE,
        worst=_worst(found),
        fitted=_fitted(probes),
        method=_METHOD,
    )


def heading(found: AccuracyResult) -> str:
    """Return how many rows there are and which bars they miss."""
    errors = {probe: found.errors(probe) for probe in found.probes()}
    judged = [probe for probe in errors if probe in BARS and errors[probe].n]
    missed = [TITLES[probe] for probe in judged if not errors[probe].meets(BARS[probe])]
    rows = plural(sum(each.n for each in errors.values()), "measured row")
    if not judged:
        return f"{rows}; no probe among them has a bar"
    bars = f"{len(judged) - len(missed)} of {len(judged)} probes stay within their bars"
    return f"{rows}: {bars}" + (f"; {listing(missed)} do not" if missed else "")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}\u00a0%"


def _cells(errors: Errors, probe: str) -> list[str]:
    bar = " / ".join(f"{100 * limit:.0f}" for limit in BARS[probe]) + "\u00a0%" if probe in BARS else "none"
    shares = [_percent(each) for each in (errors.median, errors.p90, errors.max, errors.bias)]
    return [f"{errors.n:,}", f"{errors.skipped:,}", *shares, bar]


def _summary(found: AccuracyResult) -> Table:
    rows = [[TITLES[probe], *_cells(found.errors(probe), probe)] for probe in found.probes()]
    return Table(["Probe", *_STATISTICS], rows)


def _worst(found: AccuracyResult) -> Table:
    rows = [
        [TITLES[probe], each.place, each.conditions, *each.figures]
        for probe in found.probes()
        for each in found.worst(probe, _WORST)
    ]
    return Table(["Probe", "Table and line", "Conditions", "Measured", "Predicted", "Error, %"], rows)


def _fitted(probes: Mapping[str, object]) -> Table:
    shown = [each for each in fitted_constants() if each.probe in probes]
    return Table(["Constants", "Belong to", "Fitted to"], [[each.name, each.belongs_to, each.source] for each in shown])


def _figure(found: AccuracyResult, probe: str, parts: Mapping[str, Sequence[Prediction]]) -> Figure:
    answered = {part: [each for each in rows if each.predicted is not None] for part, rows in parts.items()}
    unit = next(iter(parts.values()))[0].measured.row["unit"]
    values = [each.measured.value for rows in answered.values() for each in rows] or [1.0]
    log = {"type": "log", "tickformat": ",~r", "dtick": _ticks(max(values) / min(values))}
    drawn = plot(
        [*_bands(values), *_clouds(answered), *_histograms(answered)],
        430,
        xaxis=axis(f"Measured, {unit} (log)", domain=[0, 0.6], **log),
        yaxis=axis(f"Predicted, {unit} (log)", **log),
        xaxis2=axis("Error, %", domain=[0.69, 1], anchor="y2", range=[-_WIDEST - _BIN, _WIDEST + _BIN]),
        yaxis2=axis("Rows", anchor="x2", side="left"),
        barmode="stack",
        bargap=0.05,
    )
    rows = [[part, *_cells(Errors.of(some), probe)] for part, some in parts.items()]
    table = Table(["Part", *_STATISTICS], [["all", *_cells(found.errors(probe), probe)], *rows])
    return Figure(probe.replace("_", "-"), TITLES[probe], _caption(found, probe), [View("all", drawn)], table)


def _ticks(ratio: float) -> int | str:
    """Return what a logarithmic axis names: powers of ten over a wide range, 1, 2 and 5 or every digit over less."""
    return 1 if ratio > 30 else "D2" if ratio > 4 else "D1"


def _caption(found: AccuracyResult, probe: str) -> str:
    errors = found.errors(probe)
    if not errors.n:
        return "No row has settings that the models know."
    (worst,) = found.worst(probe, 1)
    value, predicted, error = worst.figures
    return (
        f"Half of the rows are off by {_percent(errors.median)} or less, nine in ten by {_percent(errors.p90)}. The "
        f"worst is {worst.conditions}: {predicted} instead of {value}, {error} %."
    )


def _bands(values: Sequence[float]) -> list[Trace]:
    """Return the line of equality and those beside it."""
    ends = [min(values) / 1.2, max(values) * 1.2]
    lines = [(1.0, "solid"), *((1 + sign * off, dash) for off, dash in _BANDS for sign in (1, -1))]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [short(end) for end in ends],
            "y": [short(end * factor) for end in ends],
            "line": {"color": _GREY, "width": 1, "dash": dash},
            "hoverinfo": "skip",
            "showlegend": False,
        }
        for factor, dash in lines
    ]


def _clouds(parts: Mapping[str, Sequence[Prediction]]) -> list[Trace]:
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": part,
            "legendgroup": part,
            "x": [short(each.measured.value) for each in rows],
            "y": [short(each.predicted or 0.0) for each in rows],
            "marker": {
                "color": _colour(i),
                "symbol": SYMBOLS[i // len(PALETTE) % len(SYMBOLS)],
                "size": 6,
                "opacity": 0.7,
            },
            "customdata": [f"{each.place}: {each.conditions}: {' '.join(each.figures)} %" for each in rows],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        for i, (part, rows) in enumerate(parts.items())
    ]


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _histograms(parts: Mapping[str, Sequence[Prediction]]) -> list[Trace]:
    """Return the bars of each part; all of them add up."""
    count = round(2 * _WIDEST / _BIN)
    centres = [(i + 0.5) * _BIN - _WIDEST for i in range(count)]
    return [
        {
            "type": "bar",
            "name": part,
            "legendgroup": part,
            "showlegend": False,
            "xaxis": "x2",
            "yaxis": "y2",
            "x": centres,
            "y": _counts([100 * each.error for each in rows], count),
            "marker": {"color": _colour(i)},
            "hovertemplate": f"%{{y}} rows around %{{x}} %, {_template(part)}<extra></extra>",
        }
        for i, (part, rows) in enumerate(parts.items())
    ]


def _counts(errors: Sequence[float], count: int) -> list[int]:
    found = [0] * count
    for error in errors:
        found[min(max(int((error + _WIDEST) // _BIN), 0), count - 1)] += 1
    return found


def _template(part: str) -> str:
    """Return the part as a text that a template cannot read as markup."""
    return "".join(letter if letter.isalnum() or letter in "-_. ()/" else "_" for letter in part)
