"""The GPU: kernels on tensor cores, vector units and HBM, and its reads of other memories."""

from __future__ import annotations

from functools import lru_cache

from ghostsim.config.hardware import Gpu
from ghostsim.config.model import Model
from ghostsim.devices.dma_engine import DmaEngine
from ghostsim.devices.gpu_arch import attention_params, gemm_params, gpu_spec
from ghostsim.devices.hbm import Hbm
from ghostsim.devices.job import Job, Part
from ghostsim.devices.leg import Costs, Leg, join, rounded
from ghostsim.devices.sketch_filter import in_silicon
from ghostsim.engine.network import Network
from ghostsim.timing.gpu_kernels import (
    AttentionShape,
    GemmShape,
    GemmSplit,
    KernelSplit,
    attention_split,
    gemm_split,
)

_PS_PER_S = 1e12
_PERSISTING_SHARE = 0.75
"""Share of L2 that a program may set aside for data that stays (recalled: the limit of CUDA's access policies)."""
_BYTES_PER_SM = 32 * 1024
"""Reads that one SM keeps outstanding in HBM; only its ratio to other requesters' windows matters."""


class GpuDevice:
    """A GPU as resources (`NAME.tensor`, `.vector`, `.select`, `.read_window`, `.l2`), its HBM and its copy engines.

    `NAME.sms` is the time of the SMs: what tensor cores do for attention, the vector units of the same SMs cannot do
    for a scan.
    """

    def __init__(self, network: Network, name: str, part: Gpu) -> None:
        self.network, self.name, self.part = network, name, part
        self.hbm = Hbm(network, f"{name}.hbm", part.memory)
        self.dma = DmaEngine(network, name, part.copy_engines)
        self.tensor = network.resource(f"{name}.tensor", part.tensor)
        self.vector = network.resource(f"{name}.vector", part.vector_macs)
        self.sms = network.resource(f"{name}.sms", 1.0)
        self.l2 = network.resource(f"{name}.l2", part.l2_bandwidth) if part.l2_bandwidth else None
        self.select_unit = network.resource(f"{name}.select", part.select)
        self.window = network.resource(f"{name}.read_window", float(part.read_window))
        self.filter = in_silicon(network, name, part.filter, self.hbm.stream) if part.filter else None
        self.weight = float(part.sms * _BYTES_PER_SM)
        self.spec = gpu_spec(part)
        self.gemm_split = lru_cache(maxsize=256)(self._gemm_split)
        self.attention_split = lru_cache(maxsize=4096)(self._attention_split)

    def _gemm_split(self, shape: GemmShape) -> GemmSplit:
        return gemm_split(self.spec, gemm_params(self.part.architecture), shape)

    def _attention_split(self, shape: AttentionShape) -> KernelSplit:
        kernels = self.part.attention_kernels
        params = attention_params(self.part.architecture, kernels, shape.q_heads, shape.kv_heads)
        return attention_split(self.spec, params, shape)

    def gemm(self, m: int, n: int, k: int, bytes_per_weight: int, nbytes: int) -> Job:
        """Multiply activations [m, k] by weights [k, n]: a roofline over HBM and tensor cores."""
        split = self.gemm_split(GemmShape(m, n, k, bytes_per_weight))
        flops_per_byte = 2 * m * n * k / nbytes
        arithmetic = (self.tensor, flops_per_byte * self.part.tensor / split.flops_per_s)
        sms = (self.sms, flops_per_byte / split.flops_per_s)
        route = (*self.hbm.kernel(split.bytes_per_s).costs, arithmetic, sms)
        return Job(split.fixed_ps, (Part(self.network.flow_class(route, self.weight), nbytes),))

    def attention(self, model: Model, batch: int, tokens: int, nbytes: int, flops: int, runs: int | None = None) -> Job:
        """Attend over `nbytes` of `tokens` (summed over requests and KV heads) that lie in HBM.

        With `runs` they lie scattered in so many pieces. A format other than the model's own is dequantised on
        the vector units.
        """
        token_bytes = nbytes / max(1, tokens)
        width = round(token_bytes / (2 * model.head_dim), 3)
        kv_len = rounded(tokens / (batch * model.kv_heads))
        shape = AttentionShape(model.q_heads, model.kv_heads, model.head_dim, width, batch, kv_len)
        split = self.attention_split(shape)
        leg = self.hbm.kernel(split.bytes_per_s)
        if runs is not None:
            leg = self.hbm.scattered(split.bytes_per_s, rounded(nbytes / max(1, runs)), rounded(runs))
        route = [*leg.costs, (self.tensor, flops / nbytes), (self.sms, flops / nbytes / self.part.tensor)]
        if token_bytes != model.kv_bytes:
            route += self._vector_work(2 * model.head_dim / token_bytes)
        return Job(split.fixed_ps, (Part(self.network.flow_class(route, self.weight), nbytes),))

    def _vector_work(self, macs_per_byte: float) -> Costs:
        return ((self.vector, macs_per_byte), (self.sms, macs_per_byte / self.part.vector_macs))

    def multiply(self, flops: int) -> Job:
        """Do arithmetic on data that is already on the chip."""
        return Job(self.part.launch, (Part(self.network.flow_class(((self.tensor, 1.0),), self.weight), flops),))

    def keeps(self, index_bytes: int) -> bool:
        """Tell whether an index of all layers and requests can be set aside in L2 while a step streams the rest."""
        return self.l2 is not None and index_bytes <= _PERSISTING_SHARE * self.part.l2

    def scan(self, nbytes: int, macs: int, *, resident: bool = False) -> Job:
        """Score an index that lies in HBM, or that L2 keeps."""
        source = ((self.l2, 1.0),) if resident and self.l2 else self.hbm.stream().costs
        route = (*source, *self._vector_work(macs / nbytes))
        return Job(self.part.launch, (Part(self.network.flow_class(route, self.weight), nbytes),))

    def select(self, scores: int) -> Job:
        """Find the threshold in a histogram of the scores and compact what survives."""
        flow_class = self.network.flow_class(((self.select_unit, 1.0),), self.weight)
        return Job(self.part.launch, (Part(flow_class, scores),))

    def write(self, nbytes: int) -> Job:
        """Write results of a kernel to HBM, fused into that kernel."""
        leg = self.hbm.stream(write=True)
        return Job(0, (Part(self.network.flow_class(leg.costs, self.weight, writes=leg.writes), nbytes),))

    def pass_on(self, piece_bytes: float, units: int, *, write: bool = False) -> Leg:  # noqa: ARG002  (one signature)
        """Return the cost of a query to the base dies, or of what they found on the way back."""
        return self.hbm.command()

    def score(self, source: Leg, macs_per_byte: float) -> Leg:
        """Extend a route from another memory by the scoring of the index records that arrive."""
        return join([source, self.hbm.stream().bulk, Leg(self._vector_work(macs_per_byte))])

    def copy_in(self, source: Leg, fragment_bytes: float, waits_ps: int | None = None) -> tuple[Leg, float]:
        """Extend a route from another memory by the copy engines and the write to HBM; return it with its weight.

        An engine waits for its reads as long as the route's latency, or `waits_ps` where others do the rest.
        """
        engine = self.dma.move(fragment_bytes, source.latency_ps if waits_ps is None else waits_ps)
        return join([source, engine, self.hbm.stream(write=True).bulk]), float(self.part.copy_engines.window)

    def receive(self, source: Leg) -> Leg:
        """Extend a route by the write to HBM: what a device that masters the bus itself (an NVMe drive) sends."""
        return join([source, self.hbm.stream(write=True).bulk])

    def send(self, target: Leg) -> Leg:
        """Extend a route by the read from HBM: what a device that masters the bus itself (an NVMe drive) takes."""
        return join([self.hbm.stream().bulk, target])

    def read_in_place(self, source: Leg) -> tuple[Leg, float]:
        """Extend a route from another memory by the SMs' window of outstanding reads; return it with its weight."""
        waiting = Leg(((self.window, source.latency_ps / _PS_PER_S),), self.part.launch)
        return join([source, waiting]), float(self.part.read_window)

    def copy_out(self, target: Leg, fragment_bytes: float) -> tuple[Leg, float]:
        """Extend a route to another memory by the copy engines and the read from HBM; return it with its weight."""
        engine = self.dma.move(fragment_bytes, target.latency_ps)
        return join([self.hbm.stream().bulk, engine, target]), float(self.part.copy_engines.window)
