"""Dense attention in HBM against pencil and paper: bytes over effective bandwidth, and launches."""

import pytest
import yaml
from invented import HBM, llama, policy, selection, simulate

from ghostsim import simulation
from ghostsim.bundled import folder
from ghostsim.config.load import load_scenario
from ghostsim.metrics.collect import step_ms
from ghostsim.pipeline.capacity import largest_batch


def read(name):
    return yaml.safe_load((folder("hwmodels") / name).read_text())


def number(field):
    """Return the number of a field like "3.01 us", {value: "80 GB"} or 0.818."""
    value = field["value"] if isinstance(field, dict) else field
    return float(str(value).split()[0])


GPU, KERNELS, MODEL = read("gpu/h100_sxm.yaml"), read("gpu/arch/sm_90.yaml"), read("models/llama_3_1_8b.yaml")
MEMORY = GPU["memory"]
ATTENTION, GEMM = KERNELS["attention"]["vllm"], KERNELS["gemm"]["dense"]
HBM_BYTES_PER_S = number(MEMORY["channels"]) * 64 * 6.4e9 / 8 * number(MEMORY["efficiency"])
LAYER_WEIGHTS = 4096 * (32 + 2 * 8) * 128 + 4096 * 4096 + 3 * 4096 * 14336
WEIGHT_BYTES = 2 * (32 * LAYER_WEIGHTS + 4096 * 128256)
TOKEN_BYTES = 32 * 8 * 2 * 128 * 2


def closed_form_ms(batch, tokens):
    """Return the step time: weights and KV once, four GEMMs and one attention kernel a layer, and the head."""
    waves = max(1, batch * 8 / number(GPU["sms"]))
    kernel_us = number(ATTENTION["start"]) + number(ATTENTION["cold"]) + number(ATTENTION["wave"]) * waves
    launches_s = (32 * (4 * number(GEMM["launch"]) + kernel_us) + number(GEMM["launch"])) * 1e-6
    weights_s = WEIGHT_BYTES / (number(GEMM["hbm_efficiency"]) * HBM_BYTES_PER_S)
    kv_s = batch * tokens * TOKEN_BYTES / (number(ATTENTION["hbm_efficiency"]) * HBM_BYTES_PER_S)
    return (weights_s + kv_s * _stretch(batch * 8) + launches_s) * 1e3


def _stretch(items):
    """Return how much longer KV takes for SMs without work in the last wave; one draws at most 1.1 fair shares."""
    sms = int(number(GPU["sms"]))
    pieces = items * max(1, sms // items)
    full, last = divmod(pieces, sms)
    return (full * sms + last / min(1.0, 1.1 * last / sms)) / pieces if last else 1.0


@pytest.mark.parametrize(("batch", "context"), [(14, 32768), (3, 131072), (1, 131072), (60, 8192)])
def test_dense_step_is_bytes_over_bandwidth_and_launches(batch, context):
    chosen = selection(policy("full"), llama(), hot=1, cold=context, read=context, batch=batch)
    run = simulate(chosen, policy("full"), llama(), HBM, batch, "h100_hbm_only")
    assert step_ms(run.record)[0] == pytest.approx(closed_form_ms(batch, context + 1), rel=0.02)


def test_largest_batch_is_what_the_weights_leave():
    scenario = load_scenario("dense_hbm").scenario
    embedding = 2 * 4096 * 128256
    free = number(MEMORY["capacity"]) * 1e9 - WEIGHT_BYTES - embedding
    expected = int(free // ((32768 + 4) * TOKEN_BYTES))
    assert largest_batch(scenario.runs["full_fits"], scenario.model, 32768 + 4) == expected


@pytest.mark.slow
def test_the_dense_scenario_itself():
    scenario = load_scenario("dense_hbm").scenario
    figures = simulation.simulate(scenario, jobs=1).metrics["runs"]["full_fits"]
    assert figures["step_ms"]["mean"] == pytest.approx(closed_form_ms(figures["batch"], 32768 + 2.5), rel=0.02)
    assert figures["bytes_per_step"]["hbm"]["weights"] == WEIGHT_BYTES
    assert figures["bytes_per_step"]["hbm"]["kv"] == figures["batch"] * (32768 + 2.5) * TOKEN_BYTES
