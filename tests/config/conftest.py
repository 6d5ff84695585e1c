"""A small house of configuration files that stand by themselves."""

from pathlib import Path

import pytest

DRAM = """\
schema: 1
kind: dram
name: small_dram
source: "JESD79-5C"
confidence: datasheet
standard: DDR5
data_rate: 4800 MT/s
timing: {nBL: 8, tCL: 38 nCK, tCWL: 36 nCK, tRCD: 38 nCK, tRP: 38 nCK, tRAS: 77 nCK, tRC: 115 nCK, tWR: 72 nCK,
  tRTP: 18 nCK, tCCD_S: 8 nCK, tCCD_L: 12 nCK, tRRD_S: 8 nCK, tRRD_L: 12 nCK, tWTR_S: 6 nCK, tWTR_L: 24 nCK,
  tFAW: 48 nCK, tRFC: 295 ns, tREFI: 3.9 us}
geometry: {access_bytes: 64, ranks: 1, bankgroups: 8, banks_per_group: 4, rows: 65536, row_bytes: 8192}
"""
GPU = """\
schema: 1
kind: gpu
name: small_gpu
source: "vendor sheet"
confidence: datasheet
architecture: sm_90
sms: 132
tensor: 989 TFLOP/s
vector_macs: 60 TMAC/s
l2: 50 MiB
memory: {dram: dram.yaml, channels: 80, capacity: 80 GB, latency: 300 ns}
launch: 1 us
attention_kernels: vllm
copy_engines: {count: 2, bandwidth: 60 GB/s, start: 1 us, descriptor: 50 ns, window: 1 MiB}
read_window: 1 MiB
select: 1 TMAC/s
static: 100 W
compute_energy: 0.5 pJ
"""
CXL = """\
schema: 1
kind: cxl_expander
name: small_cxl
controller: {value: 80 ns, source: "vendor sheet", confidence: datasheet}
memory:
  dram: dram.yaml
  channels: {value: 2, source: "vendor sheet", confidence: datasheet}
  capacity: {value: 512 GiB, source: "vendor sheet", confidence: datasheet}
  latency: {value: 20 ns, source: "vendor sheet", confidence: datasheet}
filter: {source: "a design", confidence: assumed, macs: 2 TMAC/s, sram: 4 MiB, media_bandwidth: 60 GB/s, start: 1 us,
  energy: 0.6 pJ}
static: {value: 20 W, source: "vendor sheet", confidence: datasheet}
"""
LINK = """\
schema: 1
kind: link
name: small_link
source: "CXL 2.0"
confidence: datasheet
protocol: cxl
rate: 32 GT/s
width: 16
encoding: 0.94
flit: 68B
latency: 30 ns
"""
PLATFORM = """\
schema: 1
kind: platform
name: small_platform
devices:
  gpu0: gpu.yaml
  cxl0: cxl.yaml
links:
  up: {extends: link.yaml, between: [gpu0, cxl0]}
tiers: {hbm: [gpu0], cxl: [cxl0]}
"""
MODEL = """\
schema: 1
kind: model
name: small_model
source: "config.json"
confidence: datasheet
layers: 4
hidden: 256
intermediate: 512
q_heads: 8
kv_heads: 2
head_dim: 128
vocabulary: 1000
bytes_per_weight: 2
bytes_per_element: 2
"""
FULL = """\
schema: 1
name: full
keep: [{select: all}]
read: {rule: all}
"""
QUEST = """\
schema: 1
name: quest
keep: [{every: step, select: all, format: fp16, role: hot}]
read: {rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}
"""
SCENARIO = """\
schema: 1
name: small
model: model.yaml
platform: platform.yaml
workload: {trace: natural_4k, context: 131072, batch: 8, steps: 32}
baseline: [full]
runs:
  full: {policy: full.yaml, workload: {batch: fits}}
  quest: {policy: quest.yaml, kv_tier: cxl, index_tier: cxl, filter: cxl}
require: ["quest.quality.lost_mass.max <= 0.01"]
"""
SWEEP = """\
schema: 1
scenario: scenario.yaml
grid: {platform.links.up.width: [4, 8, 16]}
zip: {workload.context: [32768, 131072], workload.batch: [16, 8]}
"""
SEARCH = """\
schema: 1
scenario: scenario.yaml
runs: [full, quest]
summary: the smallest filter
fields:
  platform.links.up.width: [4, 8, 16]
  platform.devices.cxl0.filter.macs: {from: 1 TMAC/s, to: 8 TMAC/s, scale: log}
objectives: {platform.devices.cxl0.filter.macs: minimise, quest.energy_mj_per_token: minimise}
subject_to: ["quest.step_ms.p95 <= 2 * full.step_ms.p95"]
trials: 4
"""
FILES = {
    "dram": DRAM,
    "gpu": GPU,
    "cxl": CXL,
    "link": LINK,
    "platform": PLATFORM,
    "model": MODEL,
    "full": FULL,
    "quest": QUEST,
    "scenario": SCENARIO,
    "sweep": SWEEP,
    "search": SEARCH,
}


class House:
    """A folder with one file of each kind, to be changed by a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in FILES.items():
            self.write(name, text)

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.yaml"

    def write(self, name: str, text: str) -> Path:
        self.path(name).write_text(text, encoding="utf-8")
        return self.path(name)

    def change(self, name: str, old: str, new: str) -> Path:
        text = self.path(name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} must occur once"
        return self.write(name, text.replace(old, new))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)
