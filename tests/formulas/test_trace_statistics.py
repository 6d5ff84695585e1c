"""Do the statistics of a trace equal those recomputed from its arrays by other means?"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ghostsim.report.trace_page import render_trace
from ghostsim.trace import statistics as stats
from ghostsim.trace.format import open_trace
from ghostsim.trace.info import format_summary

DIGITS = 5e-4  # three digits
NATURAL, LONG = open_trace("natural_4k"), open_trace("facts_4k")
LAYER, HEAD, STEPS = 3, 6, 8


def turned(x, positions, inv_freq):
    """Rotate by complex multiplication, the halves being real and imaginary part."""
    z = x[..., :64].astype(float) + 1j * x[..., 64:].astype(float)
    z *= np.exp(1j * np.multiply.outer(np.asarray(positions, float), inv_freq))
    return np.concatenate([z.real, z.imag], axis=-1)


def attention(trace, layer, head, step):
    """Return scores and probabilities of one query."""
    position = trace.prompt_len + step
    keys = turned(trace.k[layer, head // 4], np.arange(trace.tokens), trace.inv_freq[layer])[: position + 1]
    scores = keys @ turned(trace.q[step, layer, head], position, trace.inv_freq[layer]) / np.sqrt(128)
    weights = np.exp(scores)
    return scores, weights / weights.sum()


def top(p, count=32):
    return set(np.argsort(-p, kind="stable")[:count].tolist())


@pytest.fixture(scope="module")
def found():
    return stats.statistics(LONG, STEPS)


@pytest.fixture(scope="module")
def steps():
    return [int(i * 1023 / 7) for i in range(STEPS)]


@pytest.fixture(scope="module")
def recomputed(steps):
    return [attention(LONG, LAYER, HEAD, step) for step in steps]


def same(value, expected):
    np.testing.assert_allclose(value, expected, rtol=DIGITS, atol=1e-9)


def test_steps_looked_at_are_evenly_spaced(found, steps):
    assert list(found.steps) == steps


def test_masses_by_place(found, recomputed):
    at, each = (LAYER, HEAD), [p for _, p in recomputed]
    same(found.first_mass[at], np.mean([p[0] for p in each]))
    same(found.sink_mass[at], np.mean([sum(p[:4]) for p in each]))
    same(found.own_mass[at], np.mean([p[-1] for p in each]))
    same(found.local_mass[at], np.mean([sum(p[len(p) - 256 :]) for p in each]))
    same(found.held_mass[at], np.mean([1 - sum(p[4 : len(p) - 256]) for p in each]))
    same(found.quiet_mass[at], np.mean([sum(p[:4]) + p[-1] for p in each]))
    same(found.spiky_steps[at], np.mean([max(p[4 : len(p) - 256]) >= 0.1 for p in each]))


def test_spread(found, recomputed):
    at, each = (LAYER, HEAD), [p for _, p in recomputed]
    for i, held in enumerate((0.5, 0.9, 0.95, 0.99)):
        falling = [np.cumsum(sorted(p, reverse=True)) for p in each]
        counts = [next(n for n, mass in enumerate(reached, 1) if mass >= held) for reached in falling]
        same(found.tokens_for[(*at, i)], np.mean(counts))
    for i, count in enumerate((8, 32, 128)):
        same(found.top_mass[(*at, i)], np.mean([sum(sorted(p)[-count:]) for p in each]))
    same(found.participation[at], np.mean([1 / sum(x * x for x in p) for p in each]))
    same(found.entropy[at], np.mean([-sum(x * np.log(x) for x in p if x > 0) for p in each]))
    same(found.above_uniform[at], np.mean([np.mean(p * len(p) > 1) for p in each]))
    same(found.score_sd[at], np.mean([np.std(scores) for scores, _ in recomputed]))


def test_persistence_of_the_best_set(found, steps, recomputed):
    for i, lag in enumerate((1, 4, 16)):
        pairs = [(s, attention(LONG, LAYER, HEAD, s + lag)[1]) for s in steps if s + lag < 1024]
        sets = {s: top(p) for s, (_, p) in zip(steps, recomputed, strict=True)}
        expected = np.mean([len(sets[s] & top(later)) / 32 for s, later in pairs])
        same(found.persistence[LAYER, HEAD, i], expected)
        if lag == 1:
            moved = np.mean([len({x + 1 for x in sets[s]} & top(later)) / 32 for s, later in pairs])
            same(found.shifted[LAYER, HEAD, 0], moved)


def test_overlap_of_adjacent_layers(found, steps):
    def best(layer, step):
        return top(sum(attention(LONG, layer, head, step)[1] for head in range(8)))

    expected = np.mean([len(best(2, step) & best(3, step)) / 32 for step in steps[:3]])
    few = stats._layer_overlap(np.array([[sum_of_heads(layer, step) for step in steps[:3]] for layer in (2, 3)]))
    same(few, [expected])
    assert found.layer_overlap.shape == (3,)


def sum_of_heads(layer, step):
    p = sum(attention(LONG, layer, head, step)[1] for head in range(8))
    return np.pad(p, (0, LONG.tokens - len(p)))


def test_key_rank_by_singular_values(found):
    keys = LONG.k[LAYER, 1].astype(float)
    for rotated, rows in enumerate((keys, turned(keys, np.arange(4096), LONG.inv_freq[LAYER]))):
        for name, values in (("key_energy", rows), ("key_energy_centred", rows - rows.mean(axis=0))):
            shares = np.linalg.svd(values, compute_uv=False) ** 2 / (values**2).sum()
            np.testing.assert_allclose(getattr(found, name)[LAYER, 1, rotated], shares, atol=1e-9)
            rank = next(n for n in range(1, 129) if shares[:n].sum() >= 0.9)
            assert getattr(found, name.replace("energy", "rank"))[LAYER, 1, rotated] == rank


def test_norms_and_cosines(found, steps):
    lengths = np.sqrt((LONG.k[LAYER, 1].astype(float) ** 2).sum(axis=1))
    queries = LONG.q[:, LAYER, HEAD].astype(float)
    same(found.key_norm[LAYER, 1], lengths.mean())
    same(found.key_norm_cv[LAYER, 1], lengths.std() / lengths.mean())
    same(found.key_norm_max[LAYER, 1], lengths.max())
    same(found.first_key_norm[LAYER, 1], lengths[0])
    same(found.query_norm[LAYER, HEAD], np.mean([np.sqrt(queries[s] @ queries[s]) for s in steps]))
    same(found.norm_product[LAYER, HEAD], found.query_norm[LAYER, HEAD] * lengths.mean() / np.sqrt(128))
    cosines = [
        queries[s] @ queries[s + 1] / np.sqrt((queries[s] @ queries[s]) * (queries[s + 1] @ queries[s + 1]))
        for s in steps
        if s < 1023
    ]
    same(found.query_cosine[LAYER, HEAD, 0], np.mean(cosines))


def test_classes_follow_the_rule(found):
    few = replace(
        found,
        quiet_mass=np.array([[0.95, 0.1, 0.1, 0.1]]),
        held_mass=np.array([[0.95, 0.91, 0.5, 0.5]]),
        spiky_steps=np.array([[0.0, 0.5, 0.1, 0.09]]),
    )
    assert few.classes.tolist() == [[0, 1, 2, 3]]
    assert few.class_share() == dict.fromkeys(stats.CLASSES, 0.25)


@pytest.fixture(scope="module")
def natural():
    return stats.statistics(NATURAL)


def test_bundled_heads_are_of_all_four_classes(natural):
    assert Counter(natural.classes.reshape(-1).tolist()) == {3: 17, 1: 8, 2: 6, 0: 1}


def test_masses_are_consistent(found):
    assert (found.held_mass <= 1 + 1e-12).all()
    assert (found.quiet_mass <= found.held_mass + 1e-12).all()
    assert (np.diff(found.tokens_for, axis=-1) >= 0).all()
    assert (found.participation <= found.attended + 1).all()
    assert (found.entropy <= np.log(found.attended + 600)).all()


def test_one_step_has_no_persistence_but_all_else():
    one = replace(NATURAL, q=NATURAL.q[:1], steps=1, tokens=3969, k=NATURAL.k[:, :, :3969], q_ahead=None, v=None)
    found = stats.statistics(one)
    assert (found.lags, found.persistence.shape, found.query_cosine.shape) == ((), (4, 8, 0), (4, 8, 0))
    assert len(stats.compare(found)) == len(stats.PUBLISHED) - 2
    assert "one step" in format_summary({"statistics": stats.summary(found)})


def test_window_bounds_what_is_attended():
    narrow = replace(NATURAL, model=replace(NATURAL.model, window=(100,) * 4))
    found = stats.statistics(narrow, 4)
    assert found.attended == 100
    assert found.tokens_for.max() <= 100
    assert not found.sink_mass.any()


def test_warning_comes_where_a_figure_is_out_of_range_and_only_there():
    known = stats.Published("x", 2.0, 4.0, "somewhere")
    shown = {value: stats._warning(known, value) for value in (1.3, 1.34, 3.0, 5.9, 6.1)}
    assert [value for value, text in shown.items() if text] == [1.3, 6.1]
    assert shown[6.1] == "x: 6.1 here, 2-4 published"


def test_bundled_trace_warns_of_its_missing_sinks(natural):
    found = stats.summary(natural)
    assert any("first token" in text for text in found["warnings"])
    assert not any("mass of the best 32" in text for text in found["warnings"])
    text = format_summary({"statistics": found})
    assert [row["source"] for row in found["published"] if row["source"] not in text] == []


@pytest.mark.slow
def test_info_command_is_quick_and_writes_the_page(tmp_path):
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "ghostsim", "trace", "info", "natural_4k", "--report", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "warning: participation ratio" in done.stdout
    assert page.stat().st_size < 6_000_000
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert again.returncode == 2
    assert "which exists" in again.stderr


def test_page_is_the_same_twice_and_names_sources_and_warnings(natural, monkeypatch):
    monkeypatch.setattr("ghostsim.report.trace_page.statistics", lambda _: natural)
    page = render_trace(NATURAL)
    assert render_trace(NATURAL) == page
    figures = re.findall('<figure id="([^"]+)"', page)
    assert figures == ["published", "mass", "tokens", "classes", "persistence", "spectrum", "norms"]
    warnings = [each.warning for each in stats.compare(natural) if each.warning]
    assert page.count("Unlike published behaviour.") == 1
    assert [warning for warning in warnings if f"<li>{warning}</li>" not in page] == []
    assert "DeepSeek-V3.2" in page
