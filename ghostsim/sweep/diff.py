"""Says what moved between two run folders, and which of their inputs explain it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ghostsim.columns import aligned
from ghostsim.report.compare import differences, said
from ghostsim.report.store import RunFolder, load_run
from ghostsim.sweep.store import flattened

_HASH_DIGITS = 12
_MANIFEST = ("seed", "ghostsim", "python")
_TABLES = ("packages", "inputs", "selections", "plans")
"""Mappings of the manifest: versions of libraries, and hashes of files, Selections and Plans."""


def diff_runs(before: Path, after: Path, above: float = 0.0) -> dict[str, Any]:
    """Compare two run folders, or points of a sweep.

    Parameters
    ----------
    before, after
        The folders.
    above
        Leave out figures whose relative change is not above it; changes of text always count.

    Returns
    -------
    dict
        ``figures``: what moved, the largest change first: `path`, `before`, `after` (None where it is missing), and
        the relative `change` (None if there is none: from 0, from nothing, of text); ``above``; ``inputs``: by their
        kind (`config`, `seed`, `ghostsim`, `python`, `packages`, `inputs`, `selections`, `plans`), and in it by
        name, [before, after] of what differs; ``equal``: whether neither differs.

    Raises
    ------
    StoreError
        If one is no run folder.
    """
    one, two = load_run(before), load_run(after)
    moved = sorted(_moved(flattened(one.metrics), flattened(two.metrics)), key=_order)
    inputs = {kind: found for kind, found in _inputs(one, two).items() if found}
    return {
        "schema": 1,
        "folders": [str(before), str(after)],
        "above": above,
        "equal": not moved and not inputs,
        "figures": [each for each in moved if each["change"] is None or abs(each["change"]) > above],
        "inputs": inputs,
    }


def _moved(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path in dict.fromkeys([*before, *after]):
        one, two = before.get(path), after.get(path)
        if one != two:
            yield {"path": path, "before": one, "after": two, "change": _change(one, two)}


def _change(before: object, after: object) -> float | None:
    if not isinstance(before, int | float) or not isinstance(after, int | float) or not before:
        return None
    return (after - before) / abs(before)


def _order(each: Mapping[str, Any]) -> tuple[float, str]:
    change = each["change"]
    return -math.inf if change is None else -abs(change), each["path"]


def _inputs(one: RunFolder, two: RunFolder) -> dict[str, dict[str, list[Any]]]:
    manifests = (one.manifest, two.manifest)
    plain = {key: _unequal(*({key: manifest.get(key)} for manifest in manifests)) for key in _MANIFEST}
    tables = {key: _unequal(*(manifest.get(key) or {} for manifest in manifests)) for key in _TABLES}
    return {"config": differences([one, two]), **plain, **tables}


def _unequal(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    pairs = {name: [before.get(name), after.get(name)] for name in dict.fromkeys([*before, *after])}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# --- as text -----------------------------------------------------------------------------------------------------


def diff_text(found: Mapping[str, Any]) -> str:
    """Return a difference as text: a sentence, the figures that moved, and the inputs that differ."""
    if found["equal"]:
        return "the runs are the same"
    figures = [
        [each["path"], *map(_shown, (each["before"], each["after"])), _percent(each)] for each in found["figures"]
    ]
    inputs = [
        [kind, name, *map(_shown, pair)] for kind, pairs in found["inputs"].items() for name, pair in pairs.items()
    ]
    parts = [_sentence(found)]
    parts += ["\n".join(aligned([["figure", "before", "after", "change"], *figures]))] if figures else []
    parts += ["\n".join(aligned([["input", "name", "before", "after"], *inputs]))] if inputs else []
    return "\n\n".join(parts)


def _sentence(found: Mapping[str, Any]) -> str:
    """Say what kind of input differs, the nearest cause first."""
    inputs = found["inputs"]
    count = f"{len(found['figures'])} figures moved" + (f" by more than {found['above']:.3g}" if found["above"] else "")
    if not inputs:
        return f"{count}, and no input differs: the code does, or the run is not reproducible"
    if "selections" in inputs:
        return (
            f"{count}: what is read differs (policy, trace, model shape or batch), in {', '.join(inputs['selections'])}"
        )
    if "plans" in inputs:
        return f"{count}: the same tokens are read, but placed or batched otherwise, in {', '.join(inputs['plans'])}"
    if "config" in inputs:
        return f"{count}: the same bytes move, on other hardware"
    return f"{count}: the scenario is the same; {', '.join(inputs)} differ"


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else said(value)
    is_hash = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return text[:_HASH_DIGITS] if is_hash else text


def _percent(each: Mapping[str, Any]) -> str:
    return "-" if each["change"] is None else f"{each['change']:+.3%}"
