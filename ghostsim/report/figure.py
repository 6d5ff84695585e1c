"""What a figure of a report is: one or more Plotly drawings, a sentence on what to see, and a table of its numbers.

Drawings are plain Plotly JSON without colours of paper, text or grid: the page adds those for light, dark and print.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ghostsim.report.words import number

PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#8f7fd1",
    "#a6a52e",
    "#8c8c8c",
    "#b0683c",
)
"""Distinguishable for most colour-blind readers, on white and on near-black (after Okabe and Ito, 2008)."""
HEAT = ((0, "#f3f6f9"), (0.5, "#5b9bd0"), (1, "#d55e00"))
"""Colours of a heat map, low to high; the page takes its own ground for the lowest, so that it reads on dark too."""
PATTERNS = ("", "/", "x", ".", "\\", "-", "+", "|")
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "cross",
    "triangle-up",
    "star",
    "hexagon",
    "bowtie",
    "pentagon",
    "triangle-down",
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")

Trace = dict[str, Any]
Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """The numbers of a figure; cells are text that is ready to read."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class View:
    """One drawing of a figure: a Plotly figure as JSON, or an SVG picture."""

    name: str
    plot: Mapping[str, Any] | None = None
    svg: str = ""


@dataclass(frozen=True)
class Figure:
    """One figure of a report; where it has several views the reader picks one."""

    key: str
    title: str
    caption: str
    views: Sequence[View]
    table: Table
    chosen: int = 0
    picker: str = ""
    """What the reader picks, e.g. run."""


def plot(traces: Sequence[Trace], height: int, **layout: Any) -> dict[str, Any]:  # noqa: ANN401  (Plotly's layout)
    """Return a Plotly figure with the margins, legend and hover of all figures of a report.

    A single trace that has a name is in a legend too: it may be the one of many parts that is there.
    """
    common = {
        "height": height,
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "hoverlabel": {"namelength": -1},
        "font": {"size": 13},
        "showlegend": any("name" in trace for trace in traces),
    }
    return {"data": list(traces), "layout": common | layout}


_FEW_STEPS = 12
_PLAIN_NUMBERS = {"exponentformat": "none", "separatethousands": True}


