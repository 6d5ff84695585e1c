"""Does a decode in closed loop give the losses of a model that attends, token by token, to what the policy reads?"""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tokenizers
import torch
import transformers
from tiny_models import COMMON, FAMILIES, HEADS, SPECIAL, build, build_config, eager
from token_by_token import (
    TopK,
    logits_under_full_attention,
    losses_token_by_token,
    losses_under_full_attention,
)
from typer.testing import CliRunner

from ghostsim.cli import app
from ghostsim.config.policy import Policy
from ghostsim.errors import InputError, InvariantError, TraceError, UsageError
from ghostsim.policy.head import evaluate_group
from ghostsim.study import closed_loop
from ghostsim.study.perplexity import Decode, figures, perplexity, perplexity_text, write_perplexity
from ghostsim.trace.compose import compose

pytestmark = pytest.mark.torch
PROMPT, STEPS, PROMPT_OF_FACTS = 96, 24, 128
STORED = {"select": "all", "format": "fp16"}


def policy(name, read, **keep):
    return Policy.model_validate({"schema": 1, "name": name, "keep": [STORED | keep], "read": read})


FULL = policy("full", {"rule": "all"})
TOPK = policy("topk", {"rule": {"topk": 12}, "score": "exact", "pin": {"sinks": 2, "window": 4}})
WINDOW = policy("window", {"rule": "all"}, select={"rule": "none", "pin": {"sinks": 2, "window": 16}})
INT8 = policy("int8", {"rule": "all"}, format={"int": {"bits": 8, "group": 16}})
INT2 = policy("int2", {"rule": "all"}, format={"int": {"bits": 2, "group": 16}})


@pytest.fixture
def decode(tmp_path, token_file):
    def run(family, *policies, **changes):
        folder = tmp_path / "model"
        if not (folder / "config.json").exists():
            build(folder, family)
        asked = {"prompt_len": PROMPT, "steps": STEPS} | changes
        return perplexity(Decode(str(folder), token_file("ids.npy"), policies, **asked))

    return run


