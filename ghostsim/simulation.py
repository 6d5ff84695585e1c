"""A scenario from elaboration to figures: the one place where all parts of ghostsim meet.

traces -> workloads -> Selections -> Plans -> machine -> times -> metrics
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ghostsim.config.base import MisfitError
from ghostsim.config.model import Model
from ghostsim.config.policy import Policy
from ghostsim.config.scenario import Run, Scenario
from ghostsim.engine.clock import PS_PER_S
from ghostsim.engine.network import Network
from ghostsim.engine.probes import UtilisationProbe
from ghostsim.errors import ConfigError, Location, TraceError
from ghostsim.metrics.collect import Record, compare, run_metrics
from ghostsim.metrics.prefill import payback_steps
from ghostsim.metrics.quality import quality
from ghostsim.metrics.serving import Served, serving_metrics
from ghostsim.metrics.what_if import WhatIf, what_if
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.capacity import Footprint, footprint, largest_batch
from ghostsim.pipeline.decode import bind, decode, machine_of, placement_of
from ghostsim.pipeline.executor import Executor, Times
from ghostsim.pipeline.parallel import own_heads, own_model
from ghostsim.pipeline.settling import settled
from ghostsim.pipeline.step_cost import spread
from ghostsim.plan.plan import Plan
from ghostsim.plan.selection import Selection
from ghostsim.policy.costs import index_stages
from ghostsim.policy.evaluate import select
from ghostsim.policy.needs import check_served
from ghostsim.policy.prefetch import Prefetched, ahead_of, foretold
from ghostsim.serving import contexts_of, jobs_of, probe_contexts, requests_of, serve, steps_needed
from ghostsim.trace.compose import Predictor, Shape, Workload, compose
from ghostsim.trace.format import Trace, open_trace
from ghostsim.trace.requests import Requests

_BINS = 400
_FIRST_BIN_PS = 1_000_000
Progress = Callable[[str], None]
Where = Callable[..., Location | None]


@dataclass
class Counters:
    """What the simulator itself cost."""

    events: int = 0
    flows: int = 0
    wall_s: float = 0.0
    selection_wall_s: float = 0.0
    peak_rss_mb: float = 0.0
    """Of the largest process."""
    steps_wall_s: float = 0.0
    """Of `wall_s`, what the simulation of decode steps took."""
    events_per_s: float = 0.0
    """Events over `steps_wall_s`."""


@dataclass(frozen=True)
class Result:
    """A finished scenario."""

    metrics: dict[str, Any]
    records: Mapping[str, Record]
    workloads: Mapping[str, Workload]
    notes: list[str]
    recorded: Mapping[str, dict[str, float]] = field(default_factory=dict)
    """Lost mass of the same policies on the traces as they were recorded, where the run composes a longer context."""
    what_if: Mapping[str, list[WhatIf]] = field(default_factory=dict)
    """How much shorter the steps of each run would be if what they waited for were faster."""
    served: Mapping[str, Served] = field(default_factory=dict)
    """Runs of a request workload."""
    counters: Counters = field(default_factory=Counters)


def simulate(
    scenario: Scenario,
    base: Path | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
    where: Where | None = None,
    *,
    ask_what_if: bool = False,
) -> Result:
    """Run all runs of a scenario.

    Parameters
    ----------
    scenario
        A valid scenario.
    base
        Folder that relative trace paths start from.
    jobs
        Processes for policy evaluation, 0 for as many as there are cores (at most 4).
    progress
        Called with a line about what is being done.
    where
        Says where a field of the scenario was written, for errors.
    ask_what_if
        Replay some steps of every run with what they waited for twice as fast.

    Raises
    ------
    ConfigError
        If something does not fit: a tier overflows, a filter has no device, a trace is too short.
    """
    say, counters, begun = progress or (lambda _: None), Counters(), time.perf_counter()
    ready = prepare(scenario, base, where)
    selections = _select(scenario, ready.workloads, jobs, say)
    selections = {label: _together(scenario.runs[label].policy, each) for label, each in selections.items()}
    foreseen = _foretell(scenario, ready.workloads, selections, jobs, say)
    selections = {label: spread(each, ready.prints[label].batch) for label, each in selections.items()}
    recorded = _recorded_loss(scenario, ready.workloads, jobs, say)
    counters.selection_wall_s = time.perf_counter() - begun
    records = {}
    for label, run in scenario.runs.items():
        say(f"simulate {label}")
        ahead = foreseen.get(label)
        records[label] = _run(label, run, ready.models[label], selections[label], ahead, ready.prints[label], counters)
    served = _serve(scenario, ready, jobs, say)
    asked = {}
    for label, run in scenario.runs.items() if ask_what_if else ():
        say(f"ask what would make {label} faster")
        asked[label] = what_if_of(run, ready.models[label], records[label])
    metrics = _metrics(scenario, next(iter(ready.workloads.values())), records, served)
    counters.wall_s = time.perf_counter() - begun
    used = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    counters.peak_rss_mb = max(used) / 1024
    counters.events_per_s = counters.events / counters.steps_wall_s
    notes = _notes(scenario, ready) + _serving_notes(served)
    return Result(metrics, records, ready.workloads, notes, recorded, asked, served, counters)


def _metrics(
    scenario: Scenario, workload: Workload, records: Mapping[str, Record], served: Mapping[str, Served]
) -> dict[str, Any]:
    """Return the contents of metrics.json."""
    runs = {label: run_metrics(record) for label, record in records.items()}
    for label, run in runs.items():
        bases = {base: payback_steps(run, runs[base]) for base in scenario.baseline if base != label}
        run["prefill"]["payback_steps"] = bases
    for label, each in served.items():
        runs[label]["serving"] = serving_metrics(each)
    return {
        "schema": 1,
        "scenario": scenario.name,
        "seed": scenario.seed,
        "trace": {
            "name": "+".join(trace.name for trace in workload.traces),
            "kind": workload.kind,
            "context_tokens": workload.context,
            "steps": workload.steps,
        },
        "runs": runs,
        "compare": compare(runs, scenario.baseline),
    }


@dataclass(frozen=True)
class Prepared:
    """What is known of every run before time starts, by label."""

    models: Mapping[str, Model]
    prints: Mapping[str, Footprint]
    workloads: Mapping[str, Workload]
    requests: Mapping[str, Requests]


def prepare(scenario: Scenario, base: Path | None = None, where: Where | None = None) -> Prepared:
    """Open traces, size every run and see that its tiers and filters exist; errors are those of `simulate`."""
    at = where or (lambda *_: None)
    traces = _open_traces(scenario, base, at)
    models = {label: _charged_model(run, traces) for label, run in scenario.runs.items()}
    prints = {label: _fit(label, run, models[label], traces, at) for label, run in scenario.runs.items()}
    for label, run in scenario.runs.items():
        _check_filter(label, run, at)
    requests = {label: _requests(label, run, scenario.seed, at) for label, run in scenario.runs.items() if run.serving}
    workloads = _workloads(scenario, models, prints, traces, at)
    for label, run in scenario.runs.items():
        check_served(run.policy, workloads[label], at("runs", label, "workload", "trace"))
    return Prepared(models, prints, workloads, requests)


def _requests(label: str, run: Run, seed: int, at: Where) -> Requests:
    """Open the request workload of a run and see that its serving block fits."""
    assert run.serving is not None
    try:
        _check_serving(run)
        return requests_of(run.serving, seed)
    except MisfitError as error:
        raise ConfigError(f"runs.{label}.{error}", at("runs", label, *error.path)) from None
    except TraceError as error:
        raise TraceError(f"serving.requests: {error}", at("runs", label, "serving", "requests")) from None


def _check_serving(run: Run) -> None:
    serving = run.serving
    assert serving is not None
    for tier, nbytes in (serving.prefix_cache or {}).items():
        has = run.platform.tier_capacity(tier)
        if nbytes > has:
            message = f"found {nbytes / 1e9:.1f} GB, expected at most the {has / 1e9:.1f} GB of that tier"
            raise MisfitError(f"serving.prefix_cache.{tier}: {message}", "serving", "prefix_cache", tier)
    steps = run.workload.steps
    if steps is not None and steps < steps_needed(serving):
        message = f"found {steps}, expected at least draft + 1 = {steps_needed(serving)} for serving.speculation"
        raise MisfitError(f"workload.steps: {message}", "workload", "steps")


def _open_traces(scenario: Scenario, base: Path | None, at: Where) -> dict[str, Trace]:
    """Open every trace that a run names."""
    traces: dict[str, Trace] = {}
    for label, run in scenario.runs.items():
        for name in run.workload.trace:
            try:
                traces[name] = traces.get(name) or open_trace(name, base)
            except TraceError as error:
                raise TraceError(f"workload.trace: {error}", at("runs", label, "workload", "trace")) from None
    return traces


def _charged_model(run: Run, traces: Mapping[str, Trace]) -> Model:
    """Return the model that bytes are charged at: with `shape: trace` heads are the trace's."""
    recorded = traces[run.workload.trace[0]].model
    if run.workload.shape == "model":
        return run.model
    shape = {"head_dim": recorded.head_dim, "q_heads": run.model.kv_heads * recorded.q_per_kv}
    return run.model.model_copy(update=shape)


