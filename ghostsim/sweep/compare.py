"""Sets run folders side by side: key figures, their ratios to the first folder, and the configuration that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ghostsim.columns import aligned
from ghostsim.errors import UsageError
from ghostsim.report.compare import differences, labels, said
from ghostsim.report.store import RunFolder, load_run

FIGURES: Mapping[str, tuple[str, ...]] = {
    "batch": ("batch",),
    "tokens_per_s": ("tokens_per_s",),
    "step_p50_ms": ("step_ms", "p50"),
    "step_p95_ms": ("step_ms", "p95"),
    "step_p99_ms": ("step_ms", "p99"),
    "elimination_rate": ("quality", "elimination_rate"),
    "lost_mass_max": ("quality", "lost_mass", "max"),
}
_TIERS = ("hbm", "dram", "cxl", "pim", "ssd")


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Compare run folders, or the folders of points of a sweep.

    Returns
    -------
    dict
        ``folders``; ``labels``: for each label one entry per folder, None where the folder lacks it, with `figures`
        and `ratios` to the first folder that has the label (above 1 is better); ``config``: for each setting that
        differs, by dotted path, its value in each folder, None where it is not set.

    Raises
    ------
    StoreError
        If a folder is no run folder.
    UsageError
        If there are no folders.
    """
    if not folders:
        raise UsageError("found no run folder to compare, expected one or more, e.g. runs/cxl_pim runs/cxl_pim-2")
    runs = [load_run(folder) for folder in folders]
    return {
        "schema": 1,
        "folders": [str(folder) for folder in folders],
        "labels": {label: _side_by_side(label, runs) for label in labels(runs)},
        "config": differences(runs),
    }


def _side_by_side(label: str, runs: Sequence[RunFolder]) -> list[dict[str, Any] | None]:
    found = [_figures(run.metrics["runs"][label]) if label in run.metrics["runs"] else None for run in runs]
    first = next(figures for figures in found if figures)
    return [{"figures": figures, "ratios": _ratios(figures, first)} if figures else None for figures in found]


def _figures(run: Mapping[str, Any]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, path in FIGURES.items():
        value: Any = run
        for key in path:
            value = value[key]
        figures[name] = value
    figures["bytes_per_step"] = {
        tier: sum(causes.values()) for tier, causes in run["bytes_per_step"].items() if tier in _TIERS
    }
    figures["energy_mj_per_token"] = sum(run["energy_mj_per_token"].values())
    return figures


def _ratios(figures: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, float]:
    """Return ratios as metrics.json has them: above 1 is better than the first."""
    return {
        "tokens_per_s": _ratio(figures["tokens_per_s"], first["tokens_per_s"]),
        "step_p50": _ratio(first["step_p50_ms"], figures["step_p50_ms"]),
        "step_p95": _ratio(first["step_p95_ms"], figures["step_p95_ms"]),
    }


def _ratio(over: float, under: float) -> float:
    return over / under if under else 0.0


# --- as text -----------------------------------------------------------------------------------------------------

_HEADER = ("run", "folder", "batch", "tokens/s", "ratio", "p50 ms", "ratio", "p95 ms", "ratio", "lost mass", "mJ/token")


def comparison_text(found: Mapping[str, Any]) -> str:
    """Return a comparison as two tables; ratios above 1 are better than the first folder that has the run."""
    names = [str(folder) for folder in found["folders"]]
    rows = [
        [label, name, *_cells(each)]
        for label, sides in found["labels"].items()
        for name, each in zip(names, sides, strict=True)
        if each is not None
    ]
    parts = ["\n".join(aligned([list(_HEADER), *rows]))]
    if found["config"]:
        settings = [[path, *map(said, values)] for path, values in found["config"].items()]
        parts.append("\n".join(aligned([["setting", *names], *settings])))
    elif len(names) > 1:
        parts.append("the configurations are the same")
    return "\n\n".join(parts)


def _cells(each: Mapping[str, Any]) -> list[str]:
    figures, ratios = each["figures"], each["ratios"]
    cells = [str(figures["batch"])]
    for figure, ratio in (("tokens_per_s", "tokens_per_s"), ("step_p50_ms", "step_p50"), ("step_p95_ms", "step_p95")):
        cells += [f"{figures[figure]:.4g}", f"{ratios[ratio]:.3f}"]
    return [*cells, f"{figures['lost_mass_max']:.3g}", f"{figures['energy_mj_per_token']:.4g}"]
