"""Does a recording hold what was asked for: values, queries made early, losses, layers, generated steps?"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from tiny_models import build, eager
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ghostsim.trace.compose import compose

pytestmark = pytest.mark.torch
PROMPT, STEPS = 128, 31


@pytest.fixture
def llama(tmp_path):
    return build(tmp_path / "model", "llama")


def hidden_states(folder, trace):
    ids = torch.tensor(np.array(trace.token_ids)).long()[None]
    with torch.inference_mode():
        return eager(folder)(input_ids=ids, output_hidden_states=True, use_cache=False)


def test_queries_ahead_are_the_layers_own_norm_and_projection_of_the_layer_before(llama, recorded):
    trace = recorded(llama, ahead=True)
    out = hidden_states(llama, trace)
    layer = eager(llama).model.layers[2]
    with torch.inference_mode():
        early = layer.self_attn.q_proj(layer.input_layernorm(out.hidden_states[1]))[0, PROMPT:]
    want = early.reshape(STEPS, 4, 16).numpy()
    assert np.abs(trace.q_ahead[:, 2] - want).max() <= 2e-3 * np.abs(want).max()
    assert np.array_equal(trace.q_ahead[:, 0], trace.q[:, 0])


def test_values_are_the_models(llama, recorded):
    trace = recorded(llama, values=True)
    layer, inputs = eager(llama).model.layers[1], hidden_states(llama, trace).hidden_states[1]
    with torch.inference_mode():
        want = layer.self_attn.v_proj(layer.input_layernorm(inputs))[0].reshape(-1, 2, 16).numpy().swapaxes(0, 1)
    assert np.abs(trace.v[1] - want).max() <= 2e-3 * np.abs(want).max()


def test_loss_is_that_of_the_token_after_the_step(llama, tmp_path, recorded):
    trace = recorded(llama)
    ids = np.load(tmp_path / "ids.npy")
    logits = hidden_states(llama, trace).logits[0, PROMPT:]
    want = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[PROMPT + 1 :]), reduction="none")
    assert np.allclose(trace.loss, want, atol=1e-4)


def test_loss_is_absent_where_the_text_ends_with_the_last_step(llama, token_file, recorded):
    assert recorded(llama, ids=token_file("short.npy", PROMPT + STEPS)).loss is None


def test_kept_layers_are_those_asked_for(llama, recorded):
    full, some = recorded(llama, "full"), recorded(llama, "some", layers=(0, 2))
    assert some.model.kept_layers == (0, 2)
    assert some.model.layers == 3
    assert np.array_equal(some.k, full.k[[0, 2]])


def test_all_prompt_queries_can_be_kept(llama, recorded):
    trace = recorded(llama, q_prompt=None)
    assert trace.prompt_queries == PROMPT


def test_generated_steps_are_the_likeliest_tokens(llama, tmp_path, recorded):
    trace = recorded(llama, generate=True)
    prompt = torch.tensor(np.load(tmp_path / "ids.npy")[:PROMPT]).long()[None]
    want = eager(llama).generate(prompt, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, eos_token_id=None)
    assert np.array_equal(trace.token_ids, want[0])
    assert len(trace.loss) == STEPS


def test_text_goes_through_the_models_tokenizer(llama, tmp_path, token_file, recorded):
    words = {f"w{i}": i for i in range(97)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106  (a word, no secret)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(llama)
    ids = np.load(token_file("numbers.npy"))
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{i}" for i in ids), encoding="utf-8")
    assert np.array_equal(recorded(llama, ids=text).token_ids, ids[: PROMPT + STEPS])


def test_token_classes_are_special_punctuation_and_the_rest(llama, token_file, recorded):
    words = {"<s>": 0, ".": 3, "),": 4} | {f"w{i}": i for i in (1, 2, *range(5, 97))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w1"))  # noqa: S106  (a word, no secret)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(llama)  # noqa: S106
    ids = np.load(token_file("numbers.npy"))
    ids[:5] = (0, 3, 4, 5, 0)
    np.save(text := token_file("given.npy"), ids)
    assert recorded(llama, ids=text, classes=True).token_class[:5].tolist() == [1, 2, 2, 0, 1]


def test_two_recordings_are_the_same_to_the_byte(llama, recorded):
    first, second = recorded(llama, "one"), recorded(llama, "two")
    for name in first.arrays():
        assert (first.path / f"{name}.npy").read_bytes() == (second.path / f"{name}.npy").read_bytes()


def test_recorded_trace_composes_to_a_longer_context(llama, recorded):
    workload = compose([recorded(llama)], None, requests=1, steps=8, context=1024, seed=1)
    assert workload.head(0).keys.shape == (1032, 16)


def test_command_records_and_says_how_well(llama, tmp_path, token_file):
    ids = tmp_path / "ids.json"
    ids.write_text(json.dumps(np.load(token_file("ids.npy")).tolist()), encoding="utf-8")
    command = [sys.executable, "-m", "ghostsim", "trace", "record", str(llama), str(ids), "--out", str(tmp_path / "t")]
    found = subprocess.run(
        [*command, "--prompt", "128", "--steps", "8", "--v", "--layers", "0,2", "--q-prompt", "all"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stderr.splitlines()
    assert lines[0] == "LlamaForCausalLM: 2 layers, 136 tokens, stored as float16"
    assert lines[-1] == str(tmp_path / "t")
