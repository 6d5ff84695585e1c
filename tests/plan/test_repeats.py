"""Does a layer that is repeated go exactly as it would if it were simulated again?"""

from dataclasses import replace

import numpy as np
import pytest
from invented import CXL, HBM, OFFLOAD, PIM, llama, platform, policy, varied

from ghostsim.devices.machine import Machine
from ghostsim.engine.clock import CountingEnvironment
from ghostsim.engine.network import Network, Probe
from ghostsim.engine.probes import UtilisationProbe
from ghostsim.metrics.attribution import by_resource
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.executor import Executor
from ghostsim.policy.placement import place

MODEL = llama("layers=6")
PLACEMENTS = {
    "full_hbm": ("full", HBM),
    "quest_offload": ("quest", OFFLOAD),
    "full_offload": ("full", OFFLOAD),
    "ghostkv_cxl": ("ghostkv", CXL),
    "ghostkv_chunks": ("ghostkv", replace(CXL, chunks=3, result="ids")),
    "ghostkv_pim": ("ghostkv", PIM),
    "ghostkv_onepass": ("ghostkv_onepass", CXL),
    "lifecycle": ("ghostkv_lifecycle", replace(CXL, kv_tier="dram", archive_tier="ssd")),
}
ALIKE = sorted(PLACEMENTS.keys() - {"full_offload", "lifecycle"})
"""Placements whose layers start on an idle machine."""


def recurring(plan, period=2):
    """Return a plan whose layers recur: layer l of every step moves what layer l mod `period` does."""
    width = len(plan.names)
    step, layer, row = np.meshgrid(*map(np.arange, (plan.steps, plan.layers, width)), indexing="ij")
    source = ((step * plan.layers + layer % period) * width + row).ravel()
    return replace(plan, **{name: getattr(plan, name)[source] for name in ("nbytes", "records", "runs", "flops")})


class Course:
    """A run, with all that can be seen of it."""

    def __init__(self, label, *, watched=False, sets=()):
        of, placement = policy(PLACEMENTS[label][0]), PLACEMENTS[label][1]
        chosen = varied(of, MODEL, context=16384, batch=3, steps=3, share=0.1)
        self.env = CountingEnvironment()
        self.network = Network(self.env)
        machine = Machine(self.env, self.network, platform("h100_cxl_pim", *sets))
        self.plan = recurring(place(chosen, of, MODEL, placement, 3))
        bound = Binder(machine, MODEL, placement, chosen.stages, 3).bind(self.plan)
        if watched:  # flows that somebody watches are all simulated
            self.network.probes.append(Probe())
        probe = UtilisationProbe(self.network, bin_ps=10**6, most_bins=64)
        self.times = Executor(self.env, self.network, self.plan, bound).run()
        self.bins = probe.bins()
        self.waits = by_resource(self.plan, bound, self.times, tuple(self.network.resources))

    @property
    def columns(self):
        return [getattr(self.times, name) for name in ("start", "finish", "wait", "delay", "service")]


@pytest.mark.parametrize("label", sorted(PLACEMENTS))
def test_every_row_has_the_times_that_it_has_without_repeats(label):
    np.testing.assert_array_equal(Course(label).columns, Course(label, watched=True).columns)


@pytest.mark.parametrize("log", [2**13, 100])
@pytest.mark.parametrize("label", sorted(PLACEMENTS))
def test_every_resource_is_used_as_it_is_without_repeats(label, log, monkeypatch):
    """To the last bit, so a log of rates is summed at the same instants."""
    monkeypatch.setattr("ghostsim.engine.probes._LOG_LENGTH", log)
    np.testing.assert_array_equal(Course(label).bins, Course(label, watched=True).bins)


@pytest.mark.parametrize("label", sorted(PLACEMENTS))
def test_steps_wait_for_what_they_wait_for_without_repeats(label):
    assert Course(label).waits == Course(label, watched=True).waits


@pytest.mark.parametrize("label", sorted(PLACEMENTS))
def test_flows_that_repeat_are_counted(label):
    assert Course(label).network.flows_started == Course(label, watched=True).network.flows_started


@pytest.mark.parametrize("label", ALIKE)
def test_a_layer_that_recurs_is_not_simulated_again(label):
    """Of six layers a step four recur; the first of all begins on a machine that did nothing before."""
    assert Course(label).env.events < 0.5 * Course(label, watched=True).env.events


def test_nothing_repeats_beside_other_hosts():
    """What others send goes on between layers."""
    sets = ("devices.cxl_exp0.pool.hosts=3", "devices.cxl_exp0.pool.load=15 GB/s")
    few, all_ = Course("ghostkv_cxl", sets=sets), Course("ghostkv_cxl", watched=True, sets=sets)
    np.testing.assert_array_equal(few.columns, all_.columns)
    assert few.env.events == all_.env.events
