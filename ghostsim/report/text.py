"""What the command line prints after a run: the verdict and one row per run."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ghostsim.config.cost import cost_text, platform_cost
from ghostsim.export.capacities import platform_of
from ghostsim.report.facts import facts_of
from ghostsim.report.store import RunFolder, load_run
from ghostsim.report.verdict import TIERS, Facts, limit, verdict
from ghostsim.report.words import number, share, size

_WIDTH = 120
_TABLE_WIDTH = 200
"""Wide enough that no cell is cut; the table takes what it needs."""


def summary_table(metrics: Mapping[str, Any], facts: Facts | None = None) -> Table:
    """Return one row per run: batch, step, tokens/s, bytes per step by tier, lost mass and limit."""
    facts = facts or Facts()
    runs = metrics["runs"]
    tiers = [tier for tier in TIERS if any(tier in run["bytes_per_step"] for run in runs.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "run",
        "batch",
        "p50 ms",
        "p95 ms",
        "tokens/s",
        *(f"{tier}/step" for tier in tiers),
        "lost max",
        "limit",
    ):
        table.add_column(name, justify="left" if name in ("run", "limit") else "right", no_wrap=True)
    for label, run in runs.items():
        moved = [size(sum(run["bytes_per_step"].get(tier, {}).values())) for tier in tiers]
        lost = share(run["quality"]["lost_mass"]["max"]) + (" *" if label in facts.not_lossless else "")
        step = [number(run["step_ms"]["p50"]), number(run["step_ms"]["p95"]), number(run["tokens_per_s"])]
        table.add_row(label, str(run["batch"]), *step, *moved, lost, _limit(run))
    if facts.not_lossless:
        table.caption = "* not lossless: the format changes scores"
        table.caption_justify = "left"
    return table


def _limit(run: Mapping[str, Any]) -> str:
    found = limit(run)
    return f"{found[0]} {share(found[1])}" if found else "-"


def summary_text(folder: Path) -> str:
    """Return verdict and table of the run folder as text without a newline at its end."""
    run = load_run(folder)
    facts = facts_of(run)
    found = verdict(run.metrics, facts)
    paragraphs = [found.heading, *(f"warning: {warning}" for warning in found.warnings), *_costs(run)]
    console = Console(file=io.StringIO(), width=_TABLE_WIDTH, color_system=None, highlight=False, markup=False)
    console.print(summary_table(run.metrics, facts))
    printed = console.file.getvalue()  # type: ignore[attr-defined]  # the StringIO above
    table = "\n".join(line.rstrip() for line in printed.splitlines())
    return "\n\n".join([*(textwrap.fill(text, _WIDTH, break_on_hyphens=False) for text in paragraphs), table]).rstrip()


def _costs(run: RunFolder) -> list[str]:
    """Say what platforms cost whose parts say so, and what a dollar gives."""
    lines = []
    for label, each in run.metrics["runs"].items():
        cost = platform_cost(platform_of(run.config, label))
        if cost is not None:
            ratio = cost.per_usd(each["tokens_per_s"])
            text = f": {number(ratio)} tokens/s per USD" if ratio else ""
            lines.append(f"cost of {label}: {cost_text(cost)}{text}")
    return lines