def _context(run: Run, traces: Mapping[str, Trace]) -> tuple[int, int]:
    """Return tokens before step 0, and steps."""
    first = traces[run.workload.trace[0]]
    return run.workload.context or first.prompt_len, run.workload.steps or first.steps


def _fit(label: str, run: Run, model: Model, traces: Mapping[str, Trace], at: Where) -> Footprint:
    context, steps = _context(run, traces)
    try:
        model = own_model(run, model)
    except ConfigError as error:
        raise ConfigError(f"runs.{label}.{error}", at("runs", label, "tensor_parallel", "gpus")) from None
    place_of = at("runs", label, "workload", "batch")
    if run.workload.batch == "fits":
        batch = largest_batch(run, model, context + steps)
        if not batch:
            small = footprint(run, model, context + steps, 1).overflow(run.platform)
            raise ConfigError(
                f"runs.{label}.workload.batch: found fits, expected room for one request; {small}", place_of
            )
        return footprint(run, model, context + steps, batch)
    needed = footprint(run, model, context + steps, run.workload.batch)
    overflow = needed.overflow(run.platform)
    if overflow:
        raise ConfigError(f"runs.{label}: {overflow}, e.g. a smaller workload.batch or batch: fits", place_of)
    return needed


def _check_filter(label: str, run: Run, at: Where) -> None:
    machine = machine_of(run)[0]
    stages = index_stages(run.policy, run.model.head_dim, run.model.kv_heads)
    try:
        Binder(machine, run.model, placement_of(run), stages, 1)
    except ConfigError as error:
        raise ConfigError(f"runs.{label}: {error}", at("runs", label)) from None


