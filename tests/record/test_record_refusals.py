"""Is what cannot be recorded refused in one line, and what float16 cannot hold kept as float32?"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tiny_models import COMMON, HEADS, SPECIAL, build, build_config, eager

from ghostsim.errors import InputError, InvariantError, UsageError
from ghostsim.trace.record import recorded_text

pytestmark = pytest.mark.torch


def test_keys_beyond_float16_are_kept_as_float32(tmp_path, recorded):
    """A dimension of the keys far out of range that no query looks at."""
    folder = build(tmp_path / "model", "gpt2")
    model = eager(folder)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, 0], block.attn.c_attn.bias[0] = 0, 0
            block.attn.c_attn.bias[64] = 7e4
    model.save_pretrained(folder)
    trace = recorded(folder)
    assert trace.k.dtype == np.float32
    assert "float16 cannot hold" in recorded_text(trace)


def test_attention_with_sinks_is_refused(tmp_path, recorded):
    fields = COMMON | HEADS | SPECIAL | {"num_local_experts": 2, "num_experts_per_tok": 1}
    folder = build_config(tmp_path / "model", "gpt_oss", fields)
    model = eager(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(20.0)
    model.save_pretrained(folder)
    with pytest.raises(InvariantError, match=r"layer 0: found probabilities up to .* off the model's"):
        recorded(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids.npy", "model"]


def test_rotation_that_cannot_be_undone_stays_inside_the_keys(tmp_path, recorded):
    """DeepSeek turns the last dimensions, which the format cannot say."""
    fields = COMMON | SPECIAL | {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96}
    latent = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    folder = build_config(tmp_path / "model", "deepseek_v3", fields | latent | {"first_k_dense_replace": 3})
    trace = recorded(folder)
    assert trace.rope is None
    assert "could not be undone" in recorded_text(trace)
    with pytest.raises(UsageError, match="--v: found values of 16 and keys of 24"):
        recorded(folder, "with_values", values=True)


def test_model_outside_the_attention_interface_is_refused(tmp_path, recorded):
    fields = {"vocab_size": 97, "hidden_size": 64, "n_layer": 2, "n_head": 4}
    with pytest.raises(InputError, match="BloomForCausalLM, which does not use transformers' attention interface"):
        recorded(build_config(tmp_path / "model", "bloom", fields))


def test_missing_model_is_named(tmp_path, recorded):
    with pytest.raises(InputError, match="which is no folder here and was not found online"):
        recorded(tmp_path / "nothing")


def test_short_text_is_counted(tmp_path, token_file, recorded):
    folder = build(tmp_path / "model", "llama")
    with pytest.raises(InputError, match=r"found 100 tokens, expected at least 159"):
        recorded(folder, ids=token_file("short.npy", 100))


def test_foreign_tokens_are_refused(tmp_path, token_file, recorded):
    folder = build(tmp_path / "model", "llama")
    with pytest.raises(InputError, match="expected a list of ids from 0 to 96"):
        recorded(folder, ids=token_file("wide.npy", vocabulary=5000))


def test_layers_that_are_not_there_are_refused(tmp_path, recorded):
    with pytest.raises(UsageError, match="--layers: found 7"):
        recorded(build(tmp_path / "model", "llama"), layers=(0, 7))


def test_text_beyond_the_learned_positions_is_refused(tmp_path, recorded):
    with pytest.raises(InputError, match="found 159 tokens, expected at most the 140 positions"):
        recorded(build(tmp_path / "model", "gpt2", n_positions=140))


def test_unknown_name_is_asked_for_once_and_briefly(recorded, monkeypatch):
    asked = []

    def model_info(self, name, timeout):
        asked.append((name, timeout))
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    with pytest.raises(InputError, match=r"found 'nobody/nothing', which is no folder .*\(no network\)"):
        recorded("nobody/nothing")
    assert asked == [("nobody/nothing", 5.0)]
