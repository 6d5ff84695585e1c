"""The platform as a picture: devices, tiers and links, shaded by how busy a run keeps them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import networkx as nx

from ghostsim.export.capacities import link_bandwidth, platform_of
from ghostsim.report.figure import Figure, Table, View
from ghostsim.report.store import RunFolder
from ghostsim.report.words import share, size

_BOX_WIDTH, _BOX_HEIGHT = 225, 92
_COLUMN, _ROW = 430, 140
_MARGIN = 12
_LINE = 21
_TRUNK = 24
"""Width of the stretch in which the links of one device part."""


def topology(run: RunFolder, chosen: str) -> Figure | None:
    """Draw the platform of every run."""
    runs = run.metrics["runs"]
    platforms = {label: platform_of(run.config, label) for label in runs}
    drawn = {label: platform for label, platform in platforms.items() if platform.get("devices")}
    if not drawn:
        return None
    views = [View(label, svg=_picture(platform, runs[label]["utilisation"])) for label, platform in drawn.items()]
    rows = [row for label, platform in drawn.items() for row in _rows(label, platform, runs[label]["utilisation"])]
    caption = (
        "Boxes are devices with the tier they serve, lines are links with what they carry per direction. Bars in "
        "boxes, thick lines and percentages show the busiest part of each in the chosen run."
    )
    table = Table(["Run", "Name", "What", "Detail", "Busiest part", "Busy"], rows)
    labels = list(drawn)
    return Figure(
        "topology", "The platform", caption, views, table, labels.index(chosen) if chosen in labels else 0, "run"
    )


def busiest(name: str, utilisation: Mapping[str, float]) -> tuple[str, float] | None:
    """Return the busiest resource that belongs to the device or link `name`: its first word is that name."""
    own = [
        (resource, used) for resource, used in utilisation.items() if re.split(r"[^A-Za-z0-9_-]", resource)[0] == name
    ]
    return max(own, key=lambda item: item[1]) if own else None


def _rows(label: str, platform: Mapping[str, Any], utilisation: Mapping[str, float]) -> Iterable[list[str]]:
    for name, device in platform["devices"].items():
        used = busiest(name, utilisation)
        detail = ", ".join([str(device.get("name", "")), *_tiers(platform, name)]).strip(", ")
        yield [label, name, _kind(device), detail, used[0] if used else "-", share(used[1]) if used else "-"]
    for name, link in platform.get("links", {}).items():
        used = busiest(name, utilisation)
        ends = " to ".join(map(str, link.get("between", ())))
        yield [label, name, "link", f"{ends}, {_rate(link)}", used[0] if used else "-", share(used[1]) if used else "-"]


def _tiers(platform: Mapping[str, Any], device: str) -> list[str]:
    tiers = platform.get("tiers") or {}
    return [f"tier {tier}" for tier, names in tiers.items() if device in names]


def _kind(device: Mapping[str, Any]) -> str:
    return str(device.get("kind", "device")).replace("_", " ")


def _rate(link: Mapping[str, Any]) -> str:
    rate = link_bandwidth(link)
    return f"{size(rate)}/s" if rate else "bandwidth unknown"


def _graph(platform: Mapping[str, Any]) -> nx.Graph[str]:
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(platform["devices"])
    for name, link in platform.get("links", {}).items():
        ends = [end for end in link.get("between", ()) if end in graph]
        if len(ends) == 2:
            graph.add_edge(*ends, name=name)
    return graph


def _layout(graph: nx.Graph[str], root: str) -> dict[str, tuple[float, float]]:
    """Place devices in columns by hops from the GPU, each column in the order of the parents to its left."""
    columns = [list(column) for column in nx.bfs_layers(graph, root)]
    seen = {name for column in columns for name in column}
    columns[0] += [name for name in graph if name not in seen]
    order: dict[str, float] = {}
    for depth, column in enumerate(columns):
        before = columns[depth - 1] if depth else []
        column.sort(key=lambda name: min((order[other] for other in graph[name] if other in before), default=0.0))
        order |= {name: index for index, name in enumerate(column)}
    rows = max(map(len, columns))
    return {
        name: (_MARGIN + depth * _COLUMN, _MARGIN + _ROW * (index + (rows - len(column)) / 2))
        for depth, column in enumerate(columns)
        for index, name in enumerate(column)
    }


def _picture(platform: Mapping[str, Any], utilisation: Mapping[str, float]) -> str:
    graph, devices = _graph(platform), platform["devices"]
    root = next((name for name, device in devices.items() if device.get("kind") == "gpu"), next(iter(devices)))
    places = _layout(graph, root)
    width = max(x for x, _ in places.values()) + _BOX_WIDTH + _MARGIN
    height = max(y for _, y in places.values()) + _BOX_HEIGHT + _MARGIN
    parts = [_line(name, link, places, utilisation) for name, link in platform.get("links", {}).items()]
    parts += [_box(name, device, places[name], _tiers(platform, name), utilisation) for name, device in devices.items()]
    title = f"Devices and links of {platform.get('name', 'the platform')}"
    return (
        f'<svg class="topology" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}" '
        f'style="min-width:{0.55 * width:.0f}px">{"".join(parts)}</svg>'
    )


def _line(
    name: str, link: Mapping[str, Any], places: Mapping[str, tuple[float, float]], utilisation: Mapping[str, float]
) -> str:
    ends = [places[end] for end in link.get("between", ()) if end in places]
    if len(ends) != 2:
        return ""
    (x1, y1), (x2, y2) = sorted(ends)
    used = busiest(name, utilisation)
    load = used[1] if used else 0.0
    look = f'stroke-width="{2 + 6 * load:.1f}" class="link{" hot" if load >= 0.5 else ""}"'
    notes = (name, _rate(link), f"{share(load)} busy" if used else "")
    if x1 == x2:
        x, bottom, top = x1 + _BOX_WIDTH / 2, y1 + _BOX_HEIGHT, y2
        return f'<path d="M{x:g} {bottom:g}V{top:g}" {look}/>' + _texts(x + 8, bottom + 18, notes, "start")
    start, end = (x1 + _BOX_WIDTH, y1 + _BOX_HEIGHT / 2), (x2, y2 + _BOX_HEIGHT / 2)
    line = f'<path d="M{start[0]:g} {start[1]:g}H{start[0] + _TRUNK}V{end[1]:g}H{end[0]:g}" {look}/>'
    # the name above the stretch that is this link's alone, what it carries below
    x = (start[0] + _TRUNK + end[0]) / 2
    above = _texts(x, end[1] - 10, notes[:1], "middle")
    return line + above + _texts(x, end[1] + 22 - _LINE, notes[1:], "middle", first=1)


def _box(
    name: str,
    device: Mapping[str, Any],
    place: tuple[float, float],
    tiers: Sequence[str],
    utilisation: Mapping[str, float],
) -> str:
    x, y = place
    used = busiest(name, utilisation)
    load = min(1.0, used[1]) if used else 0.0
    rail = _BOX_WIDTH - 20
    bars = _bar(x + 10, y, rail, "rail") + _bar(x + 10, y, rail * load, "load")
    part = used[0].partition(".")[2] if used else ""
    note = f"{part or 'busy'} {share(load)}" if load >= 0.001 else "idle" if used else ""
    box = f'<rect x="{x:g}" y="{y:g}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="8" class="device"/>'
    return box + bars + _texts(x + 10, y + 24, [name, " · ".join([_kind(device), *tiers]), note], "start")


def _bar(x: float, y: float, width: float, style: str) -> str:
    return f'<rect x="{x:g}" y="{y + _BOX_HEIGHT - 12:g}" width="{width:.1f}" height="5" class="{style}"/>'


def _texts(x: float, y: float, lines: Sequence[str], anchor: str, first: int = 0) -> str:
    """Write lines of text from line `first` on; line 0 is a name."""
    spans = [
        f'<tspan x="{x:g}" y="{y + _LINE * index:g}" class="{"note" if index else "name"}">{escape(line)}</tspan>'
        for index, line in enumerate((line for line in lines if line), start=first)
    ]
    return f'<text text-anchor="{anchor}">{"".join(spans)}</text>'
