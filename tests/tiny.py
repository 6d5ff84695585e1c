"""The smallest scenario: two runs of a tiny model, simulated in well under a second."""

SCENARIO = """
schema: 1
name: tiny
model: docs_5m
platform: h100_cxl_pim
workload: {trace: natural_4k, batch: 1, steps: 2}
runs:
  full: {policy: full}
  offload: {policy: full, kv_tier: cxl}
baseline: [full]
"""
