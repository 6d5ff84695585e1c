"""What is bundled, by kind and name, and where the numbers of a document come from."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostsim.bundled import folder
from ghostsim.config.document import TreePath, read
from ghostsim.errors import ConfigError, Location

FOLDERS: Mapping[str, tuple[str, ...]] = {
    "scenario": ("scenarios", "scenarios/roadmap"),
    "policy": ("scenarios/policies",),
    "sweep": ("scenarios/sweeps",),
    "search": ("scenarios/searches",),
    "finding": ("scenarios/findings",),
    "platform": ("hwmodels/platform",),
    "model": ("hwmodels/models",),
    "part": tuple(
        f"hwmodels/{room}" for room in ("gpu", "gpu/arch", "memory", "cxl", "pim", "storage", "link", "host")
    ),
}
"""Where the bundled documents of each kind are."""
PLURALS: Mapping[str, str] = {
    "parts": "part",
    "platforms": "platform",
    "models": "model",
    "policies": "policy",
    "scenarios": "scenario",
    "sweeps": "sweep",
    "searches": "search",
    "findings": "finding",
    "traces": "trace",
}
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Entry:
    """One line of a list."""

    name: str
    kind: str
    path: str
    summary: str
    marks: tuple[str, ...] = ()
    """What a list shows beside the name: of a policy its family and fidelity, of a part its kind."""


_NO_MARKS = {"policy": ("-", "-"), "part": ("-",)}


def _room(name: str) -> Path:
    first, _, rest = name.partition("/")
    return folder(first) / rest


def files(kind: str) -> dict[str, Path]:
    """Return the bundled documents of a kind by name, sorted."""
    found = (path for room in FOLDERS[kind] for path in _room(room).glob("*.yaml"))
    return {path.stem: path for path in sorted(found, key=lambda path: path.stem)}


def find(kind: str | None, name: str, near: Path | None = None, at: Location | None = None) -> Path:
    """Return the file of a document that is named by file or by bundled name.

    Parameters
    ----------
    kind
        Kind of the document; none looks in all.
    near
        Folder that a relative file is looked for in; none takes the working directory.
    at
        Where the name stands, for the message.

    Raises
    ------
    ConfigError
        If nothing has this name.
    """
    if name.endswith(SUFFIXES) or "/" in name or "\\" in name:
        return (near or Path()) / name
    for candidate in [kind] if kind else FOLDERS:
        path = files(candidate).get(name)
        if path is not None:
            return path
    if exists(Path(name)):
        return Path(name)
    known = [stem for candidate in ([kind] if kind else FOLDERS) for stem in files(candidate)]
    raise ConfigError(f"found no {kind or 'document'} named {name!r}, {_expected(name, known)}", at)


def exists(path: Path) -> bool:
    """Tell whether a file is there; a name that no file can have is not."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _expected(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, 1, 0.5)
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    hint = f", did you mean {close[0]!r}" if close else ""
    return f"expected a file (NAME.yaml) or one of {listed or 'none (nothing is bundled)'}{hint}"


def label(path: Path) -> str:
    """Return the name of a file in manifests: relative to the bundled folders if it is in one of them."""
    resolved = path.resolve()
    for top in ("hwmodels", "scenarios", "traces"):
        root = folder(top).resolve()
        if resolved.is_relative_to(root):
            return f"{top}/{resolved.relative_to(root).as_posix()}"
    return path.as_posix()


def names(kind: str) -> list[Entry]:
    """List what is bundled of a kind (``parts`` or ``part``, ..., ``traces``), sorted by name, parts by kind first."""
    single = PLURALS.get(kind, kind)
    if single == "trace":
        return [_entry(path.parent.name, "trace", path) for path in sorted(folder("traces").glob("*/manifest.yaml"))]
    return sorted((_entry(name, single, path) for name, path in files(single).items()), key=lambda entry: entry.kind)


def _entry(name: str, kind: str, path: Path) -> Entry:
    try:
        text = read(path)[0].plain()
    except ConfigError as error:
        return Entry(name, kind, str(path), f"invalid: {error}", _NO_MARKS.get(kind, ()))
    facts = text if isinstance(text, dict) else {}
    shown = path.parent if kind == "trace" else path
    summary = facts.get("summary") or facts.get("title") or facts.get("paper") or _derived_summary(facts)
    found = str(facts.get("kind") or kind) if kind == "part" else kind
    policy = (str(facts.get("family", "baseline")), str(facts.get("fidelity", "exact")))
    marks = {"policy": policy, "part": (found,)}.get(kind, ())
    return Entry(name, found, str(shown), str(summary), marks)


def _axes(facts: Mapping[str, Any]) -> list[str]:
    """Return the dotted paths that a sweep or a search varies."""
    drawn = [(facts.get(kind) or {}).get("fields") for kind in ("random", "latin_hypercube")]
    return [path for axis in (facts.get("grid"), facts.get("zip"), *drawn, facts.get("fields")) for path in axis or ()]


def _derived_summary(facts: Mapping[str, Any]) -> str:
    axes = _axes(facts)
    if "scenario" in facts:
        return f"{facts['scenario']} over {', '.join(map(str, axes)) or 'listed points'}"
    if "tokens" not in facts:
        return ""
    model = facts.get("model")
    shape = model.get("name") if isinstance(model, Mapping) else None
    return f"{facts.get('kind')}, {facts['tokens']} tokens, {facts.get('steps')} steps, model {shape}"


@dataclass(frozen=True)
class Provenance:
    """A hardware number and where it comes from."""

    path: str
    value: Any
    source: str
    confidence: str


def provenance(document: Any) -> list[Provenance]:
    """List the sourced numbers of an effective document in its order; a bare number takes its block's source."""
    return list(_walk(document, (), None, None))


def assumed_numbers(document: Any) -> list[Provenance]:
    """List the numbers of an effective document that nobody measured or published."""
    return [fact for fact in provenance(document) if fact.confidence == "assumed"]


_NOT_NUMBERS = ("source", "confidence", "schema", "name", "summary", "kind")


def _walk(node: Any, path: TreePath, source: str | None, confidence: str | None) -> Iterator[Provenance]:
    if isinstance(node, Mapping):
        source = node.get("source") or source
        confidence = node.get("confidence") or confidence
        if "value" in node and source and confidence:
            yield Provenance(".".join(map(str, path)), node["value"], source, confidence)
            return
        for key, value in node.items():
            if key not in _NOT_NUMBERS:
                yield from _walk(value, (*path, key), source, confidence)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _walk(value, (*path, index), source, confidence)
    elif source and confidence and _number(node):
        yield Provenance(".".join(map(str, path)), node, source, confidence)


def _number(value: Any) -> bool:
    if isinstance(value, str):
        return value[:1].isdigit() and " " in value
    return isinstance(value, int | float) and not isinstance(value, bool)
