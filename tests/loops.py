"""The pieces that published systems are written from again, as plain loops over tokens."""

from __future__ import annotations

import numpy as np
import yaml

from ghostsim import bundled
from ghostsim.config.policy import Policy
from ghostsim.policy.variants import specialised


def library(name, *changes, layer=5, layers=32, prompt=None):
    """Return a policy of the library with texts of its file replaced, as it is in one layer for a prompt."""
    text = (bundled.folder("scenarios") / "policies" / f"{name}.yaml").read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    policy = Policy.model_validate(yaml.safe_load(text))
    return policy if layer is None else specialised(policy, layer, layers, prompt)


def softmax(row):
    e = np.exp(row - max(row))
    return e / e.sum()


def scores(head, s):
    """Return the scores [g, context + s + 1] of step s."""
    return head.scale * head.queries[s] @ head.keys[: head.context + s + 1].T


def best(value, k, among):
    """Return the k positions of the largest values; ties go to the lower one."""
    return set(sorted(among, key=lambda i: (-value[i], i))[: max(0, k)])


def pins(own, sinks, window):
    return {i for i in range(own + 1) if i < sinks or i > own - window} | {own}


def pages(chosen, page, own):
    return {i for p in chosen for i in range(p * page, (p + 1) * page) if i <= own}


def prompt_rows(head, w):
    """Yield the probabilities [g, context] of the last w prompt queries, oldest first."""
    n = head.context
    for age in range(w, 0, -1):
        row = np.zeros((head.queries.shape[1], n))
        for j in range(len(row)):
            count = n - age + 1
            row[j, :count] = softmax(head.scale * head.keys[:count] @ head.prompt_queries[-age, j])
        yield row


def observed(head, w, kernel, pool=5, end=None):
    """Return the sums [g, end] of the last w prompt queries on what is before them, or before `end`, pooled."""
    end, half = head.context - w if end is None else end, pool // 2
    seen = sum(prompt_rows(head, w))[:, :end]
    around = [seen[:, max(0, i - half) : i + half + 1] for i in range(end)]
    return np.stack([a.sum(1) / pool if kernel == "avg" else a.max(1) for a in around], axis=1)


def received(head):
    """Return the attention [g, context + steps] that each position got from all stored prompt queries."""
    out = np.zeros((head.queries.shape[1], len(head.keys)))
    for row in prompt_rows(head, len(head.prompt_queries)):
        out[:, : head.context] += row
    return out


def assert_reads(rows, expected):
    for s in range(len(rows.sets)):
        assert rows.positions(s).tolist() == sorted(expected(s)), s
