"""PCIe bandwidth from TLP arithmetic, after the model of pcie-bench (Neugebauer et al., SIGCOMM 2018)."""

from __future__ import annotations

import math

FRAMING_BYTES = 8
"""Start, sequence number and LCRC around a TLP on links without flits."""
REQUEST_HEADER_BYTES = 16
"""MWr and MRd with 64-bit address: 4 + 12."""
COMPLETION_HEADER_BYTES = 12
"""CplD: 4 + 8."""
_DLL_EFFICIENCY = 0.902
"""What acknowledgements and flow-control updates leave: 56.8 of 63.0 GB/s on Gen5 x16 (pcie-bench)."""
_FLIT_EFFICIENCY = 236 / 256
"""TLP bytes of a PCIe 6 flit; its credits, CRC and FEC take the rest and replace framing, DLLPs and LCRC."""
_FLIT_RATE = 64e9


def raw_bytes_per_s(gen_rate_T_per_s: float, lanes: int) -> float:
    """Return the bandwidth per direction after line coding: 8b/10b to 5 GT/s, 128b/130b to 32 GT/s, PAM4 above."""
    if gen_rate_T_per_s <= 5e9:
        coding = 8 / 10
    elif gen_rate_T_per_s < _FLIT_RATE:
        coding = 128 / 130
    else:
        coding = 1.0
    return gen_rate_T_per_s * lanes / 8 * coding


def tlp_bytes_per_s(gen_rate_T_per_s: float, lanes: int) -> float:
    """Return the bandwidth per direction that is left for TLPs."""
    efficiency = _FLIT_EFFICIENCY if gen_rate_T_per_s >= _FLIT_RATE else _DLL_EFFICIENCY
    return raw_bytes_per_s(gen_rate_T_per_s, lanes) * efficiency


def _framing(gen_rate: float) -> int:
    return 0 if gen_rate >= _FLIT_RATE else FRAMING_BYTES


def read_bandwidth(gen_rate_T_per_s: float, lanes: int, payload_bytes: int, mps: int, mrrs: int) -> float:
    """Return the data bandwidth of reads of `payload_bytes` each, in bytes/s.

    Data come back in completions of at most `mps` bytes; requests of at most `mrrs` bytes go the other way.
    The busier direction is the limit; tags and latency are `zero_copy_bandwidth`.
    """
    framing = _framing(gen_rate_T_per_s)
    back = payload_bytes + math.ceil(payload_bytes / mps) * (framing + COMPLETION_HEADER_BYTES)
    out = math.ceil(payload_bytes / mrrs) * (framing + REQUEST_HEADER_BYTES)
    return tlp_bytes_per_s(gen_rate_T_per_s, lanes) * payload_bytes / max(back, out)


def request_seconds(gen_rate_T_per_s: float, lanes: int, payload_bytes: int, mrrs: int) -> float:
    """Return the time that the requests of a read of `payload_bytes` take on the way there."""
    out = math.ceil(payload_bytes / mrrs) * (_framing(gen_rate_T_per_s) + REQUEST_HEADER_BYTES)
    return out / tlp_bytes_per_s(gen_rate_T_per_s, lanes)


def write_bandwidth(gen_rate_T_per_s: float, lanes: int, payload_bytes: int, mps: int) -> float:
    """Return the data bandwidth of posted writes of `payload_bytes` each, in TLPs of at most `mps`, in bytes/s."""
    header = _framing(gen_rate_T_per_s) + REQUEST_HEADER_BYTES
    sent = payload_bytes + math.ceil(payload_bytes / mps) * header
    return tlp_bytes_per_s(gen_rate_T_per_s, lanes) * payload_bytes / sent


def dma_bandwidth(link_bytes_per_s: float, fragment_bytes: int, per_fragment_ps: int) -> float:
    """Return the bandwidth of a gather of fragments by a DMA engine that issues one every `per_fragment_ps`.

    Issue overlaps the transfer of earlier fragments: the slower of both is the limit.
    """
    return fragment_bytes / max(fragment_bytes / link_bytes_per_s, per_fragment_ps * 1e-12)


def zero_copy_bandwidth(window_bytes: int, latency_ps: int) -> float:
    """Return the bandwidth of a reader that keeps `window_bytes` outstanding (Little's law)."""
    return window_bytes / (latency_ps * 1e-12)
