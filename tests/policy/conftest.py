from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ghostsim import bundled
from ghostsim.config.policy import Policy
from ghostsim.trace.compose import Head, Workload, compose
from ghostsim.trace.format import open_trace


@pytest.fixture(scope="session")
def shipped() -> dict[str, Policy]:
    """Return the policy library."""
    files = sorted((bundled.folder("scenarios") / "policies").glob("*.yaml"))
    return {file.stem: Policy.model_validate(yaml.safe_load(file.read_text())) for file in files}


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., Policy]:
    """Build a policy from its READ and KEEP mappings."""

    def make(read: dict[str, Any], keep: dict[str, Any] | None = None) -> Policy:
        clause = keep or {"every": "step", "select": "all"}
        return Policy.model_validate({"schema": 1, "name": "test", "keep": [clause], "read": read})

    return make


@pytest.fixture(scope="session")
def natural() -> Workload:
    """Return the whole of natural_4k, 24 steps."""
    return compose([open_trace("natural_4k")], None, requests=1, steps=24, context=None, seed=1)


@pytest.fixture(scope="session")
def cut(natural: Workload) -> Callable[..., Head]:
    """Cut the end of a recorded head: `tokens` of prompt, `steps` of decode."""

    def make(unit: int = 3, tokens: int = 500, steps: int = 5, **other: Any) -> Head:
        head = natural.head(unit)
        rows = slice(head.context - tokens, head.context + steps)
        assert head.values is not None
        return replace(
            head,
            context=tokens,
            keys=head.keys[rows],
            values=head.values[rows],
            queries=head.queries[:steps],
            **other,
        )

    return make


def random_head(
    rng: np.random.Generator, tokens: int, steps: int, dims: int, spread: float, dtype: type = np.float64
) -> Head:
    """Return a head of Gaussian keys and queries."""
    keys = rng.standard_normal((tokens + steps, dims)) * spread
    return Head(
        request=0,
        kept_layer=0,
        kv_head=0,
        context=tokens,
        keys=keys.astype(dtype),
        queries=(rng.standard_normal((steps, 2, dims)) * spread).astype(dtype),
        prompt_queries=rng.standard_normal((min(64, tokens), 2, dims)).astype(dtype),
        values=None,
        q_ahead=None,
        scale=dims**-0.5,
        softcap=None,
        window=None,
    )


@pytest.fixture(scope="session", name="random_head")
def _random_head() -> Callable[..., Head]:
    return random_head


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the test a cache of its own."""
    monkeypatch.setenv("GHOSTSIM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
