"""How a prompt settles: its cold KV goes to its tier, and its index is made, before the request may decode.

By the GPU, records are a kernel of the prefill and cross to their tier; by a thread of the host or an engine near
memory, they are made behind it, of keys that have arrived. What moves is simulated as in decode, on an idle machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from ghostsim.config.model import Model
from ghostsim.config.scenario import Run
from ghostsim.devices.cxl_expander import CxlExpanderDevice
from ghostsim.devices.gpu_arch import gemm_params
from ghostsim.devices.host_cpu import HostCpuDevice
from ghostsim.engine.clock import PS_PER_S, PS_PER_US
from ghostsim.engine.probes import UtilisationProbe
from ghostsim.pipeline.binding import Binder
from ghostsim.pipeline.capacity import index_bytes, kept_tokens, stored_tokens, warm_tokens
from ghostsim.pipeline.decode import machine_of, own_use, placement_of
from ghostsim.pipeline.executor import Executor
from ghostsim.pipeline.measured import Bulk, Measured
from ghostsim.plan.plan import Op, Role, Work, build
from ghostsim.policy.build_costs import Arithmetic, anchor_arithmetic, index_arithmetic
from ghostsim.policy.cold import pins_of
from ghostsim.policy.costs import anchor_bytes, format_bytes, index_stages

_SMALL_SHARE = 4
"""Rate and latency of a transfer follow from a prompt and one of this part of it."""


@dataclass(frozen=True)
class Amount:
    """What settles of prompts, in all layers and KV heads together."""

    keys: int
    """Of which records are made."""
    warm_bytes: int
    cold_bytes: int
    archive_bytes: int
    """KV to its tiers; none where that is HBM."""
    index_bytes: int
    anchor_bytes: int
    """To HBM."""
    index: Arithmetic
    anchors: Arithmetic

    def __sub__(self, less: Amount) -> Amount:
        return Amount(**{each.name: getattr(self, each.name) - getattr(less, each.name) for each in fields(self)})

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV."""
        return self.warm_bytes + self.cold_bytes + self.archive_bytes

    def without_kv(self) -> Amount:
        """Return the index alone."""
        return replace(self, warm_bytes=0, cold_bytes=0, archive_bytes=0)


