"""The grid of decode steps, bulk transfers and prefill against direct simulations and closed forms."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from ghostsim.config.load import load_scenario
from ghostsim.config.serving import Speculation
from ghostsim.engine.clock import CountingEnvironment
from ghostsim.pipeline.decode import decode
from ghostsim.pipeline.executor import Executor
from ghostsim.pipeline.parallel import all_reduce_ps, own_model, shard
from ghostsim.pipeline.serving import Job, Server, step_stretch, transfer_stretch
from ghostsim.pipeline.step_cost import SETTLE, Surface, measure_bulk, measure_step, spread, verified
from ghostsim.policy.evaluate import select
from ghostsim.serving import System, gains_of
from ghostsim.trace.compose import Shape, compose
from ghostsim.trace.format import open_trace

LABELS = ("full_hbm", "full_offload", "quest", "ghostkv_cxl")
CONTEXTS = (4096, 6144, 8192)


@cache
def scenario(*sets):
    return load_scenario("serving_chat", ["model.layers=4", "serving.max_batch=8", *sets]).scenario


@cache
def selections(steps=2):
    runs = scenario().runs
    found = {}
    for context in CONTEXTS:
        workload = compose(
            [open_trace("natural_4k")], Shape(4, 8, 4, 128), requests=1, steps=steps, context=context, seed=1
        )
        made = select({label: runs[label].policy for label in LABELS}, workload, jobs=1)
        found |= {(label, context): each for label, each in made.items()}
    return found


@cache
def system(label):
    run = scenario().runs[label]
    return System(run, run.model, {c: selections()[label, c] for c in (4096, 8192)}, 512)


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("batch", [3, 6])
def test_the_grid_is_within_three_percent_between_its_nodes(label, batch):
    direct = system(label).quantities(selections()[label, 6144], batch)[0]
    assert system(label).surface(batch, np.array([6144.0]))[0, 0] == pytest.approx(direct, rel=0.03)


def mixed(label, contexts):
    """Return a Selection whose requests have different contexts."""
    parts = [selections()[label, context] for context in contexts]
    steps = parts[0].attended.shape[1]
    whole = {name: value for name, value in vars(parts[0]).items() if isinstance(value, np.ndarray)}
    per_unit = ["read_groups"] + [
        name for name, value in whole.items() if value.shape[:2] == (len(parts[0].attended), steps) and value.ndim == 2
    ]
    per_stage = ["scanned", "scan_bytes", "stream_tokens", "stream_bytes"]
    first = np.cumsum([0, *(len(part.attended) for part in parts)])
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in per_unit}
    columns |= {name: np.concatenate([getattr(part, name) for part in parts], axis=1) for name in per_stage}
    unit_of = np.concatenate([part.unit_of + at for part, at in zip(parts, first, strict=False)])
    return replace(parts[0], unit_of=unit_of, **columns)


@pytest.mark.parametrize(
    ("label", "bar"), [("full_hbm", 0.01), ("full_offload", 0.01), ("quest", 0.05), ("ghostkv_cxl", 0.05)]
)
def test_a_batch_of_mixed_contexts_costs_what_their_mean_costs(label, bar):
    run = scenario().runs[label]
    direct = measure_step(run, run.model, mixed(label, (4096, 8192, 4096, 8192)), 4).duration_ps
    assert system(label).surface(4, np.array([6144.0]))[0, 0] == pytest.approx(direct, rel=bar)


def test_prefill_in_hbm_adds_its_whole_time():
    run = scenario().runs["full_hbm"]
    chosen = selections()["full_hbm", 4096]
    alone = measure_step(run, run.model, chosen, 4).duration_ps
    assert measure_step(run, run.model, chosen, 4, 8_000_000).duration_ps == pytest.approx(alone + 8e6, rel=1e-6)


@pytest.mark.parametrize("added", [0.2, 0.6, 1.5])
def test_prefill_hides_behind_fetches_as_the_surface_says(added):
    """Fetches of full attention from host memory run ahead; GPU time fills the gaps first."""
    deep = scenario("model.layers=16").runs["full_offload"]
    chosen = selections()["full_offload", 4096]
    chosen = replace(chosen, unit_of=np.tile(chosen.unit_of, (1, 4, 1)))
    step, hidden = System(deep, deep.model, {4096: chosen}, 512).quantities(chosen, 4)[:2]
    direct = measure_step(deep, deep.model, chosen, 4, int(added * step)).duration_ps
    assert step + max(0, added * step - hidden) == pytest.approx(direct, rel=0.03)


def test_a_bulk_read_from_host_memory_runs_at_the_rate_of_pcie():
    run = scenario().runs["full_hbm"]
    bulk = measure_bulk(run, run.model, ("dram", False), 2**20)
    assert bulk.bytes_per_s == pytest.approx(55.4e9, rel=0.05)


def beside_bulk(label, seconds):
    """Return a decode step alone and beside a bulk read of so many times its length, both in ps, and the read's end."""
    run = scenario().runs[label]
    chosen = spread(selections()[label, 8192], 8)
    alone = measure_step(run, run.model, chosen, 8)
    bulk = measure_bulk(run, run.model, ("dram", False), 2**20)
    ready = decode(run, run.model, chosen, 8)
    known, ends = ready.network.resources, []
    shares = {name: share for name, share in bulk.used.items() if share}
    used = [(known[name], share * known[name].capacity / bulk.bytes_per_s) for name, share in shares.items()]
    flow = ready.network.flow_class(used, float(run.platform.devices["gpu0"].copy_engines.window))
    nbytes = int(seconds * alone.duration_ps * ready.plan.steps / 1e12 * bulk.bytes_per_s)
    ready.network.start(flow, nbytes, lambda: ends.append(int(ready.env.now)))
    times = Executor(ready.env, ready.network, ready.plan, ready.bound).run()
    ready.env.run()  # the transfer may outlast the decode
    met = bulk.conflict(alone.used)
    return alone.duration_ps * ready.plan.steps, int(times.finish.max()), ends[0], met


