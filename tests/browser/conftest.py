"""A run folder with nine runs on five tiers, invented but consistent: what the report must cope with."""

import csv
import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from browsing import browser, visited

from ghostsim.export.timeline import Counter, Slice, write_timeline

STEPS = 12
CAUSES = (
    "gemm attend_hot attend_survivors scan select fetch_queue fetch_service migrate launch other".split()  # noqa: SIM905
)
# label: policy, batch, step ms, KV tier, KV GB, index tier, index GB, lost max, violations, certified max
RUNS = {
    "full_fits": ("full", 3, 22.0, "hbm", 51.5, None, 0.0, 0.0, None, None),
    "full_offload": ("full", 8, 2500.0, "dram", 137.4, None, 0.0, 0.0, None, None),
    "int4": ("int4", 8, 19.0, "hbm", 36.5, None, 0.0, 0.0, None, None),
    "quest": ("quest", 8, 180.0, "dram", 4.3, "hbm", 8.6, 0.97, 0, None),
    "ghostkv_gpu": ("ghostkv", 8, 1100.0, "dram", 44.0, "hbm", 17.2, 0.0041, 0, 0.0099),
    "ghostkv_cxl": ("ghostkv", 8, 1390.0, "cxl", 44.0, "cxl", 17.2, 0.0041, 0, 0.0099),
    "ghostkv_pim": ("ghostkv", 8, 1300.0, "dram", 44.0, "pim", 17.2, 0.0041, 0, 0.0099),
    "ghostkv_published": ("ghostkv_published", 8, 1500.0, "cxl", 61.0, "cxl", 12.9, 0.93, 123456, None),
    "ghostkv_sketch": ("ghostkv_sketch", 8, 1510.0, "cxl", 62.0, "cxl", 12.9, 0.0002, 0, 0.0098),
}
LINKS = {
    "pcie0": ("gpu0", "host0", 16, "32 GT/s"),
    "cxl0": ("host0", "switch0", 16, "64 GT/s"),
    "cxl1": ("switch0", "cxl_exp0", 8, "64 GT/s"),
    "cxl2": ("switch0", "cxl_exp1", 8, "64 GT/s"),
    "ddr_pim0": ("host0", "upmem0", 64, "9.6 GT/s"),
    "nvme0": ("host0", "ssd0", 4, "16 GT/s"),
}
DEVICES = {
    "gpu0": "gpu",
    "host0": "host_cpu",
    "switch0": "switch",
    "cxl_exp0": "cxl_expander",
    "cxl_exp1": "cxl_expander",
    "upmem0": "upmem",
    "ssd0": "nvme",
}
ROUTES = {"hbm": (), "dram": ("pcie0",), "cxl": ("pcie0", "cxl0", "cxl1", "cxl2"), "pim": ("pcie0", "ddr_pim0")}


def _run(policy, batch, ms, tier, kv_gb, index_tier, index_gb, lost, violations, certified):
    busy = dict.fromkeys(["gpu0.hbm.bus", "host0.bus", "host0.root_complex", *LINKS, "upmem0.dpus"], 0.0)
    moved = {"hbm": {"index": 0.0, "kv": kv_gb * 1e9, "weights": 15e9, "write": 1e6, "migrate": 0.0}}
    for place in (tier, *ROUTES[tier]):
        moved.setdefault(place, dict.fromkeys(moved["hbm"], 0.0))["kv"] = kv_gb * 1e9
    busy |= dict.fromkeys(ROUTES[tier] or ("gpu0.hbm.bus",), 0.95)
    if index_tier:
        moved.setdefault(index_tier, dict.fromkeys(moved["hbm"], 0.0))["index"] = index_gb * 1e9
    path = dict.fromkeys(CAUSES, 0.0) | {"gemm": 5.0, "attend_hot": 2.0, "launch": 1.0}
    path["attend_hot" if tier == "hbm" else "fetch_queue"] += ms - 8.0
    cold = 0.0 if lost == 0.0 else 0.65
    return {
        "policy": policy,
        "platform": "h100_cxl_pim",
        "batch": batch,
        "step_ms": {"mean": ms, "p50": ms, "p95": ms * 1.02, "p99": ms * 1.03, "max": ms * 1.03, "n": STEPS},
        "tokens_per_s": batch / ms * 1000,
        "bytes_per_step": moved,
        "utilisation": busy,
        "critical_path_ms": path,
        "quality": {
            "elimination_rate": cold,
            "resurrection_rate": 1 - cold,
            "lost_mass": {"mean": lost / 20, "p99": lost / 2, "max": lost},
            "certified_mass": None if certified is None else {"mean": certified / 4, "max": certified},
            "false_elimination_rate": cold / 10,
            "false_resurrection_rate": 0.3,
            "violations": violations,
            "output_error": None,
        },
        "energy_mj_per_token": {"hbm": 150.0, "pcie0": 20.0 if tier != "hbm" else 0.0, "gpu0.static": ms * 40},
        "capacity_bytes": {"hbm": 18e9, tier: kv_gb * 1e9},
    }


