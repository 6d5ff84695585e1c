"""Does a prefetch bring what a foretold query would read, count hits and waste, and never lose or hurry a byte?"""

from dataclasses import replace

import numpy as np
import pytest
from invented import policy

from ghostsim.config.load import load_scenario
from ghostsim.errors import ConfigError, TraceError
from ghostsim.metrics.collect import moved
from ghostsim.plan.plan import OPS
from ghostsim.policy.evaluate import select
from ghostsim.policy.prefetch import foretold
from ghostsim.simulation import simulate
from ghostsim.trace.compose import Predictor, compose
from ghostsim.trace.format import open_trace
from ghostsim.trace.rope import rotate

STEPS = 4
SCENARIO = """\
schema: 1
name: ahead
model: docs_5m
platform: h100_cxl_pim
workload: {{trace: natural_4k, batch: 2, steps: {steps}}}
runs:
  none: {{policy: quest, kv_tier: dram}}
  {label}: {{policy: quest, kv_tier: dram, prefetch: {prefetch}}}
"""


@pytest.fixture(scope="module")
def workload():
    return compose([open_trace("natural_4k")], None, requests=1, steps=STEPS, context=None, seed=1)


def rotated(workload, raw):
    """Turn queries [steps, g, d] of layer 1 to where the steps stand."""
    trace = workload.traces[0]
    now = np.arange(workload.context, workload.context + STEPS)[:, None]
    return rotate(raw, now, trace.inv_freq[1], trace.rope, np.float64)


def unit_of_layer_1(workload):
    return next(unit for unit, place in enumerate(workload.heads) if place == (0, 1, 0))


def raw_queries(workload):
    """Return the last prompt queries and those of the steps [W + steps, g, d] of layer 1, KV head 0."""
    trace = workload.traces[0]
    group = slice(0, trace.model.q_per_kv)
    return np.concatenate([trace.q_prompt[1, group].swapaxes(0, 1), trace.q[:STEPS, 1, group]]).astype(np.float64)


@pytest.mark.parametrize("ahead", [1, 2])
def test_the_last_query_is_that_of_some_steps_ago_where_it_will_be_asked(workload, ahead):
    found = workload.predicting(Predictor("last_query", ahead)).head(unit_of_layer_1(workload)).queries
    raw = raw_queries(workload)
    assert np.allclose(found, rotated(workload, raw[len(raw) - STEPS - ahead : len(raw) - ahead]))


@pytest.mark.parametrize("ahead", [1, 2])
def test_a_linear_prediction_goes_on_as_the_last_two_queries_did(workload, ahead):
    found = workload.predicting(Predictor("linear", ahead)).head(unit_of_layer_1(workload)).queries
    raw = raw_queries(workload)
    last, before = (raw[len(raw) - STEPS - back : len(raw) - back] for back in (ahead, ahead + 1))
    assert np.allclose(found, rotated(workload, last + ahead * (last - before)))


def test_a_prediction_has_a_hash_of_its_own(workload):
    hashes = {workload.predicting(Predictor(by, n)).content_hash for by in ("last_query", "linear") for n in (1, 2)}
    assert len(hashes | {workload.content_hash}) == 5


def found_by(workload, by, most=10**6, name="quest"):
    of = policy(name)
    own = select({"own": of}, workload)["own"]
    predicted = select({"own": of}, workload.predicting(Predictor(by)))["own"]
    return own, predicted, foretold(own, predicted, of, workload, most)


def test_hits_are_the_tokens_in_both_sets(workload):
    own, predicted, found = found_by(workload, "last_query")
    for row in range(0, len(own.attended), 3):
        for step in range(STEPS):
            read, ahead = (
                set(np.flatnonzero(np.unpackbits(each.sets[row, step], bitorder="little")).tolist())
                for each in (own, predicted)
            )
            hot = int(own.hot_tokens[row, step])
            assert found.hits[row, step] == len(read & ahead) - hot
            assert found.tokens[row, step] == len(ahead) - hot


def test_an_oracle_hits_everything_and_wastes_nothing(workload):
    own, _, found = found_by(workload, "oracle", name="ghostkv")
    assert np.array_equal(found.hits, own.read_tokens)
    assert np.array_equal(found.tokens, own.read_tokens)


def test_a_buffer_takes_the_newest(workload):
    *_, found = found_by(workload, "oracle", most=7)
    assert found.tokens.max() == 7


def ran(tmp_path, prefetch, steps=6, label="ahead"):
    file = tmp_path / "ahead.yaml"
    file.write_text(SCENARIO.format(steps=steps, prefetch=prefetch, label=label))
    return simulate(load_scenario(file).scenario)


PREFETCHES = [
    "{by: last_query, tokens: 4096}",
    "{by: last_query, ahead: 2, tokens: 4096}",
    "{by: linear, tokens: 300}",
    "{by: layer_ahead, tokens: 4096}",
    "{by: oracle, tokens: 4096}",
]


@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_fetched_tokens_are_the_read_ones_and_the_waste(tmp_path, prefetch):
    done = ran(tmp_path, prefetch)
    plan, found = done.records["ahead"].plan, done.metrics["runs"]["ahead"]["prefetch"]
    fetched, needed = (
        done.records[label].plan.records[done.records[label].plan.op == OPS.index("read")].sum()
        for label in ("ahead", "none")
    )
    assert fetched == needed + round(found["waste"] * plan.steps)


@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_survivors_wait_for_what_was_brought_for_them(tmp_path, prefetch):
    record = ran(tmp_path, prefetch).records["ahead"]
    width = len(record.plan.names)
    brought = record.times.finish[record.plan.names.index("prefetch") :: width]
    begun = record.times.start[record.plan.names.index("survivors") :: width]
    shift = record.ahead.shift
    assert (begun[shift:] >= brought[: len(brought) - shift]).all()


@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_every_byte_on_the_link_is_a_byte_of_the_tier(tmp_path, prefetch):
    record = ran(tmp_path, prefetch).records["ahead"]
    found = moved(record.plan, record.bound)
    assert np.array_equal(found["pcie0"]["kv"], found["dram"]["kv"])


def test_an_oracle_never_lengthens_the_step(tmp_path):
    runs = ran(tmp_path, PREFETCHES[-1]).metrics["runs"]
    assert runs["ahead"]["step_ms"]["mean"] < runs["none"]["step_ms"]["mean"]


def test_what_is_read_does_not_change(tmp_path):
    runs = ran(tmp_path, PREFETCHES[0]).metrics["runs"]
    assert runs["ahead"]["quality"] == runs["none"]["quality"]


def test_a_run_without_prefetch_has_no_figures_of_it(tmp_path):
    assert ran(tmp_path, PREFETCHES[0]).metrics["runs"]["none"]["prefetch"] is None


def test_prefetch_of_kv_in_hbm_is_refused(tmp_path):
    file = tmp_path / "ahead.yaml"
    file.write_text(
        SCENARIO.format(steps=2, prefetch="{tokens: 9}", label="ahead").replace("kv_tier: dram, pre", "pre")
    )
    with pytest.raises(ConfigError, match=r"prefetch: found prefetch for policy quest with KV in hbm, expected"):
        load_scenario(file)


def test_a_trace_without_early_queries_cannot_foretell_a_layer_ahead(workload):
    bare = replace(workload.traces[0], q_ahead=None)
    with pytest.raises(TraceError, match="q_ahead: found a trace without it"):
        replace(workload, traces=(bare,)).predicting(Predictor("layer_ahead"))
