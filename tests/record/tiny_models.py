"""Tiny causal LMs of many families, with random weights large enough that attention is not uniform."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 256}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 16}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"vocab_size": 97, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256}


def rope(**fields):
    return {"rope_parameters": {"rope_theta": 10000.0, **fields}}


LLAMA3 = rope(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
LONGROPE = rope(
    rope_type="longrope",
    factor=2.0,
    short_factor=[1.0] * 8,
    long_factor=[1.0 + 0.5 * i for i in range(8)],
    original_max_position_embeddings=128,
)
GEMMA3 = {
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    }
}
LOCAL = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
DYNAMIC = rope(rope_type="dynamic", factor=2.0) | {"max_position_embeddings": 100}
PARTIAL = rope(rope_type="default", partial_rotary_factor=0.5)

# name: (model type, fields of its configuration)
FAMILIES = {
    "llama": ("llama", COMMON | HEADS),
    "llama3_scaling": ("llama", COMMON | HEADS | LLAMA3),
    "llama_yarn": ("llama", COMMON | HEADS | rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)),
    "llama_dynamic": ("llama", COMMON | HEADS | DYNAMIC),
    "qwen2": ("qwen2", COMMON | HEADS),
    "qwen3": ("qwen3", COMMON | HEADS),
    "mistral": ("mistral", COMMON | HEADS | {"sliding_window": 32}),
    "gemma": ("gemma", COMMON | HEADS | {"num_key_value_heads": 1}),
    "gemma2": ("gemma2", COMMON | HEADS | LOCAL | {"query_pre_attn_scalar": 24, "attn_logit_softcapping": 5.0}),
    "gemma3": ("gemma3_text", COMMON | HEADS | LOCAL | GEMMA3 | {"query_pre_attn_scalar": 32}),
    "phi": ("phi", COMMON | HEADS | {"num_key_value_heads": 4} | PARTIAL),
    "phi3": ("phi3", COMMON | HEADS | SPECIAL | LONGROPE | {"original_max_position_embeddings": 128}),
    "gpt2": ("gpt2", GPT2),
    "gpt2_inverse_layer": ("gpt2", GPT2 | {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_bigcode": ("gpt_bigcode", GPT2 | {"multi_query": True}),
    "opt": ("opt", COMMON | {"num_attention_heads": 4, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt_neox": ("gpt_neox", COMMON | HEADS | rope(rope_type="default", partial_rotary_factor=0.25)),
    "cohere": ("cohere", COMMON | HEADS | SPECIAL),
    "cohere2": ("cohere2", COMMON | HEADS | SPECIAL | LOCAL),
    "glm": ("glm", COMMON | HEADS | SPECIAL | PARTIAL),
    "glm4": ("glm4", COMMON | HEADS | SPECIAL | PARTIAL),
    "olmo2": ("olmo2", COMMON | HEADS | SPECIAL),
    "granite": ("granite", COMMON | HEADS | {"attention_multiplier": 0.11}),
    "smollm3": ("smollm3", COMMON | HEADS | SPECIAL | {"no_rope_layers": [1, 0, 1]}),
    "starcoder2": ("starcoder2", COMMON | HEADS | {"sliding_window": 48}),
    "stablelm": ("stablelm", COMMON | HEADS | rope(rope_type="default", partial_rotary_factor=0.25)),
}


def build(folder: Path, family: str, **changes: object) -> Path:
    """Write a tiny model of a family into `folder`."""
    kind, fields = FAMILIES[family]
    return build_config(folder, kind, fields | changes)


def build_config(folder: Path, kind: str, fields: dict[str, object]) -> Path:
    config = AutoConfig.for_model(kind, **fields)
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn_like(parameter)
            parameter.copy_(0.25 * noise if parameter.dim() > 1 else parameter + 0.2 * noise)
    model.save_pretrained(folder)
    return folder


def eager(folder: Path) -> AutoModelForCausalLM:
    """Load a model as anybody would who asks it for its attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
