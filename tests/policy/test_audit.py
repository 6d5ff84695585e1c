"""Does the audit count what it says it counts, agree with the evaluator and with what was measured before?"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ghostsim.errors import StoreError, TraceError
from ghostsim.policy.head import evaluate_head, evaluate_heads
from ghostsim.report.audit_page import render_audit
from ghostsim.study import audit as audits
from ghostsim.study.audit import RULES, SCOPES, Rule, audit, cold_range, eliminated, judge, unit_of
from ghostsim.study.audit_output import HEADER, as_json, audit_text, write_csv
from ghostsim.study.audit_verdict import CONCEPT, LABORATORY, findings, verdict
from ghostsim.study.synth import synthesise
from ghostsim.trace.compose import compose
from ghostsim.trace.format import open_trace

STAGED = RULES.index(Rule("staged", 0.01))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a synthetic trace of 460 cold tokens."""
    folder = tmp_path_factory.mktemp("audit") / "small"
    synthesise(open_trace("natural_4k"), folder, 728, 8, 1)
    return open_trace(folder)


@pytest.fixture(scope="module")
def found(small):
    return audit(small, steps=4)


@pytest.fixture(scope="module")
def unit(small):
    workload = compose([small], None, requests=1, steps=None, context=None, seed=0)
    return unit_of(workload.head(5), [0, 3, 7])


def index_of(found, kind, size):
    return next(i for i, sketch in enumerate(found.sketches) if (sketch.kind, sketch.size) == (kind, size))


# --- counts ---------------------------------------------------------------------------------------------------


def test_no_bound_is_violated_and_no_certificate_exceeded(found):
    assert found.violations == 0
    for point in found.points():
        if point.certified:
            assert point.lost_max <= point.rule.value
    assert found.cold_tokens == 728 - 8 - 4 - 256


def test_sketches_and_rules_are_those_of_the_experiment(found):
    kinds = [(sketch.kind, sketch.size) for sketch in found.sketches]
    assert kinds[:16] == [(kind, m) for kind in ("random", "pca", "query", "symmetric") for m in (8, 16, 32, 64)]
    assert kinds[16:21] == [("coded", 32), ("coded", 64), ("local", 32), ("local", 64), ("local", 128)]
    assert kinds[21:] == [("keys", 2), ("keys", 4), ("keys", 8), ("exact", 128)]
    assert [sketch.nbytes for sketch in found.sketches[16:21]] == [20, 36, 20, 36, 68]
    assert [sketch.nbytes for sketch in found.sketches[-4:]] == [34, 66, 130, 0]
    assert {rule.form for rule in RULES} == {"flat", "one_pass", "staged", "threshold", "share"}


def test_exact_scores_are_the_limit(found):
    exact = len(found.sketches) - 1
    for scope in SCOPES:
        limit = found.point(exact, STAGED, scope)
        assert limit.of_oracle == 1
        assert limit.false_elimination["needed"] == 0
        others = [found.point(i, STAGED, scope) for i in range(exact)]
        assert all(point.elimination <= limit.elimination for point in others)
        assert [point.of_oracle for point in others] == [point.elimination / limit.elimination for point in others]
    assert found.spearman[exact] == pytest.approx(1)
    assert found.overlap[exact] == pytest.approx(1)


def test_a_group_rules_out_less_than_its_heads_and_staged_more_than_flat(found):
    for i in range(len(found.sketches)):
        by_form = [found.point(i, RULES.index(Rule(form, 0.01)), "head") for form in ("flat", "one_pass", "staged")]
        assert sorted(p.elimination for p in by_form) == [p.elimination for p in by_form]
        assert found.point(i, STAGED, "group").elimination <= found.point(i, STAGED, "head").elimination


@pytest.mark.parametrize("scope", SCOPES)
def test_counts_are_those_of_a_plain_loop(small, found, scope):
    """One sketch, the lowest 70 % by estimate, one layer, counted again with sets."""
    workload = compose([small], None, requests=1, steps=None, context=None, seed=0)
    rule, layer, sketch = Rule("share", 0.7), 0, index_of(found, "keys", 4)
    rows = []
    for number in (2 * layer, 2 * layer + 1):
        head = workload.head(number)
        estimate = judge(unit_of(head, found.steps), found.sketches[sketch]).estimate
        for s, step in enumerate(found.steps):
            rows += counted(small, head, step, estimate[s], scope)
    eliminated, cold, top_cold, gone, needed, needed_gone = np.sum(rows, axis=0).tolist()
    heads = np.zeros(found.classes.shape, dtype=bool)
    heads[layer] = True
    point = found.point(sketch, RULES.index(rule), scope, heads)
    assert point.elimination == eliminated / cold
    assert point.false_elimination["frontier"] == gone / (32 * len(rows))
    assert point.false_elimination["simulator"] == gone / top_cold
    assert point.false_elimination["needed"] == pytest.approx(needed_gone / needed, abs=2e-3)


