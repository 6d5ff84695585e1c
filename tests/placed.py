"""Policies in all kinds of places, and their runs."""

from dataclasses import dataclass, replace
from functools import cache

from invented import CXL, FIVE, HBM, OFFLOAD, PIM, aged, foreseen, llama, policy, simulate, varied

from ghostsim.metrics.collect import step_ms

MODEL = llama("layers=3")
BATCH, STEPS, CONTEXT = 2, 3, 16384


@dataclass(frozen=True)
class Case:
    """A policy somewhere.

    `ahead` says how much is prefetched, `old` which share of the reads is archived, `warm` how many tokens are.
    """

    policy: str
    placement: object
    ahead: tuple = ()
    old: float = 0.0
    warm: int = 0
    machine: str = "h100_filters"


DRAM_INDEX = replace(OFFLOAD, index_tier="dram", site="dram")
CASES = {
    "full in hbm": Case("full", HBM),
    "int4 in hbm": Case("int4", HBM),
    "full by dma": Case("full", OFFLOAD),
    "full in place": Case("full", replace(OFFLOAD, fetch="zero_copy")),
    "full staged": Case("full", replace(OFFLOAD, fetch="staged")),
    "full on the cores": Case("full", replace(OFFLOAD, fetch="cpu")),
    "full on ssd": Case("full", replace(HBM, kv_tier="ssd")),
    "full on ssd, bounced": Case("full", replace(HBM, kv_tier="ssd", fetch="staged")),
    "full in cxl, peer to peer": Case("full", replace(HBM, kv_tier="cxl"), machine="h100_cxl_direct"),
    "quest": Case("quest", OFFLOAD),
    "gpu filter": Case("ghostkv", OFFLOAD),
    "gpu filter, cores attend": Case("ghostkv", replace(OFFLOAD, fetch="cpu")),
    "hbm filter": Case("ghostkv", replace(OFFLOAD, site="hbm")),
    "dram filter": Case("ghostkv", DRAM_INDEX),
    "cpu filter": Case("ghostkv", replace(DRAM_INDEX, site="cpu")),
    "cxl filter": Case("ghostkv", CXL),
    "cxl filter, in place": Case("ghostkv", replace(CXL, fetch="zero_copy")),
    "cxl filter, staged": Case("ghostkv", replace(CXL, fetch="staged")),
    "cxl filter, chunks": Case("ghostkv", replace(CXL, chunks=3)),
    "cxl filter, histogram": Case("ghostkv", replace(CXL, result="histogram")),
    "cxl filter, one pass": Case("ghostkv_onepass", CXL),
    "cxl filter, peer to peer": Case("ghostkv", CXL, machine="h100_cxl_direct"),
    "pim filter": Case("ghostkv", PIM),
    "pim filter, kv in pim": Case("ghostkv", replace(PIM, kv_tier="pim")),
    "ssd filter": Case("ghostkv", replace(OFFLOAD, index_tier="ssd", site="ssd", kv_tier="ssd")),
    "no filter": Case("ghostkv", replace(CXL, site="none")),
    "prefetch by query": Case("ghostkv", CXL, (("by", "last_query"),)),
    "prefetch of the next layer": Case("ghostkv", OFFLOAD, (("by", "layer_ahead"),)),
    "prefetch by oracle": Case("ghostkv", replace(CXL, kv_tier="dram"), (("by", "oracle"), ("waste", 0))),
    "archive on ssd": Case("ghostkv_lifecycle", replace(OFFLOAD, archive_tier="ssd"), old=0.4),
    "archive beside": Case("ghostkv_lifecycle", CXL, old=0.4),
    "five tiers": Case("ghostkv_ages", FIVE, old=0.4, warm=200),
    "five tiers, in place": Case("ghostkv_ages", replace(FIVE, fetch="zero_copy"), old=0.4, warm=200),
    "five tiers, staged": Case("ghostkv_ages", replace(FIVE, fetch="staged"), old=0.4, warm=200),
    "records by the host": Case("ghostkv", replace(CXL, ghostify="cpu", behind=2)),
    "records near memory": Case("ghostkv", replace(DRAM_INDEX, ghostify="near", behind=2)),
}
NAMES = list(CASES)


@cache
def run(name, slow="", sets=(), scale=0.5, context=CONTEXT):
    case = CASES[name]
    of = policy(case.policy)
    chosen = varied(of, MODEL, context=context, batch=BATCH, steps=STEPS)
    chosen = aged(chosen, case.old, case.warm) if case.old else chosen
    ahead = foreseen(chosen, **dict(case.ahead)) if case.ahead else None
    factors = dict.fromkeys(slow.split(","), scale) if slow else None
    return simulate(chosen, of, MODEL, case.placement, BATCH, case.machine, sets, ahead=ahead, scale=factors)


def mean_ms(*args, **kwargs):
    return float(step_ms(run(*args, **kwargs).record).mean())
