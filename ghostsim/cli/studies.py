"""What looks at policies and recorded attention without hardware."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ghostsim.cli.common import (
    AsJson,
    Force,
    Jobs,
    Out,
    OutFile,
    Quiet,
    Sets,
    app,
    check_all_new,
    clear_progress,
    fraction,
    print_json,
    progress,
    tell,
)


@app.command()
def evaluate(
    policy: str,
    trace: Annotated[str, typer.Option("--trace", help="A recorded trace: folder or bundled name.")],
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 0,
) -> None:
    """Say what a policy reads and loses on a trace."""
    from ghostsim.config.load import load_policy
    from ghostsim.export.run_folder import default_out, staged
    from ghostsim.metrics.quality import quality
    from ghostsim.metrics.quality_depth import depth, write_depth
    from ghostsim.policy.evaluate import select
    from ghostsim.policy.output import write_evaluation
    from ghostsim.trace.compose import compose
    from ghostsim.trace.format import open_trace

    chosen, recorded = load_policy(policy, sets).value, open_trace(trace)
    folder = out or default_out(f"evaluate-{chosen.name}-{recorded.name}")
    with staged(folder, force=force, marker="quality.csv") as temporary:
        workload = compose([recorded], None, requests=1, steps=None, context=None, seed=1)
        selection = select({chosen.name: chosen}, workload, jobs=jobs, progress=fraction(quiet=quiet))[chosen.name]
        write_evaluation(chosen, workload, selection, temporary)
        deep = depth(chosen, workload, selection)
        write_depth(deep, temporary)
        clear_progress(quiet=quiet)
    found = {"schema": 1, "policy": chosen.name, "trace": recorded.name, "quality": quality(selection, 1)}
    if as_json:
        print_json(found | {"depth": deep})
    elif not quiet:
        tell(json.dumps(found["quality"], indent=1))
    tell(str(folder))


@app.command()
def audit(
    trace: str,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Decode steps looked at, evenly spaced.")] = 32,
    drift: Annotated[
        bool, typer.Option("--drift", help="Also how indexes age over the steps, refitted or not.")
    ] = False,
    tree: Annotated[
        bool, typer.Option("--tree", help="Also the nodes visited in trees above 32K to 1M tokens.")
    ] = False,
    out: OutFile = None,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write; a new file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that --out and --report name.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Audit on a trace what small sketches may rule out.

    Rank preservation, false elimination against elimination by each published definition, and a verdict.
    """
    from ghostsim.study.audit import audit as audited
    from ghostsim.study.audit_output import as_json as laid_out
    from ghostsim.study.audit_output import audit_text, write_csv
    from ghostsim.study.drift import drift as drifted
    from ghostsim.study.tree import tree as walked
    from ghostsim.trace.format import open_trace

    check_all_new(out=out, report=report, force=force)
    recorded = open_trace(trace)
    ageing = drifted(recorded, fraction(quiet=quiet, doing="drift on")) if drift else None
    trees = walked(recorded, progress=fraction(quiet=quiet, doing="tree above", what="context")) if tree else None
    found = audited(recorded, steps, fraction(quiet=quiet, doing="audit"))
    clear_progress(quiet=quiet)
    if as_json:
        print_json(laid_out(found, ageing, trees))
    else:
        print(audit_text(found, ageing, trees))
    if out is not None:
        write_csv(found, out)
        tell(str(out))
    if report is not None:
        from ghostsim.report.audit_page import render_audit
        from ghostsim.report.page import write_text

        write_text(report, render_audit(found, ageing, trees))
        tell(str(report))


@app.command()
def perplexity(
    model: Annotated[str, typer.Argument(help="Folder or name of a causal LM that transformers loads.")],
    text: Annotated[Path, typer.Argument(help="Text file, or token ids: .npy or .json.")],
    policy: Annotated[list[str], typer.Option("--policy", help="A policy file or bundled name; may be repeated.")],
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens before the first step.")] = 3968,
    steps: Annotated[int, typer.Option("--steps", help="Decode steps over the text.")] = 128,
    facts: Annotated[int, typer.Option("--facts", help="Facts to plant in the prompt and to ask for.")] = 0,
    q_prompt: Annotated[str, typer.Option("--q-prompt", help="Last prompt queries that policies see, or all.")] = "all",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the facts.")] = 1,
    device: Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda.")] = "cpu",
    out: Out = None,
    force: Force = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decode a model that attends to a policy's reads only.

    Perplexity against full attention, lost mass in open and closed loop, recall of planted facts.
    """
    from ghostsim.config.load import load_policy
    from ghostsim.export.run_folder import staged
    from ghostsim.study.perplexity import Decode, figures, perplexity_text, write_perplexity
    from ghostsim.study.perplexity import perplexity as decode
    from ghostsim.trace.record import query_count

    asked = Decode(
        model=model,
        text=text,
        policies=tuple(load_policy(name).value for name in policy),
        prompt_len=prompt,
        steps=steps,
        facts=facts,
        q_prompt=query_count(q_prompt),
        seed=seed,
        device=device,
    )
    with nullcontext() if out is None else staged(out, force=force, marker="perplexity.json") as folder:
        found = decode(asked, progress(quiet=quiet))
        if folder is not None:
            write_perplexity(found, folder)
        clear_progress(quiet=quiet)
    if as_json:
        print_json(figures(found))
    else:
        print(perplexity_text(found))
    if out is not None:
        tell(str(out))


@app.command()
def frontier(
    trace: Annotated[str, typer.Argument(help="A recorded trace: folder or bundled name.")],
    policy: Annotated[
        list[str] | None, typer.Option("--policy", help="A policy, again for more; the whole library by default.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Decode steps, at most those recorded.")] = 64,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write; a new file.")] = None,
    out: OutFile = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files that --report and --out name.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    jobs: Jobs = 0,
) -> None:
    """Set what policies lose against what they move.

    Every policy of the library on one recorded trace, each at several budgets, beside an oracle.
    """
    from ghostsim.config.catalogue import files
    from ghostsim.config.load import load_policy
    from ghostsim.report.frontier_page import frontier_text, heading, render_frontier
    from ghostsim.report.page import write_text
    from ghostsim.study.frontier import as_data, write_csv
    from ghostsim.study.frontier import frontier as measure
    from ghostsim.trace.format import open_trace

    check_all_new(force=force, report=report, out=out)
    chosen = [load_policy(name).value for name in policy or files("policy")]
    found = measure(open_trace(trace), chosen, steps=steps, jobs=jobs, progress=fraction(quiet=quiet))
    clear_progress(quiet=quiet)
    if out is not None:
        write_csv(found, out)
    if report is not None:
        write_text(report, render_frontier(found))
    if as_json:
        print_json(as_data(found) | {"verdict": heading(found)})
    else:
        print(frontier_text(found))
    for path in (out, report):
        if path is not None:
            tell(str(path))
