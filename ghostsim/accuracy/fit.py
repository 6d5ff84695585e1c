"""Fits every constant that is fitted to the bundled reference tables: above all those of ``hwmodels/gpu/arch``.

``make fit`` rewrites the files and prints the fits of what other modules hold as constants. The fit is deterministic: a
damped Gauss-Newton search over bounded constants from fixed starts, robust against single bad rows, with a weak pull
towards typical values that keeps constants the rows cannot tell apart from running to their bounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from ghostsim import bundled
from ghostsim.accuracy.kernels import attention_shape, family, gemm_shape, gpu, mram_cycles
from ghostsim.accuracy.predict import SCHEMAS
from ghostsim.accuracy.table import Measurement, read
from ghostsim.devices.gpu_arch import gpu_spec
from ghostsim.seeding import generator
from ghostsim.timing.gpu_kernels import AttentionParams, GemmParams, SplitRule, decode_attention_us, gemm_us
from ghostsim.timing.loaded import LatencyShape, latency_ns
from ghostsim.timing.upmem import UPMEM_350MHZ

Vector = npt.NDArray[np.float64]
Model = Callable[[Vector], Vector]
Whole = tuple[int, SplitRule, int]

_ROBUST = 0.06
"""Relative error from which a row counts linearly instead of quadratically."""
_STARTS = 4
_STEPS = 60
_EDGE = 1e-3
_WHOLE: Mapping[tuple[str, str], Whole] = {
    ("sm_80", "vllm"): (2, "occupancy", 128),
    ("sm_80", "sglang"): (1, "one_wave", 128),
    ("sm_90", "vllm"): (1, "occupancy", 128),
    ("sm_90", "sglang"): (1, "occupancy", 128),
    ("sm_90", "trtllm_bf16"): (2, "occupancy", 128),
    ("sm_90", "trtllm_bf16_mha"): (2, "occupancy", 128),
    ("sm_90", "trtllm_fp8"): (2, "occupancy", 128),
    ("sm_90", "trtllm_fp8_mha"): (2, "occupancy", 128),
    ("sm_100", "vllm"): (2, "occupancy", 16),
    ("sm_100", "trtllm_bf16"): (2, "occupancy", 16),
    ("sm_100", "trtllm_fp8"): (2, "occupancy", 16),
}
"""What is not fitted but found by trial: 1 or 2 work items per SM, the rule of splits, at most 16 or 128 of them."""
_BORROWED: Mapping[str, str] = {"sm_89": "sm_80", "gfx942": "sm_90"}
"""Architectures without a measured table, and whose constants they take."""
_LIKE = {
    "sm_80": {"trtllm_bf16": "vllm", "trtllm_fp8": "vllm"},
    "sm_90": {},
    "sm_100": {"sglang": "vllm"},
}
"""Families without usable rows on an architecture take the constants of another one."""


@dataclass(frozen=True)
class Bounds:
    """Lowest, highest and typical values of the fitted constants, in the order of the dataclass."""

    low: Vector
    high: Vector
    typical: Vector
    ridge: float


def _bounds(rows: Sequence[tuple[float, float, float]], ridge: float) -> Bounds:
    low, high, typical = np.array(rows, dtype=np.float64).T
    return Bounds(low, high, typical, ridge)


_ATTENTION = _bounds(
    [
        *((1, 30, 8), (0, 4, 1), (0, 20, 8), (0, 10, 1), (0, 20, 1), (0, 30, 6)),
        *((0.4, 1, 0.9), (4e9, 400e9, 60e9), (0.25, 1.6, 0.9)),
    ],
    0.003,
)
_SYSTEM = _bounds([(0, 1, 0.2), (0, 1, 0.05), (0.1, 3, 0.8), (0, 5, 1.5), (2, 12, 6)], 0.001)
_DMA = _bounds([(20, 120, 60), (20, 120, 60), (10, 80, 40), (0.4, 0.8, 0.55)], 1e-4)
_GEMM = _bounds([(0, 20, 4), (0.4, 1.05, 0.85), (0.4, 1.1, 0.8), (0, 1, 0.3), (0, 1, 0.1)], 0.001)


def _search(model: Model, values: Vector, bounds: Bounds, path: str) -> Vector:
    """Return the constants with the least robust relative error over all starts."""
    random = generator(0, path)
    starts = [bounds.typical]
    width = bounds.high - bounds.low
    starts += [bounds.low + width * random.uniform(0.1, 0.9, len(width)) for _ in range(_STARTS - 1)]
    return min((_descend(model, values, bounds, start) for start in starts), key=lambda found: found[1])[0]


def _descend(model: Model, values: Vector, bounds: Bounds, start: Vector) -> tuple[Vector, float]:
    """Run damped Gauss-Newton steps on logit-scaled constants; return them with their cost."""
    width = bounds.high - bounds.low

    def scaled(constants: Vector) -> Vector:
        share = (constants - bounds.low) / width
        return np.log((share + _EDGE) / (1 - share + _EDGE))

    def constants(u: Vector) -> Vector:
        return bounds.low + width * np.clip((1 + 2 * _EDGE) / (1 + np.exp(-u)) - _EDGE, 1e-9, 1 - 1e-9)

    def residuals(u: Vector) -> Vector:
        return model(constants(u)) / values - 1

    def cost(u: Vector, r: Vector) -> float:
        return float(np.sum(np.hypot(_ROBUST, r) - _ROBUST) + bounds.ridge * np.sum((u - pull) ** 2))

    pull, u, damping = scaled(bounds.typical), scaled(start), 1e-2
    r = residuals(u)
    best = cost(u, r)
    for _ in range(_STEPS):
        step = _normal_equations(residuals, u, r, pull, bounds.ridge)
        for _ in range(8):
            trial = np.clip(u + step(damping), -7, 7)
            trial_r = residuals(trial)
            if (trial_cost := cost(trial, trial_r)) < best:
                break
            damping *= 4
        else:
            break
        gain, u, r, best, damping = best - trial_cost, trial, trial_r, trial_cost, max(damping / 3, 1e-8)
        if gain < 1e-7:
            break
    return constants(u), best


def _normal_equations(residuals: Model, u: Vector, r: Vector, pull: Vector, ridge: float) -> Callable[[float], Vector]:
    """Return the Gauss-Newton step as a function of the damping."""
    nudges = 1e-4 * np.eye(len(u))
    jacobian = np.stack([(residuals(u + nudge) - r) / 1e-4 for nudge in nudges], axis=1)
    weighted = jacobian / np.hypot(_ROBUST, r)[:, None]
    matrix = jacobian.T @ weighted + 2 * ridge * np.eye(len(u))
    gradient = weighted.T @ r + 2 * ridge * (u - pull)
    diagonal = np.diag(np.diag(matrix) + 1e-6)
    return lambda damping: np.clip(-np.linalg.solve(matrix + damping * diagonal, gradient), -1.5, 1.5)


@dataclass(frozen=True)
class Fitted:
    """Fitted constants with their errors, median and 90th percentile as fractions.

    `held_out`: on the half of the rows that the constants were not fitted to. `left_out`: on each value of a condition
    (head counts, or n and k) by constants fitted without it; none if the rows have one value.
    """

    constants: Vector
    rows: int
    fit: tuple[float, float]
    held_out: tuple[float, float]
    left_out: tuple[float, float] | None


Build = Callable[[Sequence[Measurement]], Model]
_HEADS, _WEIGHTS = ("q_heads", "kv_heads"), ("n", "k")
_LEFT_OUT = {
    "gpu_decode_attention": "head counts",
    "gpu_gemm": "n x k",
    "memory_system_latency": "machines",
    "upmem_mram_dma": "transfer sizes",
}
"""Conditions whose values are left out in turn: rows of a new table are as likely to have others."""


def _fit(rows: Sequence[Measurement], build: Build, bounds: Bounds, path: str, left_out: Sequence[str]) -> Fitted:
    def solve(part: Sequence[Measurement]) -> Vector:
        return _search(build(part), _values(part), bounds, path)

    def errors(constants: Vector, part: Sequence[Measurement]) -> Vector:
        return np.abs(build(part)(constants) / _values(part) - 1)

    constants = _rounded(solve(rows))

    def unseen(blocks: Sequence[Sequence[Measurement]]) -> tuple[float, float]:
        """Predict each block from the others."""
        others = [[row for other in blocks if other is not block for row in other] for block in blocks]
        pairs = zip(others, blocks, strict=True)
        return _quantiles(np.concatenate([errors(solve(other), block) for other, block in pairs]))

    shuffled = [rows[i] for i in generator(0, path + "/halves").permutation(len(rows))]
    blocks = _blocks(rows, left_out)
    return Fitted(
        constants,
        len(rows),
        _quantiles(errors(constants, rows)),
        unseen([shuffled[::2], shuffled[1::2]]),
        unseen(blocks) if len(blocks) > 1 else None,
    )


def _blocks(rows: Sequence[Measurement], columns: Sequence[str]) -> list[list[Measurement]]:
    """Group rows that agree in `columns`."""
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for row in rows:
        groups.setdefault(tuple(row.row[name] for name in columns), []).append(row)
    return list(groups.values())


def _values(rows: Sequence[Measurement]) -> Vector:
    return np.array([row.value for row in rows])


def _rounded(constants: Vector) -> Vector:
    return np.array([float(f"{value:.3g}") for value in constants])


def _quantiles(errors: Vector) -> tuple[float, float]:
    return float(np.quantile(errors, 0.5)), float(np.quantile(errors, 0.9))


def _attention_params(constants: Vector, whole: Whole) -> AttentionParams:
    names = [field.name for field in fields(AttentionParams)]
    slots, rule, splits = whole
    fitted = dict(zip(names[:-3], (float(value) for value in constants), strict=True))
    return AttentionParams(**fitted, slots_per_sm=slots, split_rule=rule, max_splits=splits)


def _attention_model(whole: Whole) -> Build:
    """Return the attention model with the constants `whole` that are not fitted."""

    def build(rows: Sequence[Measurement]) -> Model:
        shapes = [(gpu_spec(gpu(row.part)), attention_shape(row.row)) for row in rows]
        return lambda x: np.array(
            [decode_attention_us(part, _attention_params(x, whole), shape) for part, shape in shapes]
        )

    return build


def _gemm_model(rows: Sequence[Measurement]) -> Model:
    shapes = [(gpu_spec(gpu(row.part)), gemm_shape(row.row)) for row in rows]
    return lambda x: np.array([gemm_us(part, GemmParams(*x), shape) for part, shape in shapes])


def _by_family(rows: Sequence[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    """Group attention rows by architecture and family; one query head per KV head is a kernel of its own if fitted."""
    groups: dict[tuple[str, str], list[Measurement]] = {key: [] for key in _WHOLE}
    for row in rows:
        arch, name = gpu(row.part).architecture.name, family(row.row)
        own = (arch, f"{name}_mha")
        groups[own if own in groups and row.row["q_heads"] == row.row["kv_heads"] else (arch, name)].append(row)
    return groups


def fit_attention(rows: Sequence[Measurement]) -> dict[tuple[str, str], Fitted]:
    """Fit every attention family; the kernels of few rows are pulled towards their sibling's constants."""
    found: dict[tuple[str, str], Fitted] = {}
    for key, group in _by_family(rows).items():
        bounds, (arch, name) = _ATTENTION, key
        if name.endswith("_mha"):
            sibling = found[arch, name.removesuffix("_mha")].constants
            bounds = Bounds(bounds.low, bounds.high, np.clip(sibling, bounds.low, bounds.high), 0.01)
        found[key] = _fit(group, _attention_model(_WHOLE[key]), bounds, f"attention/{arch}/{name}", _HEADS)
    return found


