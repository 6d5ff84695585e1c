"""Do traces recorded from many families of models replay to the attention that transformers itself gives out?"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tiny_models import FAMILIES, build, eager

from ghostsim.trace.compose import compose
from ghostsim.trace.statistics import probabilities

pytestmark = pytest.mark.torch
LEARNED = {"gpt2", "gpt2_inverse_layer", "gpt_bigcode", "opt"}


def published(folder, trace):
    """Return output_attentions of the decode steps, [layers, heads, steps, tokens]."""
    with torch.inference_mode():
        out = eager(folder)(
            input_ids=torch.tensor(np.array(trace.token_ids)).long()[None], use_cache=False, output_attentions=True
        )
    return torch.stack(out.attentions)[:, 0, :, trace.prompt_len :].numpy()


def replayed(trace):
    workload = compose([trace], None, requests=1, steps=None, context=None, seed=1)
    out = np.zeros((len(trace.model.kept_layers), trace.model.q_heads, trace.steps, trace.tokens))
    group = trace.model.q_per_kv
    for unit, (_, layer, kv_head) in enumerate(workload.heads):
        head = workload.head(unit)
        for step in range(trace.steps):
            p = probabilities(head, step)
            out[layer, kv_head * group : (kv_head + 1) * group, step, : p.shape[1]] = p
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_family_replays_to_output_attentions(family, tmp_path, recorded):
    folder = build(tmp_path / "model", family)
    trace = recorded(folder)
    want = published(folder, trace)
    assert want.max() > 0.15  # uniform attention, 0.01 to 0.04, would prove nothing
    assert np.abs(replayed(trace) - want).max() <= 2e-3


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in LEARNED])
def test_keys_of_one_token_are_the_same_wherever_it_stands(family, tmp_path, recorded):
    """Before rotation, a key of layer 0 depends on its token alone; learned positions are part of the input."""
    ids = tmp_path / "same.npy"
    np.save(ids, np.full(160, 5))
    trace = recorded(build(tmp_path / "model", family), ids=ids)
    keys = trace.k[0].astype(np.float64)
    assert trace.rope is not None
    assert np.abs(keys - keys[:, :1]).max() <= 2e-3 * np.abs(keys).max()


def test_layers_without_rotation_have_frequency_zero(tmp_path, recorded):
    trace = recorded(build(tmp_path / "model", "smollm3"))
    assert not trace.inv_freq[1].any()
    assert trace.inv_freq[0].all()


def test_local_and_global_layers_keep_their_own_frequencies_and_windows(tmp_path, recorded):
    trace = recorded(build(tmp_path / "model", "gemma3"))
    local, full = 100.0 ** -(np.arange(8) / 8), 10000.0 ** -(np.arange(8) / 8) / 4
    assert trace.model.window == (24, None, 24)
    assert np.allclose(trace.inv_freq, [local, full, local], rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", ["llama3_scaling", "llama_yarn"])
def test_scaled_frequencies_are_those_of_the_model(family, tmp_path, recorded):
    folder = build(tmp_path / "model", family)
    trace, rotary = recorded(folder), eager(folder).model.rotary_emb
    assert np.allclose(trace.inv_freq, rotary.inv_freq.numpy(), rtol=1e-6, atol=0)
    assert trace.rope.attention_factor == pytest.approx(rotary.attention_scaling, rel=1e-6)


def test_long_text_takes_the_long_factors(tmp_path, recorded):
    trace = recorded(build(tmp_path / "model", "phi3"))
    stretched = 1 / ((1.0 + 0.5 * np.arange(8)) * 10000.0 ** (np.arange(8) / 8))
    assert np.allclose(trace.inv_freq, stretched, rtol=1e-6, atol=0)
    assert trace.rope.attention_factor > 1


@pytest.mark.parametrize(("family", "pairing"), [("llama", "half"), ("cohere", "interleaved"), ("glm", "interleaved")])
def test_pairing_is_that_of_the_family(family, pairing, tmp_path, recorded):
    assert recorded(build(tmp_path / "model", family)).rope.pairing == pairing


def test_softcap_and_scale_reach_the_manifest(tmp_path, recorded):
    model = recorded(build(tmp_path / "model", "gemma2")).model
    assert (model.softcap, model.scale) == (5.0, 24**-0.5)


def test_multi_query_attention_keeps_one_head(tmp_path, recorded):
    model = recorded(build(tmp_path / "model", "gpt_bigcode")).model
    assert (model.q_heads, model.kv_heads) == (4, 1)
