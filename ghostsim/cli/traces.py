"""What makes, checks and describes traces and request workloads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostsim.cli.common import (
    _MOST_TOKENS,
    AsJson,
    Force,
    ForceFile,
    Form,
    OutFile,
    Quiet,
    check_new,
    clear_progress,
    print_json,
    progress,
    tell,
    trace_app,
)

if TYPE_CHECKING:
    from ghostsim.trace.requests import Requests


@trace_app.command("info")
def trace_info(
    trace: str,
    report: Annotated[Path | None, typer.Option("--report", help="HTML page to write; a new file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file that --report names.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what a trace is and how its attention spreads."""
    from ghostsim.trace.format import open_trace
    from ghostsim.trace.info import format_info, format_summary, info

    opened = open_trace(trace)
    if report is not None:
        from ghostsim.report.page import write_text
        from ghostsim.report.trace_page import render_trace

        check_new("--report", report, force=force)
        write_text(report, render_trace(opened))
        tell(str(report))
    found = info(opened)
    if as_json:
        print_json(found)
    else:
        print(f"{format_info(found)}\n\n{format_summary(found)}")


@trace_app.command("check")
def trace_check(trace: str, quiet: Quiet = False) -> None:
    """Check a trace: shapes, checksums, values."""
    from ghostsim.trace.format import check_trace

    checked = check_trace(trace)
    if not quiet:
        tell(f"{checked.path}: a valid trace of {checked.tokens} tokens and {checked.steps} steps")


@trace_app.command("record")
def trace_record(
    model: Annotated[str, typer.Argument(help="Folder or name of a causal LM that transformers loads.")],
    text: Annotated[Path, typer.Argument(help="Text file, or token ids: .npy or .json.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; its name is the trace's.")],
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens before the first step.")] = 3968,
    steps: Annotated[int, typer.Option("--steps", help="Decode steps.")] = 128,
    generate: Annotated[bool, typer.Option("--generate", help="Decode greedily; else follow the text.")] = False,
    layers: Annotated[str, typer.Option("--layers", help="Layers to keep, e.g. 0,2-5.")] = "all",
    v: Annotated[bool, typer.Option("--v", help="Record values.")] = False,
    q_ahead: Annotated[bool, typer.Option("--q-ahead", help="Record queries made one layer early.")] = False,
    classes: Annotated[bool, typer.Option("--classes", help="Record token classes: special, punctuation.")] = False,
    q_prompt: Annotated[str, typer.Option("--q-prompt", help="Last prompt queries to record, or all.")] = "256",
    title: Annotated[str | None, typer.Option("--title", help="Title or URL of the text, for the provenance.")] = None,
    licence: Annotated[str, typer.Option("--licence", help="SPDX identifier of the text's licence.")] = "NOASSERTION",
    device: Annotated[str, typer.Option("--device", help="Where the model runs: cpu, cuda.")] = "cpu",
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Record a model's attention over a text.

    The recording is proved against the model; asked again after a break, it goes on.
    """
    from ghostsim.trace.record import Recording, layer_numbers, query_count, record, recorded_text

    asked = Recording(
        model=model,
        text=text,
        out=out,
        prompt_len=prompt,
        steps=steps,
        generate=generate,
        layers=layer_numbers(layers),
        values=v,
        ahead=q_ahead,
        classes=classes,
        q_prompt=query_count(q_prompt),
        title=title,
        licence=licence,
        device=device,
        force=force,
    )
    trace = record(asked, progress(quiet=quiet))
    clear_progress(quiet=quiet)
    if not quiet:
        tell(recorded_text(trace))
    tell(str(out))


@trace_app.command("compose")
def trace_compose(
    traces: list[str],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one.")],
    context: Annotated[
        int, typer.Option("--context", min=1, max=_MOST_TOKENS, help="Tokens in the cache before step 0.")
    ],
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Decode steps; all by default.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    force: Force = False,
) -> None:
    """Compose a longer trace from recorded ones."""
    from ghostsim.trace.compose import compose
    from ghostsim.trace.format import open_trace
    from ghostsim.trace.write import compose_to_folder

    opened = [open_trace(name) for name in traces]
    workload = compose(opened, None, requests=1, steps=steps, context=context, seed=seed)
    compose_to_folder(workload, out, force=force)
    tell(str(out))


@trace_app.command("import")
def trace_import(
    file: str,
    form: Annotated[Form, typer.Option("--form", help="Form of the file; auto looks at its first line.")] = "auto",
    out: OutFile = None,
    force: ForceFile = False,
    as_json: AsJson = False,
) -> None:
    """Read a published request trace.

    FILE is a file or a bundled name; what it holds is said, and written as CSV with --out.
    """
    from ghostsim.trace.request_forms import import_requests

    _requests_out(import_requests(file, form), out, force=force, as_json=as_json)


@trace_app.command("sessions")
def trace_sessions(
    sessions: Annotated[int, typer.Option("--sessions", min=1)] = 100,
    turns: Annotated[int, typer.Option("--turns", min=1, help="Requests of each session.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    out: OutFile = None,
    force: ForceFile = False,
    as_json: AsJson = False,
) -> None:
    """Make requests of multi-turn agent sessions."""
    from ghostsim.trace.agent_sessions import agent_sessions

    _requests_out(agent_sessions(seed, sessions, turns), out, force=force, as_json=as_json)


def _requests_out(requests: Requests, out: Path | None, *, force: bool, as_json: bool) -> None:
    from ghostsim.trace.request_forms import write_requests
    from ghostsim.trace.requests import format_summary, summary

    found = summary(requests)
    if out is not None:
        write_requests(requests, out, force=force)
    if as_json:
        print_json({"schema": 1, **found})
    else:
        print(format_summary(found))
    if out is not None:
        tell(str(out))


@trace_app.command("synth")
def trace_synth(
    like: Annotated[
        list[str], typer.Option("--like", help="A trace to fit: folder or bundled name; again for more of its model.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write; a new one.")],
    tokens: Annotated[
        int | None, typer.Option("--tokens", min=1, max=_MOST_TOKENS, help="All; as LIKE by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Decode steps; as LIKE by default.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 1,
    force: Force = False,
) -> None:
    """Write a synthetic trace like recorded ones.

    Of several documents, like one of them, by the seed.
    """
    from ghostsim.study.synth import synthesise
    from ghostsim.trace.format import open_trace

    synthesise([open_trace(each) for each in like], out, tokens, steps, seed, force=force)
    tell(str(out))
