"""Do the bytes of one decode step at Llama-3.1-8B's shape, N = 2^17 attended tokens, equal the golden table?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from ghostsim import bundled
from ghostsim.config.policy import Policy
from ghostsim.policy.costs import index_stages, streams_of
from ghostsim.policy.head import evaluate_head
from ghostsim.policy.rows import HeadRows
from ghostsim.policy.variants import by_head, for_head, specialised
from ghostsim.trace.compose import Head

LAYERS, KV_HEADS, HEAD_DIM, N = 32, 8, 128, 131072
GOLDEN = {  # index, KV from HBM, KV over the link
    "full": (0, 17179869184, 0),
    "kivi": (0, 3224633344, 0),
    "int4": (0, 4563402752, 0),
    "streaming_llm": (0, 262668288, 0),
    "h2o": (0, 268435456, 0),
    "snapkv": (0, 268566528, 0),
    "duoattention": (0, 8610906112, 0),
    "quest": (1006632960, 1325400064, 0),
    "arkvale": (536870912, 150994944, 0),
    "infinigen": (1664299728, 0, 3865419776),
    "retroinfer": (661389312, 8912896, 308281344),
    "shadowkv": (1070333952, 222298112, 134217728),
}


@pytest.fixture(scope="module")
def head():
    """Return one head at context N - 1; the query heads of the group agree, so that a group reads one set."""
    rng = np.random.default_rng(7)
    query = rng.standard_normal((1, 1, HEAD_DIM), dtype=np.float32)
    prompt = rng.standard_normal((32, 1, HEAD_DIM), dtype=np.float32)
    keys = rng.standard_normal((N, HEAD_DIM), dtype=np.float32)
    keys[:16] = -query[0, 0]  # the cluster that shares members with the sinks is never among the best
    queries = query.repeat(4, axis=1)
    return Head(
        request=0,
        kept_layer=0,
        kv_head=0,
        context=N - 1,
        keys=keys,
        queries=queries,
        prompt_queries=prompt.repeat(4, axis=1),
        values=None,
        q_ahead=queries,
        scale=HEAD_DIM**-0.5,
        softcap=None,
        window=None,
    )


def load(name: str) -> Policy:
    file: Path = bundled.folder("scenarios") / "policies" / f"{name}.yaml"
    return Policy.model_validate(yaml.safe_load(file.read_text()))


def one_pair(policy: Policy, head: Head) -> tuple[int, int, int]:
    """Return the bytes of the last step of one KV head: index, KV from HBM, KV over the link."""
    rows = evaluate_head(policy, head)
    moved = by_op(policy, rows)
    return int(rows.scan_bytes[:, -1].sum()), moved["attend"] + moved["decode"], moved["read"]


def by_op(policy: Policy, rows: HeadRows) -> dict[str, int]:
    """Return the bytes of the last step of one KV head by operation."""
    moved = dict.fromkeys(("attend", "decode", "read", "migrate"), 0)
    for stream, nbytes in zip(streams_of(policy, HEAD_DIM), rows.stream_bytes[:, -1].tolist(), strict=True):
        moved[stream.op] += nbytes
    return moved


def step_bytes(policy: Policy, head: Head) -> tuple[int, int, int]:
    """Return the bytes of one step over all layers and KV heads; of heads that differ, half are full ones."""
    found, total = {}, np.zeros(3, dtype=np.int64)
    for layer in range(LAYERS):
        variant = specialised(policy, layer, LAYERS, head.context)
        halves = [for_head(variant, full=full, head_class="local") for full in (True, False)]
        for each in halves if by_head(variant) else [variant] * 2:
            key = each.model_dump_json()
            found[key] = found.get(key) or one_pair(each, head)
            total += KV_HEADS // 2 * np.array(found[key])
    return tuple(total.tolist())


@pytest.fixture
def even_clusters(monkeypatch):
    """Let every 16 neighbours be a cluster: the table counts clusters of exactly 16."""
    monkeypatch.setattr("ghostsim.policy.clusters.spherical_kmeans", lambda keys, _k, _n: np.arange(len(keys)) // 16)


@pytest.mark.usefixtures("even_clusters")
@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_step_moves_the_golden_bytes(name, head):
    assert step_bytes(load(name), head) == GOLDEN[name]


@pytest.mark.parametrize(("steps", "recalled"), [(1, 32 * 32), (2, 0)])
def test_arkvale_migrates_the_pages_it_recalls(head, steps, recalled):
    """The first of two steps with one query recalls all 32 pages, the second none."""
    steps_of_one_query = replace(head, context=N - steps, queries=head.queries.repeat(steps, axis=0))
    policy = load("arkvale")
    assert by_op(policy, evaluate_head(policy, steps_of_one_query))["migrate"] == recalled * 512
    assert step_bytes(policy, steps_of_one_query) == GOLDEN["arkvale"]


def test_h2o_rewrites_its_score_state(head):
    rows = evaluate_head(load("h2o"), head)
    assert int(rows.state_bytes[0]) * LAYERS * KV_HEADS == 2097152


@pytest.mark.parametrize(("dims", "index"), [(32, 1105199104), (16, 585105408)])
def test_ghostkv_sketch_moves_the_golden_bytes(dims, index, head):
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
    assert [stage.nbytes(1) for stage in index_stages(policy, HEAD_DIM)] == [dims + 2]
    assert step_bytes(policy, head) == (index, 536870912, 332791808)
