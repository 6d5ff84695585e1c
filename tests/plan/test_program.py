"""Does the table of a layer's program say what runs where, and what waits for what?"""

import pytest
from placed import CASES, run

from ghostsim.pipeline.program import program


def table(name):
    record = run(name).record
    return {stage.name: stage for stage in program(record.plan, record.bound)}


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_a_layer_is_in_one_stage(name):
    record = run(name).record
    stages = program(record.plan, record.bound)
    assert sum(stage.rows for stage in stages) == len(record.plan.names)
    layers = record.plan.steps * record.plan.layers
    assert sum(stage.nbytes for stage in stages) == pytest.approx(record.plan.nbytes.sum() / layers)


def test_the_program_of_a_filter_in_the_expanders():
    found = table("cxl filter")
    assert [(each.name, each.engine, each.rows) for each in found.values()] == [
        ("qkv", "gpu", 1), ("write", "gpu write", 1), ("age", "cxl write", 1), ("ghostify", "cxl write", 1),
        ("hot", "gpu", 1), ("query", "cxl queries", 1), ("scan", "cxl filter", 2), ("filter", "cxl ids", 2),
        ("read", "cxl fetch", 2), ("survivors", "gpu", 1), ("output", "gpu", 1), ("gate_up", "gpu", 1),
        ("down", "gpu", 1), ("head", "gpu", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "stage", "after"),
    [
        ("cxl filter", "filter", ("scan", "hot")),
        ("cxl filter, one pass", "filter", ("scan",)),
        ("cxl filter", "read", ("filter",)),
        ("cxl filter", "survivors", ("read", "hot")),
        ("cxl filter", "qkv", ("head (-1)",)),
        ("full by dma", "read", ("survivors (-2)",)),
        ("prefetch of the next layer", "survivors", ("read", "prefetch (-1)", "hot")),
        ("full on the cores", "read", ("attend",)),
        ("cxl filter, histogram", "threshold", ("histogram",)),
    ],
)
def test_a_stage_waits_for_what_the_program_says(case, stage, after):
    assert table(case)[stage].after == after


def test_links_are_those_that_the_bytes_cross():
    assert table("cxl filter")["read"].links == ("pcie0", "cxl0", "cxl1", "cxl2")
    assert table("cxl filter")["scan"].links == ()
