"""Answers findings into a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ghostsim.config.catalogue import files, find
from ghostsim.config.load import load_finding
from ghostsim.errors import UsageError
from ghostsim.export.run_folder import staged
from ghostsim.findings.answer import Answer, answer
from ghostsim.findings.evidence import gather
from ghostsim.findings.page import as_data, write_answer, write_index
from ghostsim.report.page import write_plotly
from ghostsim.sweep.executor import Progress

RESULT = "findings.json"


def run_findings(
    names: Sequence[str], out: Path, *, jobs: int = 1, force: bool = False, progress: Progress | None = None
) -> list[Answer]:
    """Answer findings: a page for each in `out`, pages of their evidence, an index and findings.json.

    Parameters
    ----------
    names
        Files or bundled names; none takes all that are bundled.
    out
        Folder to write; with `force` one that this command wrote may be replaced.
    jobs
        Processes; 0 takes the number of processors, at most 4.
    progress
        Called with a line about what is being done.

    Raises
    ------
    GhostsimError
        What loading a finding or gathering its evidence raises; evidence gathered until then stays in the cache.
    """
    say = progress or (lambda _: None)
    paths = [find("finding", name) for name in names] or list(files("finding").values())
    if not paths:
        raise UsageError("found no findings, expected files or bundled ones")
    loaded = {path.stem: (path, load_finding(path)) for path in paths}
    with staged(out, force=force, marker=RESULT) as folder:
        answers = []
        for name, (path, finding) in loaded.items():
            asked = finding.value.evidence.items()
            evidence = [gather(key, each, path.resolve().parent, jobs, say) for key, each in asked]
            answers.append(answer(name, finding, evidence))
            write_answer(answers[-1], folder)
        write_plotly(folder)
        write_index(answers, folder)
        text = json.dumps(as_data(answers), indent=1, allow_nan=False)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")
    return answers


def findings_text(answers: Sequence[Answer]) -> str:
    """Return every verdict with the claims that carry it."""
    return "\n\n".join(_text(each) for each in answers)


def _text(found: Answer) -> str:
    marks = {True: "+", False: "-", None: " "}
    claims = [
        f"  {marks[each.holds]} {each.claim.says}: {each.text}" + (f" ({each.bar})" if each.bar else "")
        for each in found.claims
    ]
    return "\n".join([f"{found.name}: {found.verdict}", *claims])
