# ruff: noqa: N815  # JEDEC names stay JEDEC
"""The timing set and geometry of one DRAM channel, in JEDEC's names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DramTiming:
    """One channel: JEDEC timings in cycles of `tCK_ps`, and its geometry.

    A unit is what has its own tFAW: a rank, or a pseudo-channel of HBM. Parameters that a standard doesn't have are
    left at 0 and then follow from others: writes are spaced as reads are, and a write follows a read when the data bus
    has turned around (two cycles of gap; DDR5 adds a write preamble of two).
    """

    standard: str
    tCK_ps: float
    access_bytes: int
    subchannels: int = 1
    ranks: int = 1
    pseudochannels: int = 1
    stack_ids: int = 1
    bankgroups: int
    banks_per_group: int
    rows: int
    row_bytes: int
    nBL: int
    nCL: int
    nCWL: int
    nRCD_RD: int
    nRCD_WR: int
    nRP: int
    nRAS: int
    nRC: int
    nWR: int
    nRTP: int
    nCCD_S: int
    nCCD_L: int
    nCCD_S_WR: int = 0
    nCCD_L_WR: int = 0
    nCCD_R: int = 0
    nRRD_S: int
    nRRD_L: int
    nWTR_S: int
    nWTR_L: int
    nRTW: int = 0
    nFAW: int
    nPPD: int = 0
    nCS: int = 0
    nAAD: int = 8
    nRFC: int
    nREFI: int

    def __post_init__(self) -> None:
        refresh = self.nRFC + self.units * self.nRP + self.nRC
        if self.nREFI <= refresh:
            raise ValueError(f"tREFI of {self.nREFI} cycles: expected more than a refresh takes, {refresh} cycles")
        turnaround = self.nCL + self.nBL + (4 if self.family == "DDR5" else 2) - self.nCWL
        implied = {"nCCD_S_WR": self.nCCD_S, "nCCD_L_WR": self.nCCD_L, "nCCD_R": self.nCCD_S, "nRTW": turnaround}
        for name, value in implied.items():
            object.__setattr__(self, name, getattr(self, name) or value)

    @property
    def family(self) -> str:
        """The standard without a qualifier or speed: DDR4, DDR5, LPDDR5, HBM2, HBM3 or HBM4."""
        return next((name for name in _FAMILIES if self.standard.startswith(name)), self.standard)

    @property
    def units(self) -> int:
        """Ranks or pseudo-channels behind one controller."""
        return self.ranks * self.pseudochannels

    @property
    def banks(self) -> int:
        """Banks of one unit."""
        return self.stack_ids * self.bankgroups * self.banks_per_group


_FAMILIES = ("DDR4", "DDR5", "LPDDR5", "HBM2", "HBM3", "HBM4")
