"""Do selectors that reach over layers and models choose, on a composed context, what plain loops choose?

All policies are evaluated by one `select` on eight layers made of the four recorded ones.
"""

from __future__ import annotations

import numpy as np
import pytest
from loops import best, observed, pages, pins

from ghostsim.config.policy import Policy
from ghostsim.policy.evaluate import select
from ghostsim.policy.output import positions_read
from ghostsim.trace.compose import Shape, compose
from ghostsim.trace.format import open_trace

N, STEPS, LAYERS = 1100, 2, 8
KEEP = {"every": "step", "select": "all"}
PIN = {"sinks": 4, "window": 20}
EXACT = {"score": "exact", "pin": PIN}
BOX = {"score": {"box": {"page": 16}}, "pin": {"sink_pages": 1, "window_pages": 2}}
OBS = {"score": {"obs": {"window": 32}}, "pin": {"window": 32}, "reduce": "mean"}


def together(scope, how, **more):
    return {"rule": {"topk": 24}, **EXACT, "scope": scope, "together": how, **more}


READS = {
    **{f"{scope} {how}": together(scope, how) for scope in ("layer", "model") for how in ("set", "budget")},
    "layer set mean": together("layer", "set", reduce="mean"),
    "layer budget sum": together("layer", "budget", reduce="sum"),
    "layer set softmax": together("layer", "set", reduce="sum", softmax=True),
    "layer count": together("layer", "count") | {"rule": {"margin": 3.0, "most": 0.1}},
    "model count": together("model", "count") | {"rule": {"margin": 3.0, "most": 0.1}},
    "lag layer": {"rule": {"topk": 24}, **EXACT, "lag": "layer"},
    "lag layer count": {"rule": {"margin": 2.0, "most": 0.2}, **EXACT, "lag": "layer", "scope": "layer"}
    | {"together": "count"},
    "lag step": {"rule": {"topk": 24}, **EXACT, "lag": "step"},
    "dense": {"rule": {"topk": 24}, **EXACT, "scope": "layer", "reduce": "mean", "layers": {"dense": [0, 3]}},
    "pages": {"rule": {"topk": 160}, **BOX, "scope": "layer", "reduce": "mean"},
    "cascade": {"rule": {"topk": 320}, **BOX, "scope": "layer", "then": [{"rule": {"topk": 12}, "score": "exact"}]},
    "cascade within": {"rule": {"topk": 320}, **BOX}
    | {"then": [{"rule": {"topk": 12}, "score": "exact", "scope": "layer", "reduce": "mean"}]},
}
KEEPS = {
    "pyramid": {"rule": {"topk": {"tokens": 100, "beta": 20}}, **OBS},
    "pyramid layer budget": {"rule": {"topk": {"tokens": 100, "beta": 20}}, **OBS, "scope": "layer"}
    | {"together": "budget"},
    "prompt model budget": {"rule": {"topk": 50}, **OBS, "scope": "model", "together": "budget"},
    "prompt layer set": {"rule": {"topk": 50}, **OBS, "scope": "layer", "together": "set"},
}


@pytest.fixture(scope="module")
def workload():
    traces = [open_trace(name) for name in ("natural_4k", "code_4k")]
    return compose(traces, Shape(LAYERS, 2, 4, 128), requests=1, steps=STEPS, context=N, seed=3)


