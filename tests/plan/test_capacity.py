"""Does the footprint of a run count what it keeps in HBM beside KV that lies elsewhere?"""

from ghostsim.config.load import load_scenario
from ghostsim.pipeline.capacity import footprint

SCENARIO = """\
schema: 1
name: held
model: docs_5m
platform: h100_cxl_pim
workload: {trace: natural_4k, batch: 2, steps: 1}
runs:
  none: {policy: quest, kv_tier: dram}
  hot: {policy: {extends: quest, name: hot, read: {cache: {tokens: 512}}}, kv_tier: dram}
  all: {policy: {extends: quest, name: all, read: {cache: {tokens: 100000}}}, kv_tier: dram}
"""


def test_a_cache_takes_room_in_hbm_up_to_what_is_stored(tmp_path):
    path = tmp_path / "held.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    runs = load_scenario(path, ()).value.runs
    hbm = {label: footprint(run, run.model, 4000, 2).tiers["hbm"] for label, run in runs.items()}
    heads, token_bytes = 2 * 4 * 2, 512
    assert hbm["hot"] - hbm["none"] == heads * 512 * token_bytes
    assert hbm["all"] - hbm["none"] == heads * 4000 * token_bytes
