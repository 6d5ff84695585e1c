"""What reads configuration and lists what is bundled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ghostsim.cli.common import AsJson, Kinds, Quiet, Seed, Sets, app, base_of, print_json, tell
from ghostsim.errors import GhostsimError

if TYPE_CHECKING:
    from ghostsim.config.catalogue import Entry


@app.command()
def validate(
    files: list[str],
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    quiet: Quiet = False,
) -> None:
    """Check files or bundled names of any kind.

    Scenarios are checked down to the capacities of tiers and the values of traces.
    """
    from ghostsim.config.load import load_any
    from ghostsim.simulation import prepare

    errors: list[GhostsimError] = []
    for name in files:
        try:
            loaded = load_any(name, sets)
            if loaded.kind == "scenario":
                prepare(loaded.value, base_of(name), loaded.at)
        except GhostsimError as error:
            errors.append(error)
            tell(str(error))
        else:
            if not quiet:
                tell(f"{name}: {loaded.kind} is valid")
    if errors:
        raise typer.Exit(errors[0].exit_code)


@app.command()
def show(
    file: str,
    sets: Sets = [],  # noqa: B006  (typer copies the default)
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Print the effective configuration.

    FILE is a file or a bundled name; what is printed is after extends, --set and defaults.
    """
    from ghostsim.config.cost import cost_text, platform_cost
    from ghostsim.config.document import dump
    from ghostsim.config.load import load_any

    loaded = load_any(file, [*sets, *([] if seed is None else [f"seed={seed}"])])
    platform = loaded.document if loaded.kind == "platform" else loaded.document.get("platform") or {}
    cost = platform_cost(platform)
    if cost is not None:
        tell(f"cost: {cost_text(cost)}")
    if as_json:
        print_json(loaded.document)
    else:
        print(dump(loaded.document), end="")


@app.command("list")
def list_(
    kind: Kinds,
    all_: Annotated[bool, typer.Option("--all", help="Also systems that no policy file can express, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """List what is bundled.

    Policies with their family and how close they are to the published system.
    """
    from ghostsim.columns import aligned
    from ghostsim.config.catalogue import names

    entries = names(kind) + (_outside() if all_ and kind == "policies" else [])
    if as_json:
        print_json([{"name": e.name, "kind": e.kind, "path": str(e.path), "summary": e.summary} for e in entries])
        return
    rows = [(entry.name, *entry.marks, entry.summary) for entry in entries]
    print("\n".join(aligned(rows)))


def _outside() -> list[Entry]:
    """Return the systems outside the algebra as entries of a list."""
    from ghostsim.config.catalogue import Entry
    from ghostsim.config.load import load_outside

    found = load_outside()
    path = str(found.marks[()].file)
    return [Entry(name, "outside", path, why, ("outside", "-")) for name, why in found.value.systems.items()]


@app.command()
def schema(out: Annotated[Path | None, typer.Option("--out", help="Folder for one file per kind.")] = None) -> None:
    """Print or write the JSON Schemas for editors."""
    from ghostsim.config.schema import schemas, write_schemas

    if out is None:
        print_json(schemas())
        return
    for path in write_schemas(out):
        tell(str(path))