def axis(title: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401  (Plotly's axis)
    """Return an axis whose title names quantity and unit."""
    return {"title": {"text": title}, "automargin": True, "zeroline": False} | _PLAIN_NUMBERS | more


def steps_axis(count: int) -> dict[str, Any]:
    """Return an axis of `count` decode steps, without ticks between two of them."""
    return axis("Decode step", **({"dtick": 1} if count <= _FEW_STEPS else {}))


def log_axis(title: str, values: Iterable[float | None], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a logarithmic axis that holds `values`, with few ticks however narrow its range."""
    known = [value for value in values if value is not None and value > 0] or [1.0]
    low, high = min(known), max(known)
    room = max(0.04, 0.06 * math.log10(high / low))
    found: dict[str, Any] = {"type": "log", "range": [math.log10(low) - room, math.log10(high) + room]}
    if high / low > 300:
        return axis(title, dtick=1 + int(math.log10(high / low)) // 9, **(found | more))
    ticks = _ticks(low / 10**room, high * 10**room)
    return axis(title, tickvals=ticks, ticktext=[number(each, 6) for each in ticks], **(found | more))


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`: 1-2-5, or a linear series where these are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    series = [digit * 10.0**power for power in decades for digit in (1, 2, 5)]
    inside = [each for each in series if low <= each <= high]
    if len(inside) >= 4:
        return inside
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(digit for digit in (1, 2, 5, 10) if digit * power >= raw)
    return [step * count for count in range(math.ceil(low / step), math.floor(high / step) + 1)]


def dots(labels: Sequence[str], parts: Mapping[str, Sequence[float | None]], hover: str) -> list[Trace]:
    """Return one mark per label and part, told apart by colour and by symbol."""
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": name,
            "y": list(labels),
            "x": [None if value is None else short(value) for value in values],
            "marker": {
                "symbol": SYMBOLS[index % len(SYMBOLS)],
                "size": 11,
                "color": PALETTE[index % len(PALETTE)],
                "opacity": 0.85,
            },
            "hovertemplate": f"%{{y}}, %{{fullData.name}}: {hover}<extra></extra>",
        }
        for index, (name, values) in enumerate(parts.items())
    ]


def run_mark(label: str, index: int, **more: Any) -> Trace:  # noqa: ANN401  (Plotly's trace)
    """Return the look of a run where it is a trace of its own: colour, dash and symbol, and the name that links it."""
    colour = PALETTE[index % len(PALETTE)]
    return {
        "type": "scatter",
        "name": label,
        "meta": {"run": label},
        "line": {"color": colour, "dash": DASHES[index % len(DASHES)]},
        "marker": {"symbol": SYMBOLS[index % len(SYMBOLS)], "color": colour, "size": 8},
        **more,
    }


_LEAST_LOSS = 1e-8
_LOSS_SCALE = ((224, 176, 16), (94, 176, 98), (38, 142, 150), (92, 104, 190), (160, 62, 160))
"""As viridis, whose lightness falls evenly so that it also reads in grey, but seen on white and on near-black."""


def loss_colour(lost: float) -> str:
    """Return the colour of a lost mass, from 1e-8 or less to all, on a logarithmic scale."""
    place = (math.log10(max(_LEAST_LOSS, lost)) / 8 + 1) * (len(_LOSS_SCALE) - 1)
    low = min(int(place), len(_LOSS_SCALE) - 2)
    pairs = zip(_LOSS_SCALE[low], _LOSS_SCALE[low + 1], strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (place - low)):02x}" for a, b in pairs)


def loss_bar() -> Trace:
    """Return a trace that draws nothing but the scale of `loss_colour`."""
    steps = len(_LOSS_SCALE) - 1
    bar = {
        "title": {"text": "lost, worst"},
        "tickvals": [-8, -6, -4, -2, 0],
        "ticktext": ["1e-8", "1e-6", "1e-4", "1e-2", "1"],
        "thickness": 12,
    }
    scale = [[index / steps, loss_colour(10 ** (8 * index / steps - 8))] for index in range(steps + 1)]
    marker = {"color": [0], "cmin": -8, "cmax": 0, "colorscale": scale, "showscale": True, "colorbar": bar}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "lost mass",
        "x": [None],
        "y": [None],
        "showlegend": False,
        "marker": marker,
    }


def rows_axis(labels: Sequence[str], **more: Any) -> dict[str, Any]:  # noqa: ANN401  (Plotly's axis)
    """Return a category axis with the first label on top."""
    listed = {"type": "category", "categoryorder": "array", "categoryarray": list(labels)}
    return listed | {"autorange": "reversed", "automargin": True, "title": {"text": ""}} | more


def stacked(labels: Sequence[str], parts: Mapping[str, Sequence[float]], hover: str) -> list[Trace]:
    """Return horizontal stacked bars, told apart by colour and by pattern; a part without any value is left out."""
    shown = [(colour, name, values) for colour, (name, values) in enumerate(parts.items()) if any(values)]
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": list(labels),
            "x": [short(value) for value in values],
            "marker": fill(colour, pattern),
            "hovertemplate": f"%{{y}}, %{{fullData.name}}: {hover}<extra></extra>",
        }
        for pattern, (colour, name, values) in enumerate(shown)
    ]


def fill(index: int, pattern_index: int | None = None) -> dict[str, Any]:
    """Return the colour and pattern of the part `index`; parts that keep their colour may count patterns apart."""
    colour = PALETTE[index % len(PALETTE)]
    pattern = PATTERNS[(index if pattern_index is None else pattern_index) % len(PATTERNS)]
    line = {"width": 0.5, "color": "rgba(128,128,128,0.6)"}
    if not pattern:
        return {"color": colour, "line": line}
    drawn = {"shape": pattern, "fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.65)", "size": 6, "solidity": 0.25}
    return {"color": colour, "line": line, "pattern": drawn}


def short(value: float) -> float:
    """Keep six significant digits: more than a pixel shows, and a third of the page's size."""
    return float(f"{value:.6g}")


def script_json(data: object) -> str:
    """Return `data` as JSON that can stand inside <script> whatever text it holds."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def inert(data: object, *, markup: bool = False) -> Any:  # noqa: ANN401  (mirrors its argument)
    """Escape every text of a Plotly figure, which Plotly would read as markup; only templates are ours and stay."""
    if isinstance(data, Mapping):
        return {key: inert(value, markup=str(key).endswith("template")) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [inert(value, markup=markup) for value in data]
    return escape(data, quote=False) if isinstance(data, str) and not markup else data
