"""Numbers as a reader wants them: few digits, with their unit, the same text on every machine."""

from __future__ import annotations

import math

_BYTE_UNITS = ((1e15, "PB"), (1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B"))


def number(value: float | None, digits: int = 3) -> str:
    """Write `value` with `digits` significant digits, thousands separated and without an exponent above 1e-4."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits}g}")
    if abs(rounded) >= 10 ** (digits - 1):
        return f"{rounded if abs(value) >= 1e15 else round(value):,.0f}"
    text = f"{rounded:,.{digits + 4}f}".rstrip("0").rstrip(".")
    return text or "0"


def share(value: float | None) -> str:
    """Write a fraction as a percentage, never rounding something to nothing or almost all to all."""
    if value is None:
        return "-"
    if 0 < abs(value) < 1e-6:
        return "under 0.0001 %"
    if 0.9995 <= value < 1:
        return "over 99.9 %"
    return f"{number(value * 100, 2 if value < 0.1 else 3)} %"


def at_most(value: float) -> str:
    """Write a fraction as a percentage of two digits that is rounded up: what a bound promises is never less."""
    if value <= 0:
        return "0 %"
    digits = 1 - math.floor(math.log10(value * 100))
    scale = 10.0**digits
    # a product such as 0.12 * 100 may exceed 12 by its rounding alone
    return f"{number(math.ceil(value * 100 * scale - 1e-9) / scale, 2)} %" if value < 0.1 else share(value)


def loses(lost: float) -> str:
    """Say how much attention mass is lost at most."""
    return f"loses at most {at_most(lost)} of attention mass" if lost > 0 else "loses no attention mass"


def size(nbytes: float | None) -> str:
    """Write a number of bytes in the largest decimal unit that leaves at least 1."""
    if nbytes is None:
        return "-"
    for factor, unit in _BYTE_UNITS:
        if abs(nbytes) >= factor:
            return f"{number(nbytes / factor)} {unit}"
    return f"{number(nbytes)} B"


def byte_unit(largest: float) -> tuple[float, str]:
    """Return the decimal unit in which `largest` is at least 1, as bytes and as its symbol."""
    return next(((factor, unit) for factor, unit in _BYTE_UNITS if abs(largest) >= factor), (1.0, "B"))


def times(ratio: float) -> str:
    """Write a ratio: 1.83x, 24x."""
    return f"{number(ratio, 3 if ratio < 10 else 2)}x"


def listing(parts: list[str]) -> str:
    """Join `parts` as prose: a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def plural(count: int, noun: str) -> str:
    """Write a count with its noun."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
