"""Renders the frontier of KV-cache policies: one page, and the same as text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

from ghostsim.columns import aligned
from ghostsim.config.policy import Policy
from ghostsim.report.figure import DASHES, PALETTE, SYMBOLS, Figure, Table, Trace, View, axis, plot, short
from ghostsim.report.page import PlotlyJs, whole_page
from ghostsim.report.words import at_most, listing, number, plural, share, size
from ghostsim.study.budgets import OWN
from ghostsim.study.frontier import Frontier, Point, verdict

_FLOOR = 1e-6
_GREY = "#8c8c8c"
FAMILIES: tuple[str, ...] = get_args(Policy.model_fields["family"].annotation)
SHAPES = {"exact": "circle", "parameterised": "square-open", "sketch": "x-open"}
LOSSY = {"exact": "circle-open-dot", "parameterised": "square-open-dot", "sketch": "x-open-dot"}
TOGETHER = "diamond-open"
CLOSENESS = {"exact": "as published", "parameterised": "parameterised", "sketch": "sketch"}
TITLES = {
    "lost_mass.mean": ("Mean lost mass", "lost attention mass, mean", "lost-mean"),
    "lost_mass.max": ("Worst lost mass", "lost mass, worst query head and step", "lost-worst"),
    "output_error.mean": ("Output error", "relative output error, mean", "output-error"),
}


def render_frontier(found: Frontier, plotlyjs: PlotlyJs = "embed") -> str:
    """Return the page as HTML that needs nothing but a browser; the same figures give the same bytes."""
    measures = [name for name in TITLES if any(point.loss(name) is not None for point in found.points)]
    return whole_page(
        "frontier.html.j2",
        plotlyjs,
        [("Quality against bytes", [_figure(found, measure) for measure in measures])],
        title=f"frontier of {found.trace.name}",
        found=found,
        heading=heading(found),
        answers=_answers(found),
        library=library(found),
        sentences=sentences(found),
        method=_METHOD,
    )


# --- sentences ---------------------------------------------------------------------------------------------------


def heading(found: Frontier) -> str:
    """Return the verdict: what is lost within some bytes a step, and what the oracle would need."""
    seen = verdict(found)
    best = seen.sound or seen.best
    within = f"{found.trace.name}: with at most {size(seen.limit)} a step ({share(seen.limit / found.full)} of all KV)"
    if best is None:
        return f"{within}, no policy that can be ranked fits"
    kind = "best sound policy" if seen.sound else "best policy, which promises nothing"
    lost = f"loses {share(best.lost_mean)} of the attention mass on average and {share(best.lost_max)} at worst"
    return f"{within}, the {kind}, {best.label}, {lost}; {_oracle(seen.oracle)}"


def _oracle(point: Point | None) -> str:
    if point is None:
        return "no oracle that was tried loses as little"
    return f"the oracle would need {size(point.nbytes)} to lose no more on average"


def _answers(found: Frontier) -> dict[str, str]:
    seen = verdict(found)
    free = "none" if seen.best is None else f"{seen.best.label}: {share(seen.best.lost_mean)}"
    every = len(found.points) + len(found.oracle)
    return {
        "Everything in fp16": f"{size(found.full)} a step",
        f"Best of any kind within {size(seen.limit)}": free,
        "Evaluated": f"{len(found.policies)} policies at {every} points, "
        f"{found.trace.prompt_len:,} tokens, {plural(found.steps, 'step')}",
    }


def sentences(found: Frontier) -> list[str]:
    """Return what a reader must know before ranking anything."""
    loose = [name for name, policy in found.policies.items() if policy.fidelity != "exact"]
    lossy = [name for name, policy in found.policies.items() if not policy.lossless]
    lines = [
        f"On the frontier of {title.lower()}: {listing(found.leaders(measure)) or 'none'}."
        for measure, (title, _, _) in TITLES.items()
    ]
    lines += [
        (
            f"Of {len(found.policies)} policies {len(loose)} are parameterised or sketched from an abstract, and "
            f"{len(lossy)} store a format that changes scores, which lost mass does not show. They are drawn and "
            "listed with their mark, and take no part in a ranking; the last do in output error. Nor do those that "
            "read once for several tokens: their bytes are shared out as if every token were accepted."
        ),
        (
            "A recorded trace is open loop: what is lost does not change later queries, so eviction looks better here "
            "than in a live run."
        ),
        (
            f"Budgets are as published, most of them for longer contexts than {found.trace.prompt_len:,} tokens; the "
            "curves are the same policies at other budgets."
        ),
    ]
    below = [point.label for point in found.points if _beats_the_oracle(found, point)]
    if below:
        lines.append(
            "The oracle spends its tolerance evenly over heads and steps; budgets may be spread better in the mean. "
            f"Below its line: {listing(below)}."
        )
    return lines


def _beats_the_oracle(found: Frontier, point: Point) -> bool:
    """Whether a ranked point has fewer bytes and loses less, on average, than some point of the oracle."""
    rivals = (each for each in found.oracle if each.nbytes > point.nbytes and each.lost_mean > point.lost_mean)
    return found.ranked(point, "lost_mass.mean") and any(rivals)


_METHOD = [
    (
        "Bytes are index, KV and bookkeeping of all KV heads of the trace in one decode step, mean over the steps; "
        "weights and the new token's write are not among them."
    ),
    (
        "Lost mass is exact: one minus the softmax probability of what is read, per query head and step, in 64-bit "
        "arithmetic."
    ),
    (
        "The oracle reads by exact scores that cost nothing, with nothing pinned, until each query head's rest holds "
        "at most eps."
    ),
    (
        "A policy is on the frontier where no ranked policy at any of its budgets moves no more and loses no more. "
        "Ranked are policies as their code has them, one token a step, whose formats give back what was written."
    ),
    (
        "Curves: 0.25, 0.5, 1 and 2 times the budget of the policy's file; policies that promise a limit at eps 0.1, "
        "0.01 and 0.001."
    ),
    "A claim is its authors' figure, on their models and machines. It is not tested here.",
]


# --- tables ------------------------------------------------------------------------------------------------------


def marks(policy: Policy) -> str:
    """Say how close a policy is to the published system, and what else keeps it out of a ranking."""
    together = f", {policy.read.speculate} tokens at once" if policy.read.speculate > 1 else ""
    return CLOSENESS[policy.fidelity] + ("" if policy.lossless else ", not lossless") + together


def _standing(found: Frontier, point: Point, measure: str) -> str:
    if not found.ranked(point, measure):
        return "not ranked, ahead of it" if measure in point.leads else "not ranked"
    return "on it" if measure in point.leads else "behind"


def library(found: Frontier) -> Table:
    """Return every policy as its file has it, the fewest bytes first, with what its authors claim."""
    header = ["Policy", "Family", "How close", "Bytes a step", "Lost mass mean", "Max", "Certified max", "Output error"]
    own = sorted((point for point in found.points if point.budget == OWN), key=lambda point: point.nbytes)
    rows = [_library_row(found, point) for point in own]
    return Table([*header, "Frontier of the mean", "Published claim"], rows)


def _library_row(found: Frontier, point: Point) -> list[str]:
    policy = found.policies[point.policy]
    proof = "none" if point.certified_max is None else at_most(point.certified_max)
    losses = [share(point.lost_mean), share(point.lost_max), proof, share(point.error_mean)]
    told = [_standing(found, point, "lost_mass.mean"), policy.claim or "-"]
    return [point.policy, policy.family, marks(policy), size(point.nbytes), *losses, *told]


def _points_table(found: Frontier, measure: str) -> Table:
    header = ["Policy", "Budget", "How close", "Bytes a step", "Index", "HBM", "Fetched", "Bookkeeping"]
    every = [point for point in found.points if point.loss(measure) is not None]
    rows = [
        [
            *(point.policy, point.budget, marks(found.policies[point.policy])),
            *_sizes(point),
            share(point.loss(measure)),
            _standing(found, point, measure),
        ]
        for point in sorted(every, key=lambda point: (point.policy, point.nbytes))
    ]
    rows += [
        ["oracle", point.budget, "the limit", *_sizes(point), share(point.loss(measure)), "-"] for point in found.oracle
    ]
    return Table([*header, TITLES[measure][0], "Frontier"], rows)


def _sizes(point: Point) -> list[str]:
    return [size(part) for part in (point.nbytes, point.index, point.hbm, point.fetched, point.migrate)]


# --- figures -----------------------------------------------------------------------------------------------------


def _figure(found: Frontier, measure: str) -> Figure:
    title, _, key = TITLES[measure]
    families = [name for name in FAMILIES if any(each.family == name for each in found.policies.values())]
    views = [View("all, as published", _drawn(found, measure, _cloud(found, measure, families)))]
    views += [View(name, _drawn(found, measure, _curves(found, measure, name))) for name in families]
    caption = (
        "Lower and further left is better. The grey steps join the ranked policies that nothing ranked beats; no "
        "policy can lie far below the dashed line of the oracle. Pick a family to see each policy at several budgets. "
        "On the bottom line 0.0001 % or less is lost."
    )
    table = _points_table(found, measure)
    return Figure(key, f"{title} against bytes", caption, views, table, picker="policies")


def _drawn(found: Frontier, measure: str, points: Sequence[Trace]) -> dict[str, Any]:
    return plot(
        [*points, _steps(found, measure), _limit(found, measure)],
        560,
        xaxis=axis(
            "Bytes a step: index, KV, bookkeeping (log)", type="log", dtick="D2", tickformat=".2~s", ticksuffix="B"
        ),
        yaxis=axis(
            f"{TITLES[measure][1].capitalize()} (log)", type="log", dtick=1, tickformat=".0e", range=[-6.3, 0.4]
        ),
    )


def _xy(points: Iterable[Point], measure: str) -> dict[str, Any]:
    """Return coordinates and what is said of each point; nothing lost stands on the floor."""
    listed = list(points)
    losses = [point.loss(measure) for point in listed]
    return {
        "type": "scatter",
        "x": [short(point.nbytes) for point in listed],
        "y": [None if loss is None else short(max(loss, _FLOOR)) for loss in losses],
    }


def _hover(found: Frontier, point: Point, measure: str) -> str:
    policy = found.policies[point.policy]
    parts = [size(point.nbytes), f"{share(point.loss(measure))} {'off' if 'error' in measure else 'lost'}"]
    return f"{point.label}: {', '.join(parts)} ({policy.family}, {marks(policy)})"


def _markers(found: Frontier, points: Sequence[Point]) -> list[str]:
    return [_symbol(found.policies[point.policy]) for point in points]


def _symbol(policy: Policy) -> str:
    if policy.read.speculate > 1:
        return TOGETHER
    return (SHAPES if policy.lossless else LOSSY)[policy.fidelity]


def _cloud(found: Frontier, measure: str, families: Sequence[str]) -> list[Trace]:
    """Return the policies as their files have them, by family, and what the shapes mean."""
    clouds = [
        [point for point in found.points if point.budget == OWN and found.policies[point.policy].family == family]
        for family in families
    ]
    drawn: list[Trace] = [
        _xy(points, measure)
        | {
            "mode": "markers",
            "name": family,
            "marker": {"symbol": _markers(found, points), "size": 11, "color": _colour(family), "line": {"width": 2}},
            "customdata": [_hover(found, point, measure) for point in points],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        for family, points in zip(families, clouds, strict=True)
    ]
    return drawn + [_meaning(text, symbol) for text, symbol in _meanings(found)]


def _meanings(found: Frontier) -> list[tuple[str, str]]:
    present = {policy.fidelity for policy in found.policies.values()}
    shapes = [(CLOSENESS[name], symbol) for name, symbol in SHAPES.items() if name in present]
    lossy = any(not policy.lossless for policy in found.policies.values())
    together = any(policy.read.speculate > 1 for policy in found.policies.values())
    shapes += [("not lossless (dot)", LOSSY["exact"])] if lossy else []
    return shapes + ([("several tokens at once", TOGETHER)] if together else [])


def _meaning(text: str, symbol: str) -> Trace:
    """Return a line of the legend without a point."""
    marker = {"symbol": symbol, "size": 11, "color": _GREY, "line": {"width": 2}}
    return {"type": "scatter", "mode": "markers", "name": text, "x": [None], "y": [None], "marker": marker}


def _colour(family: str) -> str:
    return PALETTE[FAMILIES.index(family) % len(PALETTE)]


def _curves(found: Frontier, measure: str, family: str) -> list[Trace]:
    """Return each policy of a family over its budgets."""
    names = [name for name, policy in found.policies.items() if policy.family == family]
    curves = [sorted((p for p in found.points if p.policy == name), key=lambda p: p.nbytes) for name in names]
    return [
        _xy(points, measure)
        | {
            "mode": "lines+markers",
            "name": f"{name} ({marks(found.policies[name])})" if not _plain(found.policies[name]) else name,
            "line": {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)], "width": 1.5},
            "marker": {"symbol": _markers(found, points), "size": 10, "line": {"width": 2}},
            "customdata": [_hover(found, point, measure) for point in points],
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        for i, (name, points) in enumerate(zip(names, curves, strict=True))
    ]


def _plain(policy: Policy) -> bool:
    return marks(policy) == CLOSENESS["exact"]


def _steps(found: Frontier, measure: str) -> Trace:
    """Return the ranked points that nothing ranked beats, joined by steps and named."""
    lead = [point for point in found.points if measure in point.leads and found.ranked(point, measure)]
    lead.sort(key=lambda point: (point.nbytes, point.label))
    named: list[str] = []
    for i, point in enumerate(lead):
        before = [earlier.policy for earlier in lead[:i]]
        seen = point.policy in before or (point.loss(measure) or 0.0) <= _FLOOR
        named.append("" if seen else point.policy)
    return _xy(lead, measure) | {
        "mode": "lines+markers+text",
        "name": "frontier",
        "line": {"shape": "hv", "color": _GREY, "width": 2.5},
        "marker": {"symbol": SYMBOLS[5], "size": 7, "color": _GREY},
        "customdata": [_hover(found, point, measure) for point in lead],
        "hovertemplate": "on the frontier: %{customdata}<extra></extra>",
        "text": named,
        "textposition": "top right",
        "textfont": {"size": 11},
    }


def _limit(found: Frontier, measure: str) -> Trace:
    told = [f"{share(p.loss(measure))} at {p.budget}, {size(p.nbytes)}" for p in found.oracle]
    return _xy(found.oracle, measure) | {
        "mode": "lines",
        "name": "oracle (limit)",
        "line": {"color": PALETTE[5], "dash": "dash", "width": 2.5},
        "customdata": told,
        "hovertemplate": "oracle: %{customdata}<extra></extra>",
    }


# --- as text -----------------------------------------------------------------------------------------------------


def frontier_text(found: Frontier) -> str:
    """Return the verdict, every policy as its file has it, the frontiers, and what was skipped."""
    table = library(found)
    lines = [heading(found), "", *aligned([table.header[:9], *(row[:9] for row in table.rows)]), ""]
    for measure, (title, _, _) in TITLES.items():
        leaders = found.leaders(measure)
        lines.append(f"On the frontier of {title.lower()}: {listing(leaders) or 'none'}")
    lines += [f"Skipped: {name} {reason}" for name, reason in found.skipped.items()]
    lines.append(f"{number(len(found.points), 9)} points of {len(found.policies)} policies; marked ones aren't ranked")
    return "\n".join(lines)
