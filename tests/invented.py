"""Invented Selections, and runs of one policy on one machine from them."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from ghostsim.config.load import load_model, load_platform, load_policy
from ghostsim.config.scenario import Prefetch
from ghostsim.devices.machine import Machine
from ghostsim.engine.clock import CountingEnvironment
from ghostsim.engine.network import Network
from ghostsim.engine.probes import UtilisationProbe
from ghostsim.metrics.collect import Record
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.executor import Executor
from ghostsim.pipeline.settling import Settled
from ghostsim.plan.selection import GROUPS, Selection
from ghostsim.policy.costs import index_stages, state_bytes, streams_of
from ghostsim.policy.placement import Placement, place
from ghostsim.policy.prefetch import Prefetched, ahead_of

HBM = Placement("hbm", "hbm", "gpu", "dma", 1, "bitmap")
OFFLOAD = replace(HBM, kv_tier="dram")
CXL = Placement("cxl", "cxl", "cxl", "dma", 1, "bitmap")
PIM = Placement("dram", "pim", "pim", "dma", 1, "bitmap")
FIVE = replace(PIM, kv_tier="cxl", warm_tier="dram", archive_tier="ssd")
"""Hot in HBM, warm in host memory, cold in CXL, archived on a drive, the index in PIM."""


@cache
def policy(name, *sets):
    return load_policy(name, sets).value


@cache
def llama(*sets):
    return load_model("llama_3_1_8b", sets).value


@cache
def platform(name="h100_cxl_pim", *sets):
    return load_platform(name, sets).value


def selection(of, model, *, hot, cold, read, runs=None, groups=None, scanned=None, batch=1, steps=1):
    """Return a Selection whose token counts, per KV head, are numbers or arrays [batch, layers, kv_heads, steps]."""
    shape = (batch, model.layers, model.kv_heads, steps)
    units = batch * model.layers * model.kv_heads

    def column(values):
        return np.broadcast_to(np.asarray(values, np.int64), shape).reshape(units, steps).copy()

    stages = index_stages(of, model.head_dim)
    hot, cold, read = column(hot), column(cold), column(read)
    runs = read // 2 + read % 2 if runs is None else column(runs)
    default = [-(-cold // stage.unit_tokens) for stage in stages]
    given = default if scanned is None else [column(scanned) for _ in stages]
    records = np.stack(given) if stages else np.zeros((0, units, steps), np.int64)
    streams = streams_of(of, model.head_dim)
    tokens = np.stack([read if stream.selected else hot for stream in streams])
    per_head = np.zeros((units, steps, model.q_per_kv))
    counts = per_head.astype(np.int64)
    return Selection(
        policy=of.name,
        workload_hash="invented",
        stages=stages,
        streams=streams,
        unit_of=np.arange(units, dtype=np.int32).reshape(shape[:3]),
        attended=hot + cold,
        hot_tokens=hot,
        cold_tokens=cold,
        stored_tokens=hot + cold,
        read_tokens=read,
        read_runs=runs,
        read_groups=np.repeat(runs[..., None], GROUPS, axis=-1) if groups is None else groups,
        scanned=records,
        scan_bytes=records * np.array([int(stage.record_bytes) for stage in stages], np.int64)[:, None, None],
        stream_tokens=tokens,
        stream_bytes=tokens * np.array([stream.record_bytes for stream in streams])[:, None, None],
        state_bytes=state_bytes(of.keep, 1) * (hot + read),
        archive_tokens=np.zeros_like(read),
        archive_runs=np.zeros_like(read),
        refit_bytes=np.zeros_like(read),
        rewritten_bytes=np.zeros_like(read),
        lost_mass=per_head,
        certified_mass=None,
        violations=None,
        violated_mass=None,
        bound_checks=counts,
        top_cold=counts + 1,
        top_eliminated=counts,
        needless_reads=counts[:, :, 0],
        oracle_reads=read,
        output_error=None,
        sets=np.zeros((1, 1, 1), np.uint8),
    )


def varied(of, model, *, context, batch, steps, share=0.1, hot=260, seed=0):
    """Return a Selection in which heads and steps differ: each reads about `share` of its cold tokens."""
    rng = np.random.default_rng(seed)
    shape = (batch, model.layers, model.kv_heads, steps)
    cold = np.broadcast_to(context + 1 + np.arange(steps) - hot, shape)
    if not index_stages(of, model.head_dim):
        return selection(of, model, hot=hot, cold=cold, read=cold, batch=batch, steps=steps)
    read = (cold * share * rng.uniform(0.2, 1.8, shape)).astype(np.int64)
    return selection(of, model, hot=hot, cold=cold, read=read, batch=batch, steps=steps)


@dataclass
class Run:
    """A finished run with the network it ran on."""

    record: Record
    network: Network
    probe: UtilisationProbe
    links: dict
    classes: dict
    """Bytes that each class of flows moved."""

    @property
    def end_ps(self):
        return int(self.record.times.finish.max())


class Ledger:
    """Adds up the bytes of each class of flows."""

    def __init__(self, network):
        self.moved = {}
        network.probes.append(self)

    def on_rates(self, now_ps, used):
        pass

    def on_start(self, now_ps, flow):
        pass

    def on_finish(self, now_ps, flow):
        self.moved[flow.flow_class] = self.moved.get(flow.flow_class, 0) + flow.nbytes


def replay(chosen, model, placement, batch, machine="h100_cxl_pim"):
    """Return what runs a plan with some resources faster, as `ghostsim.metrics.what_if` asks for."""

    def again(plan, scale):
        env = CountingEnvironment()
        network = Network(env, scale)
        built = Machine(env, network, platform(machine))
        bound = Binder(built, model, placement, chosen.stages, batch).bind(plan)
        return Executor(env, network, plan, bound).run()

    return again


def foreseen(chosen, *, by="last_query", hit=0.7, waste=0.3, ahead=1):
    """Return a prefetch that brings a share `hit` of what is read, and `waste` times as much for nothing."""
    hits = (chosen.read_tokens * hit).astype(np.int64)
    tokens = hits + (chosen.read_tokens * waste).astype(np.int64)
    found = Prefetched(tokens, hits, chosen.scanned, chosen.scan_bytes)
    return ahead_of(found, chosen, Prefetch(by=by, ahead=ahead, tokens=1), len(chosen.unit_of))


def aged(chosen, share=0.5, warm=0):
    """Return a Selection of which a share of the reads, and of the cold tokens, are in the archive.

    Of the pinned tokens of a KV head `warm` are those of the second KEEP clause, all others those of the first.
    """
    old = (chosen.read_tokens * share).astype(np.int64)
    selected = {"cold": chosen.read_tokens - old, "archive": old}
    pinned = {0: chosen.hot_tokens - warm, 1: np.full_like(old, warm)}
    tokens = np.stack([
        selected.get(stream.role, 0 * old) if stream.selected else pinned.get(stream.clause, 0 * old)
        for stream in chosen.streams
    ])  # fmt: skip
    return replace(
        chosen,
        read_runs=-(-selected["cold"] // 2),
        archive_tokens=(chosen.cold_tokens * share).astype(np.int64),
        archive_runs=-(-old // 16),
        stream_tokens=tokens,
        stream_bytes=tokens * np.array([stream.record_bytes for stream in chosen.streams])[:, None, None],
    )


def simulate(chosen, of, model, placement, batch, machine="h100_cxl_pim", sets=(), *, ahead=None, scale=None):
    """Run a Selection on a bundled platform, changed by `sets`, with resources `scale` times as fast."""
    env = CountingEnvironment()
    network = Network(env, scale)
    built = Machine(env, network, platform(machine, *sets))
    plan = place(chosen, of, model, placement, batch, ahead)
    bound = Binder(built, model, placement, chosen.stages, batch).bind(plan)
    probe, ledger = UtilisationProbe(network), Ledger(network)
    times = Executor(env, network, plan, bound).run()
    record = Record(
        label="invented",
        policy=of.name,
        platform=built.platform,
        batch=batch,
        gpus=1,
        plan=plan,
        bound=bound,
        times=times,
        selection=chosen,
        ahead=ahead,
        capacity_bytes={},
        stored_bytes={},
        utilisation=probe.utilisation(),
        bin_ps=1,
        resources=tuple(network.resources),
        series={},
        settled=Settled(0.0, 0.0, {}),
    )
    return Run(record, network, probe, built.links, ledger.moved)
