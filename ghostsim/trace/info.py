"""What a trace holds: its fields, and how its attention is spread, measured on the recorded queries and keys."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ghostsim.trace.compose import SINKS
from ghostsim.trace.format import Trace
from ghostsim.trace.statistics import (
    CLASSES,
    LOCAL,
    RULE,
    SHARES,
    TOP,
    TOPS,
    TraceStatistics,
    probabilities,
    range_text,
    statistics,
    summary,
)

__all__ = ["format_info", "format_summary", "info", "probabilities"]


def info(trace: Trace) -> dict[str, Any]:
    """Describe a trace: its manifest's fields and, per kept layer and query head, where the attention goes.

    Up to 64 evenly spaced steps are looked at (fewer where the context is long). Masses are means over steps;
    `tokens_for` gives the mean number of tokens that hold a share of the mass.
    """
    found = statistics(trace)
    return {
        "name": trace.name,
        "kind": trace.kind,
        "path": str(trace.path),
        "model": {field: _plain(value) for field, value in asdict(trace.model).items()},
        "rope": trace.rope and asdict(trace.rope),
        "prompt_len": trace.prompt_len,
        "steps": trace.steps,
        "tokens": trace.tokens,
        "distinct_tokens": len(np.unique(trace.token_ids)),
        "arrays": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape), "nbytes": array.nbytes}
            for name, array in trace.arrays().items()
        },
        "provenance": trace.provenance.model_dump(),
        "manifest_sha256": trace.manifest_sha256,
        "mean_loss_nats": None if trace.loss is None else float(trace.loss.mean(dtype=np.float64)),
        "steps_looked_at": len(found.steps),
        "heads": _head_rows(trace, found),
        "statistics": summary(found),
    }


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _head_rows(trace: Trace, found: TraceStatistics) -> list[dict[str, Any]]:
    top = TOPS.index(TOP)
    return [
        {
            "layer": layer,
            "kv_head": q_head // trace.model.q_per_kv,
            "q_head": q_head,
            "class": CLASSES[found.classes[at, q_head]],
            "sink_mass": float(found.sink_mass[at, q_head]),
            "local_mass": float(found.local_mass[at, q_head]),
            "induction_mass": float(found.induction_mass[at, q_head]),
            "top32_mass": float(found.top_mass[at, q_head, top]),
            "tokens_for": _tokens_for(found, at, q_head),
        }
        for at, layer in enumerate(found.layers)
        for q_head in range(trace.model.q_heads)
    ]


def _tokens_for(found: TraceStatistics, at: int, q_head: int) -> dict[str, float]:
    counts = found.tokens_for[at, q_head]
    return {f"{share:.0%}": float(count) for share, count in zip(SHARES, counts, strict=True)}


def format_info(found: dict[str, Any]) -> str:
    """Lay out the result of `info` as text."""
    model, source, loss = found["model"], found["provenance"], found["mean_loss_nats"]
    kept = ", ".join(map(str, model["kept_layers"]))
    heads = f"{model['q_heads']} query / {model['kv_heads']} KV heads of {model['head_dim']}"
    looked = f"mean over {found['steps_looked_at']} steps"
    arrays = [f"{name} {array['dtype']} {array['shape']}" for name, array in found["arrays"].items()]
    columns = "".join(f"{f'{share:.0%}':>8}" for share in SHARES)
    lines = [
        f"{found['name']}  ({found['kind']})  {found['path']}",
        f"model     {model['name']}: {model['layers']} layers (kept {kept}), {heads}",
        f"context   trained at {model['trained_context']} tokens",
        f"rope      {_rope_text(found['rope'])}",
        f"tokens    {found['tokens']} = prompt {found['prompt_len']} + steps {found['steps']}",
        f"text      {source['text']} ({source['licence']}); {source['recorder']}",
        f"loss      {'not recorded' if loss is None else f'{loss:.3f} nats per token'}",
        f"arrays    {', '.join(arrays)}",
        "",
        f"{looked}: mass of the first {SINKS}, last {LOCAL}, best {TOP} tokens, and of those that follow earlier",
        "occurrences of the query's token (induct); tokens that hold a share of the mass",
        f"layer q_head   sink  local  top32 induct{columns}  class",
    ]
    return "\n".join([*lines, *map(_row_text, found["heads"])])


def _rope_text(rope: dict[str, Any] | None) -> str:
    if rope is None:
        return "none: positions are inside queries and keys; cannot be composed"
    return f"{rope['dims']} dimensions, {rope['pairing']}, attention factor {rope['attention_factor']:g}"


def _row_text(row: dict[str, Any]) -> str:
    names = ("sink_mass", "local_mass", "top32_mass", "induction_mass")
    masses = "".join(f"{row[name]:7.3f}" for name in names)
    counts = "".join(f"{count:8.0f}" for count in row["tokens_for"].values())
    return f"{row['layer']:5}{row['q_head']:7}{masses}{counts}  {row['class']}"


def format_summary(found: dict[str, Any]) -> str:
    """Lay out the figures of `statistics` in the result of `info` beside the published ones."""
    of = found["statistics"]
    rank, kept = of["key_rank"], " / ".join(f"{value:.2f}" for value in of["persistence"].values())
    layers = " / ".join(f"{value:.2f}" for value in of["layer_overlap"]) or "one layer"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in of["classes"].items())
    after = ", ".join(of["persistence"]) or "no"
    sources = list(dict.fromkeys(row["source"] for row in of["published"]))
    lines = [
        f"classes   {shares}",
        f"          ({RULE})",
        f"persists  best {TOP} after {after} steps: {kept or 'one step'}; shared by adjacent layers: {layers}",
        f"keys      {rank['before_rope']:.0f} dimensions for 90 % of the energy, {rank['after_rope']:.0f} after RoPE",
        f"norms     query {of['query_norm']:.1f}, key {of['key_norm']:.1f}",
        "",
        f"{'here':>9}{'published':>13}",
        *(_published_text(row, sources.index(row["source"]) + 1) for row in of["published"]),
        *(f"[{number}] {source}" for number, source in enumerate(sources, 1)),
        *(f"warning: {text}" for text in of["warnings"]),
    ]
    return "\n".join(lines)


def _published_text(row: dict[str, Any], source: int) -> str:
    return f"{row['measured']:9.3g}{range_text(row['low'], row['high']):>13}  {row['name']} [{source}]"
