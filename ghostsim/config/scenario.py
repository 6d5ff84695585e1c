"""A scenario: one model, one platform, one workload, and the runs that are compared on them."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ghostsim.config.base import Count, MisfitError, Strict, Text, Whole
from ghostsim.config.hardware import TIERS, Platform, Tier
from ghostsim.config.model import Model
from ghostsim.config.policy import Policy
from ghostsim.config.rules import NoneRule
from ghostsim.config.serving import Serving, TensorParallel

Site = Literal["gpu", "hbm", "dram", "cxl", "pim", "ssd", "cpu", "none"]
Label = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
REQUIREMENT = re.compile(
    r"^\s*([A-Za-z0-9_.\-]+)\s*(<=|>=|==|<|>)\s*([+-]?[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]{1,2})?)\s*$"
)

FIGURES = (
    "batch", "tokens_per_s",
    *(f"step_ms.{name}" for name in ("mean", "p50", "p95", "p99", "max", "n")),
    *(f"critical_path_ms.{name}" for name in ("gemm", "attend_hot", "attend_survivors", "scan", "select",
                                              "fetch_queue", "fetch_service", "migrate", "launch", "other")),
    *(f"quality.{name}" for name in ("elimination_rate", "resurrection_rate", "false_elimination_rate",
                                     "false_resurrection_rate", "violations", "certified_mass.mean",
                                     "certified_mass.max")),
    *(f"quality.{name}.{part}" for name in ("lost_mass", "output_error") for part in ("mean", "p99", "max")),
    *(f"viability.corrected.{name}_us" for name in ("scan", "latency", "fetch", "left", "right")),
    *(f"viability.published.{name}_us" for name in ("left", "right")), "viability.simulated.exposed_us",
    *(f"prefill.{name}" for name in ("index_ms", "settle_ms")),
    *(f"lifecycle.{name}" for name in ("behind_steps", "behind_steps_max", "stalled_ms")),
    *(f"prefetch.{name}" for name in ("hit_rate", "waste_rate", "tokens", "hits", "misses", "waste", "late_rate",
                                      "late_ms")),
)  # fmt: skip
"""Numbers that metrics.json holds of every run, by their paths."""
SERVING = (
    *("requests", "completed", "rejected", "preemptions", "duration_s", "requests_per_s", "output_tokens_per_s"),
    *("goodput_per_s", "slo_share", "in_system_mean", "waiting_mean", "busy_share", "iterations"),
    *("prompt_tokens", "prefilled_tokens", "decoded_tokens", "step_surface.max_error"),
    *(
        f"{name}.{part}"
        for name in ("ttft_ms", "settle_ms", "tpot_ms", "e2e_ms")
        for part in ("mean", "p50", "p95", "p99", "max")
    ),
)
"""Numbers that metrics.json holds of every run that serves requests, below `serving`."""
TABLES = ("bytes_per_step", "read_amplification", "utilisation", "waits_ms", "energy_mj_per_token", "capacity_bytes")
"""Tables that metrics.json holds of every run; their keys depend on the platform."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class Workload(Strict):
    """What is decoded: recorded attention, composed to `context` tokens, for `batch` requests."""

    trace: Annotated[tuple[Text, ...], BeforeValidator(_as_tuple), Field(min_length=1)]
    """Trace names or folders; request r takes entry r mod n."""
    context: Count | None = None
    """Tokens in the cache before step 0; none takes the recorded trace as it is."""
    batch: Count | Literal["fits"] = 1
    """Requests decoded together; `fits` takes the largest batch whose KV and weights fit their tiers."""
    steps: Count | None = None
    """Decode steps; none takes all that were recorded."""
    distinct: Count | None = None
    """Requests that are composed and evaluated; request r of the batch reads as request r mod n of them does, and all
    batches share their evaluation. None: every request has a context of its own."""
    shape: Literal["model", "trace"] = "model"
    """`trace` charges bytes at the trace's own head shape when it differs from the model's."""