def counted(trace, head, step, estimate, scope):
    """Return eliminated, cold, cold of the top 32, eliminated of these, needed, eliminated of these per query head."""
    c0, c1 = 4, trace.prompt_len - 256
    scores = head.scale * (head.keys[: head.context + step + 1] @ head.queries[step].T).T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    out = [set((np.argsort(e, kind="stable")[: int(0.7 * (c1 - c0))] + c0).tolist()) for e in estimate]
    needed = [oracle(w, c0, c1, 0.01) for w in weights]
    if scope == "group":
        out, needed = [set.intersection(*out)] * 4, [set.union(*needed)] * 4
    cold = [{t for t in np.argsort(-x, kind="stable")[:32].tolist() if c0 <= t < c1} for x in scores]
    return [
        (len(o), c1 - c0, len(c), len(c & o), len(n), len(n & o)) for o, c, n in zip(out, cold, needed, strict=True)
    ]


def oracle(weights, c0, c1, eps):
    """Return the cold tokens that must be read, best first, until the rest holds at most eps."""
    order = np.argsort(weights[c0:c1])
    left = np.cumsum(weights[c0:c1][order]) <= eps * weights.sum()
    return set((order[~left] + c0).tolist())


def test_thresholds_rule_out_what_lies_below_them(unit, found):
    judged = judge(unit, found.sketches[index_of(found, "pca", 16)])
    out = eliminated(unit, judged, Rule("threshold", 0.3))
    assert np.array_equal(out, judged.estimate < 0.3 - 0.1)


def test_modern_counts_queries(unit):
    """A query for which everything is ruled out, and one for which all but one token is."""
    rule = Rule("threshold", 0.1)
    judged = judge(unit, audits.sketches_of(128)[-1])
    low = np.where(np.arange(unit.scores.shape[-1]) == 0, 9.0, -9.0)
    fake = replace(judged, estimate=np.broadcast_to(low, unit.scores.shape).copy())
    fake.estimate[0] = -9.0
    scores = unit.scores.copy()
    scores[0, 1] = -1.0
    scores[0, [0, 2, 3], 7] = 1.0
    for scope, false in ((0, 3), (1, 4)):
        sums, _ = audits.judge_rule(replace(unit, scores=scores), fake, rule)[scope]
        rows = dict(zip(audits._FIELDS, sums.sum(axis=0), strict=True))
        assert (rows["all_eliminated"], rows["all_falsely"]) == (4, false)


def test_certificates_are_the_evaluators(make_policy, natural):
    """The same tokens hot at the first step: the evaluator's ranges are fitted on one key less."""
    head = natural.head(3)
    score = {"qkeys": {"bits": 4}}
    policy = make_policy({"rule": {"certify": 0.01}, "score": score, "pin": {"sinks": 4, "window": 257}})
    rows = evaluate_head(policy, replace(head, queries=head.queries[:1], keys=head.keys[: head.context + 1]))
    one = unit_of(head, [0])
    sketch = next(each for each in audits.sketches_of(128) if each.label == "4-bit keys")
    out = eliminated(one, judge(one, sketch), Rule("staged", 0.01)).all(axis=1)
    assert rows.cold_tokens[0] == out.size
    assert out.mean() == pytest.approx(1 - rows.read_tokens[0] / rows.cold_tokens[0], abs=2e-3)


def test_keys_without_rotation_have_no_page_local_frames():
    assert not [sketch for sketch in audits.sketches_of(64, rotated=False) if sketch.kind == "local"]
    assert [sketch.size for sketch in audits.sketches_of(64) if sketch.kind == "local"] == [32, 64]


def test_ranks_and_correlation_of_known_orders():
    a = audits.ranks(np.array([[3.0, 1.0, 2.0, 2.0]]))
    assert a.tolist() == [[3, 0, 1, 2]]
    many = np.arange(100)[None]
    assert audits.spearman(many, many)[0] == 1
    assert audits.spearman(many, many[:, ::-1])[0] == -1
    assert audits.top_overlap(many, (many + 16) % 100)[0] == 0.5