def given(found):
    """Return the tokens of a result and its losses under each policy."""
    return found.script.ids, found.script.targets, [outcome.decoded.loss for outcome in found.outcomes]


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_everything_gives_the_losses_of_the_model(family, tmp_path, decode):
    ids, targets, (loss,) = given(decode(family, FULL))
    assert np.allclose(loss, losses_under_full_attention(eager(tmp_path / "model"), ids, targets), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_top_k_gives_the_losses_of_a_decode_token_by_token(family, tmp_path, decode):
    found = decode(family, TOPK)
    ids, targets, (loss,) = given(found)
    want = losses_token_by_token(eager(tmp_path / "model"), ids, targets, TopK(12, sinks=2, window=4))
    assert np.abs(found.full.loss - want).max() > 0.05  # else the policy would not matter
    assert np.allclose(loss, want, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_window_gives_the_losses_of_a_decode_token_by_token(family, tmp_path, decode):
    ids, targets, (loss,) = given(decode(family, WINDOW))
    want = losses_token_by_token(eager(tmp_path / "model"), ids, targets, TopK(0, sinks=2, window=16))
    assert np.allclose(loss, want, atol=1e-4)


def test_layers_read_in_full_lose_nothing(decode):
    dense = policy("dense", TOPK.read.model_dump() | {"layers": {"dense": [0, 2]}})
    (outcome,) = decode("llama", dense).outcomes
    assert not outcome.closed.lost_mass[:, [0, 2]].any()
    assert outcome.closed.lost_mass[:, 1].all()


def test_loops_differ_only_above_the_first_layer(decode):
    (outcome,) = decode("llama", TOPK).outcomes
    differs = outcome.closed.lost_mass != outcome.open.lost_mass
    assert not differs[:, 0].any()
    assert differs[:, 1:].any()


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_policies_see_what_a_recording_of_the_same_text_holds(family, tmp_path, decode, recorded, monkeypatch):
    heads = []
    monkeypatch.setattr(
        closed_loop, "evaluate_group", lambda _, given: heads.extend(given) or evaluate_group([FULL], given)
    )
    decode(family, FULL)
    size = {"prompt_len": PROMPT, "steps": STEPS, "q_prompt": None}
    trace = recorded(tmp_path / "model", ids=tmp_path / "ids.npy", values=True, ahead=True, **size)
    workload = compose([trace], None, requests=1, steps=None, context=None, seed=1)
    assert len(heads) == 2 * len(workload.heads)  # full attention, then the policy
    for unit in range(len(workload.heads)):
        assert_same_head(heads[unit], workload.head(unit))


def assert_same_head(ours, theirs):
    for name in ("keys", "values", "queries", "prompt_queries", "q_ahead"):
        ours_, theirs_ = getattr(ours, name), getattr(theirs, name)
        assert np.abs(ours_ - theirs_).max() <= 2e-3 * np.abs(theirs_).max(), name
    for name in ("kept_layer", "kv_head", "context", "scale", "softcap", "window"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_policies_do_not_disturb_each_other(decode):
    both, alone = decode("llama", WINDOW, TOPK), decode("llama", TOPK)
    assert np.array_equal(both.outcomes[1].decoded.loss, alone.outcomes[0].decoded.loss)


def test_fewer_bits_change_losses_more(decode):
    found = decode("llama", INT8, INT2)
    mild, coarse = (np.abs(loss - found.full.loss).mean() for loss in given(found)[2])
    assert 0 < mild < 0.2 * coarse


def test_share_read_counts_positions(decode):
    (outcome,) = decode("llama", WINDOW).outcomes
    assert np.allclose(outcome.closed.share, 18 / (PROMPT + 1 + np.arange(STEPS)))


def test_policies_see_only_the_prompt_queries_asked_for(decode):
    obs = {"rule": {"topk": 16}, "score": {"obs": {"window": 32}}, "pin": {"window": 32}}
    with pytest.raises(TraceError, match="found 16 prompt queries, expected at least"):
        decode("llama", policy("obs", {"rule": "all"}, every="prefill_end", select=obs), q_prompt=16)


def test_figures_hold_both_loops_and_their_gap(decode):
    found = decode("llama", FULL, TOPK)
    result = json.loads(json.dumps(figures(found), allow_nan=False))
    lost = result["policies"]["topk"]["lost_mass"]
    assert result["schema"] == 1
    assert lost["gap"]["mean"] == pytest.approx(lost["closed"]["mean"] - lost["open"]["mean"])
    assert result["policies"]["full"]["delta"]["nats_per_token"] == pytest.approx(0, abs=1e-4)
    assert result["full"]["recall"] is None


def test_csv_has_a_row_per_policy_and_step(tmp_path, decode):
    found = decode("llama", FULL, TOPK)
    write_perplexity(found, tmp_path)
    rows = list(csv.DictReader((tmp_path / "perplexity.csv").read_text().splitlines()))
    assert [(row["policy"], int(row["step"])) for row in rows] == [(p, s) for p in ("full", "topk") for s in range(24)]
    assert float(rows[-1]["lost_mass_closed"]) == found.outcomes[1].closed.lost_mass[-1].max()


def test_table_names_every_policy(decode):
    lines = perplexity_text(decode("llama", FULL, INT8)).splitlines()
    assert [line.split("  ")[0] for line in lines[3:6]] == ["full attention", "full", "int8 (not lossless)"]
    assert [line.split("  ")[0] for line in lines[8:10]] == ["full", "int8 (not lossless)"]


def test_command_writes_what_it_prints(tmp_path, decode):
    decode("llama", FULL)  # makes model and text
    args = ["model", "ids.npy", "--policy", "full", "--policy", "quest", "--prompt", "96", "--steps", "24", "--json"]
    args = [str(tmp_path / arg) if arg in ("model", "ids.npy") else arg for arg in args]
    done = CliRunner().invoke(app, ["perplexity", *args, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert set(json.loads(done.stdout)["policies"]) == {"full", "quest"}


# --- planted facts -------------------------------------------------------------------------------------------


@pytest.fixture
def with_tokenizer(tmp_path):
    """Give the model a tokenizer of one token per character."""
    vocabulary = {chr(30 + i): i for i in range(97)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=chr(30)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")


def test_facts_are_stated_in_the_prompt_and_asked_for_in_steps(decode, with_tokenizer):
    script = decode_facts(decode).script
    prompt, steps = ("".join(chr(30 + i) for i in ids) for ids in np.split(script.ids, [PROMPT_OF_FACTS]))
    asked = re.findall(r" The code of [A-Z][a-z]+ is \d{4}\.?", steps[STEPS:])
    assert len(asked) == 2
    assert all(statement in prompt for statement in asked)
    assert script.steps == STEPS + sum(map(len, asked)) - (1 if asked[-1][-1] == "." else 0)


def decode_facts(decode, *policies):
    return decode("llama", *(policies or (FULL,)), prompt_len=PROMPT_OF_FACTS, facts=2)


def test_recall_counts_answers_whose_tokens_are_all_the_likeliest(decode, with_tokenizer):
    found = decode_facts(decode)
    hit = np.zeros(found.script.steps, dtype=bool)
    first, second = found.script.answers
    hit[first], hit[second.start] = True, True
    known = replace(found, full=replace(found.full, hit=hit))
    assert figures(known)["full"]["recall"] == 0.5


def test_answers_are_judged_where_they_are_due(decode, with_tokenizer):
    script = decode_facts(decode).script
    answers = ["".join(chr(30 + i) for i in script.targets[steps]) for steps in script.answers]
    assert all(re.fullmatch(r" \d{4}\.", answer) for answer in answers)


def test_hits_are_the_argmax_of_the_model(tmp_path, decode, with_tokenizer):
    found = decode_facts(decode)
    logits = logits_under_full_attention(eager(tmp_path / "model"), found.script.ids, found.script.steps)
    assert np.array_equal(found.full.hit, logits.argmax(dim=-1).numpy() == found.script.targets)
    assert np.array_equal(found.outcomes[0].decoded.hit, found.full.hit)


def test_facts_need_a_tokenizer(decode):
    with pytest.raises(InputError, match="whose tokenizer fails"):
        decode_facts(decode)


def test_facts_must_leave_room_for_the_text(decode, with_tokenizer):
    with pytest.raises(UsageError, match=r"--facts: found 9 facts of .* tokens, expected at most half of the 96"):
        decode("llama", FULL, facts=9)


# --- what cannot be decoded ----------------------------------------------------------------------------------


def test_attention_with_sinks_is_refused(tmp_path, decode):
    fields = COMMON | HEADS | SPECIAL | {"num_local_experts": 2, "num_experts_per_tok": 1}
    folder = build_config(tmp_path / "model", "gpt_oss", fields)
    model = eager(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(20.0)
    model.save_pretrained(folder)
    with pytest.raises(InvariantError, match=r"layer 0: found outputs up to .* off the model's"):
        decode("gpt_oss", FULL)


def test_model_without_eager_attention_is_refused(tmp_path, decode):
    build_config(tmp_path / "model", "mamba", {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2})
    with pytest.raises(InputError, match="found MambaForCausalLM"):
        decode("mamba", FULL)


def test_text_beyond_the_learned_positions_is_refused(tmp_path, decode):
    build(tmp_path / "model", "gpt2", n_positions=100)
    with pytest.raises(InputError, match="found 120 tokens, expected at most as many as GPT2LMHeadModel has"):
        decode("gpt2", FULL)


def test_short_text_is_counted(decode):
    with pytest.raises(InputError, match="found 160 tokens, expected at least 221"):
        decode("llama", FULL, steps=124)


def test_missing_torch_is_named(decode, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"found no torch and no transformers.*pip install 'ghostsim\[record\]'"):
        decode("llama", FULL)


def test_a_policy_named_twice_is_refused(decode):
    with pytest.raises(UsageError, match="found topk twice"):
        decode("llama", TOPK, TOPK)
