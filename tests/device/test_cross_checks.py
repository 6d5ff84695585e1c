"""Do the models agree with queueing theory, with rooflines, with their own parts and with a published gather?"""

from dataclasses import replace

import numpy as np
import pytest
from invented import CXL, HBM, llama, platform, policy, selection
from rig import PS, Rig, alone_ps, part

from ghostsim.config.load import load_model
from ghostsim.devices.dram import idle_latency_ps
from ghostsim.devices.gpu import GpuDevice
from ghostsim.devices.leg import Leg, join
from ghostsim.devices.machine import Machine
from ghostsim.engine.clock import CountingEnvironment, call_after
from ghostsim.engine.network import Network
from ghostsim.engine.server import FifoServer
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.bound import Row
from ghostsim.policy.costs import index_stages
from ghostsim.policy.placement import place

# --- queueing theory ----------------------------------------------------------------------------------------------

SERVICE_PS = 1_000_000


def poisson(load, jobs, seed=0):
    """Return arrival times of a Poisson stream that keeps one server busy for a share `load` of the time."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.exponential(SERVICE_PS / load, jobs)).astype(np.int64).tolist()


def serve(arrivals):
    """Return waits, and when each job left, of a FIFO server with constant service."""
    env, left = CountingEnvironment(), []
    server = FifoServer(env)
    for at in arrivals:
        call_after(env, at, lambda: server.submit(SERVICE_PS, lambda: left.append(int(env.now))))
    env.run()
    return np.array(server.waits_ps), np.array(left)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_a_fifo_server_waits_as_md1(load):
    """Pollaczek-Khinchine with constant service: mean wait = load / (2 (1 - load)) services."""
    waits = np.concatenate([serve(poisson(load, 40_000, seed))[0] for seed in range(3)])
    assert waits.mean() == pytest.approx(load / (2 * (1 - load)) * SERVICE_PS, rel=0.06)


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_littles_law_holds_on_a_fifo_server(load):
    """Mean number in the system, integrated over time, is rate times mean stay; no distribution is assumed."""
    arrivals = poisson(load, 5000)
    waits, left = serve(arrivals)
    times = np.concatenate([arrivals, left])
    change = np.concatenate([np.ones(len(arrivals)), -np.ones(len(left))])
    order = np.argsort(times, kind="stable")
    inside = np.cumsum(change[order])[:-1]
    area = (inside * np.diff(times[order])).sum()
    assert area == pytest.approx((waits + SERVICE_PS).sum(), rel=1e-9)


@pytest.mark.parametrize("readers", [1, 4, 32])
def test_littles_law_holds_on_a_medium(readers):
    """A closed loop of readers of 1 MB that ask again when they have been answered: readers = rate x stay.

    They ask together, so a stay is the latency and the time that the bus takes for all of them.
    """
    rig, size, rounds = Rig(), 10**6, 50
    bus = rig.network.resource("bus", 40e9)
    flow_class = rig.network.flow_class(((bus, 1.0),))
    stays, latency_ps = [], 25_000_000

    def ask(left):
        begun = int(rig.env.now)

        def done():
            stays.append(int(rig.env.now) - begun)
            if left:
                ask(left - 1)

        rig.network.start(flow_class, size, done, latency_ps)

    for _ in range(readers):
        ask(rounds - 1)
    rig.env.run()
    rate = readers * rounds / int(rig.env.now)
    assert rate * np.mean(stays) == pytest.approx(readers, rel=1e-6)
    assert np.mean(stays) == pytest.approx(latency_ps + readers * size / 40e9 * PS, rel=1e-6)


# --- rooflines ----------------------------------------------------------------------------------------------------

H100 = part("h100_sxm")


@pytest.mark.parametrize("m", [1, 16, 256, 1024, 8192])
def test_no_gemm_is_above_the_roofline(m):
    n, k = 28672, 4096
    took = alone_ps(lambda rig: GpuDevice(rig.network, "g", H100).gemm(m, n, k, 2, 2 * n * k))
    memory, arithmetic = 2 * n * k / 3350e9, 2 * m * n * k / 989e12
    assert max(memory, arithmetic) * PS < took < 1.6 * (max(memory, arithmetic) * PS + 3.01e6)


def test_a_gemm_bends_where_intensity_meets_the_ridge():
    """989 TFLOP/s over 3.35 TB/s is 295 operations a byte: with bf16 weights at 295 tokens, less both efficiencies."""

    def took(m):
        return alone_ps(lambda rig: GpuDevice(rig.network, "g", H100).gemm(m, 28672, 4096, 2, 2 * 28672 * 4096))

    assert took(64) == pytest.approx(took(1), rel=0.1)
    assert took(4096) == pytest.approx(2 * took(2048), rel=0.1)


@pytest.mark.parametrize("tokens", [8 * 8 * 512, 8 * 8 * 8192, 8 * 8 * 131072])
def test_no_attention_is_above_the_roofline(tokens):
    model = load_model("llama_3_1_8b").value
    took = alone_ps(
        lambda rig: GpuDevice(rig.network, "g", H100).attention(model, 8, tokens, tokens * 512, tokens * 2048)
    )
    assert took > tokens * max(512 / 3350e9, 2048 / 989e12) * PS


# --- seams --------------------------------------------------------------------------------------------------------

MODEL = llama("layers=1")
PLATFORM = platform("h100_filters")
NS, US = 1000, 1_000_000
DDR5 = idle_latency_ps(PLATFORM.devices["host0"].memory.dram)
HOST = 400 * NS
TO_CXL = HOST + 50 * NS + 35 * NS + 100 * NS + 35 * NS
TO_SSD = HOST + 50 * NS + 400 * NS
TO_PIM = HOST + 50 * NS + 50 * NS
XEON, EXPANDER, FLASH = 67 * NS + DDR5, 50 * NS + 20 * NS + DDR5, 20 * US + 2_560_000
COPY, LAUNCH = 2_030_000, 1_260_000
DELAYS = {
    # row, placement: one-way links, both ways where somebody waits for an answer, then what is at the far end
    ("read0.0", "dram", "dma"): 2 * HOST + XEON + COPY,
    ("read0.0", "cxl", "dma"): 2 * TO_CXL + EXPANDER + COPY,
    ("read0.0", "pim", "dma"): 2 * TO_PIM + COPY,
    ("read0.0", "ssd", "dma"): 2 * TO_SSD + FLASH + 75 * US,
    ("read0.0", "dram", "zero_copy"): 2 * HOST + XEON + LAUNCH,
    ("read0.0", "cxl", "zero_copy"): 2 * TO_CXL + EXPANDER + LAUNCH,
    ("age", "dram", "dma"): HOST + XEON + COPY,
    ("age", "cxl", "dma"): TO_CXL + EXPANDER + COPY,
    ("age", "pim", "dma"): TO_PIM + COPY,
    ("age", "ssd", "dma"): TO_SSD + FLASH + 700 * US,
}
FILTER_DELAYS = {
    ("dram", "query"): HOST + 67 * NS // 2,
    ("dram", "filter0.0"): HOST + 67 * NS // 2,
    ("cxl", "query"): TO_CXL + 25 * NS,
    ("cxl", "filter0.0"): TO_CXL + 25 * NS,
    ("cpu", "filter0.0"): HOST + 67 * NS // 2,
    ("ssd", "query"): TO_SSD + 10 * US,
    ("ssd", "filter0.0"): TO_SSD + 10 * US,
    ("pim", "query"): TO_PIM,
    ("pim", "filter"): TO_PIM,
    ("hbm", "query"): 298 * NS // 2,
}


def delay(name, of, placement):
    """Return the time before the first byte of one row on an idle machine."""
    chosen = selection(of, MODEL, hot=260, cold=4096, read=4096 if placement.site == "gpu" else 400)
    env = CountingEnvironment()
    machine = Machine(env, Network(env), PLATFORM)
    plan = place(chosen, of, MODEL, placement, 1)
    bound = Binder(machine, MODEL, placement, index_stages(of, MODEL.head_dim), 1).bind(plan)
    i = plan.names.index(name)
    return bound[i].make(Row(*(int(c[i]) for c in (plan.nbytes, plan.records, plan.runs, plan.flops)))).delay_ps


@pytest.mark.parametrize("case", list(DELAYS), ids="-".join)
def test_latency_of_a_transfer_is_the_sum_of_its_parts(case):
    name, tier, fetch = case
    assert delay(name, policy("full"), replace(HBM, kv_tier=tier, fetch=fetch)) == pytest.approx(DELAYS[case], abs=2000)


@pytest.mark.parametrize("case", list(FILTER_DELAYS), ids="-".join)
def test_latency_of_a_filter_request_is_the_sum_of_its_parts(case):
    site, name = case
    tier = {"cpu": "dram"}.get(site, site)
    placement = replace(CXL, kv_tier="dram", index_tier=tier, site=site)
    assert delay(name, policy("ghostkv"), placement) == pytest.approx(FILTER_DELAYS[case], abs=2000)


# --- a published gather -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunks_per_token", "measured_us"), [(1024, 211), (512, 97)], ids=["qwen3_32b", "llama3_8b"])
def test_a_gather_of_sparse_tokens_from_a_cxl_pool_takes_what_was_measured(chunks_per_token, measured_us):
    """Beluga, SIGMOD 2026: 16 sparse tokens gathered by a GPU (H20) out of a CXL 2.0 pool behind an XC50256.

    Chunks are 256 B (128 channels in fp16, one of K or V, layer and KV head), 1,024 or 512 a token. What sets the
    pace is neither the media (76.8 GB/s over four channels) nor the root complex (26 GB/s) but the issue of one
    descriptor per chunk: 11.8 ns with two copy engines, 21.7 GB/s. Start of the engines and the way there and back
    through root complex and switch come once, since the window hides the latency of all further chunks.

    The descriptor of `h100_sxm` was set by the smaller of the two rows; the larger is a prediction.
    """
    chunk, tokens = 256, 16
    nbytes = tokens * chunks_per_token * chunk
    rig = Rig()
    machine = rig.machine("h100_cxl2_pool")
    for name, store in machine.stores("cxl"):
        way = machine.routes[name].carry(chunk)
        source = join([store.read(chunk, nbytes // chunk // 2), way, Leg((), way.latency_ps)])
        leg, weight = machine.gpu.copy_in(source, chunk)
        rig.flow(name, leg, nbytes // 2, weight)
    took = max(rig.run().values())
    assert took == pytest.approx(measured_us * US, rel=0.25)
    assert took == pytest.approx(nbytes / chunk * 11_800 + leg.latency_ps, rel=0.01)
    assert nbytes / took * PS < machine.devices["host0"].part.root_complex