def _workloads(
    scenario: Scenario,
    models: Mapping[str, Model],
    prints: Mapping[str, Footprint],
    traces: Mapping[str, Trace],
    at: Where,
) -> dict[str, Workload]:
    """Compose one workload for all runs that differ in nothing but the batch; each takes its first requests in turn."""
    keys = {label: _workload_key(run, models[label]) for label, run in scenario.runs.items()}
    largest: dict[str, int] = {}
    for label, key in keys.items():
        largest[key] = scenario.runs[label].workload.distinct or max(largest.get(key, 0), prints[label].batch)
    composed: dict[str, Workload] = {}
    for label, run in scenario.runs.items():
        key = keys[label]
        if key not in composed:
            try:
                composed[key] = _compose(run, models[label], largest[key], traces, scenario.seed)
            except ConfigError as error:
                raise ConfigError(f"runs.{label}.workload: {error}", at("runs", label, "workload")) from None
    return {label: composed[key] for label, key in keys.items()}


def _workload_key(run: Run, model: Model) -> str:
    shape = (model.layers, model.kv_heads, model.q_per_kv, model.head_dim)
    return repr((run.workload.model_dump(exclude={"batch"}), shape))


def _compose(run: Run, model: Model, requests: int, traces: Mapping[str, Trace], seed: int) -> Workload:
    shape = Shape(model.layers, model.kv_heads, model.q_per_kv, model.head_dim)
    return compose(
        [traces[name] for name in run.workload.trace],
        shape,
        requests=requests,
        steps=run.workload.steps,
        context=run.workload.context,
        seed=seed,
        trace_shape=run.workload.shape == "trace",
    )


def _select(scenario: Scenario, workloads: Mapping[str, Workload], jobs: int, say: Progress) -> dict[str, Selection]:
    """Evaluate every policy once per workload."""
    selections: dict[str, Selection] = {}
    for workload in {id(workload): workload for workload in workloads.values()}.values():
        labels = [label for label, other in workloads.items() if other is workload]
        policies = {label: scenario.runs[label].policy for label in labels}
        selections |= select(policies, workload, jobs=jobs, progress=_heads_done(len(labels), say))
    return selections


def _together(policy: Policy, selection: Selection) -> Selection:
    """Let every record of an index meet all queries that are verified together."""
    queries = policy.read.speculate
    return replace(selection, stages=tuple(replace(stage, macs=stage.macs * queries) for stage in selection.stages))