def metrics():
    runs = {label: _run(*facts) for label, facts in RUNS.items()}
    ratios = {
        base: {
            label: {
                "tokens_per_s": run["tokens_per_s"] / runs[base]["tokens_per_s"],
                "step_p50": runs[base]["step_ms"]["p50"] / run["step_ms"]["p50"],
                "step_p95": runs[base]["step_ms"]["p95"] / run["step_ms"]["p95"],
            }
            for label, run in runs.items()
            if label != base
        }
        for base in ("full_fits", "full_offload")
    }
    trace = {"name": "natural_4k", "kind": "composed", "context_tokens": 131072, "steps": STEPS}
    return {"schema": 1, "scenario": "cxl_pim", "seed": 1, "trace": trace, "runs": runs, "compare": ratios}


def config():
    sourced = {"source": "a data sheet", "confidence": "datasheet"}
    assumed = {"source": "design assumption", "confidence": "assumed"}
    devices = {name: {"kind": kind, "name": f"{kind}_part", **sourced} for name, kind in DEVICES.items()}
    devices["host0"]["root_complex"] = {"value": "26 GB/s", **assumed}
    links = {
        name: {"kind": "link", "rate": rate, "width": {"value": width, **assumed}, "between": [a, b], **sourced}
        for name, (a, b, width, rate) in LINKS.items()
    }
    tiers = {"hbm": ["gpu0"], "dram": ["host0"], "cxl": ["cxl_exp0", "cxl_exp1"], "pim": ["upmem0"], "ssd": ["ssd0"]}
    return {
        "schema": 1,
        "name": "cxl_pim",
        "summary": "an invented scenario",
        "platform": {"kind": "platform", "name": "h100_cxl_pim", "devices": devices, "links": links, "tiers": tiers},
        "runs": {label: {"policy": {"name": facts[0]}} for label, facts in RUNS.items()},
        "baseline": ["full_fits", "full_offload"],
    }


def manifest():
    return {
        "ghostsim": "0.1.0",
        "python": "3.11",
        "packages": {"numpy": "2.4"},
        "seed": 1,
        "argv": ["ghostsim", "run", "cxl_pim"],
        "inputs": {"scenarios/cxl_pim.yaml": "0" * 64},
        "simulator": {"events": 10, "flows": 20, "wall_s": 0.5, "selection_wall_s": 0.25, "peak_rss_mb": 100.0},
        "workload": {
            "trace": ["natural_4k"],
            "trained_context": 4096,
            "scored_heads": 64,
            "token_repeats": 31.5,
            "lossless": {label: label != "int4" for label in RUNS},
        },
        "notes": ["full_fits: batch 3 is the largest that fits"],
        "not_modelled": ["prefill"],
        "lost_mass_by_context": {
            "ghostkv_cxl": [
                {"context_tokens": 4096, "mean": 1e-4, "max": 2e-3},
                {"context_tokens": 131072, "mean": 2e-4, "max": 4.1e-3},
            ]
        },
    }


