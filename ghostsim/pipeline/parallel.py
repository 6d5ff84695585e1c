"""Tensor parallelism: the share of one GPU in every layer, and the all-reduce after attention and after the MLP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ghostsim.config.model import Model
from ghostsim.config.scenario import Run
from ghostsim.devices.job import Job
from ghostsim.engine.clock import PS_PER_S, whole_ps
from ghostsim.errors import ConfigError
from ghostsim.pipeline.bound import Bound, Maker, Row
from ghostsim.plan.selection import Selection

REDUCED = ("output", "down")
"""Matrix products whose results are partial sums on each GPU."""


def shard(model: Model, gpus: int) -> Model:
    """Return the model that one of `gpus` equal GPUs holds: heads, MLP columns and vocabulary are dealt out.

    Raises
    ------
    ConfigError
        If KV heads or MLP columns cannot be dealt out evenly.
    """
    for name in ("kv_heads", "intermediate"):
        if getattr(model, name) % gpus:
            found = f"found {gpus} GPUs for {getattr(model, name)} {name} of {model.name}"
            raise ConfigError(f"tensor_parallel.gpus: {found}, expected a divisor")
    share = {name: getattr(model, name) // gpus for name in ("q_heads", "kv_heads", "intermediate")}
    return model.model_copy(update=share | {"vocabulary": -(-model.vocabulary // gpus)})


def own_model(run: Run, model: Model) -> Model:
    """Return what each GPU of a run holds of a model."""
    return shard(model, run.tensor_parallel.gpus) if run.tensor_parallel else model


def own_heads(run: Run, selection: Selection) -> Selection:
    """Return the reads of the first GPU's KV heads, which stand for those of all."""
    if run.tensor_parallel is None:
        return selection
    heads = selection.unit_of.shape[2] // run.tensor_parallel.gpus
    return replace(selection, unit_of=selection.unit_of[:, :, :heads])


def all_reduce_ps(run: Run, model: Model, tokens: int) -> int:
    """Return the time of one all-reduce of the activations of some tokens, 0 on one GPU.

    A ring passes 2 (n - 1) / n of the bytes over each link in 2 (n - 1) dependent hops.
    """
    parallel = run.tensor_parallel
    if parallel is None or not tokens:
        return 0
    n, link = parallel.gpus, parallel.link
    nbytes = tokens * model.hidden * model.bytes_per_element
    rate = link.bandwidth or link.raw * link.encoding
    return whole_ps(2 * (n - 1) * (nbytes / n / rate * PS_PER_S + link.latency))


def delayed(bound: Sequence[Bound], names: Sequence[str], delays_ps: Mapping[str, int]) -> tuple[Bound, ...]:
    """Return the rows of a program, some of which take so much longer."""
    return tuple(
        replace(row, make=_later(row.make, delays_ps[name])) if delays_ps.get(name) else row
        for row, name in zip(bound, names, strict=True)
    )


def _later(make: Maker, delay_ps: int) -> Maker:
    def made(row: Row) -> Job:
        job = make(row)
        return job._replace(delay_ps=job.delay_ps + delay_ps)

    return made