def _heads_done(policies: int, say: Progress) -> Callable[[int, int], None]:
    return lambda done, of: say(f"evaluate {policies} policies on attention head {done} of {of}")


def _recorded_loss(
    scenario: Scenario, workloads: Mapping[str, Workload], jobs: int, say: Progress
) -> dict[str, dict[str, float]]:
    """Evaluate the policies at the recorded length too: composing moves a model beyond what it was trained on."""
    found: dict[str, dict[str, float]] = {}
    for workload in {id(workload): workload for workload in workloads.values()}.values():
        if workload.kind != "composed":
            continue
        traces = [trace for trace in workload.traces if trace.prompt_len == workload.traces[0].prompt_len]
        short = compose(traces, workload.shape, requests=len(traces), steps=workload.steps, context=None,
                        seed=workload.seed, trace_shape=workload.reshaped)  # fmt: skip
        policies = {label: scenario.runs[label].policy for label, other in workloads.items() if other is workload}
        say(f"evaluate {len(policies)} policies at the recorded length")
        for label, selection in select(policies, short, jobs=jobs).items():
            found[label] = quality(selection, short.requests)["lost_mass"]
    return found


def _serve(scenario: Scenario, ready: Prepared, jobs: int, say: Progress) -> dict[str, Served]:
    """Serve the requests of every run that has some, on decode steps simulated at several contexts."""
    grids = {label: _grid(run, requests) for label, run, requests in _serving_runs(scenario, ready)}
    selections = _grid_selections(scenario, ready, grids, jobs, say)
    served = {}
    for label, run, requests in _serving_runs(scenario, ready):
        say(f"serve {label}")
        at_nodes, between = ({c: selections[label, c] for c in part} for part in grids[label])
        served[label] = serve(run, ready.models[label], at_nodes, between, requests, scenario.seed)
    return served


def _serving_runs(scenario: Scenario, ready: Prepared) -> list[tuple[str, Run, Requests]]:
    return [(label, scenario.runs[label], requests) for label, requests in ready.requests.items()]