_INDEX_TIERS: dict[str, tuple[str, ...]] = {
    "gpu": ("hbm",), "cpu": ("dram",), "none": tuple(tier for tier in TIERS if tier != "hbm"),
}  # fmt: skip
"""Where the index of a filter lies; of those not named here, in the tier of that name."""


class Prefetch(Strict):
    """Survivors brought before they are asked for, as a foretold query would choose them."""

    by: Literal["last_query", "linear", "layer_ahead", "oracle"] = "last_query"
    """The query of some steps ago; that query and the change before it; the layer before (its `q_ahead`, one layer
    ahead); or the query itself, the limit of any predictor."""
    ahead: Annotated[Count, Field(le=8)] = 1
    """Steps from the prediction to its use; `layer_ahead` predicts one layer ahead whatever this says."""
    tokens: Count
    """Tokens that the buffer in HBM holds for one request, layer and KV head."""


class Ghostify(Strict):
    """Who makes the index record of a token that leaves the hot set."""

    by: Literal["cpu", "near"]
    """A thread of the host, or an engine beside the memory that holds both key and index."""
    behind: Annotated[Count, Field(le=4096)] = 64
    """Steps that records may lag behind; a decode that would be further ahead waits. Until its record is made a token
    stays hot."""


class Run(Strict):
    """One policy, placed on one platform."""

    policy: Policy
    model: Model
    platform: Platform
    workload: Workload
    serving: Serving | None = None
    tensor_parallel: TensorParallel | None = None
    """GPUs that share every layer; figures of bytes and capacity are those of one of them."""
    kv_tier: Tier = "hbm"
    """Where KV outside the pins lives."""
    archive_tier: Tier | None = None
    """Where tokens that the policy archives live; none takes `kv_tier`."""
    warm_tier: Tier = "hbm"
    """Where pinned tokens live that the policy keeps with role warm; outside HBM they come at every step."""
    index_tier: Tier = "hbm"
    """Where the index that the policy scans lives."""
    filter: Site = "gpu"
    """What scans the index, if the policy has one; with `none` its records cross to the GPU, which scores them."""
    fetch: Literal["dma", "zero_copy", "staged", "cpu"] = "dma"
    """How survivors are attended: brought into HBM from device to device (by copy engines; a drive sends by itself),
    read in place by the SMs, copied by cores into a buffer in host memory first (what a drive sends lands there
    before), or left where they lie and attended by the host's cores, which send partial results."""
    chunks: Annotated[Count, Field(le=256)] = 1
    """Pieces in which a filter near memory hands over the survivors of one request."""
    result: Literal["ids", "bitmap", "histogram"] = "bitmap"
    """What a filter near memory returns: 4 bytes per survivor, or one bit per scanned record; with `histogram` first
    a histogram of the scores per query head, and ids in a second pass, when the GPU has set the threshold."""
    ghostify: Ghostify | None = None
    """Who makes the index records of tokens that turn cold; none: the GPU, as it writes them."""
    prefetch: Prefetch | None = None
    """Whether survivors are foretold and fetched ahead into a buffer in HBM."""

    @model_validator(mode="after")
    def _something_to_ghostify(self) -> Run:
        if self.ghostify is None:
            return self
        if not self.policy.read.scored:
            raise MisfitError(f"found ghostify for policy {self.policy.name}, expected one with an index", "ghostify")
        if self.ghostify.by == "near" and (self.index_tier == "hbm" or self.index_tier != self.kv_tier):
            message = f"found ghostify near memory with KV in {self.kv_tier} and the index in {self.index_tier}"
            raise MisfitError(f"{message}, expected both in one tier other than hbm", "ghostify", "by")
        return self

    @model_validator(mode="after")
    def _something_to_prefetch(self) -> Run:
        read = self.policy.read
        if self.prefetch is None or (read.scored and self.kv_tier != "hbm" and read.cache is None):
            return self
        raise MisfitError(
            f"found prefetch for policy {self.policy.name} with KV in {self.kv_tier}, "
            "expected a policy that selects by score, without a cache, and kv_tier other than hbm",
            "prefetch",
        )

    @model_validator(mode="after")
    def _anchors_are_at_hand(self) -> Run:
        if self.fetch == "cpu" and any(keep.format.anchored for keep in self.policy.keep):
            message = f"found fetch cpu for {self.policy.name}, whose anchors are in HBM"
            raise MisfitError(f"{message}, expected dma, staged or zero_copy", "fetch")
        return self

    @model_validator(mode="after")
    def _archive_has_tokens(self) -> Run:
        if self.archive_tier is not None and self.policy.archive is None:
            message = f"found archive_tier for {self.policy.name}, expected a policy with role: archive in a keep"
            raise MisfitError(message, "archive_tier")
        return self

    @model_validator(mode="after")
    def _warm_tier_has_pinned_tokens(self) -> Run:
        if self.warm_tier == "hbm":
            return self
        if self.fetch == "cpu":
            message = f"found warm_tier {self.warm_tier} with fetch cpu, expected dma, zero_copy or staged"
            raise MisfitError(message, "warm_tier")
        warm, pin = [keep.select for keep in self.policy.keep if keep.role == "warm"], self.policy.read.pin
        pinned = all(
            isinstance(select.rule, NoneRule) and select.pin.sinks <= pin.sinks and select.pin.window <= pin.window
            for select in warm
        )
        if warm and pinned:
            return self
        raise MisfitError(
            f"found warm_tier for {self.policy.name}, expected a policy with role: warm in a keep of rule: none, "
            "whose pins are among those of read",
            "warm_tier",
        )

    @model_validator(mode="after")
    def _filter_sits_at_the_index(self) -> Run:
        if not self.policy.read.scored:
            return self
        tiers = _INDEX_TIERS.get(self.filter, (self.filter,))
        if self.index_tier not in tiers:
            raise MisfitError(
                f"found filter {self.filter} for an index in {self.index_tier}, "
                f"expected index_tier: {' or '.join(tiers)} for that filter",
                "filter",
            )
        return self


