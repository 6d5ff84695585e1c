"""Renders one page about an audit of sketches: the verdict, what is ruled out and at which price, by head class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ghostsim.report.audit_further import aged, visited
from ghostsim.report.figure import DASHES, PALETTE, SYMBOLS, Figure, Table, View, axis, fill, plot, rows_axis, short
from ghostsim.report.figures_time import row_height
from ghostsim.report.page import PlotlyJs, whole_page
from ghostsim.report.words import number, share
from ghostsim.study.audit import (
    CODE_BITS,
    DEFINITIONS,
    EPS,
    MARGIN,
    NAMES,
    PAGE,
    RULES,
    Audit,
    Point,
    Rule,
    Scope,
    Sketch,
)
from ghostsim.study.audit_verdict import (
    BY,
    CRITERIA,
    MEANING,
    SCOPE_NAMES,
    Finding,
    best_certified,
    findings,
    sentences,
    verdict,
)
from ghostsim.study.drift import Drift
from ghostsim.study.tree import Tree
from ghostsim.trace.compose import SINKS
from ghostsim.trace.statistics import LOCAL
from ghostsim.trace.statistics import RULE as CLASS_RULE

_STAGED = Rule("staged", EPS[0])
_ORDER: tuple[Scope, ...] = ("group", "head")
_KINDS = ("random", "pca", "query", "symmetric", "keys", "exact", "coded", "local")
_DRAWN = (16, 64)
_SHOWN_BY_CLASS = (
    ("random", 64),
    ("pca", 16),
    ("pca", 32),
    ("pca", 64),
    ("query", 64),
    ("symmetric", 64),
    ("coded", 64),
    ("local", 64),
)


def render_audit(
    audit: Audit, drift: Drift | None = None, tree: Tree | None = None, plotlyjs: PlotlyJs = "embed"
) -> str:
    """Return the page of an audit as HTML that needs nothing but a browser; the same audit gives the same bytes."""
    more = ([] if drift is None else [aged(drift)]) + ([] if tree is None else [visited(tree)])
    sections = [
        ("What is ruled out", [certified(audit), by_part(audit)]),
        ("What it costs", [frontier(audit), lost(audit)]),
        ("Ranks", [ranks(audit)]),
        *([("Long decodes and long contexts", more)] if more else []),
    ]
    return whole_page(
        "audit.html.j2",
        plotlyjs,
        sections,
        title=f"audit of {audit.trace.name}",
        trace=audit.trace,
        heading=verdict(audit),
        answers=_answers(audit),
        sentences=sentences(audit),
        criteria=_criteria(audit),
        warnings=_warnings(audit),
        method=_method(),
    )


def _answers(audit: Audit) -> dict[str, str]:
    rule = RULES.index(_STAGED)
    best, oracle = best_certified(audit, "group")
    alone, alone_oracle = best_certified(audit, "head")
    cheapest = min((audit.point(i, rule, "group") for i in range(len(audit.sketches) - 1)), key=lambda p: p.moved)
    eps = share(EPS[0])
    return {
        f"Certified to {eps}, by GQA group": f"{best.sketch.label} {share(best.elimination)}, exact scores "
        f"{share(oracle.elimination)}",
        f"Certified to {eps}, per query head": f"{alone.sketch.label} {share(alone.elimination)}, exact scores "
        f"{share(alone_oracle.elimination)}",
        "Fewest bytes, by GQA group": f"{cheapest.sketch.label}: {share(cheapest.moved)} of the cold tokens' K and V, "
        f"sketch included; limit {share(oracle.moved)}",
        "Looked at": f"{len(audit.steps)} of {audit.trace.steps} steps, evenly spaced; {audit.cold_tokens:,} cold "
        f"tokens; {audit.violations} bounds below the exact score",
    }


def _warnings(audit: Audit) -> list[str]:
    return [f"{audit.violations:,} bounds lie below the exact score."] if audit.violations else []


def _criteria(audit: Audit) -> dict[str, list[list[str]]]:
    """Return per criterion the rows of the table in the page's head."""
    found = findings(audit)
    return {f"{c.name}: {c.text}": [_criterion(each) for each in found if each.criterion == c] for c in CRITERIA}