def fit_gemm(rows: Sequence[Measurement]) -> dict[str, Fitted]:
    """Fit the GEMM of every architecture."""
    groups: dict[str, list[Measurement]] = {}
    for row in rows:
        groups.setdefault(gpu(row.part).architecture.name, []).append(row)
    return {arch: _fit(group, _gemm_model, _GEMM, f"gemm/{arch}", _WEIGHTS) for arch, group in groups.items()}


def fit_system_latency(rows: Sequence[Measurement]) -> Fitted:
    """Fit the loaded latency of memory systems, leaving out each machine in turn."""
    return _fit(rows, _system_model, _SYSTEM, "memory_system_latency", ("part",))


def fit_dma(rows: Sequence[Measurement]) -> Fitted:
    """Fit the MRAM DMA of UPMEM DPUs, leaving out each transfer size in turn."""
    return _fit(rows, _dma_model, _DMA, "upmem_mram_dma", ("transfer_bytes",))


def _system_model(rows: Sequence[Measurement]) -> Model:
    columns = ("idle_ns", "load_GBps", "max_GBps", "read_fraction")
    points = [[float(row.row[name]) for name in columns] for row in rows]
    return lambda x: np.array(
        [latency_ns(idle, load / most, reads, LatencyShape(*x)) for idle, load, most, reads in points]
    )


