"""Binding: which device does which row of the plan, over which route.

The result is one function per row of the program, from the sizes of a row to the job that a device makes of
it, and the links that the row's bytes cross.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial

from ghostsim.config.model import Model
from ghostsim.devices.job import Job
from ghostsim.devices.machine import Machine
from ghostsim.pipeline.bound import Bound, Maker, Row
from ghostsim.pipeline.filtering import Filtering
from ghostsim.pipeline.sites import sites_of
from ghostsim.pipeline.transfers import Transfers
from ghostsim.plan.plan import OPS, ROLES, Plan
from ghostsim.plan.selection import IndexStage
from ghostsim.policy.placement import FROM_TIER, Placement


class Binder:
    """Binds the program of one run to a machine.

    KV heads are dealt out to the devices of a tier in turn, so each holds an equal share of every request.
    """

    def __init__(
        self,
        machine: Machine,
        model: Model,
        placement: Placement,
        stages: Sequence[IndexStage],
        batch: int,
    ) -> None:
        self.model, self.placement, self.batch = model, placement, batch
        self.gpu = machine.gpu
        tiers = (placement.kv_tier, placement.warm_tier, placement.archive, placement.index_tier if stages else "hbm")
        sites = {tier: sites_of(machine, tier) for tier in dict.fromkeys(tiers) if tier != "hbm"}
        self.transfers = Transfers(machine, model, placement, sites)
        self.filtering = Filtering(machine, model, placement, stages, batch, self.transfers)

    def bind(self, plan: Plan) -> tuple[Bound, ...]:
        """Return the devices of the plan's program, row by row."""
        scanned = plan.nbytes[plan.op == OPS.index("scan")].sum()
        resident = self.gpu.keeps(int(scanned) // plan.steps)
        return tuple(self._bind_row(plan, i, name, resident=resident) for i, name in enumerate(plan.names))

    def _bind_row(self, plan: Plan, i: int, name: str, *, resident: bool) -> Bound:
        op, role = OPS[int(plan.op[i])], ROLES[int(plan.role[i])]
        tier = plan.tiers[role]
        away = tier != "hbm"
        match op:
            case "gemm":
                return Bound(self._gemm(name), "gpu")
            case "attend" | "decode":
                scattered = role == "cold"
                return self.transfers.attend_in_place() if away else Bound(self._attend(scattered=scattered), "gpu")
            case "scan":
                return self.filtering.scan(int(plan.stage[i]), int(plan.request[i]), away=away, resident=resident)
            case "filter":
                return self.filtering.exchange(name)
            case "read":
                return self.transfers.read(tier)
            case "migrate" if name.startswith("recall") or (away and name in FROM_TIER):
                return self.transfers.read(tier)
            case "ghostify" if name == "ghostify" and self.placement.ghostify != "gpu":
                return self.transfers.ghostify(tier)
            case "write" | "migrate" | "ghostify":
                return self.transfers.write(tier) if away else Bound(self._write, "gpu write")

    def _gemm(self, name: str) -> Maker:
        model = self.model
        shape = {
            "qkv": ((model.q_heads + 2 * model.kv_heads) * model.head_dim, model.hidden),
            "output": (model.hidden, model.q_heads * model.head_dim),
            "gate_up": (2 * model.intermediate, model.hidden),
            "down": (model.hidden, model.intermediate),
            "head": (model.vocabulary, model.hidden),
        }[name]
        job = cache(partial(self.gpu.gemm, self.batch, *shape, model.bytes_per_weight))
        return lambda row: job(row.nbytes)

    def _attend(self, *, scattered: bool) -> Maker:
        def make(row: Row) -> Job:
            if not row.nbytes:
                return self.gpu.multiply(row.flops)
            runs = row.runs if scattered else None
            return self.gpu.attention(self.model, self.batch, row.records, row.nbytes, row.flops, runs)

        return make

    def _write(self, row: Row) -> Job:
        return self.gpu.write(row.nbytes)