@pytest.mark.parametrize("label", ["quest", "full_offload", "full_hbm"])
def test_a_bulk_transfer_delays_a_decode_as_the_shares_say(label):
    alone, beside, _, met = beside_bulk(label, 2)
    assert beside / alone == pytest.approx(step_stretch(met, 8), rel=0.1)


@pytest.mark.parametrize("label", ["quest", "full_hbm"])
def test_a_decode_delays_a_bulk_transfer_as_the_shares_say(label):
    """A transfer as long as it should take to end with the decode."""
    _alone, _, _, met = beside_bulk(label, 0.05)
    _, beside, end, _ = beside_bulk(label, step_stretch(met, 8) / transfer_stretch(met, 8))
    assert end / beside == pytest.approx(1, rel=0.15)


def test_the_surface_is_exact_for_what_is_bilinear():
    surface = Surface(lambda b, c: (3 + 2 * b + 0.5 * c + 0.25 * b * c,), (1, 2, 4, 8), (16, 32, 64))
    found = surface(5, np.array([17.0, 40.0, 63.5]))[:, 0]
    assert found == pytest.approx([3 + 10 + 0.5 * c + 1.25 * c for c in (17.0, 40.0, 63.5)])


def test_nodes_are_measured_once_and_only_where_needed():
    asked = []
    surface = Surface(lambda b, c: asked.append((b, c)) or (1.0,), (1, 2, 4), (16, 32, 64))
    surface(2, np.array([20.0, 30.0]))
    surface(2, np.array([17.0]))
    assert sorted(asked) == [(2, 16), (2, 32)]


# --- what settles -------------------------------------------------------------------------------------------------


def test_the_first_token_waits_for_the_index_and_the_kv():
    """One request at an idle system: its prefill, and what of it must still move when that ends."""
    found = system("ghostkv_cxl")
    costs, bulk = found.costs(), found.bulk[SETTLE]
    job = Job(0, 4096, 1)
    env = CountingEnvironment()
    server = Server(env, costs, found.memory(), max_batch=8, prefill_chunk=2048, channels=found.channels(),
                    settled_bytes=found.settled_bytes)  # fmt: skip
    server.submit(job)
    env.run()
    first, second = (int(costs(0, np.zeros(1), [(2048, past)])[0][0]) for past in (0, 2048))
    moved = [
        bulk.latency_ps + found.settled_bytes(*part) / bulk.bytes_per_s * 1e12 for part in ((0, 2048), (2048, 4096))
    ]
    assert job.prefilled_ps == first + second
    assert job.first_token_ps == pytest.approx(first + max(second, moved[0]) + moved[1], abs=10)


