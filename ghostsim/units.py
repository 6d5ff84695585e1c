"""Quantities with units: parsing, formatting, and the types that configuration fields are made of.

A quantity is written as number, space, unit: ``"4.8 TB/s"``, ``"14.16 ns"``, ``"64 GiB"``. SI prefixes are
powers of 1000 and IEC prefixes powers of 1024, never mixed up. A number without a unit is an error. Inside
the program a quantity is a plain number in the base unit that the type names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_SI = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_IEC = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_NUMBER = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?) +(\S.*)$", re.ASCII)


def _prefixed(symbol: str, prefixes: Mapping[str, float]) -> dict[str, float]:
    return {prefix + symbol: factor for prefix, factor in prefixes.items()}


@dataclass(frozen=True)
class Dimension:
    """One kind of quantity: its units (name to factor of the base unit), an example for messages, and its limits.

    A value that is not zero lies between `least` and `most`, in base units: hardware does, and sums of it stay finite.
    """

    name: str
    base: str
    units: Mapping[str, float]
    example: str
    most: float
    least: float = 0
    integer: bool = False

    @property
    def one(self) -> str:
        """The name with its indefinite article."""
        return f"{'an' if self.name[0] in 'aeio' else 'a'} {self.name}"

    def parse(self, text: object) -> float:
        """Return `text` in the base unit.

        Raises
        ------
        ValueError
            If `text` is not a number followed by a space and a unit of this dimension.
        """
        found = _NUMBER.match(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"found {text!r}, expected {self.one} with its unit, e.g. {self.example!r}")
        factor = self.units.get(found[2])
        if factor is None:
            known = ", ".join(self.units)
            raise ValueError(f"found unit {found[2]!r}, expected {self.one} in one of {known}, e.g. {self.example!r}")
        self._check_limits(found[0], float(found[1]) * factor)
        return self._in_base(found[1], factor)

    def _in_base(self, number: str, factor: float) -> float:
        value = float(number) * factor
        return round(value) if self.integer else value

    def _check_limits(self, text: str, value: float) -> None:
        if abs(value) > self.most:
            limit = f"which is too large, expected {self.one} of at most {self.format(self.most)}"
        elif 0 < abs(value) < self.least:
            limit = f"which is too small, expected {self.one} of at least {self.format(self.least)}"
        else:
            return
        raise ValueError(f"found {text!r}, {limit}, e.g. {self.example!r}")

    def format(self, value: float) -> str:
        """Write `value` in the largest unit that leaves a number of at least 1; `parse` reads it back equal."""
        fitting = [(factor, unit) for unit, factor in self.units.items() if abs(value) >= factor]
        for factor, unit in sorted(fitting, key=lambda pair: -pair[0]):
            text = f"{value / factor:.6g}"
            if self._in_base(text, factor) == value:
                return f"{text} {unit}"
        return f"{value!r} {self.base}"


BYTES = Dimension("size", "B", _prefixed("B", _SI | _IEC), "64 GiB", 1e18, integer=True)
BANDWIDTH = Dimension("bandwidth", "B/s", _prefixed("B/s", _SI | _IEC), "4.8 TB/s", 1e18, 1e3)
DURATION = Dimension(
    "duration", "ps", {"ps": 1, "ns": 10**3, "us": 10**6, "ms": 10**9, "s": 10**12}, "14.16 ns", 1e15, integer=True
)
FREQUENCY = Dimension("frequency", "Hz", _prefixed("Hz", _SI), "350 MHz", 1e12, 1e3)
TRANSFER_RATE = Dimension("transfer rate", "T/s", _prefixed("T/s", _SI), "32 GT/s", 1e12, 1e6)
MAC_RATE = Dimension("multiply-accumulate rate", "MAC/s", _prefixed("MAC/s", _SI), "2 TMAC/s", 1e21, 1e3)
FLOP_RATE = Dimension("arithmetic rate", "FLOP/s", _prefixed("FLOP/s", _SI), "989 TFLOP/s", 1e21, 1e3)
IO_RATE = Dimension("operation rate", "IO/s", _prefixed("IO/s", _SI), "1.5 MIO/s", 1e15, 1)
POWER = Dimension("power", "W", {"mW": 1e-3, "W": 1.0, "kW": 1e3}, "700 W", 1e9)
ENERGY_PER_BIT = Dimension(
    "energy per bit", "pJ/bit", {"fJ/bit": 1e-3, "pJ/bit": 1.0, "nJ/bit": 1e3}, "3.9 pJ/bit", 1e9
)
ENERGY = Dimension("energy", "pJ", {"fJ": 1e-3, "pJ": 1.0, "nJ": 1e3, "uJ": 1e6, "mJ": 1e9, "J": 1e12}, "0.6 pJ", 1e15)
CURRENCY = Dimension("cost", "USD", {"USD": 1.0}, "120 USD", 1e12)


DIMENSIONS = tuple(value for value in tuple(globals().values()) if isinstance(value, Dimension))
"""Every kind of quantity; no two share a unit."""


def dimension_of(unit: str) -> Dimension | None:
    """Return the dimension that a unit belongs to, if there is one."""
    return next((dimension for dimension in DIMENSIONS if unit in dimension.units), None)


def split(text: str) -> tuple[float, str] | None:
    """Return number and unit of a quantity, or none if `text` is none."""
    found = _NUMBER.match(text)
    return (float(found[1]), found[2]) if found and dimension_of(found[2]) else None


def magnitude(text: str) -> float | None:
    """Return a quantity of any dimension in its base unit, or none if `text` is none."""
    found = split(text)
    dimension = dimension_of(found[1]) if found else None
    return found[0] * dimension.units[found[1]] if found and dimension else None


def _field(dimension: Dimension) -> tuple[Any, Any, Any]:
    pattern = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)? +(" + "|".join(map(re.escape, dimension.units)) + ")$"
    schema = {"type": "string", "pattern": pattern, "examples": [dimension.example]}
    return (
        BeforeValidator(dimension.parse),
        PlainSerializer(dimension.format, when_used="json"),
        WithJsonSchema(schema),
    )


Bytes = Annotated[int, *_field(BYTES)]
"""A size in bytes."""
Bandwidth = Annotated[float, *_field(BANDWIDTH)]
"""Bytes per second."""
Duration = Annotated[int, *_field(DURATION)]
"""Picoseconds."""
Frequency = Annotated[float, *_field(FREQUENCY)]
"""Hertz."""
TransferRate = Annotated[float, *_field(TRANSFER_RATE)]
"""Transfers per second and pin or lane."""
MacRate = Annotated[float, *_field(MAC_RATE)]
"""Multiply-accumulates per second."""
FlopRate = Annotated[float, *_field(FLOP_RATE)]
"""Floating-point operations per second."""
IoRate = Annotated[float, *_field(IO_RATE)]
"""Input-output operations per second."""
Power = Annotated[float, *_field(POWER)]
"""Watts."""
EnergyPerBit = Annotated[float, *_field(ENERGY_PER_BIT)]
"""Picojoules per bit."""
Energy = Annotated[float, *_field(ENERGY)]
"""Picojoules."""
Cost = Annotated[float, *_field(CURRENCY)]
"""US dollars."""