def _criterion(found: Finding) -> list[str]:
    return [
        SCOPE_NAMES[found.scope],
        BY[found.definition],
        _met(found.estimate, found.definition),
        share(found.estimate.lost_max) if found.estimate else "-",
        _met(found.certified, found.definition),
        "met" if found.oracle else "missed",
    ]


def _met(point: Point | None, definition: str) -> str:
    if point is None:
        return "none"
    false = share(point.false_elimination[definition])
    return f"{point.sketch.label}, {point.rule.label}: {share(point.elimination)} at {false}"


_METHOD = (
    f"Cold are the prompt's tokens but the first {SINKS} and the last {LOCAL}; the decoded ones are hot.",
    "Bases and code ranges are fitted on the cold keys and the recorded prompt queries, after rotation.",
    "Projections are stored as fp16 numbers with the norm of the rest, keys as codes per channel with an error norm.",
    f"Projections at {CODE_BITS} bits hold two norms.",
    f"Page-local: keys are turned back by RoPE to the start of their page of {PAGE} tokens, the query once per page.",
    "Staged: read in order of the bound until what is left provably holds at most eps of the mass.",
    "One-pass and flat decide on the hot tokens' mass alone. Exact scores under the staged rule are the oracle.",
    f"The published rule has no certificate: ruled out is what has estimate + {MARGIN:g} under a threshold.",
    "The lowest share by estimate is the best that any threshold could do, one per query head and step.",
    "By GQA group a token is ruled out if all query heads of the group rule it out, and needed if one needs it.",
)


def _method() -> list[str]:
    counts = [f"False elimination, {name}: {meaning}." for name, meaning in MEANING.items()]
    added = "Counts are added up over steps and heads before they are divided."
    return [*_METHOD, *counts, added, f"Classes by this rule: {CLASS_RULE}."]


def _pick(audit: Audit, kind: str, size: int) -> int | None:
    found = [i for i, sketch in enumerate(audit.sketches) if (sketch.kind, sketch.size) == (kind, size)]
    return found[0] if found else None


def _colour(sketch: Sketch) -> str:
    return PALETTE[_KINDS.index(sketch.kind)]


def _symbol(sketch: Sketch) -> str:
    return SYMBOLS[_KINDS.index(sketch.kind)]


def _kind_name(sketch: Sketch) -> str:
    return NAMES[sketch.kind] + (f", {CODE_BITS} bit" if sketch.kind in ("coded", "local") else "")


def certified(audit: Audit) -> Figure:
    """Elimination of every sketch under each certificate, per query head and by group."""
    rules = [rule for rule in RULES if rule.certified]
    views = [View(rule.label, _certified_view(audit, RULES.index(rule))) for rule in rules]
    rows = [
        [sketch.label, f"{sketch.nbytes:g}", rule.label, *_certified_cells(audit, i, RULES.index(rule))]
        for rule in rules
        for i, sketch in enumerate(audit.sketches)
    ]
    header = ["Sketch", "Bytes", "Rule", *(f"{what}, {SCOPE_NAMES[s]}" for s in _ORDER for what in _CERTIFIED)]
    caption = (
        "Share of the cold tokens that is provably not worth reading. Moved: bytes of the sketch and of what is read, "
        "as a share of the cold tokens' K and V; over 1, the sketch costs more than it saves."
    )
    chosen = rules.index(_STAGED)
    table = Table(header, rows)
    return Figure("certified", "Ruled out with a certificate", caption, views, table, chosen, picker="rule")


_CERTIFIED = ("Ruled out", "Of the oracle's", "Moved", "Worst lost mass")


def _certified_cells(audit: Audit, sketch: int, rule: int) -> list[str]:
    points = [audit.point(sketch, rule, scope) for scope in _ORDER]
    return [f"{x:.4f}" for p in points for x in (p.elimination, p.of_oracle, p.moved, p.lost_max)]