def step_rows(found):
    for label, run in found["runs"].items():
        for step in range(STEPS):
            bound = run["quality"]["violations"] is not None
            yield {
                "label": label,
                "step": step,
                "step_ms": run["step_ms"]["p50"] * (1 + 0.003 * (step % 10)),
                "tokens_hot": 260.0,
                "tokens_cold": 130000.0 + step,
                "tokens_archived": 0.0,
                "tokens_evicted": 812.0,
                **{
                    f"stored_bytes_{tier}": run["capacity_bytes"].get(tier, "")
                    for tier in ("hbm", "dram", "cxl", "pim")
                },
                "lost_mass_max": run["quality"]["lost_mass"]["max"] * (0.5 + step / (2 * (STEPS - 1))),
                "violations": run["quality"]["violations"] // STEPS if bound else "",
                "bound_checks": 25000 if bound else "",
                "violated_mass_mean": 0.12 if run["quality"]["violations"] else 0.0 if bound else "",
            }


def timeline(path):
    slices = [
        Slice(label, lane, f"{kind}{layer}", kind, start + layer * 10**9, start + layer * 10**9 + 4 * 10**8, args)
        for label in RUNS
        for layer in range(3)
        for args in ({"step": 0, "layer": layer, "nbytes": 10**6, "flops": 3 * 10**6},)
        for lane, kind, start in (("gpu", "gemm", 0), ("dram fetch", "read", 10**8), ("gpu", "attend", 5 * 10**8))
    ]
    wave = [0.2, 0.9, 0.95, 0.4] * 50
    counters = [Counter(label, name, 10**9, wave, "utilisation") for label in RUNS for name in ("pcie0", "host0.bus")]
    write_timeline(path, slices, counters, {"covers": "the first step"})


def write_folder(folder: Path, found=None, effective=None, about=None) -> Path:
    found = found or metrics()
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(found))
    (folder / "config.yaml").write_text(yaml.safe_dump(effective or config(), sort_keys=False))
    (folder / "manifest.json").write_text(json.dumps(about or manifest()))
    rows = list(step_rows(found))
    with (folder / "steps.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    timeline(folder / "timeline.json.gz")
    return folder


@pytest.fixture(scope="session")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture
def visit(chromium):
    """Return a function that opens a file in the browser; what it opened is closed with the test."""
    with ExitStack() as opened:
        yield lambda path, fragment="", **options: opened.enter_context(visited(chromium, path, fragment, **options))


@pytest.fixture
def run_folder(tmp_path):
    return write_folder(tmp_path / "cxl_pim")


@pytest.fixture
def hostile_folder(tmp_path):
    """A folder in which every text that comes from a user tries to run a script."""
    script = "document.body.setAttribute('data-owned', '1')"
    attack = f"</script><img src=x onerror={script!r}><script>{script}</script>"
    found, effective, about = metrics(), config(), manifest()
    found["scenario"] = attack
    found["trace"]["name"] = attack
    found["runs"] = {label + attack: run for label, run in found["runs"].items()}
    found["compare"] = {
        base + attack: {label + attack: ratio for label, ratio in ratios.items()}
        for base, ratios in found["compare"].items()
    }
    for run in found["runs"].values():
        run["platform"] = attack
        run["utilisation"] |= {attack: 0.99}
        run["energy_mj_per_token"] |= {attack: 1.0}
        run["bytes_per_step"][attack] = {"kv": 1e9}
    effective["summary"] = attack
    effective["platform"]["devices"][attack] = {"kind": attack, "name": attack}
    effective["platform"]["links"][attack] = {"rate": attack, "width": 1, "between": ["gpu0", attack]}
    effective["platform"]["devices"]["host0"][attack] = {"value": attack, "source": attack, "confidence": "assumed"}
    about |= {"notes": [attack], "not_modelled": [attack], "inputs": {attack: attack}, "argv": [attack]}
    about["simulator"][attack] = attack
    return write_folder(tmp_path / "hostile", found, effective, about)