class Scenario(Strict):
    """What one `ghostsim run` does."""

    schema_: Literal[1] = Field(1, alias="schema")
    name: Label
    summary: Text = "scenario"
    seed: Whole = 1
    model: Model
    platform: Platform
    workload: Workload
    serving: Serving | None = None
    baseline: tuple[Label, ...] = ()
    runs: Annotated[dict[Label, Run], Field(min_length=1)]
    require: tuple[Text, ...] = ()

    @model_validator(mode="after")
    def _names_exist(self) -> Scenario:
        for index, label in enumerate(self.baseline):
            if label in self.baseline[:index]:
                raise MisfitError(f"found {label!r} again, expected each baseline once", "baseline", index)
            if label not in self.runs:
                message = f"found {label!r}, expected one of the runs {', '.join(self.runs)}"
                raise MisfitError(message, "baseline", index)
        for index, bound in enumerate(self.require):
            _check_requirement(bound, index, tuple(self.runs))
        return self


def _check_requirement(bound: str, index: int, labels: tuple[str, ...]) -> None:
    found = REQUIREMENT.match(bound)
    if found is None:
        raise MisfitError(
            f"found {bound!r}, expected PATH OP NUMBER, e.g. 'ghostkv_cxl.quality.lost_mass.max <= 0.01'",
            "require",
            index,
        )
    label, _, figure = found[1].partition(".")
    if label not in labels:
        raise MisfitError(f"found {bound!r}, expected it to start with a run: {', '.join(labels)}", "require", index)
    known = (*FIGURES, *(f"serving.{name}" for name in SERVING))
    if figure not in known and not (figure.partition(".")[0] in TABLES and figure.partition(".")[2]):
        close = difflib.get_close_matches(figure, known, 1, 0.5) or ["quality.lost_mass.max"]
        message = f"found {found[1]!r}, which is no number of metrics.json, expected one, e.g. '{label}.{close[0]}'"
        raise MisfitError(message, "require", index)
