"""CXL.mem link bandwidth from flit and slot arithmetic.

Layouts: CXL 3.1 specification, sections 4.2, 4.3.2 and 6.2.3.1.2. A 64 B line takes four slots of 16 B; headers of
requests and responses travel in slots of their own or in the short first slot of a flit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Flit = Literal["68B", "256B", "lopt"]

LINE_BYTES = 64
_SLOT_BYTES = 16
_DATA_SLOTS = LINE_BYTES // _SLOT_BYTES
_RESPONSES_PER_SLOT = 3
"""DRS or NDR headers that one slot packs if responses queue up."""


@dataclass(frozen=True)
class FlitFormat:
    """Bytes of one flit on the wire, and the slots in it; a short first slot holds headers only."""

    nbytes: int
    slots: int
    short_first: bool


FORMATS: dict[Flit, FlitFormat] = {
    # 2 protocol id + 4 x 16 + 2 CRC
    "68B": FlitFormat(68, 4, short_first=False),
    # 2 header + 14 + 14 x 16 + 2 credit + 8 CRC + 6 FEC
    "256B": FlitFormat(256, 15, short_first=True),
    # Two halves of 128 with a CRC each: 2 header + 10 + 14 x 16 + 2 credit + 2 x 6 CRC + 6 FEC
    "lopt": FlitFormat(256, 15, short_first=True),
}


@dataclass(frozen=True)
class LinkBandwidth:
    """Data bandwidth of a mix of reads and writes, in bytes/s."""

    read_bytes_per_s: float
    write_bytes_per_s: float


def line_slots(headers_per_slot: float) -> float:
    """Return the slots that a line with its header takes if a slot packs `headers_per_slot` headers."""
    return _DATA_SLOTS + 1 / headers_per_slot


def data_efficiency(flit: Flit, headers_per_slot: float = _RESPONSES_PER_SLOT) -> float:
    """Return the share of the wire that is line data when one direction carries lines with headers only.

    One header per slot gives the lower bound of 75 %, three the packed 86 to 87 %.
    """
    layout = FORMATS[flit]
    lines = layout.slots / line_slots(headers_per_slot)
    if layout.short_first:
        lines = min(lines, (layout.slots - 1) / _DATA_SLOTS)
    return lines * LINE_BYTES / layout.nbytes


def wire_bytes_per_s(rate_T_per_s: float, lanes: int) -> float:
    """Return the bandwidth per direction after line coding (128b/130b to 32 GT/s; PAM4 flits have none)."""
    return rate_T_per_s * lanes / 8 * (128 / 130 if rate_T_per_s < 64e9 else 1.0)


def _slots_per_s(rate_T_per_s: float, lanes: int, flit: Flit) -> float:
    return wire_bytes_per_s(rate_T_per_s, lanes) / FORMATS[flit].nbytes * FORMATS[flit].slots


def answer_seconds(
    rate_T_per_s: float, lanes: int, flit: Flit, *, write: bool, headers_per_slot: float = _RESPONSES_PER_SLOT
) -> float:
    """Return the time that one line takes on the direction that does not carry its data.

    A read sends a request slot to the device, a write gets a packed completion from it.
    """
    return (1 / headers_per_slot if write else 1.0) / _slots_per_s(rate_T_per_s, lanes, flit)


def link_bandwidth(
    rate_T_per_s: float,
    lanes: int,
    flit: Flit,
    read_fraction: float = 1.0,
    headers_per_slot: float = _RESPONSES_PER_SLOT,
) -> LinkBandwidth:
    """Return the data bandwidth of a link under a steady mix of line reads and writes.

    To the device go a request slot per read, and a header slot with four data slots per write; from it come a packed
    header with four data slots per read, and a packed completion per write. The fuller direction is the limit.

    Parameters
    ----------
    rate_T_per_s, lanes
        Transfers per second and lane, and lanes.
    flit
        ``68B`` (CXL 1.1 and 2.0), ``256B`` or latency-optimised ``lopt`` (CXL 3.x).
    read_fraction
        Reads over all lines.
    headers_per_slot
        Responses that one slot packs: 3 under load, 1 at low load.
    """
    slots_per_s = _slots_per_s(rate_T_per_s, lanes, flit)
    write_fraction = 1 - read_fraction
    to_device = read_fraction + write_fraction * (1 + _DATA_SLOTS)
    lines_per_s = slots_per_s / max(
        to_device, read_fraction * line_slots(headers_per_slot) + write_fraction / headers_per_slot
    )
    return LinkBandwidth(lines_per_s * LINE_BYTES * read_fraction, lines_per_s * LINE_BYTES * write_fraction)
