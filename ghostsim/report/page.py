"""Renders run folders as HTML pages that need nothing but a browser."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ghostsim.accuracy.involved import reliances, unmeasured
from ghostsim.accuracy.report import TITLES
from ghostsim.bundled import folder
from ghostsim.config.catalogue import assumed_numbers
from ghostsim.errors import Location, StoreError
from ghostsim.report.compare import comparison
from ghostsim.report.compare import labels as labels_of
from ghostsim.report.facts import facts_of
from ghostsim.report.figure import Figure, Table, inert, script_json
from ghostsim.report.figures_bytes import bounds, bytes_moved, elimination, lost_by_context, lost_by_step, quality
from ghostsim.report.figures_hardware import capacity, cost, energy, over_time, utilisation
from ghostsim.report.figures_serving import goodput, latency_shares, memory_over_time, queues_over_time
from ghostsim.report.figures_state import frontier, roofline, state
from ghostsim.report.figures_time import critical_path, latency, layer, throughput
from ghostsim.report.figures_waits import prefetch, prefill, viability, waits, what_if
from ghostsim.report.store import RunFolder, load_run
from ghostsim.report.topology import topology
from ghostsim.report.verdict import Facts, Verdict, verdict
from ghostsim.report.words import listing, number, share, size

PlotlyJs = Literal["embed", "directory"]
_SHARED = "plotly.min.js"


def render(run_dir: Path, plotlyjs: PlotlyJs = "embed") -> str:
    """Return the report of the run folder at `run_dir` as one HTML page.

    The same files give the same bytes. With `directory` the page takes Plotly from ``../plotly.min.js``, which the
    run folders of a sweep share.

    Raises
    ------
    StoreError
        If the folder or one of its files is missing or not what a run writes.
    """
    run = load_run(run_dir)
    facts = facts_of(run)
    found = verdict(run.metrics, facts)
    sections = _sections(run, facts, found)
    return whole_page(
        "run.html.j2",
        plotlyjs,
        sections,
        title=str(run.metrics["scenario"]),
        run=run,
        heading=found.heading,
        answers=found.summary,
        warnings=found.warnings,
        sentences=[*found.sentences, *run.manifest.get("notes", [])],
        assumed=_by_source(run),
        labels=list(run.metrics["runs"]),
        models=_models(run),
        unmeasured=listing(unmeasured(_platform(run))),
        manifest=run.manifest,
        programs={label: _program(stages) for label, stages in run.manifest.get("programs", {}).items()},
    )


def write_report(run_dir: Path, plotlyjs: PlotlyJs = "embed") -> Path:
    """Write ``report.html`` into a run folder and return its path."""
    page = run_dir / "report.html"
    write_text(page, render(run_dir, plotlyjs))
    if plotlyjs == "directory" and not (run_dir.resolve().parent / _SHARED).exists():
        write_plotly(run_dir.resolve().parent)
    return page


def write_plotly(folder: Path) -> None:
    """Write the script that pages in the folders below `folder` share."""
    write_text(folder / _SHARED, get_plotlyjs())


def render_compare(run_dirs: Sequence[Path]) -> str:
    """Return one HTML page that sets run folders side by side, with what differs in their configuration."""
    runs = [load_run(path) for path in run_dirs]
    found = comparison(runs, [verdict(run.metrics, facts_of(run)) for run in runs])
    return whole_page(
        "compare.html.j2",
        "embed",
        [("Figures", found.figures)],
        title="comparison",
        heading=found.heading,
        compare=found,
        labels=labels_of(runs),
    )


def write_text(path: Path, text: str) -> None:
    """Write beside the file and rename, so that a reader never sees half a page."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        half.write_text(text, encoding="utf-8")
        half.replace(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise StoreError(
            f"found a folder that cannot be written ({error.strerror}), expected one that can", Location(path)
        ) from None


def _sections(run: RunFolder, facts: Facts, found: Verdict) -> list[tuple[str, list[Figure]]]:
    chosen = found.label
    figures = (goodput, latency_shares, queues_over_time, memory_over_time) if run.requests else ()
    serving: list[Figure | None] = [figure(run) for figure in figures]
    sections: list[tuple[str, list[Figure | None]]] = [
        *([("Serving", serving)] if serving else []),
        ("Speed", [throughput(run), latency(run), critical_path(run)]),
        ("Waiting", [waits(run, chosen), what_if(run), viability(run), prefetch(run), prefill(run)]),
        (
            "Quality",
            [
                frontier(run, facts.not_lossless),
                quality(run, facts.not_lossless),
                bounds(run, facts.bounds),
                elimination(run),
                lost_by_step(run),
                lost_by_context(run),
            ],
        ),
        ("Bytes and energy", [bytes_moved(run), state(run, chosen), energy(run), capacity(run), cost(run)]),
        (
            "Hardware",
            [topology(run, chosen), utilisation(run), over_time(run, chosen), roofline(run), layer(run, chosen)],
        ),
    ]
    return [(name, [figure for figure in some if figure]) for name, some in sections]


def _by_source(run: RunFolder) -> list[tuple[str, list[tuple[str, str]]]]:
    """Group assumed numbers by what they rest on: a platform repeats the numbers of a part."""
    facts = sorted(assumed_numbers(run.config), key=lambda fact: (fact.source, fact.path))
    return [
        (source, [(fact.path, str(fact.value)) for fact in group])
        for source, group in groupby(facts, key=lambda fact: fact.source)
    ]


def _platform(run: RunFolder) -> Mapping[str, Any]:
    platform = run.config.get("platform")
    return platform if isinstance(platform, Mapping) else {}


def _program(stages: Sequence[Mapping[str, Any]]) -> Table:
    """Return what a layer does, in the order in which it may start."""
    header = ["Stage", "What", "Engine", "Rows", "Bytes of the mean layer", "Links", "Waits for; (-n): n layers before"]
    rows = [
        [each["name"], each["does"], each["engine"], str(each["rows"]), size(each["nbytes"]),
         ", ".join(each["links"]), ", ".join(each["after"])]
        for each in stages
    ]  # fmt: skip
    return Table(header, rows)


def _models(run: RunFolder) -> Table:
    """Return the errors of the models that the platform's parts rely on, as measured when this program was made."""
    rows = [
        [
            each.part,
            TITLES[each.probe],
            f"{each.rows:,} " + ("of this part" if each.own else "of other parts"),
            share(each.median),
            share(each.p90),
        ]
        for each in reliances(_platform(run))
    ]
    return Table(["Part", "Model", "Rows", "Median error", "90th percentile"], rows)


def whole_page(template: str, plotlyjs: PlotlyJs, sections: list[tuple[str, list[Figure]]], **values: Any) -> str:  # noqa: ANN401  (what templates take)
    """Return a self-contained page of a template: style, scripts and figures inside, everything else escaped."""
    root = folder("reports")
    environment = Environment(
        loader=FileSystemLoader(root / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": _figure, "code": _code, "slug": lambda name: name.lower().replace(" ", "-")}
    script = _asset(root, "report.js")
    inline = [script] + ([get_plotlyjs()] if plotlyjs == "embed" else [])
    return environment.get_template(template).render(
        values,
        sections=sections,
        plots=Markup(script_json(_plots(sections))),  # noqa: S704  (script_json escapes what could end a script)
        style=Markup(_asset(root, "report.css")),  # noqa: S704  (our own file)
        script=Markup(script),  # noqa: S704  (our own file)
        plotly=Markup(get_plotlyjs()) if plotlyjs == "embed" else "",  # noqa: S704  (Plotly's own file)
        policy=_content_policy(inline, plotlyjs),
        shared=f"../{_SHARED}",
    )


def _plots(sections: list[tuple[str, list[Figure]]]) -> Mapping[str, Any]:
    figures = [figure for _, some in sections for figure in some]
    return {figure.key: [inert(view.plot) for view in figure.views] for figure in figures if figure.views[0].plot}


def _figure(value: object) -> str:
    """Write a value of the manifest."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_figure, value))
    return number(value, 6) if isinstance(value, int | float) else str(value)


def _code(text: str) -> Markup:
    """Set what stands between backticks as code, everything escaped."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def _asset(root: Path, name: str) -> str:
    return (root / "assets" / name).read_text(encoding="utf-8")


def _content_policy(inline: Sequence[str], plotlyjs: PlotlyJs) -> str:
    """Allow the page's own scripts by their hashes, and nothing from anywhere else."""
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in inline]
    shared = ["'self'", "file:"] if plotlyjs == "directory" else []
    return (
        f"default-src 'none'; script-src {' '.join([*hashes, *shared])}; style-src 'unsafe-inline'; img-src data: blob:"
    )