class Settling:
    """What prompts of a run leave to be moved and made, and how long that takes.

    Parameters
    ----------
    model
        What one GPU holds.
    requests
        Prompts of equal length that settle together.
    """

    def __init__(self, run: Run, model: Model, requests: int = 1) -> None:
        self.run, self.model, self.heads = run, model, requests * model.kv_heads
        self.placement = placement_of(run)
        self.stages = index_stages(run.policy, model.head_dim, model.kv_heads)
        self.layers = -(-model.layers // run.policy.layer_groups)
        place = self.placement
        self.tiers: dict[Role, str] = {
            "warm": place.warm_tier, "cold": place.kv_tier, "archive": place.archive, "index": place.index_tier,
        }  # fmt: skip
        self.by_gpu = self.placement.ghostify == "gpu"
        self.gpu = machine_of(run)[0].gpu
        self.amount = lru_cache(maxsize=None)(self._amount)

    def _amount(self, tokens: int) -> Amount:
        """Return what settles of the first `tokens` of a prompt: what is not hot, as far as it is stored."""
        policy, d, heads = self.run.policy, self.model.head_dim, self.layers * self.heads
        cold, archived = self._ages(tokens)
        fmt, stored = policy.keep[0].format, cold + archived
        warm = max((format_bytes(keep.format, d) for keep in policy.keep if keep.role == "warm"), default=0)
        sizes: dict[Role, int] = {
            "warm": warm_tokens(self.run, tokens) * warm,
            "cold": cold * format_bytes(fmt, d),
            "archive": archived * format_bytes(fmt, d),
        }
        return Amount(
            keys=heads * stored,
            **{f"{age}_bytes": heads * size if self.tiers[age] != "hbm" else 0 for age, size in sizes.items()},
            index_bytes=heads * index_bytes(self.stages, stored, cold if archived else stored),
            anchor_bytes=int(heads * stored * sum(anchor_bytes(keep.format, d) for keep in policy.keep)),
            index=index_arithmetic(policy, d, self.model.kv_heads, stored) * heads,
            anchors=anchor_arithmetic(fmt, d, stored) * heads,
        )

    def _ages(self, tokens: int) -> tuple[int, int]:
        """Return how many tokens of a KV head are cold, and how many archived, when a prompt of `tokens` is in."""
        policy = self.run.policy
        begin, end = pins_of(policy).cold(0, tokens, tokens)
        hot = tokens - (end - begin)
        stored = max(0, stored_tokens(policy, tokens) - hot)
        if policy.archive is None:
            return stored, 0
        young = max((kept_tokens(keep, tokens) for keep in policy.keep if keep.role != "archive"), default=0)
        cold = min(stored, max(0, young - hot))
        return cold, stored - cold

    def moved_bytes(self, amount: Amount) -> int:
        """Return the bytes that a transfer or another maker than the GPU has to move."""
        in_kernel = self.by_gpu and self.placement.index_tier == "hbm"
        return amount.kv_bytes + (0 if in_kernel else amount.index_bytes)

    def tier_bytes(self, amount: Amount) -> dict[str, dict[str, int]]:
        """Return the bytes by tier, all of the cause `migrate`."""
        found: dict[str, int] = {}
        for role, tier in (*self.tiers.items(), ("anchor", "hbm")):
            found[tier] = found.get(tier, 0) + int(getattr(amount, f"{role}_bytes"))
        return {tier: {"migrate": nbytes} for tier, nbytes in found.items() if nbytes}

    # --- time ---

    def kernel_ps(self, amount: Amount) -> float:
        """Return the GPU's time for its records and anchors: a roofline over HBM and the SMs, a launch per layer."""
        work = amount.anchors + (amount.index if self.by_gpu else Arithmetic())
        made = amount.anchor_bytes + (amount.index_bytes if self.by_gpu else 0)
        if not made:
            return 0.0
        gpu, params = self.gpu, gemm_params(self.gpu.part.architecture)
        read = amount.keys * self.model.head_dim * self.model.bytes_per_element * (2 if amount.anchor_bytes else 1)
        memory = (read + made) / (params.hbm_efficiency * gpu.spec.hbm_bytes_per_s)
        products = work.products / (params.flop_efficiency * gpu.spec.peak_flops)
        seconds = max(memory, products + work.others / (2 * gpu.part.vector_macs))
        return seconds * PS_PER_S + self.layers * params.launch_us * PS_PER_US

    def moved_ps(self, amount: Amount) -> Measured:
        """Simulate what moves, layer after layer; records that others than the GPU make follow their keys."""
        machine, env, network = machine_of(self.run)
        rows = self._rows(amount)
        if not rows:
            return Measured(0.0, {})
        plan = build(rows, self.tiers, 1, self.layers)
        bound = Binder(machine, self.model, self.placement, self.stages, 1).bind(plan)
        probe = UtilisationProbe(network)
        times = Executor(env, network, plan, bound).run()
        return Measured(max(float(times.finish.max()), self._engine_ps(amount)), own_use(self.run, network, probe))

    def bulk(self, tokens: int) -> Bulk | None:
        """Return what moves per byte of prompts of about `tokens`, nothing where nothing moves."""
        large = self.amount(tokens)
        nbytes = self.moved_bytes(large)
        if not nbytes:
            return None
        part = self.amount(max(1, tokens // _SMALL_SHARE))
        return Bulk.between(self.moved_ps(part), self.moved_bytes(part), self.moved_ps(large), nbytes)

    def _rows(self, amount: Amount) -> list[Work]:
        def row(name: str, op: Op, role: Role) -> Work:
            nbytes = int(getattr(amount, f"{role}_bytes"))
            return Work(
                name, op, role, record_bytes=nbytes // max(1, amount.keys), nbytes=nbytes // self.layers,
                records=amount.keys // self.layers, runs=self.heads, after=((name, 1),),
            )  # fmt: skip

        moves: tuple[tuple[str, Role], ...] = (("cool", "warm"), ("age", "cold"), ("archive", "archive"))
        rows = [row(name, "migrate", role) for name, role in moves if getattr(amount, f"{role}_bytes")]
        if self.moved_bytes(amount) > amount.kv_bytes:
            made = row("ghostify", "ghostify", "index")
            keys = () if self.by_gpu else tuple((each.name, 0) for each in rows if each.role != "warm")
            flops = 0 if self.by_gpu else amount.index.flops // self.layers
            rows.append(replace(made, flops=flops, after=(*made.after, *keys)))
        return rows

    def _engine_ps(self, amount: Amount) -> float:
        """Return what the filters near memory need for the arithmetic of the records that they make."""
        if self.placement.ghostify != "near":
            return 0.0
        devices = [device for _, device in machine_of(self.run)[0].stores(self.placement.index_tier)]
        filters = [device.part.filter for device in devices if isinstance(device, CxlExpanderDevice | HostCpuDevice)]
        macs = sum(each.macs for each in filters if each is not None)
        return amount.index.flops / 2 / macs * PS_PER_S if macs else 0.0


@dataclass(frozen=True)
class Settled:
    """How whole prompts settle on an idle machine, one thing after the other."""

    index_ps: float
    """Making the index, if the KV were where it goes."""
    all_ps: float
    """Moving the KV as well."""
    tier_bytes: Mapping[str, Mapping[str, int]]


def settled(run: Run, model: Model, tokens: int, batch: int) -> Settled:
    """Let `batch` prompts of `tokens` settle."""
    settling = Settling(run, model, batch)
    amount = settling.amount(tokens)
    kernel = settling.kernel_ps(amount)
    index = settling.moved_ps(amount.without_kv()).duration_ps
    return Settled(kernel + index, kernel + settling.moved_ps(amount).duration_ps, settling.tier_bytes(amount))
