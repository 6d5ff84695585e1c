"""Do the bytes of one decode step at Llama-3.1-8B's shape, N = 2^17 attended tokens, equal the golden table?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from ghostsim import bundled
from ghostsim.config.policy import Policy
from ghostsim.policy.head import evaluate_head
from ghostsim.policy.variants import specialised
from ghostsim.trace.compose import Head

LAYERS, KV_HEADS, HEAD_DIM, N = 32, 8, 128, 131072
GOLDEN = {  # index, KV
    "full": (0, 17179869184),
    "int4": (0, 4563402752),
    "streaming_llm": (0, 262668288),
    "h2o": (0, 268435456),
    "snapkv": (0, 268566528),
    "quest": (1006632960, 1325400064),
}


@pytest.fixture(scope="module")
def head():
    """Return one head at context N - 1; the query heads of the group agree, so that a group reads one set."""
    rng = np.random.default_rng(7)
    query = rng.standard_normal((1, 1, HEAD_DIM), dtype=np.float32)
    prompt = rng.standard_normal((32, 1, HEAD_DIM), dtype=np.float32)
    return Head(
        request=0,
        kept_layer=0,
        kv_head=0,
        context=N - 1,
        keys=rng.standard_normal((N, HEAD_DIM), dtype=np.float32),
        queries=query.repeat(4, axis=1),
        prompt_queries=prompt.repeat(4, axis=1),
        values=None,
        q_ahead=None,
        scale=HEAD_DIM**-0.5,
        softcap=None,
        window=None,
    )


def load(name: str) -> Policy:
    file: Path = bundled.folder("scenarios") / "policies" / f"{name}.yaml"
    return Policy.model_validate(yaml.safe_load(file.read_text()))


def step_bytes(policy: Policy, head: Head) -> tuple[int, int]:
    """Return (index bytes, KV bytes) of one step over all layers and KV heads."""
    index = kv = 0
    rows = {}
    for layer in range(LAYERS):
        variant = specialised(policy, layer, LAYERS)
        key = variant.model_dump_json()
        if key not in rows:
            rows[key] = evaluate_head(variant, head)
        index += KV_HEADS * int(rows[key].scan_bytes[:, 0].sum())
        kv += KV_HEADS * int(rows[key].stream_bytes[:, 0].sum())
    return index, kv


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_step_moves_the_golden_bytes(name, head):
    assert step_bytes(load(name), head) == GOLDEN[name]


def test_h2o_rewrites_its_score_state(head):
    policy = load("h2o")
    stored = int(evaluate_head(policy, head).stored_tokens[0])
    assert stored * policy.keep[0].state * LAYERS * KV_HEADS == 2097152


@pytest.mark.parametrize(("dims", "index"), [(32, 1105199104), (16, 585105408)])
def test_ghostkv_sketch_scans_the_golden_bytes(dims, index, head):
    """R = 2 % of the cold tokens outside a hot window of 4,096, as a topfrac rule."""
    policy = Policy.model_validate(
        {
            "schema": 1,
            "name": "golden",
            "keep": [{"select": "all", "role": "cold"}],
            "read": {
                "rule": {"topfrac": 0.02},
                "score": {"sketch": {"dims": dims, "bits": 8}},
                "pin": {"window": 4096},
            },
        }
    )
    scanned, kv = step_bytes(policy, head)
    hot = 4096 * 512 * LAYERS * KV_HEADS
    assert (scanned, hot, kv - hot) == (index, 536870912, 332791808)