def test_a_sliding_window_moves_the_cold_range(unit):
    head = replace(unit.head, window=400)
    assert cold_range(head, [0, 7]) == (head.context + 7 - 399, head.context - 256)
    assert cold_range(replace(head, window=100), [0, 7])[0] == cold_range(replace(head, window=100), [0, 7])[1]


def test_a_prompt_without_cold_tokens_is_refused(small, tmp_path):
    with pytest.raises(TraceError, match=r"found 0 cold tokens, expected at least 64"):
        audit(replace(small, prompt_len=200))


# --- verdict, output, page -----------------------------------------------------------------------------------


def test_criteria_are_strict_as_published(found):
    point = replace(found.point(0, 0, "head"), elimination=0.70, false_elimination={"needed": 0.0})
    assert not CONCEPT.met(point, "needed")
    assert LABORATORY.met(replace(point, elimination=0.30, false_elimination={"needed": 0.05}), "needed")
    assert CONCEPT.met(replace(point, elimination=0.71), "needed")


def test_verdict_says_what_the_findings_say(found):
    certified = {
        each.criterion.name: each.certified
        for each in findings(found)
        if (each.scope, each.definition) == ("group", "needed")
    }
    for name, point in certified.items():
        assert f"the {name}'s criterion is {'met' if point else 'missed'}" in verdict(found)
    assert audit_text(found).endswith(verdict(found))


def test_json_is_plain_and_whole(found):
    data = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert len(data["points"]) == 2 * (24 * len(RULES) + 6)
    assert {point["scope"] for point in data["points"]} == set(SCOPES)
    assert "layer 3" in data["parts"]
    assert data["violations"] == 0


def test_csv_holds_every_part(found, tmp_path):
    write_csv(found, tmp_path / "audit.csv")
    rows = list(csv.DictReader((tmp_path / "audit.csv").read_text().splitlines()))
    assert tuple(rows[0]) == HEADER
    parts = {row["part"] for row in rows}
    assert {"all", "layer 0", "layer 3 head 7"} <= parts
    assert len(rows) == len(parts) * 2 * (24 * len(RULES) + 6)
    with pytest.raises(StoreError):
        write_csv(found, tmp_path)


def test_page_is_the_same_twice_and_holds_its_figures(found):
    page = render_audit(found)
    assert render_audit(found) == page
    assert re.findall('<figure id="([^"]+)"', page) == ["certified", "parts", "frontier", "lost", "ranks"]
    assert "Not sound." not in page
    assert "Not sound." in render_audit(replace(found, violations=3))


def run(*args, cwd):
    command = [sys.executable, "-m", "ghostsim", "audit", *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command_prints_writes_and_refuses(small, tmp_path):
    done = run(small.path, "--steps", 2, "--json", "--out", "a.csv", "--report", "a.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == [0, 7]
    assert done.stderr.split() == ["a.csv", "a.html"]
    again = run(small.path, "--out", "a.csv", cwd=tmp_path)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    missing = run("no_such_trace", cwd=tmp_path)
    assert (missing.returncode, missing.stderr.count("\n")) == (4, 1)


# --- the evaluator ---------------------------------------------------------------------------------------------

SKETCH = {"dims": 32, "bits": 16, "basis": "pca"}
SCORES = {
    ("exact", 128): {"exact": {"charged": False}},
    ("keys", 8): {"qkeys": {"bits": 8}},
    ("keys", 4): {"qkeys": {"bits": 4}},
    ("pca", 32): {"sketch": SKETCH},
    ("pca", 16): {"sketch": SKETCH | {"dims": 16}},
    ("random", 32): {"sketch": SKETCH | {"basis": "random"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["natural_4k", "logs_4k"])
def test_groups_rule_out_what_the_policies_do(name, make_policy):
    """A policy's hot window moves with the step, the audit's does not, and steps differ: within four points."""
    trace = open_trace(name)
    found = audit(trace)
    assert found.violations == 0
    read = {"rule": {"certify": 0.01, "form": "staged"}, "pin": {"sinks": 4, "window": 256}}
    policies = [make_policy(read | {"score": score}) for score in SCORES.values()]
    workload = compose([trace], None, requests=1, steps=8, context=None, seed=0)
    rows = [evaluate_heads(policies, workload.head(unit)) for unit in range(len(workload.heads))]
    for i, (kind, size) in enumerate(SCORES):
        left = [each[i].read_tokens.sum() / each[i].cold_tokens.sum() for each in rows]
        ruled_out = found.point(index_of(found, kind, size), STAGED, "group").elimination
        assert ruled_out == pytest.approx(1 - np.mean(left), abs=0.04), (kind, size)