@pytest.fixture(scope="module")
def selections(workload, tmp_path_factory):
    def policy(name, read, keep):
        return Policy.model_validate({"schema": 1, "name": name, "keep": [keep], "read": read})

    policies = {name: policy(name, read, KEEP) for name, read in READS.items()}
    policies |= {
        name: policy(name, {"rule": "all"}, {"every": "prefill_end", "select": select})
        for name, select in KEEPS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GHOSTSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return select(policies, workload, jobs=1)


@pytest.fixture(scope="module")
def heads(workload):
    """Return the heads of each layer of the target: they are those of kept layer l / 2, exchanged in every second."""
    made = [workload.head(unit) for unit in range(len(workload.heads))]
    place = {(head.kept_layer, head.kv_head): head for head in made}
    return [[place[l // 2, (h + l) % 2] for h in range(2)] for l in range(LAYERS)]


def score(head, s, queries=None):
    """Return the exact scores [g, N + s] of all tokens but the own."""
    asked = head.queries[s] if queries is None else queries
    return head.scale * (asked @ head.keys[: N + s].T)


def cold(s):
    return list(range(4, N + s - 19))


def combined(rows, reduce):
    return {"any": np.max, "max": np.max, "mean": np.mean, "sum": np.sum}[reduce](rows, axis=0)


def one_set(group, s, k, reduce):
    rows = np.concatenate([score(head, s) for head in group])
    if reduce == "any":
        return [set().union(*(best(row, k, cold(s)) for row in rows))] * len(group)
    return [best(combined(rows, reduce), k, cold(s))] * len(group)


def one_budget(group, s, k, reduce):
    table = [combined(score(head, s), reduce) for head in group]
    places = sorted(((h, i) for h in range(len(group)) for i in cold(s)), key=lambda at: (-table[at[0]][at[1]], at))
    taken = places[: k * len(group)]
    return [{i for h, i in taken if h == mine} for mine in range(len(group))]


def one_count(group, s, margin, most, rows):
    """Return what every query head takes where all take as many as the average would (InfiniGen)."""
    among = cold(s)
    near = [np.count_nonzero(row[among] >= row[among].max() - margin) for each in rows for row in each]
    k = min(int(np.mean(near)), int(most * (N + s + 1)) - 24)
    return [set().union(*(best(row, k, among) for row in each)) for each in rows]


def assert_selected(selection, group_of, heads, chosen, static=lambda s: pins(N + s, 4, 20)):
    """Compare what each layer and head of the target reads with what `chosen(group, s)` returns for its group."""
    counts = set()
    for s in range(STEPS):
        for members in group_of:
            for (l, h), mine in zip(members, chosen([heads[l][h] for l, h in members], s), strict=True):
                row = int(selection.unit_of[0, l, h])
                assert positions_read(selection, row, s).tolist() == sorted(mine | static(s)), (s, l, h)
                counts.add(len(mine))
    return counts


BY_LAYER = [[(l, 0), (l, 1)] for l in range(LAYERS)]
WHOLE = [[(l, h) for l in range(0, LAYERS, 2) for h in range(2)]]
"""The model has each recorded head twice; they choose once."""


@pytest.mark.parametrize(
    ("name", "groups", "choose", "reduce"),
    [
        ("layer set", BY_LAYER, one_set, "any"),
        ("model set", WHOLE, one_set, "any"),
        ("layer set mean", BY_LAYER, one_set, "mean"),
        ("layer budget", BY_LAYER, one_budget, "any"),
        ("model budget", WHOLE, one_budget, "any"),
        ("layer budget sum", BY_LAYER, one_budget, "sum"),
    ],
)
def test_heads_share_a_set_or_a_budget(selections, heads, name, groups, choose, reduce):
    counts = assert_selected(selections[name], groups, heads, lambda g, s: choose(g, s, 24, reduce))
    assert (len(counts) > 1) == (name != "layer set mean")


def test_every_head_of_the_target_reads_what_its_twin_does(selections):
    rows = selections["model budget"].unit_of[0]
    assert (rows[0] == rows[1][::-1]).all()
    assert len(np.unique(rows)) == 8


def test_scores_become_shares_before_they_are_summed(selections, heads):
    def chosen(group, s):
        total = np.zeros(N + s)
        for head in group:
            for row in score(head, s):
                e = np.exp(row[cold(s)] - row[cold(s)].max())
                total[cold(s)] += e / e.sum()
        return [best(total, 24, cold(s))] * 2

    assert_selected(selections["layer set softmax"], BY_LAYER, heads, chosen)


@pytest.mark.parametrize(("name", "groups"), [("layer count", BY_LAYER), ("model count", WHOLE)])
def test_heads_share_a_count(selections, heads, name, groups):
    def chosen(group, s):
        return one_count(group, s, 3.0, 0.1, [score(head, s) for head in group])

    assert len(assert_selected(selections[name], groups, heads, chosen)) > 1


def test_queries_of_the_layer_before_choose(selections, heads):
    def chosen(group, s):
        rows = [score(head, s, head.q_ahead[s]) for head in group]
        return [set().union(*(best(row, 24, cold(s)) for row in each)) for each in rows]

    assert_selected(selections["lag layer"], BY_LAYER, heads, chosen)


def test_queries_of_the_layer_before_agree_on_a_count(selections, heads):
    def chosen(group, s):
        return one_count(group, s, 2.0, 0.2, [score(head, s, head.q_ahead[s]) for head in group])

    assert_selected(selections["lag layer count"], BY_LAYER, heads, chosen)


def test_queries_of_the_step_before_choose(selections, heads):
    def chosen(group, s):
        rows = [score(head, s, head.queries[s - 1] if s else head.prompt_queries[-1]) for head in group]
        return [set().union(*(best(row, 24, cold(s)) for row in each)) for each in rows]

    assert_selected(selections["lag step"], BY_LAYER, heads, chosen)


def test_dense_layers_read_everything_and_the_others_choose_together(selections, heads):
    dense = [members for members in BY_LAYER if members[0][0] in (0, 3)]
    sparse = [members for members in BY_LAYER if members not in dense]
    assert_selected(selections["dense"], sparse, heads, lambda g, s: one_set(g, s, 24, "mean"))
    assert_selected(selections["dense"], dense, heads, lambda g, s: [set(range(N + s + 1))] * len(g))


# --- pages and cascades ------------------------------------------------------------------------------------------


def page_rows(head, s):
    """Return the bound of each whole page between the pinned ones, [g, pages]; page 0 and the last two are pinned."""
    last = (N + s) // 16
    whole = [head.keys[p * 16 : p * 16 + 16] for p in range(last - 1)]
    return np.stack(
        [[head.scale * np.maximum(q * k.min(0), q * k.max(0)).sum() for k in whole] for q in head.queries[s]]
    )


def pinned_pages(s):
    last = (N + s) // 16
    return pages({0, last - 1, last}, 16, N + s)


def test_pages_are_chosen_together(selections, heads):
    def chosen(group, s):
        rows = np.concatenate([page_rows(head, s) for head in group]).mean(axis=0)
        return [pages(best(rows, 10, range(1, len(rows))), 16, N + s)] * 2

    assert_selected(selections["pages"], BY_LAYER, heads, chosen, pinned_pages)


def test_a_cascade_chooses_pages_together_then_tokens_alone(selections, heads):
    def chosen(group, s):
        rows = np.concatenate([page_rows(head, s) for head in group])
        alive = pages(set().union(*(best(row, 20, range(1, len(row))) for row in rows)), 16, N + s)
        return [set().union(*(best(row, 12, alive) for row in score(head, s))) for head in group]

    assert_selected(selections["cascade"], BY_LAYER, heads, chosen, pinned_pages)


def test_a_cascade_chooses_tokens_together_among_all_that_each_head_has_left(selections, heads):
    """A head cannot take a token that its own pages do not hold."""

    def chosen(group, s):
        alive, table = [], []
        for head in group:
            rows = page_rows(head, s)
            alive.append(pages(set().union(*(best(row, 20, range(1, len(row))) for row in rows)), 16, N + s))
            table.append(score(head, s))
        both = alive[0] & alive[1]
        return [best(np.concatenate(table).mean(axis=0), 12, both)] * 2

    assert_selected(selections["cascade within"], BY_LAYER, heads, chosen, pinned_pages)


# --- kept when prefill ends --------------------------------------------------------------------------------------


def pooled(head):
    return observed(head, 32, "avg").mean(0)


def recent(s):
    return set(range(N - 32, N + s + 1))


def pyramid(layer):
    """PyramidKV: from 2 b - b / beta in the first layer down to b / beta in the last, linearly."""
    most = 2 * 100 - 100 // 20
    return most - layer * ((most - 100 // 20) // (LAYERS - 1))


def test_a_pyramid_gives_every_layer_its_budget(selections, heads):
    table = {id(head): pooled(head) for pair in heads for head in pair}
    budgets = set()
    for l, members in enumerate(BY_LAYER):
        budgets |= assert_selected(
            selections["pyramid"],
            [members],
            heads,
            lambda g, _, l=l: [best(table[id(head)], pyramid(l), range(N - 32)) for head in g],
            recent,
        )
    assert sorted(budgets) == sorted(pyramid(l) for l in range(LAYERS))


@pytest.mark.parametrize(
    ("name", "groups", "k"),
    [
        ("pyramid layer budget", BY_LAYER, pyramid),
        ("prompt model budget", WHOLE, lambda _: 50),
        ("prompt layer set", BY_LAYER, None),
    ],
)
def test_prompts_are_kept_together(selections, heads, name, groups, k):
    table = {id(head): pooled(head) for pair in heads for head in pair}
    full = {id(head): observed(head, 32, "avg") for pair in heads for head in pair}
    for members in groups:

        def chosen(group, _, layer=members[0][0]):
            if k is None:
                return [best(np.concatenate([full[id(h)] for h in group]).mean(0), 50, range(N - 32))] * len(group)
            among = [(h, i) for h in range(len(group)) for i in range(N - 32)]
            order = sorted(among, key=lambda at: (-table[id(group[at[0]])][at[1]], at))[: k(layer) * len(group)]
            return [{i for h, i in order if h == mine} for mine in range(len(group))]

        assert_selected(selections[name], [members], heads, chosen, recent)
