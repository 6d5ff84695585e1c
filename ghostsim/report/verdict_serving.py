"""The first sentence of a report on runs that serve requests: which one keeps its promise most often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ghostsim.report.words import listing, number, share, times

Runs = Mapping[str, Mapping[str, Any]]


def serving_runs(metrics: Mapping[str, Any]) -> Runs:
    """Return the runs that serve requests."""
    return {label: run for label, run in metrics["runs"].items() if run.get("serving")}


def best_server(runs: Runs) -> str:
    """Return the run with the most requests per second in time; of equal ones, the fastest to the first token."""

    def rank(label: str) -> tuple[float, float]:
        found = runs[label]["serving"]
        return found["goodput_per_s"], -found["ttft_ms"]["mean"]

    return max(runs, key=rank)


def serving_heading(metrics: Mapping[str, Any], contender: str) -> str:
    """Say which run serves most requests in time, beside the baselines and the contender; nothing without such runs."""
    runs = serving_runs(metrics)
    if not runs:
        return ""
    best = best_server(runs)
    found = runs[best]["serving"]
    if not found["goodput_per_s"]:
        return (
            f"On {runs[best]['platform']}, no run serves a request in time; the first token comes soonest from {best}."
        )
    others = [label for label in _rivals(metrics, contender) if label in runs and label != best]
    rate = f"{number(found['goodput_per_s'])} requests/s ({share(found['slo_share'])} of all)"
    text = f"On {runs[best]['platform']}, {best} serves most requests in time, {rate}: {_pace(found)}."
    return f"{text} {_beside(runs, best, others)}" if others else text


def _rivals(metrics: Mapping[str, Any], contender: str) -> list[str]:
    """Return the baselines, and the contender if it is a GhostKV run."""
    own = [contender] if metrics["runs"][contender]["policy"].startswith("ghostkv") else []
    return list(dict.fromkeys((*metrics.get("compare", {}), *own)))


def _pace(found: Mapping[str, Any]) -> str:
    first, later = found["ttft_ms"]["p95"] / 1000, found["tpot_ms"]["p95"]
    return f"first token after {number(first)} s and {number(later)} ms per token at p95"


def _beside(runs: Runs, best: str, others: list[str]) -> str:
    clauses = [_clause(runs, best, label) for label in others]
    return f"{listing(clauses)}."


def _clause(runs: Runs, best: str, label: str) -> str:
    mine, theirs = runs[best]["serving"]["goodput_per_s"], runs[label]["serving"]["goodput_per_s"]
    if not theirs:
        return f"{label} serves none ({_pace(runs[label]['serving'])})"
    return f"{label} serves {times(mine / theirs)} fewer ({_pace(runs[label]['serving'])})"


def serving_summary(metrics: Mapping[str, Any], contender: str) -> dict[str, str]:
    """Return the answers to what won and by how much, nothing without runs that serve requests."""
    runs = serving_runs(metrics)
    if not runs:
        return {}
    best = best_server(runs)
    found = runs[best]["serving"]
    others = {label: runs[label]["serving"]["goodput_per_s"] for label in _rivals(metrics, contender) if label in runs}
    margins = [
        f"{times(found['goodput_per_s'] / rate)} {label}" for label, rate in others.items() if rate and label != best
    ]
    error = max(run["serving"].get("step_surface", {}).get("max_error", 0.0) for run in runs.values())
    grid = f"decode steps between simulated ones are off by at most {share(error)} where that was checked"
    return {
        "What won": best,
        "By how much": f"{listing(margins)} (requests in time)" if margins else "no other serves a request in time",
        "Serving": f"{_pace(found)}; {share(found.get('busy_share'))} busy; {grid}",
    }
