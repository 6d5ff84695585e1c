"""How a byte address becomes sub-channel, bank and row of one DRAM channel.

A mapping is a chunk of consecutive bytes that stay together, the order of the other fields from the lowest bit, and
what bank bits are XORed with. Beside CHUNK256 of the reference tables: ``MOP4CLXOR`` of Ramulator 2, and any mapping
that is spelled by its fields from the highest bit, as ``RoBaRaCoCh`` (Ramulator) or ``rochrabacobg`` (DRAMsim3).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ghostsim.timing.dram_timing import DramTiming

CHUNK256 = "CHUNK256"
Addresses = NDArray[np.int64]
_SPELLED = re.compile(r"(?:ro|co|ra|ba|bg|ch)+\Z", re.IGNORECASE)


@dataclass(frozen=True)
class Mapping:
    """`order` from the lowest bit; `lines` of a chunk count accesses, or are 0 where a chunk is 256 B."""

    order: tuple[str, ...]
    lines: int = 1
    xor: Literal["row", "column"] | None = None


_NAMED = {
    CHUNK256: Mapping(("ch", "pc", "bg", "ba", "sid", "ra", "co", "ro"), 0, "row"),
    "MOP4CLXOR": Mapping(("ch", "pc", "ra", "sid", "bg", "ba", "co", "ro"), 4, "column"),
}


def known(name: str) -> bool:
    """Say whether `name` is a mapping."""
    return name in _NAMED or bool(_SPELLED.match(name) and _spelled(name))


@lru_cache
def mapping(name: str) -> Mapping:
    """Return the mapping called `name`.

    Raises
    ------
    ValueError
        If it isn't one.
    """
    if not known(name):
        raise ValueError(f"mapping {name!r}: expected {', '.join(_NAMED)}, or fields as in RoBaRaCoCh")
    return _NAMED.get(name) or Mapping(_spelled(name))


def _spelled(name: str) -> tuple[str, ...]:
    """Return the fields from the lowest bit; nothing if one is missing or there twice.

    An unnamed bank group lies between bank and rank, an unnamed rank above the bank; pseudo-channel and stack level go
    with the rank, and there may be one channel only.
    """
    fields = [name[i : i + 2].lower() for i in range(0, len(name), 2)][::-1]
    if len(set(fields)) < len(fields) or not {"ro", "ba", "co"} <= set(fields):
        return ()
    if "ra" not in fields:
        fields.insert(fields.index("ba") + 1, "ra")
    if "bg" not in fields:
        bank = fields.index("ba")
        fields.insert(bank + (fields.index("ra") > bank), "bg")
    rank = fields.index("ra")
    fields[rank : rank + 1] = ["pc", "ra", "sid"]
    return tuple(fields if "ch" in fields else ["ch", *fields])


def decode(timing: DramTiming, address: Addresses, name: str = CHUNK256) -> tuple[Addresses, ...]:
    """Return sub-channel, bank of that sub-channel and row of byte addresses.

    Under CHUNK256, from the lowest bit: 256 B chunk, sub-channel, pseudo-channel, bank group, bank, stack level, rank,
    rest of the column, row; bank group and bank are XORed with the low bits of the row.
    """
    how = mapping(name)
    chunk = how.lines * timing.access_bytes or 256
    sizes = {
        "ch": timing.subchannels, "pc": timing.pseudochannels, "ra": timing.ranks, "sid": timing.stack_ids,
        "bg": timing.bankgroups, "ba": timing.banks_per_group, "co": max(1, timing.row_bytes // chunk),
        "ro": timing.rows,
    }  # fmt: skip
    rest, at = address // chunk, {}
    for field in how.order:
        at[field] = rest % sizes[field]
        rest = rest // sizes[field]
    if how.xor == "row":
        at["bg"] = _permute(at["bg"], at["ro"], timing.bankgroups)
        at["ba"] = _permute(at["ba"], at["ro"] // timing.bankgroups, timing.banks_per_group)
    elif how.xor == "column":
        _permute_by_column(at, sizes, at["co"] * how.lines + address // timing.access_bytes % how.lines)
    unit = at["ra"] * timing.pseudochannels + at["pc"]
    bank = ((unit * timing.stack_ids + at["sid"]) * timing.bankgroups + at["bg"]) * timing.banks_per_group + at["ba"]
    return at["ch"], bank, at["ro"]


def _permute_by_column(at: dict[str, Addresses], sizes: dict[str, int], column: Addresses) -> None:
    """XOR each field with bits of the column, the lowest for the channel, as MOP4CLXOR does."""
    for field in ("ch", "pc", "ra", "sid", "bg", "ba"):
        at[field] = _permute(at[field], column, sizes[field])
        column = column // sizes[field]


def _permute(index: Addresses, bits: Addresses, size: int) -> Addresses:
    """Return the index XORed with low bits; a size that is no power of two rotates instead."""
    return index ^ (bits % size) if size & (size - 1) == 0 else (index + bits) % size
