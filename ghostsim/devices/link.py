"""Links and switches: one resource per direction at the raw rate; framing is a cost per byte."""

from __future__ import annotations

from ghostsim.config.hardware import Link, Switch
from ghostsim.devices.leg import Leg
from ghostsim.devices.units import whole
from ghostsim.engine.network import Network
from ghostsim.timing import flit, pcie

_WORD_BYTES = 4
_LONGEST_PAYLOAD = 4096


def data_bandwidth(link: Link, piece_bytes: float, *, write: bool = False) -> float:
    """Return the data bytes/s that one direction of a link carries in pieces of a size.

    A measured bandwidth caps what framing alone would allow.
    """
    if link.protocol == "pcie":
        payload = _payload(piece_bytes)
        assert link.mps is not None  # the link's own validator has seen to both
        assert link.mrrs is not None
        reached = (
            pcie.write_bandwidth(link.rate, link.width, payload, link.mps)
            if write
            else pcie.read_bandwidth(link.rate, link.width, payload, link.mps, link.mrrs)
        )
        reached *= piece_bytes / whole(piece_bytes, _WORD_BYTES)
    elif link.protocol == "cxl" and link.flit != "none":
        both = flit.link_bandwidth(link.rate, link.width, link.flit, read_fraction=0.0 if write else 1.0)
        reached = both.write_bytes_per_s if write else both.read_bytes_per_s
        reached *= piece_bytes / whole(piece_bytes, flit.LINE_BYTES)
    else:
        reached = link.raw * link.encoding
    return min(reached, link.bandwidth or reached)


def _payload(piece_bytes: float) -> int:
    """Return what PCIe packets carry of a piece, in whole words."""
    return whole(min(_LONGEST_PAYLOAD, piece_bytes), _WORD_BYTES)


def answer_seconds(link: Link, piece_bytes: float, *, write: bool = False) -> float:
    """Return the time that the other direction of a link is busy per byte of data: requests of reads, or completions.

    Posted writes over PCIe have none; links without packets neither.
    """
    if link.protocol == "pcie" and not write:
        assert link.mrrs is not None  # the link's own validator has seen to it
        payload = _payload(piece_bytes)
        return pcie.request_seconds(link.rate, link.width, payload, link.mrrs) / min(_LONGEST_PAYLOAD, piece_bytes)
    if link.protocol == "cxl" and link.flit != "none":
        lines = whole(piece_bytes, flit.LINE_BYTES) / flit.LINE_BYTES
        return lines * flit.answer_seconds(link.rate, link.width, link.flit, write=write) / piece_bytes
    return 0.0


class LinkDevice:
    """A link as two resources: `NAME` towards the GPU, `NAME.down` away from it."""

    def __init__(self, network: Network, name: str, link: Link) -> None:
        self.name = name
        self.link = link
        self.up = network.resource(name, link.raw)
        self.down = network.resource(f"{name}.down", link.raw)

    def carry(self, piece_bytes: float, *, write: bool = False) -> Leg:
        """Return the cost of data towards the GPU, or with `write` away from it; latency is one way."""
        cost = self.link.raw / data_bandwidth(self.link, piece_bytes, write=write)
        there, back = (self.down, self.up) if write else (self.up, self.down)
        answers = self.link.raw * answer_seconds(self.link, piece_bytes, write=write)
        return Leg(((there, cost), (back, answers)), self.link.latency)


class SwitchDevice:
    """A switch: a hop latency, and its fabric as `NAME.fabric` towards the GPU, `NAME.fabric.down` away from it."""

    def __init__(self, network: Network, name: str, switch: Switch) -> None:
        self.fabric = network.resource(f"{name}.fabric", switch.bandwidth)
        self.down = network.resource(f"{name}.fabric.down", switch.bandwidth)
        self.hop_ps = switch.hop

    def carry(self, piece_bytes: float, *, write: bool = False) -> Leg:  # noqa: ARG002  (packets are the links')
        """Return the cost of passing through, towards the GPU or away from it."""
        return Leg(((self.down if write else self.fabric, 1.0),), self.hop_ps)