def _certified_view(audit: Audit, rule: int) -> dict[str, Any]:
    labels = [sketch.label for sketch in audit.sketches]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": f"per {SCOPE_NAMES[scope]}",
            "y": labels,
            "x": [short(audit.point(i, rule, scope).elimination) for i in range(len(labels))],
            "marker": fill(i_scope),
            "hovertemplate": "%{y}, %{fullData.name}: %{x:.1%} ruled out<extra></extra>",
        }
        for i_scope, scope in enumerate(_ORDER)
    ]
    return plot(
        traces,
        row_height(len(labels)),
        barmode="group",
        xaxis=axis("Share of the cold tokens ruled out", range=[0, 1], tickformat=".0%"),
        yaxis=rows_axis(labels),
    )


def by_part(audit: Audit) -> Figure:
    """Elimination by head class and by layer under the staged certificate."""
    parts = audit.parts()
    classes = [name for name in parts if not name.startswith("layer ")]
    layers = [name for name in parts if name.startswith("layer ")]
    views = [
        View(f"by {what}, per {SCOPE_NAMES[scope]}", _part_view(audit, names, scope))
        for what, names in (("class", classes), ("layer", layers))
        for scope in _ORDER
    ]
    rule = RULES.index(_STAGED)
    rows = [
        [name, str(int(heads.sum())), sketch.label, *_part_cells(audit, i, rule, heads)]
        for name, heads in parts.items()
        for i, sketch in enumerate(audit.sketches)
    ]
    columns = ("Ruled out", "Of the oracle's")
    header = ["Part", "Heads", "Sketch", *(f"{what}, {SCOPE_NAMES[s]}" for s in _ORDER for what in columns)]
    caption = (
        f"Staged certificate at eps {share(EPS[0])}. A group rules out what all its query heads rule out, so a head of "
        "one class pays for its neighbours of another."
    )
    return Figure("parts", "By head class and layer", caption, views, Table(header, rows), picker="view")


def _part_cells(audit: Audit, sketch: int, rule: int, heads: Any) -> list[str]:  # noqa: ANN401  (a mask)
    points = [audit.point(sketch, rule, scope, heads) for scope in _ORDER]
    return [f"{x:.4f}" for p in points for x in (p.elimination, p.of_oracle)]


def _part_view(audit: Audit, names: Sequence[str], scope: Scope) -> dict[str, Any]:
    parts, rule = audit.parts(), RULES.index(_STAGED)
    shown = [i for kind, size in _SHOWN_BY_CLASS if (i := _pick(audit, kind, size)) is not None]
    shown += [i for i, sketch in enumerate(audit.sketches) if sketch.kind in ("keys", "exact")]
    labels = [audit.sketches[i].label for i in shown]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": labels,
            "x": [short(audit.point(i, rule, scope, parts[name]).elimination) for i in shown],
            "marker": fill(colour),
            "hovertemplate": "%{y}, %{fullData.name}: %{x:.1%} ruled out<extra></extra>",
        }
        for colour, name in enumerate(names)
    ]
    return plot(
        traces,
        120 + (16 + 11 * len(names)) * len(labels),
        barmode="group",
        xaxis=axis("Share of the cold tokens ruled out", range=[0, 1], tickformat=".0%"),
        yaxis=rows_axis(labels),
    )


def frontier(audit: Audit) -> Figure:
    """False elimination against elimination, by every definition."""
    points = list(audit.points())
    views = [
        View(f"{name}, per {SCOPE_NAMES[scope]}", _frontier_view(points, scope, name))
        for name in DEFINITIONS
        for scope in _ORDER
    ]
    header = ["Sketch", "Bytes", "Rule", "Per", "Ruled out", *DEFINITIONS, "Mean lost mass", "Worst lost mass"]
    rows = [_frontier_row(point) for point in points]
    caption = (
        "Lines: some estimates, ruling out the lowest 30 to 95 %; single points: certificates at "
        f"{share(EPS[0])}. Shaded: where the two published criteria lie. The laboratory's counts (frontier, simulator) "
        "look at 32 tokens however little they weigh; needed asks for those that hold the mass."
    )
    chosen = next(i for i, view in enumerate(views) if view.name == "needed, per GQA group")
    title = "False elimination against elimination"
    return Figure("frontier", title, caption, views, Table(header, rows), chosen, picker="definition")