def _dma_model(rows: Sequence[Measurement]) -> Model:
    def predict(x: Vector) -> Vector:
        read, write, engine, per_byte = (float(value) for value in x)
        spec = replace(
            UPMEM_350MHZ,
            read_setup_cycles=read,
            write_setup_cycles=write,
            engine_setup_cycles=engine,
            engine_cycles_per_byte=per_byte,
        )
        return np.array([mram_cycles(row.row, spec) for row in rows])

    return predict


def _block_lines(name: str, params: AttentionParams | GemmParams, source: str, confidence: str) -> list[str]:
    values = dict(zip((field.name for field in fields(params)), astuple(params), strict=True))
    lines = [f"  {name}:"]
    for key, value in values.items():
        lines.append(f"    {_entry(key, value)}")
    return [*lines, f'    source: "{source}"', f"    confidence: {confidence}"]


def _entry(name: str, value: float | str) -> str:
    """Return a constant as the catalogue writes it, with its unit."""
    if isinstance(value, str):
        return f"{name}: {value}"
    if name.endswith("_us"):
        return f'{name.removesuffix("_us")}: "{value:g} us"'
    return f'l2_bandwidth_per_sm: "{value / 1e9:g} GB/s"' if name == "l2_bytes_per_s_per_sm" else f"{name}: {value:g}"


