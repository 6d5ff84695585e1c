"""Does every shipped policy file load, name itself, and keep the promises that all policies make?"""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from ghostsim import bundled
from ghostsim.config.policy import Policy
from ghostsim.policy.costs import format_bytes, index_stages
from ghostsim.policy.head import evaluate_heads
from ghostsim.policy.rows import claims
from ghostsim.trace.compose import compose
from ghostsim.trace.format import open_trace

FOLDER = bundled.folder("scenarios") / "policies"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))


def load(name):
    return Policy.model_validate(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


@pytest.fixture(scope="module")
def evaluated():
    """Evaluate the whole library on two recorded heads, one of them with a composed twin."""
    trace = open_trace("natural_4k")
    recorded = compose([trace], None, requests=1, steps=3, context=None, seed=1)
    composed = compose([trace], None, requests=1, steps=3, context=9000, seed=1)
    policies = [load(name) for name in NAMES]
    heads = [recorded.head(0), recorded.head(5), composed.head(5)]
    results = [evaluate_heads(policies, head) for head in heads]
    return {name: [rows[i] for rows in results] for i, name in enumerate(NAMES)}


def test_the_library_is_complete():
    wanted = "full int4 streaming_llm h2o snapkv quest ghostkv ghostkv_onepass ghostkv_sketch ghostkv_published oracle"
    assert set(NAMES) >= set(wanted.split())


@pytest.mark.parametrize("name", NAMES)
def test_file_names_itself_and_says_what_it_is(name):
    policy = load(name)
    assert policy.name == name
    assert "\n" not in policy.summary
    assert policy.summary != "KV-cache policy"


@pytest.mark.parametrize("name", NAMES)
def test_costs_are_known(name):
    policy = load(name)
    assert all(0 < format_bytes(keep.format, 128) <= 512 for keep in policy.keep)
    assert all(stage.record_bytes > 0 and stage.macs > 0 for stage in index_stages(policy, 128))


@pytest.mark.parametrize("name", NAMES)
def test_counts_agree_with_the_sets(name, evaluated):
    for rows in evaluated[name]:
        for s in range(3):
            read = rows.positions(s)
            assert len(read) == rows.hot_tokens[s] + rows.read_tokens[s]
            assert rows.attended[s] == rows.hot_tokens[s] + rows.cold_tokens[s]
            assert read[-1] == rows.attended[s] - 1
        assert (rows.needless_reads <= rows.read_tokens).all()
        assert (rows.top_eliminated <= rows.top_cold).all()


@pytest.mark.parametrize("name", NAMES)
def test_quality_is_finite_and_in_range(name, evaluated):
    for rows in evaluated[name]:
        assert ((rows.lost_mass >= 0) & (rows.lost_mass <= 1)).all()
        assert np.isfinite(rows.output_error).all()


@pytest.mark.parametrize("name", NAMES)
def test_promises_are_kept(name, evaluated):
    policy = load(name)
    for rows in evaluated[name]:
        assert (rows.certified_mass is not None) == policy.read.certified
        assert (rows.violations is not None) == claims(policy)
        if policy.read.certified:
            assert (rows.lost_mass <= rows.certified_mass).all()
            assert (rows.certified_mass <= policy.read.eps).all()
            assert not rows.violations.any()


def test_the_oracle_eliminates_most(evaluated):
    reads = {name: sum(int(rows.read_tokens.sum()) for rows in results) for name, results in evaluated.items()}
    assert reads["oracle"] < reads["ghostkv"] <= reads["ghostkv_onepass"] < reads["full"]
