"""What a trace holds: its fields, and how its attention is spread, measured on the recorded queries and keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ghostsim.trace.compose import SINKS, Head, Workload, compose
from ghostsim.trace.format import Trace

LOCAL = 256
TOP = 32
SHARES = (0.50, 0.90, 0.95, 0.99)
_STEPS = 64
_SCORES = 1 << 20  # per query head; bounds the time on long traces


def probabilities(head: Head, step: int) -> npt.NDArray[np.float64]:
    """Return the attention probabilities of one step in float64, [g, first..own token]; masked tokens hold 0."""
    own = head.context + step
    first = 0 if head.window is None else max(0, own - head.window + 1)
    keys = head.keys[first : own + 1].astype(np.float64, copy=False)
    scores = head.scale * (head.queries[step].astype(np.float64, copy=False) @ keys.T)
    if head.softcap is not None:
        scores = head.softcap * np.tanh(scores / head.softcap)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    out = np.zeros((len(scores), own + 1))
    out[:, first:] = weights / weights.sum(axis=1, keepdims=True)
    return out


def info(trace: Trace) -> dict[str, Any]:
    """Describe a trace: its manifest's fields and, per kept layer and query head, where the attention goes.

    Up to 64 evenly spaced steps are looked at (fewer where the context is long). Masses are means over steps;
    `tokens_for` gives the mean number of tokens that hold a share of the mass.
    """
    workload = compose([trace], None, requests=1, steps=None, context=None, seed=0)
    looked = _looked_at(trace)
    heads = [row for unit in range(len(workload.heads)) for row in _head_rows(workload, unit, looked)]
    return {
        "name": trace.name,
        "kind": trace.kind,
        "path": str(trace.path),
        "model": {field: _plain(getattr(trace.model, field)) for field in trace.model.__dataclass_fields__},
        "rope": trace.rope and {field: getattr(trace.rope, field) for field in trace.rope.__dataclass_fields__},
        "prompt_len": trace.prompt_len,
        "steps": trace.steps,
        "tokens": trace.tokens,
        "distinct_tokens": len(np.unique(trace.token_ids)),
        "arrays": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape), "nbytes": array.nbytes}
            for name, array in trace.arrays().items()
        },
        "provenance": {field: getattr(trace.provenance, field) for field in trace.provenance.__dataclass_fields__},
        "manifest_sha256": trace.manifest_sha256,
        "mean_loss_nats": None if trace.loss is None else float(trace.loss.mean(dtype=np.float64)),
        "steps_looked_at": len(looked),
        "heads": heads,
    }


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _looked_at(trace: Trace) -> list[int]:
    count = max(1, min(_STEPS, trace.steps, _SCORES // trace.tokens))
    return [int(step) for step in np.linspace(0, trace.steps - 1, count).astype(int)]


def _head_rows(workload: Workload, unit: int, steps: list[int]) -> list[dict[str, Any]]:
    head = workload.head(unit)
    group = head.queries.shape[1]
    measured = np.mean([_measure(probabilities(head, step)) for step in steps], axis=0)
    layer = workload.traces[0].model.kept_layers[head.kept_layer]
    return [
        {"layer": layer, "kv_head": head.kv_head, "q_head": head.kv_head * group + j} | _named(measured[j])
        for j in range(group)
    ]


def _measure(p: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return [g, 3 + len(SHARES)]: sink, local and top mass, then tokens for each share."""
    falling = np.sort(p, axis=1)[:, ::-1]
    reached = np.cumsum(falling, axis=1)
    counts = [np.minimum((reached < share).sum(axis=1) + 1, p.shape[1]) for share in SHARES]
    masses = [p[:, :SINKS].sum(axis=1), p[:, -LOCAL:].sum(axis=1), falling[:, :TOP].sum(axis=1)]
    return np.stack([*masses, *counts], axis=1).astype(np.float64)


def _named(row: npt.NDArray[np.float64]) -> dict[str, Any]:
    sink, local, top, *counts = (float(value) for value in row)
    tokens_for = {f"{share:.0%}": count for share, count in zip(SHARES, counts, strict=True)}
    return {"sink_mass": sink, "local_mass": local, "top32_mass": top, "tokens_for": tokens_for}


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
        f"{looked}: mass of the first {SINKS}, last {LOCAL}, best {TOP} tokens; tokens that hold a share of the mass",
        f"layer q_head   sink  local  top32{columns}",
    ]
    return "\n".join([*lines, *map(_row_text, found["heads"])])


def _rope_text(rope: dict[str, Any] | None) -> str:
    if rope is None:
        return "none: positions are inside queries and keys; cannot be composed"
    return f"{rope['dims']} dimensions, {rope['pairing']}, attention factor {rope['attention_factor']:g}"


def _row_text(row: dict[str, Any]) -> str:
    masses = f"{row['sink_mass']:7.3f}{row['local_mass']:7.3f}{row['top32_mass']:7.3f}"
    return f"{row['layer']:5}{row['q_head']:7}{masses}" + "".join(
        f"{count:8.0f}" for count in row["tokens_for"].values()
    )
