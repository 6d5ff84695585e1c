"""How many decode steps a second does the whole pipeline simulate, once the Selection is built?

Seconds are CPU seconds of the process. Neighbours on a shared core or cache still slow them; a yardstick, bare SimPy
events, is run before each repeat, and the bar holds for a machine that runs it at its full pace.
"""

import os
import time
from dataclasses import replace

import pytest
from invented import CXL, FIVE, OFFLOAD, PIM, aged, llama, platform, policy, varied
from yardstick import paced

from ghostsim.devices.machine import Machine
from ghostsim.engine.clock import CountingEnvironment
from ghostsim.engine.network import Network
from ghostsim.engine.probes import UtilisationProbe
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.executor import Executor
from ghostsim.policy.placement import place

pytestmark = pytest.mark.bench

STEPS = 16
BAR = float(os.environ.get("GHOSTSIM_BENCH_STEPS_PER_S", "50"))
UNEQUAL = ("devices.cxl_exp1.static=10 W",)
"""Expanders that differ have flows of their own."""
RUNS = {
    "cxl, batch 8": ("ghostkv", CXL, 8, (), True),
    "index in cxl, kv in dram, batch 8": ("ghostkv", replace(CXL, kv_tier="dram"), 8, (), True),
    "index in cxl, kv on ssd, batch 8": ("ghostkv", replace(CXL, kv_tier="ssd"), 8, (), True),
    "cxl, batch 12": ("ghostkv", CXL, 12, (), False),
    "two unequal expanders, batch 8": ("ghostkv", CXL, 8, UNEQUAL, False),
    "pim, kv in dram, batch 8": ("ghostkv", PIM, 8, (), True),
    "five tiers, batch 8": ("ghostkv_ages", FIVE, 8, (), True),
    "offload, batch 8": ("full", OFFLOAD, 8, (), True),
}


def simulate(chosen, of, placement, batch, sets):
    """Return CPU seconds from a Selection to times with probes on, and flows a layer."""
    begun = time.process_time()
    env = CountingEnvironment()
    network = Network(env)
    machine = Machine(env, network, platform("h100_cxl_pim", *sets))
    plan = place(chosen, of, llama(), placement, batch)
    bound = Binder(machine, llama(), placement, chosen.stages, batch).bind(plan)
    probe = UtilisationProbe(network, bin_ps=1_000_000, most_bins=400)
    Executor(env, network, plan, bound).run()
    probe.utilisation()
    return time.process_time() - begun, network.flows_started / len(plan) * len(plan.names)


@pytest.mark.parametrize("name", list(RUNS))
def test_decode_steps_per_second(name):
    of, placement, batch, sets, barred = RUNS[name]
    chosen = varied(policy(of), llama(), context=131072, batch=batch, steps=STEPS)
    chosen = aged(chosen, 0.3, warm=200) if policy(of).archive is not None else chosen
    seconds, slow, flows = paced(lambda: simulate(chosen, policy(of), placement, batch, sets))
    print(f"\n{name}: {STEPS / seconds / slow:.0f} steps per CPU s on a machine {slow:.1f} x as slow as a quiet one: "
          f"{STEPS / seconds:.0f} steps/s, {flows:.0f} flows a layer")  # fmt: skip
    assert not barred or STEPS / seconds >= BAR


def test_wall_time_does_not_depend_on_the_context():
    """Eight times the tokens, the same flows: the same work."""
    chosen = [varied(policy("ghostkv"), llama(), context=each, batch=8, steps=4) for each in (131072, 1048576)]
    looks = [[simulate(each, policy("ghostkv"), CXL, 8, ())[0] for each in chosen] for _ in range(5)]
    short, long = map(min, zip(*looks, strict=True))
    print(f"\n131,072 tokens: {short:.3f} s; 1,048,576 tokens: {long:.3f} s")
    assert long < 1.5 * short
