"""Quality in depth against the same figures worked out anew, one cell at a time, from the softmax itself."""

import csv

import numpy as np
import pytest

from ghostsim.config.load import load_policy
from ghostsim.metrics.quality import quality
from ghostsim.metrics.quality_depth import DEFINITIONS, depth, write_depth
from ghostsim.policy.evaluate import select
from ghostsim.trace.compose import compose
from ghostsim.trace.format import open_trace
from ghostsim.trace.statistics import CLASSES, statistics

STEPS = 2
SINKS, WINDOW, EPS = 4, 256, 0.01
POLICIES = ("ghostkv", "ghostkv_published")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Return the workload, the Selections, and what `depth` makes of them."""
    workload = compose([open_trace("natural_4k")], None, requests=1, steps=STEPS, context=None, seed=1)
    policies = {name: load_policy(name).value for name in POLICIES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        selections = select(policies, workload, jobs=1)
    found = {name: depth(policies[name], workload, selections[name]) for name in POLICIES}
    return workload, selections, found


def softmax(head, step, j):
    scores = head.scale * (head.keys[: head.context + step + 1] @ head.queries[step, j])
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def best(values, among, count):
    return among[np.argsort(-values[among], kind="stable")[:count]]


def needed(shares, cold):
    """Return the cold tokens that the least mass of at most eps in all leaves."""
    rising = cold[np.argsort(shares[cold], kind="stable")]
    return set(rising[np.cumsum(shares[rising]) > EPS].tolist())


def cells(workload, selection):
    """Yield (layer, query head, step, counts by name) of every cell."""
    for layer, kv_head, step in np.ndindex(4, 2, STEPS):
        head = workload.head(int(selection.unit_of[0, layer, kv_head]))
        row = selection.unit_of[0, layer, kv_head]
        read = np.unpackbits(selection.sets[row, step], bitorder="little").astype(bool)
        own = head.context + step
        cold = np.arange(SINKS, own + 1 - WINDOW)
        shares = [softmax(head, step, j) for j in range(4)]
        oracle = set().union(*(needed(p, cold) for p in shares))
        taken = set(cold[read[cold]].tolist())
        for j, p in enumerate(shares):
            top, top_cold = best(p, np.arange(own + 1), 32), best(p, cold, 32)
            inside = np.intersect1d(top, cold)
            yield layer, kv_head * 4 + j, step, {
                "lost": p[~read[: own + 1]].sum(),
                "top32_of_attended": (np.count_nonzero(~read[top]), 32),
                "cold_in_top32": (np.count_nonzero(~read[inside]), len(inside)),
                "top32_of_cold": (np.count_nonzero(~read[top_cold]), 32),
                "needed_by_oracle": (len(oracle - taken), len(oracle)),
                "needless": (len(taken - oracle), len(taken)),
                "of_oracle": (len(cold) - len(taken), len(cold) - len(oracle)),
            }  # fmt: skip


def rate(chosen, name):
    part, whole = (sum(cell[name][i] for cell in chosen) for i in (0, 1))
    return part / whole if whole else 0


@pytest.mark.parametrize("name", POLICIES)
def test_every_scope_equals_an_independent_count(evaluated, name):
    workload, selections, found = evaluated
    every = list(cells(workload, selections[name]))
    classes = statistics(open_trace("natural_4k")).classes
    scopes = {
        ("all", None): lambda layer, head, step: True,
        **{("layer", str(n)): (lambda layer, head, step, n=n: layer == n) for n in range(4)},
        **{("step", str(n)): (lambda layer, head, step, n=n: step == n) for n in range(STEPS)},
        **{
            ("class", kind): (lambda layer, head, step, i=i: classes[layer, head] == i)
            for i, kind in enumerate(CLASSES)
            if (classes == i).any()
        },
    }
    for (scope, key), holds in scopes.items():
        chosen = [cell for layer, head, step, cell in every if holds(layer, head, step)]
        measures = found[name][scope] if key is None else found[name][scope][key]
        lost = [cell["lost"] for cell in chosen]
        assert measures["lost_mass"]["mean"] == pytest.approx(np.mean(lost), rel=1e-9, abs=1e-12)
        assert measures["lost_mass"]["p99"] == pytest.approx(np.percentile(lost, 99), rel=1e-9, abs=1e-12)
        assert measures["lost_mass"]["max"] == pytest.approx(max(lost), rel=1e-9, abs=1e-12)
        for definition in DEFINITIONS:
            assert measures["false_elimination"][definition] == pytest.approx(rate(chosen, definition)), definition
        assert measures["false_resurrection_rate"] == pytest.approx(rate(chosen, "needless"))
        assert measures["elimination_of_oracle"] == pytest.approx(rate(chosen, "of_oracle"))
    assert set(found[name]["class"]) == {key for scope, key in scopes if scope == "class"}


@pytest.mark.parametrize("name", POLICIES)
def test_the_whole_agrees_with_the_metrics(evaluated, name):
    _, selections, found = evaluated
    known, whole = quality(selections[name], 1), found[name]["all"]
    for key in ("lost_mass", "elimination_rate", "false_resurrection_rate", "violations", "output_error"):
        assert whole[key] == known[key], key
    assert whole["false_elimination"]["cold_in_top32"] == known["false_elimination_rate"]


def test_the_worst_head_is_where_the_most_is_lost(evaluated):
    workload, selections, found = evaluated
    every = {(layer, head, step): cell["lost"] for layer, head, step, cell in cells(workload, selections["ghostkv"])}
    worst = found["ghostkv"]["all"]["worst_head"]
    place = (worst["layer"], worst["q_head"], worst["step"])
    assert every[place] == pytest.approx(max(every.values()))
    assert worst["lost_mass"] <= worst["certified_mass"] <= EPS


def test_a_policy_without_a_certificate_has_none(evaluated):
    found = evaluated[2]["ghostkv_published"]
    assert found["all"]["certified_mass"] is None
    assert found["all"]["violation_rate"] > 0
    assert found["layer"]["0"]["worst_head"]["certified_mass"] is None


def test_the_file_holds_what_was_found(evaluated, tmp_path):
    found = evaluated[2]["ghostkv_published"]
    write_depth(found, tmp_path)
    with (tmp_path / "depth.csv").open(newline="") as file:
        rows = {(row["scope"], row["key"], row["measure"]): row["value"] for row in csv.DictReader(file)}
    assert float(rows["all", "all", "lost_mass.p99"]) == found["all"]["lost_mass"]["p99"]
    assert float(rows["step", "1", "elimination_rate"]) == found["step"]["1"]["elimination_rate"]
    assert rows["all", "all", "certified_mass"] == ""