def test_a_chunk_takes_the_gpu_as_long_as_its_records():
    indexed, plain = (system(label).costs().prefill for label in ("quest", "full_offload"))
    assert plain.index_ps((2048, 0)) == 0
    made = indexed.settling.amount(2048)
    assert indexed.added_ps(0, 1, [(2048, 0)]) - plain.added_ps(0, 1, [(2048, 0)]) == pytest.approx(
        indexed.settling.kernel_ps(made)
    )


@pytest.mark.parametrize("label", ["quest", "ghostkv_cxl"])
def test_what_settles_delays_a_decode_at_the_resource_where_they_meet(label):
    found = system(label)
    met = found.surface(8, np.array([8192.0]))[0, 2 + list(found.bulk).index(SETTLE)]
    assert 0 < met < 1


# --- prefill and tensor parallelism -------------------------------------------------------------------------------


def test_prefill_of_a_long_prompt_takes_its_arithmetic():
    """2 flops per weight and token, at the rate the GEMM model reaches, plus causal attention."""
    run = scenario("model.layers=32").runs["full_hbm"]
    found = system_of(run).costs().prefill
    layer = run.model.qkv_weights + run.model.output_weights + run.model.gate_up_weights + run.model.down_weights
    dense = 2 * 4096 * layer * 32 / (0.823 * 989e12) * 1e12
    assert found.gemm_ps(4096) == pytest.approx(dense, rel=0.06)
    pairs = 4096 * 4097 / 2
    assert found.attention_ps((4096, 0)) == pytest.approx(4 * 128 * 32 * 32 * pairs / (0.7 * 989e12) * 1e12, rel=0.01)


def system_of(run):
    return System(run, run.model, {c: selections()["full_hbm", c] for c in (4096, 8192)}, 512)


def test_chunks_of_a_prompt_attend_as_the_whole_prompt_does():
    prefill = system("full_hbm").costs().prefill
    parts = sum(prefill.attention_ps((512, past)) for past in range(0, 4096, 512))
    assert parts == pytest.approx(prefill.attention_ps((4096, 0)), rel=0.01)


def parallel(gpus):
    sets = [f"runs.full_hbm.tensor_parallel={{gpus: {gpus}, link: nvlink4}}"]
    return scenario(*sets).runs["full_hbm"]


def test_a_ring_passes_twice_its_share_over_each_link():
    run = parallel(4)
    nbytes = 1024 * 4096 * 2
    assert all_reduce_ps(run, run.model, 1024) == pytest.approx(6 * (nbytes / 4 / 395.1e9 * 1e12 + 241e3), rel=1e-6)


def test_shards_hold_the_whole_model():
    model = scenario().model
    assert 4 * shard(model, 4).weight_bytes == model.weight_bytes


def test_two_gpus_read_half_the_kv_and_half_the_weights_each():
    run, alone = parallel(2), scenario().runs["full_hbm"]
    chosen = selections()["full_hbm", 8192]
    mine, whole = (decode(r, own_model(r, r.model), chosen, 1).plan.tier_bytes()["hbm"] for r in (run, alone))
    assert (2 * mine["kv"] == whole["kv"]).all()
    assert (2 * mine["weights"] == whole["weights"]).all()


def test_two_gpus_take_half_the_time_and_two_all_reduces_a_layer():
    run, alone = parallel(2), scenario().runs["full_hbm"]
    chosen = selections()["full_hbm", 8192]
    half = measure_step(run, own_model(run, run.model), chosen, 8).duration_ps
    whole = measure_step(alone, alone.model, chosen, 8).duration_ps
    reduces = 2 * run.model.layers * all_reduce_ps(run, run.model, 8)
    assert whole / 2 < half - reduces < 0.75 * whole


def test_verified_steps_are_scanned_once_for_all_queries():
    chosen = selections()["ghostkv_cxl", 4096]
    group = verified(chosen, 2)
    assert group.steps == 1
    assert group.stages[0].macs == 2 * chosen.stages[0].macs
    assert group.scanned.shape == (*chosen.scanned.shape[:2], 1)


def test_gains_do_not_depend_on_other_requests():
    gains = gains_of(Speculation(draft=2, acceptance=0.5), 3)
    first = gains(7, 0, 50)
    gains(8, 0, 50)
    assert (gains(7, 0, 50) == first).all()
