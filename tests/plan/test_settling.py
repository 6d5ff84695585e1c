"""What a prompt leaves to be moved and made: bytes and times at an idle system in closed form, and who pays."""

from itertools import pairwise

import pytest

from ghostsim.config.load import load_scenario
from ghostsim.metrics.prefill import payback_steps
from ghostsim.pipeline.settling import Settling, settled

TOKENS, BATCH = 8192, 2
HEADS = 4 * 8
COLD = TOKENS - 4 - 255
"""Without 4 sinks and a window of 256, the own token included."""
RUN = """\
schema: 1
name: settle
model: {{extends: llama_3_1_8b, layers: 4}}
platform: h100_cxl_pim
workload: {{trace: natural_4k, steps: 2}}
runs:
  run: {run}
"""


@pytest.fixture
def run_of(tmp_path):
    def load(text, *sets):
        file = tmp_path / "settle.yaml"
        file.write_text(RUN.format(run=text))
        return load_scenario(file, sets).scenario.runs["run"]

    return load


def settling_of(run):
    return Settling(run, run.model)


PLACED = {
    "gpu, all in hbm": "{policy: ghostkv}",
    "gpu, index in hbm": "{policy: ghostkv, kv_tier: dram}",
    "gpu, all in cxl": "{policy: ghostkv, kv_tier: cxl, index_tier: cxl, filter: cxl}",
    "cpu, index in hbm": "{policy: ghostkv, kv_tier: dram, ghostify: {by: cpu}}",
    "cpu, index in cxl": "{policy: ghostkv, kv_tier: cxl, index_tier: cxl, filter: cxl, ghostify: {by: cpu}}",
    "near, in cxl": "{policy: ghostkv, kv_tier: cxl, index_tier: cxl, filter: cxl, ghostify: {by: near}}",
}


@pytest.mark.parametrize("policy", ["full", "int4", "streaming_llm", "h2o"])
def test_a_policy_without_an_index_in_hbm_costs_nothing(run_of, policy):
    run = run_of(f"{{policy: {policy}}}")
    found = settled(run, run.model, TOKENS, BATCH)
    assert (found.index_ps, found.all_ps, found.tier_bytes) == (0, 0, {})


def test_without_an_index_only_kv_moves(run_of):
    run = run_of("{policy: full, kv_tier: dram}")
    found = settled(run, run.model, TOKENS, BATCH)
    assert found.index_ps == 0
    assert found.tier_bytes == {"dram": {"migrate": BATCH * HEADS * TOKENS * 512}}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpu, all in hbm", {"hbm": 66}),
        ("gpu, index in hbm", {"dram": 512, "hbm": 66}),
        ("gpu, all in cxl", {"cxl": 512 + 66}),
        ("near, in cxl", {"cxl": 512 + 66}),
    ],
)
def test_bytes_are_those_of_the_cold_tokens_and_their_records(run_of, name, expected):
    """4-bit keys: 64 bytes and a norm per token of 256 + 256 bytes."""
    run = run_of(PLACED[name])
    found = settled(run, run.model, TOKENS, BATCH).tier_bytes
    assert found == {tier: {"migrate": BATCH * HEADS * COLD * each} for tier, each in expected.items()}


