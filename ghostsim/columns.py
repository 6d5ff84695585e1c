"""Rows of cells as lines of text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, numbers: bool = False) -> list[str]:
    """Return rows as lines in columns two spaces apart; with `numbers`, all but the first column are flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    others = str.rjust if numbers else str.ljust
    return ["  ".join([row[0].ljust(widths[0]), *map(others, row[1:], widths[1:])]).rstrip() for row in rows]