def _grid(run: Run, requests: Requests) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the contexts of the grid, and those between them at which it is checked."""
    assert run.serving is not None
    contexts = contexts_of(jobs_of(run.serving, requests))
    return contexts, probe_contexts(contexts)


def _grid_selections(
    scenario: Scenario,
    ready: Prepared,
    grids: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]],
    jobs: int,
    say: Progress,
) -> dict[tuple[str, int], Selection]:
    """Evaluate policies with one request of each trace at every context; further requests of a batch read alike."""
    groups: dict[tuple[int, int], list[str]] = {}
    for label, (nodes, between) in grids.items():
        for context in (*nodes, *between):
            groups.setdefault((id(ready.workloads[label]), context), []).append(label)
    found: dict[tuple[str, int], Selection] = {}
    for (_, context), labels in groups.items():
        say(f"evaluate {len(labels)} policies at {context} tokens")
        whole = ready.workloads[labels[0]]
        workload = compose(whole.traces, whole.shape, requests=len(whole.traces), steps=whole.steps, context=context,
                           seed=whole.seed, trace_shape=whole.reshaped)  # fmt: skip
        policies = {label: _verifying(scenario.runs[label]) for label in labels}
        found |= {(label, context): each for label, each in select(policies, workload, jobs=jobs).items()}
    return found


def _verifying(run: Run) -> Policy:
    """Return the policy of a run, whose reads serve as many queries as are verified together."""
    assert run.serving is not None
    read = run.policy.read.model_copy(update={"speculate": steps_needed(run.serving)})
    return run.policy.model_copy(update={"read": read}) if run.serving.speculation else run.policy


def _serving_notes(served: Mapping[str, Served]) -> list[str]:
    """Say which requests were refused, and which runs keep no prefix although they were asked to."""
    notes = []
    for label, each in served.items():
        refused = sum(job.rejected for job in each.jobs)
        if refused:
            notes.append(f"{label}: refused {refused} of {len(each.jobs)} requests, whose KV alone exceeds a tier")
        if each.keeps_nothing:
            notes.append(f"{label}: keeps no prefix, as its policy drops tokens that another prompt may need")
    return notes


def _foretell(
    scenario: Scenario,
    workloads: Mapping[str, Workload],
    selections: Mapping[str, Selection],
    jobs: int,
    say: Progress,
) -> dict[str, Prefetched]:
    """Evaluate every policy that prefetches on the queries that its predictor foretells."""
    found = {}
    for label, run in scenario.runs.items():
        if run.prefetch is None:
            continue
        say(f"foretell the reads of {label}")
        predictor = Predictor(run.prefetch.by, run.prefetch.ahead)
        workload = workloads[label]
        predicted = select({label: run.policy}, workload.predicting(predictor), jobs=jobs)[label]
        found[label] = foretold(selections[label], predicted, run.policy, workload, run.prefetch.tokens)
    return found


def _run(
    label: str,
    run: Run,
    model: Model,
    selection: Selection,
    foreseen: Prefetched | None,
    fits: Footprint,
    counters: Counters,
) -> Record:
    """Simulate one run on a machine of its own."""
    ahead = None
    if foreseen is not None and run.prefetch is not None:
        ahead = ahead_of(foreseen, own_heads(run, selection), run.prefetch, fits.batch)
    ready = decode(run, own_model(run, model), selection, fits.batch, ahead=ahead)
    env, network, plan, bound = ready.env, ready.network, ready.plan, ready.bound
    probe = UtilisationProbe(network, bin_ps=_FIRST_BIN_PS, most_bins=_BINS)
    begun = time.perf_counter()
    times = Executor(env, network, plan, bound).run()
    counters.steps_wall_s += time.perf_counter() - begun
    counters.events += env.events
    counters.flows += network.flows_started
    return Record(
        label=label,
        policy=run.policy.name,
        platform=run.platform,
        batch=fits.batch,
        gpus=run.tensor_parallel.gpus if run.tensor_parallel else 1,
        plan=plan,
        bound=bound,
        times=times,
        selection=selection,
        ahead=ahead,
        capacity_bytes=fits.tiers,
        stored_bytes=_stored(run, own_model(run, model), fits, selection.steps),
        utilisation=probe.utilisation(),
        bin_ps=probe.bin_ps,
        resources=tuple(network.resources),
        series=_series(probe, network),
        settled=settled(run, own_model(run, model), fits.tokens - selection.steps, fits.batch),
    )


def _stored(run: Run, model: Model, fits: Footprint, steps: int) -> dict[str, list[int]]:
    """Return the bytes that each tier holds after every step, the last of which has the largest length."""
    prints = [footprint(run, model, fits.tokens - left, fits.batch) for left in reversed(range(steps))]
    return {tier: [each.tiers.get(tier, 0) for each in prints] for tier in fits.tiers}


def what_if_of(run: Run, model: Model, record: Record) -> list[WhatIf]:
    """Ask of a finished run how much shorter its steps would be if what they waited for were faster."""

    def replay(plan: Plan, scale: Mapping[str, float]) -> Times:
        ready = bind(run, own_model(run, model), plan, record.selection.stages, record.batch, scale=scale)
        return Executor(ready.env, ready.network, plan, ready.bound).run()

    return what_if(record.plan, record.waits_ms, record.resources, replay)


def _series(probe: UtilisationProbe, network: Network) -> dict[str, list[float]]:
    """Return the utilisation of each resource that was used at all, per bin."""
    bins = probe.bins()
    return {
        each.name: (bins[each.index] / (each.capacity * probe.bin_ps / PS_PER_S)).tolist()
        for each in network.resources.values()
        if bins[each.index].any()
    }


def _notes(scenario: Scenario, ready: Prepared) -> list[str]:
    """Say what a reader must know about batches that were chosen or cannot be."""
    notes = [
        f"{label}: {run.policy.read.speculate} steps share what they read; all drafts count as accepted, and every "
        "step reads the weights"
        for label, run in scenario.runs.items()
        if run.policy.read.speculate > 1
    ]
    for label, run in scenario.runs.items():
        distinct, of = run.workload.distinct, ready.prints[label].batch
        if distinct is not None and distinct < of:
            notes.append(f"{label}: {distinct} of {of} requests are evaluated, the others read as these do")
        if run.workload.batch != "fits":
            continue
        batch = scenario.workload.batch
        text = f"{label}: batch {ready.prints[label].batch} is the largest whose weights and KV fit"
        if isinstance(batch, int) and batch > ready.prints[label].batch:
            wanted = footprint(run, own_model(run, ready.models[label]), ready.prints[label].tokens, batch)
            text += f"; batch {batch} does not: {wanted.overflow(run.platform)}"
        notes.append(text)
    return notes