def test_every_age_goes_to_its_tier(run_of):
    """Hot to 256 tokens, warm to 1,024, cold to 4,096, then the archive."""
    run = run_of("{policy: ghostkv_ages, warm_tier: cxl, kv_tier: dram, archive_tier: ssd}", "platform=h100_filters")
    found = {tier: causes["migrate"] // HEADS for tier, causes in settled(run, run.model, TOKENS, 1).tier_bytes.items()}
    warm, cold = 1024 - 256, 4096 - 1024
    assert found["cxl"] == warm * 512
    assert found["dram"] == (cold + 1) * 512
    assert found["ssd"] == (TOKENS - 4 - 4096) * 512


def test_an_index_in_hbm_takes_the_keys_and_records_at_the_rate_of_hbm(run_of):
    run = run_of(PLACED["gpu, all in hbm"])
    settling = settling_of(run)
    gpu = settling.gpu
    params = gpu.part.architecture.gemm["dense"]
    seconds = HEADS * COLD * (256 + 66) / (params.hbm_efficiency * gpu.spec.hbm_bytes_per_s)
    found = settled(run, run.model, TOKENS, 1)
    assert found.index_ps == pytest.approx(seconds * 1e12 + 4 * params.launch, rel=1e-9)


def test_clusters_take_their_comparisons(run_of):
    """RetroInfer: every key meets the 512 centres of its segment of 8,192 in each of ten rounds."""
    run = run_of("{policy: retroinfer, kv_tier: dram}")
    settling = settling_of(run)
    amount = settling.amount(TOKENS)
    cold = amount.keys // HEADS
    assert amount.index.products == HEADS * cold * 10 * -(-cold // 16) * 2 * 128
    gpu, params = settling.gpu, settling.gpu.part.architecture.gemm["dense"]
    products = amount.index.products / (params.flop_efficiency * gpu.spec.peak_flops)
    others = amount.index.others / (2 * gpu.part.vector_macs)
    assert settling.kernel_ps(amount) == pytest.approx((products + others) * 1e12 + 4 * params.launch, rel=1e-9)


def test_kv_crosses_pcie_at_its_rate(run_of):
    run = run_of("{policy: full, kv_tier: dram}")
    found = settled(run, run.model, 65536, 1)
    assert found.all_ps == pytest.approx(HEADS * 65536 * 512 / 55.4e9 * 1e12, rel=0.03)


def test_a_thread_reads_keys_at_the_rate_of_its_core(run_of):
    run = run_of(PLACED["cpu, index in cxl"], "platform.devices.host0.core.bandwidth=1 GB/s")
    found = settled(run, run.model, TOKENS, 1)
    assert found.index_ps == pytest.approx(HEADS * COLD * 256 / 1e9 * 1e12, rel=0.01)


def test_an_engine_near_memory_multiplies_at_its_rate(run_of):
    sets = [f"platform.devices.cxl_exp{i}.filter.macs=0.001 TMAC/s" for i in (0, 1)]
    run = run_of("{policy: ghostkv_sketch, kv_tier: cxl, index_tier: cxl, filter: cxl, ghostify: {by: near}}", *sets)
    amount = settling_of(run).amount(TOKENS)
    assert settled(run, run.model, TOKENS, 1).index_ps == pytest.approx(amount.index.flops / 2 / 2e9 * 1e12)


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("policy", ["ghostkv", "ghostkv_anchor_residual", "quest", "retroinfer"])
def test_chunks_of_a_prompt_leave_what_the_whole_leaves(run_of, name, policy):
    settling = settling_of(run_of(PLACED[name].replace("ghostkv", policy)))
    ends = [0, 100, 700, 2048, 2049, 5000, TOKENS]
    parts = [settling.amount(end) - settling.amount(begin) for begin, end in pairwise(ends)]
    whole = settling.amount(TOKENS)
    for field in ("keys", "cold_bytes", "index_bytes", "anchor_bytes"):
        found = [getattr(part, field) for part in parts]
        assert min(found) >= 0
        assert sum(found) == getattr(whole, field)


@pytest.mark.parametrize("name", PLACED)
def test_the_maker_changes_time_never_bytes(run_of, name):
    run = run_of(PLACED[name])
    found = settled(run, run.model, TOKENS, 1).tier_bytes
    kv = 0 if name == "gpu, all in hbm" else 512
    assert sum(causes["migrate"] for causes in found.values()) == HEADS * COLD * (kv + 66)


@pytest.mark.parametrize("name", [name for name in PLACED if name != "gpu, all in hbm"])
def test_a_large_prompt_takes_as_long_as_latency_and_rate_say(run_of, name):
    settling = settling_of(run_of(PLACED[name]))
    bulk, amount = settling.bulk(TOKENS), settling.amount(3 * TOKENS)
    said = bulk.latency_ps + settling.moved_bytes(amount) / bulk.bytes_per_s * 1e12
    assert settling.moved_ps(amount).duration_ps == pytest.approx(said, rel=0.03)


def figures(settle_ms, step_ms, batch=2):
    return {"batch": batch, "prefill": {"settle_ms": settle_ms}, "step_ms": {"mean": step_ms}}


@pytest.mark.parametrize(
    ("run", "base", "steps"),
    [
        (figures(100, 6), figures(10, 10), 23),
        (figures(100, 6), figures(10, 5, batch=1), 20),
        (figures(5, 6), figures(10, 10), 0),
        (figures(100, 10), figures(10, 10), None),
    ],
)
def test_a_prompt_is_paid_back_by_shorter_steps(run, base, steps):
    assert payback_steps(run, base) == steps