def source(fitted: Fitted, table: str) -> str:
    """Return what a part says about its fitted constants: rows, and errors on those and on held-out ones."""
    text = (
        f"fitted by ghostsim.accuracy.fit on {fitted.rows} rows of hwmodels/reference/{table}; "
        f"median / p90 error {_shares(fitted.fit)}, on the half not fitted to {_shares(fitted.held_out)}"
    )
    what = _LEFT_OUT[table.removesuffix(".csv")]
    return text if fitted.left_out is None else f"{text}, on {what} not fitted to {_shares(fitted.left_out)}"


def _shares(pair: tuple[float, float]) -> str:
    return "{:.1f} / {:.1f} %".format(*(100 * share for share in pair))


def arch_text(
    arch: str, attention: Mapping[tuple[str, str], Fitted], gemm: Mapping[str, Fitted], like: str | None = None
) -> str:
    """Return the YAML file of architecture `arch`; with `like` it takes the constants of another one."""
    owner = like or arch
    borrowed = f"no measured table; the constants of {like}" if like else None
    lines = ["schema: 1", "kind: gpu_arch", f"name: {arch}", f"summary: kernel constants of {arch}", "attention:"]
    params = {
        name: (_attention_params(fitted.constants, _WHOLE[key, name]), fitted)
        for (key, name), fitted in attention.items()
        if key == owner
    }
    for name, (constants, fitted) in params.items():
        text, confidence = borrowed or source(fitted, "gpu_decode_attention.csv"), "assumed" if like else "derived"
        lines += _block_lines(name, constants, text, confidence)
    for name, other in _LIKE[owner].items():
        lines += _block_lines(
            name, params[other][0], borrowed or f"no usable rows; the constants of {other}", "assumed"
        )
    text, confidence = borrowed or source(gemm[owner], "gpu_gemm.csv"), "assumed" if like else "derived"
    return (
        "\n".join([*lines, "gemm:", *_block_lines("dense", GemmParams(*gemm[owner].constants), text, confidence)])
        + "\n"
    )


def main() -> None:
    """Fit and rewrite the files."""
    folder = bundled.folder("hwmodels") / "reference"
    attention = fit_attention(read(folder / "gpu_decode_attention.csv", SCHEMAS))
    gemm = fit_gemm(read(folder / "gpu_gemm.csv", SCHEMAS))
    for arch, like in [*((arch, None) for arch in gemm), *_BORROWED.items()]:
        path = bundled.folder("hwmodels") / "gpu" / "arch" / f"{arch}.yaml"
        path.write_text(arch_text(arch, attention, gemm, like), encoding="utf-8")
        sys.stderr.write(f"{path}\n")
    for probe, solve in (("memory_system_latency", fit_system_latency), ("upmem_mram_dma", fit_dma)):
        found = solve(read(folder / f"{probe}.csv", SCHEMAS))
        sys.stderr.write(f"{probe}: {found.constants.tolist()}; {source(found, probe)}\n")


if __name__ == "__main__":
    main()