def _frontier_row(point: Point) -> list[str]:
    false = [f"{point.false_elimination[name]:.4f}" for name in DEFINITIONS]
    named = [point.sketch.label, f"{point.sketch.nbytes:g}", point.rule.label, SCOPE_NAMES[point.scope]]
    return [*named, f"{point.elimination:.4f}", *false, f"{point.lost_mean:.4f}", f"{point.lost_max:.4f}"]


def _frontier_view(points: Sequence[Point], scope: Scope, definition: str) -> dict[str, Any]:
    here = [point for point in points if point.scope == scope]
    curves = _curves(here, lambda point: point.false_elimination[definition])
    proven = [point for point in here if point.certified and point.rule.value == EPS[0]]
    shapes = [
        {
            "type": "rect",
            "x0": c.elimination,
            "x1": 1,
            "y0": 0,
            "y1": c.false_elimination,
            "line": {"width": 1, "dash": DASHES[i], "color": PALETTE[8]},
            "fillcolor": "rgba(140,140,140,0.18)",
            "layer": "below",
        }
        for i, c in enumerate(CRITERIA)
    ]
    return plot(
        [*curves, *_proven(proven, definition)],
        560,
        xaxis=axis("Share of the cold tokens ruled out", range=[0, 1.01], tickformat=".0%"),
        yaxis=axis(f"False elimination ({definition})", range=[-0.015, 1.0], tickformat=".0%"),
        shapes=shapes,
    )


def _proven(points: Sequence[Point], definition: str) -> list[dict[str, Any]]:
    """Return the certified points, one trace per form."""
    symbols = {"flat": "triangle-down", "one_pass": "star", "staged": "x"}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"certified, {form.replace('_', '-')}",
            "x": [short(p.elimination) for p in points if p.rule.form == form],
            "y": [short(p.false_elimination[definition]) for p in points if p.rule.form == form],
            "text": [p.sketch.label for p in points if p.rule.form == form],
            "marker": {
                "symbol": symbol,
                "size": 9,
                "color": [_colour(p.sketch) for p in points if p.rule.form == form],
            },
            "hovertemplate": "%{text}, %{fullData.name}: %{x:.1%} ruled out, %{y:.2%}<extra></extra>",
        }
        for form, symbol in symbols.items()
    ]


def _curves(points: Sequence[Point], value: Callable[[Point], float]) -> list[dict[str, Any]]:
    """Return a line over the shares ruled out by estimate for every sketch that is drawn."""
    lowest = [p for p in points if p.rule.form == "share" and (p.sketch.kind == "keys" or p.sketch.size in _DRAWN)]
    sketches = list(dict.fromkeys(point.sketch for point in lowest))
    seen: dict[str, int] = {}
    return [_curve(sketch, [p for p in lowest if p.sketch == sketch], value, seen) for sketch in sketches]


def _curve(
    sketch: Sketch, points: Sequence[Point], value: Callable[[Point], float], seen: dict[str, int]
) -> dict[str, Any]:
    order = seen.get(sketch.kind, 0)
    seen[sketch.kind] = order + 1
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": sketch.label,
        "legendgroup": sketch.kind,
        "x": [short(point.elimination) for point in points],
        "y": [short(value(point)) for point in points],
        "text": [point.rule.label for point in points],
        "line": {"color": _colour(sketch), "dash": DASHES[order % len(DASHES)], "width": 1.5},
        "marker": {"symbol": _symbol(sketch), "size": 6},
        "hovertemplate": "%{fullData.name}, %{text}: %{x:.1%} ruled out, %{y:.2%}<extra></extra>",
    }


