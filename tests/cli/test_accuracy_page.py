"""Does the accuracy page show every row, stand alone, and survive any name; does a run say what its models rest on?"""

import json
import re

import pytest

from ghostsim.accuracy.involved import reliances, stored_errors, unmeasured
from ghostsim.accuracy.report import accuracy
from ghostsim.report.accuracy_page import heading, render_accuracy

HEADER = "probe,part,read_fraction,load_GBps,max_GBps,idle_ns,value,unit,source"
DMA = (
    "probe,part,op,tasklets,transfer_bytes,value,unit,source\n"
    "upmem_mram_dma,UPMEM_DPU_350MHz,copy,8,2048,2381.6,DPU cycles per loop iteration,test\n"
)
GATHER = "probe,part,record_bytes,n_records,mapping,page_policy,refresh,value,unit,source\n"


def machine(name, value):
    return f'memory_system_latency,"{name}",1.0,10.0,200.0,100.0,{value},ns,test'


@pytest.fixture
def replayed(tmp_path):
    def replay(text):
        path = tmp_path / "table.csv"
        path.write_text(text)
        return accuracy([path])

    return replay


def plots(page):
    return json.loads(re.search(r'id="plots">(.*?)</script>', page, re.DOTALL).group(1))


def test_every_row_is_a_point_with_its_line(replayed):
    found = replayed("\n".join([HEADER, machine("A", 101), machine("A", 120), machine("B", 99)]) + "\n")
    traces = plots(render_accuracy(found))["memory-system-latency"][0]["data"]
    points = [text for trace in traces if trace.get("mode") == "markers" for text in trace["customdata"]]
    assert [re.match(r"table\.csv:(\d)", text).group(1) for text in points] == ["2", "3", "4"]


def test_every_row_is_counted_in_the_histogram(replayed):
    rows = [machine("A", value) for value in (1, 99, 101, 500, 10_000)]
    traces = plots(render_accuracy(replayed("\n".join([HEADER, *rows]) + "\n")))["memory-system-latency"][0]["data"]
    assert sum(sum(trace["y"]) for trace in traces if trace["type"] == "bar") == 5


def test_page_loads_nothing_and_no_name_is_markup(replayed):
    page = render_accuracy(replayed("\n".join([HEADER, machine("<img src=http://x onerror=y>", 101)]) + "\n"))
    assert "<img" not in page
    assert not re.search(r'(?:src|href)="https?:', re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))


def test_same_predictions_same_bytes(replayed):
    assert render_accuracy(replayed(DMA)) == render_accuracy(replayed(DMA))


def test_page_of_skipped_rows_only_says_so(replayed):
    row = "dram_gather,DDR4_3200AA_1ch_1R,64,16,other,open,AllBank,100.0,ns,test\n"
    assert "No row has settings that the models know" in render_accuracy(replayed(GATHER + row))


@pytest.mark.parametrize(
    ("value", "expected"), [("2381.6", "1 of 1 probes stay within"), ("9999", "0 of 1 probes stay within")]
)
def test_heading_says_whether_bars_are_met(replayed, value, expected):
    assert expected in heading(replayed(DMA.replace("2381.6", value)))


def test_parts_rely_on_rows_of_their_own_where_there_are_any():
    dram = [{"kind": "dram", "name": name} for name in ("DDR4_3200AA_1ch_1R", "HBM4_8000_1ch_2PC")]
    found = {(each.part, each.probe): each for each in reliances({"kind": "platform", "name": "p", "devices": dram})}
    own, borrowed = (found[part["name"], "dram_bandwidth"] for part in dram)
    assert (own.own, own.rows) == (True, stored_errors()["dram_bandwidth"]["parts"]["DDR4_3200AA_1ch_1R"]["n"])
    assert (borrowed.own, borrowed.rows) == (False, stored_errors()["dram_bandwidth"]["n"])


def test_gpus_rely_on_rows_of_their_architecture():
    arch = {"kind": "gpu_arch", "name": "sm_80"}
    (attention, _) = reliances({"gpu0": {"kind": "gpu", "name": "a100", "architecture": arch}})
    assert (attention.own, attention.rows) == (
        True,
        stored_errors()["gpu_decode_attention"]["parts"]["A100-SXM4-80GB"]["n"],
    )


def test_links_and_drives_are_named_as_unmeasured():
    platform = {"kind": "platform", "name": "p", "links": {"a": {"kind": "link", "name": "cxl3"}}}
    assert unmeasured(platform) == ["cxl3"]
