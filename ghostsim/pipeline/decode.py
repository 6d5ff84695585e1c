"""A run ready to be simulated: its machine, the plan of its decode steps, and the device of every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ghostsim.config.model import Model
from ghostsim.config.scenario import Run
from ghostsim.devices.machine import Machine
from ghostsim.devices.units import tier_unit
from ghostsim.engine.clock import PS_PER_US, CountingEnvironment
from ghostsim.engine.network import Network
from ghostsim.engine.probes import UtilisationProbe
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.bound import Bound
from ghostsim.pipeline.parallel import REDUCED, all_reduce_ps, delayed, own_heads
from ghostsim.plan.plan import Plan
from ghostsim.plan.selection import IndexStage, Selection
from ghostsim.policy.placement import Placement, place
from ghostsim.policy.prefetch import Ahead


@dataclass(frozen=True)
class Decode:
    """Decode steps on a machine of their own, at time 0."""

    env: CountingEnvironment
    network: Network
    plan: Plan
    bound: tuple[Bound, ...]


def placement_of(run: Run) -> Placement:
    """Return where the parts of a run's policy live."""
    by, behind = (run.ghostify.by, run.ghostify.behind) if run.ghostify else ("gpu", 0)
    return Placement(
        kv_tier=run.kv_tier,
        index_tier=run.index_tier,
        site=run.filter,
        fetch=run.fetch,
        chunks=run.chunks,
        result=run.result,
        archive_tier=run.archive_tier,
        warm_tier=run.warm_tier,
        unit_bytes=tier_unit(run.platform, run.kv_tier),
        ghostify=by,
        behind=behind,
    )


def machine_of(run: Run, scale: Mapping[str, float] | None = None) -> tuple[Machine, CountingEnvironment, Network]:
    """Return a machine with a clock at 0; `scale` are factors on the capacities of its resources."""
    env = CountingEnvironment()
    network = Network(env, scale)
    return Machine(env, network, run.platform), env, network


def own_use(run: Run, network: Network, probe: UtilisationProbe) -> dict[str, float]:
    """Return the mean use of every resource without what other hosts of a pool take of an idle machine."""
    if network.idle:  # no host sends on
        return probe.utilisation()
    _, env, empty = machine_of(run)
    idle = UtilisationProbe(empty)
    env.run(until=PS_PER_US)
    others = idle.utilisation()
    return {name: max(0.0, used - others[name]) for name, used in probe.utilisation().items()}


def decode(
    run: Run,
    model: Model,
    selection: Selection,
    batch: int,
    late_ps: Mapping[str, int] | None = None,
    ahead: Ahead | None = None,
) -> Decode:
    """Elaborate the decode steps of `batch` requests of a Selection.

    Parameters
    ----------
    model
        What one GPU holds.
    late_ps
        Time that rows of every layer take besides their own, by name.
    ahead
        What is fetched before it is asked for.
    """
    plan = place(own_heads(run, selection), run.policy, model, placement_of(run), batch, ahead)
    return bind(run, model, plan, selection.stages, batch, late_ps=late_ps)


def bind(
    run: Run,
    model: Model,
    plan: Plan,
    stages: Sequence[IndexStage],
    batch: int,
    *,
    late_ps: Mapping[str, int] | None = None,
    scale: Mapping[str, float] | None = None,
) -> Decode:
    """Bind a plan to a machine of its own, `scale` times as fast where that names a resource."""
    machine, env, network = machine_of(run, scale)
    bound = Binder(machine, model, placement_of(run), stages, batch).bind(plan)
    late = dict.fromkeys(REDUCED, all_reduce_ps(run, model, batch)) | dict(late_ps or {})
    return Decode(env, network, plan, delayed(bound, plan.names, late))