def lost(audit: Audit) -> Figure:
    """Lost mass of the estimates against elimination."""
    points = [p for p in audit.points() if p.rule.form in ("share", "threshold")]
    values: dict[str, Callable[[Point], float]] = {"worst": lambda p: p.lost_max, "mean": lambda p: p.lost_mean}
    views = [
        View(f"{name}, per {SCOPE_NAMES[scope]}", _lost_view([p for p in points if p.scope == scope], name, value))
        for name, value in values.items()
        for scope in _ORDER
    ]
    header = ["Sketch", "Bytes", "Rule", "Per", "Ruled out", "Mean lost mass", "Worst lost mass"]
    rows = [[*_frontier_row(p)[:5], f"{p.lost_mean:.4f}", f"{p.lost_max:.4f}"] for p in points]
    caption = (
        "Attention mass of a query head that the tokens ruled out by some estimates had: of the worst head and step, "
        f"or the mean. A certificate at {share(EPS[0])} stays under the dashed line whatever the sketch."
    )
    return Figure("lost", "What an estimate loses", caption, views, Table(header, rows), picker="view")


def _lost_view(points: Sequence[Point], name: str, value: Callable[[Point], float]) -> dict[str, Any]:
    line = {"width": 1.5, "dash": "dash", "color": PALETTE[5]}
    return plot(
        _curves(points, value),
        480,
        xaxis=axis("Share of the cold tokens ruled out", range=[0, 1.01], tickformat=".0%"),
        yaxis=axis(f"Lost mass ({name})", rangemode="tozero", tickformat=".0%"),
        shapes=[{"type": "line", "x0": 0, "x1": 1, "y0": EPS[0], "y1": EPS[0], "line": line}],
    )


def ranks(audit: Audit) -> Figure:
    """Rank correlation and overlap of the best 32 by bytes per token."""
    views = [
        View("rank correlation", _rank_view(audit, audit.spearman.mean(axis=(1, 2)), "Spearman's rank correlation")),
        View("best 32", _rank_view(audit, audit.overlap.mean(axis=(1, 2)), "Best 32 cold tokens in common")),
    ]
    parts = audit.parts()
    rows = [
        [
            sketch.label,
            f"{sketch.nbytes:g}",
            f"{audit.spearman[i].mean():.4f}",
            f"{audit.overlap[i].mean():.4f}",
            *(f"{audit.spearman[i][heads].mean():.4f}" for heads in parts.values()),
        ]
        for i, sketch in enumerate(audit.sketches[:-1])
    ]
    header = ["Sketch", "Bytes", "Rank correlation", "Best 32 in common", *(f"Correlation, {name}" for name in parts)]
    caption = "Estimate against exact score over the cold tokens of a step; mean over steps and query heads."
    return Figure("ranks", "How well an estimate ranks", caption, views, Table(header, rows), picker="measure")


def _rank_view(audit: Audit, values: Any, title: str) -> dict[str, Any]:  # noqa: ANN401  (an array)
    sketches = audit.sketches[:-1]
    kinds = list(dict.fromkeys(sketch.kind for sketch in sketches))
    traces = []
    for kind in kinds:
        own = [i for i, sketch in enumerate(sketches) if sketch.kind == kind]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": _kind_name(sketches[own[0]]),
                "x": [sketches[i].nbytes for i in own],
                "y": [short(float(values[i])) for i in own],
                "text": [sketches[i].label for i in own],
                "line": {"color": _colour(sketches[own[0]]), "dash": DASHES[_KINDS.index(kind) % len(DASHES)]},
                "marker": {"symbol": _symbol(sketches[own[0]]), "size": 9},
                "hovertemplate": "%{text}: %{y:.3f} at %{x} bytes<extra></extra>",
            }
        )
    sizes = sorted({number(sketch.nbytes) for sketch in sketches}, key=float)
    ticks = {"tickvals": [float(x) for x in sizes], "ticktext": sizes}
    return plot(
        traces, 420, xaxis=axis("Bytes per token (log)", type="log", **ticks), yaxis=axis(title, range=[0, 1.02])
    )
