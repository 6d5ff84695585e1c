"""Is every malformed file refused in one line that says where and what?"""

import contextlib
import re

import pytest

from ghostsim.config.load import (
    load_any,
    load_model,
    load_part,
    load_platform,
    load_policy,
    load_scenario,
    load_search,
    load_sweep,
)
from ghostsim.errors import ConfigError

_LINE = re.compile(r"^\S+?\.yaml:\d+:\d+: .+$")

# file, what is replaced, by what, place of the error (file:line:column), words in it
DRAWN = "random: {n: 2, fields: {workload.steps: {from: 8, scale: log, "
CASES = [
    # scenarios
    ("scenario", "baseline:", "baselin:", "scenario:6:1", "found the unknown key 'baselin', expected one of"),
    ("scenario", "baseline:", "baselin:", "scenario:6:1", "did you mean 'baseline'"),
    ("scenario", "batch: 8", "bacth: 8", "scenario:5:48", "workload.bacth: found the unknown key"),
    ("scenario", "batch: 8", "batch: 0", "scenario:5:55", "workload.batch: found 0, expected a number above 0"),
    ("scenario", "batch: 8", "batch: all", "scenario:5:55", "found 'all', expected a whole number or one of 'fits'"),
    ("scenario", "batch: 8", "batch: 99999999999999999999", "scenario:5:55", "of at most"),
    ("scenario", "batch: 8", "batch: 1e3", "scenario:5:55", "found 1000.0, expected a whole number"),
    ("scenario", "steps: 32", "steps: .nan", "scenario:5:65", "expected a finite number"),
    ("scenario", "context: 131072", "context: 128K", "scenario:5:40", "found '128K', expected a whole number"),
    ("scenario", "trace: natural_4k, ", "", "scenario:5:11", "workload.trace: found no key 'trace'"),
    ("scenario", "trace: natural_4k", "trace: 7", "scenario:5:19", "workload.trace"),
    ("scenario", "name: small", "name: [small]", "scenario:2:7", "name: found a list, expected a text"),
    ("scenario", "name: small", "name: two words", "scenario:2:7", "expected a text that matches"),
    ("scenario", "name: small\n", "", "scenario:1:1", "name: found no key 'name'"),
    ("scenario", "schema: 1", "schema: 2", "scenario:1:9", "schema: found 2, expected one of 1"),
    ("scenario", "model: model.yaml", "model: no_such_model", "scenario:3:8", "found no model named 'no_such_model'"),
    ("scenario", "model: model.yaml", "model: nothing.yaml", "scenario:3:8", "found no file"),
    ("scenario", "model: model.yaml", "model: ./", "scenario:3:8", "found the folder"),
    ("scenario", "model: model.yaml", "model: 3", "scenario:3:8", "model: found 3, expected a mapping"),
    ("scenario", "platform: platform.yaml", "platform: gpu.yaml", "gpu:", "platform"),
    ("scenario", "baseline: [full]", "baseline: [ful]", "scenario:6:12", "baseline.0: found 'ful', expected one of"),
    ("scenario", "baseline: [full]", "baseline: full", "scenario:6:11", "found 'full', expected a list"),
    ("scenario", "max <= 0.01", "max =< 0.01", "scenario:10:11", "expected PATH OP NUMBER"),
    ("scenario", '"quest.quality', '"qest.quality', "scenario:10:11", "expected it to start with a run: full, quest"),
    ("scenario", "max <= 0.01", "max <= 1e999", "scenario:10:11", "expected PATH OP NUMBER"),
    ("scenario", "lost_mass.max", "lost_mas.max", "scenario:10:11", "expected one, e.g. 'quest.quality.lost_mass.max'"),
    ("scenario", "lost_mass.max", "lost_mass", "scenario:10:11", "which is no number of metrics.json"),
    ("scenario", "[full]", "[full, full]", "scenario:6:18", "found 'full' again, expected each baseline once"),
    ("scenario", "filter: cxl", "filter: cxl, chunks: 1000000", "scenario:9:83", "chunks: found 1000000, expected"),
    ("scenario", "filter: cxl", "filter: dram", "scenario:9:70", "runs.quest.filter: found filter dram"),
    ("scenario", "filter: cxl", "filter: fpga", "scenario:9:70", "expected one of 'gpu'"),
    ("scenario", "kv_tier: cxl", "kv_tier: tape", "scenario:9:40", "runs.quest.kv_tier: found 'tape'"),
    ("scenario", "kv_tier: cxl", "kv_teir: cxl", "scenario:9:31", "did you mean 'kv_tier'"),
    ("scenario", "policy: full.yaml, ", "", "scenario:8:9", "runs.full.policy: found no key 'policy'"),
    ("scenario", "policy: full.yaml", "policy: [full.yaml]", "scenario:8:18", "policy: found a list"),
    ("scenario", "full: {policy: full.yaml, workload: {batch: fits}}", "full: full.yaml", "scenario:8:9", "runs.full"),
    ("scenario", "  full:", "  fu ll:", "scenario:8:10", "runs.fu ll"),
    ("scenario", "runs:\n", "runs:\n  full: {}\n", "scenario:9:3", "the key 'full' again"),
    # parts
    (
        "cxl",
        'controller: {value: 80 ns, source: "vendor sheet", confidence: datasheet}',
        "controller: 80 ns",
        "cxl:4:13",
        "found '80 ns' without a source",
    ),
    ("cxl", "value: 80 ns", "value: 80", "cxl:4:21", "controller: found 80, expected a duration with its unit, e.g."),
    ("cxl", "value: 80 ns", "value: 80ns", "cxl:4:21", "found '80ns', expected a duration with its unit"),
    ("cxl", "value: 80 ns", "value: -80 ns", "cxl:4:21", "expected a value of at least zero"),
    ("cxl", "value: 80 ns", "value: 1e99 s", "cxl:4:21", "too large"),
    ("cxl", "value: 80 ns", "vale: 80 ns", "cxl:4:13", "controller"),
    (
        "cxl",
        "value: 80 ns, ",
        "value: 80 ns, units: ns, ",
        "cxl:4:28",
        "found the key units, expected only value, source",
    ),
    ("cxl", "media_bandwidth: 60 GB/s", "media_bandwidth: 60 GB", "cxl:10:97", "found unit 'GB', expected a bandwidth"),
    (
        "cxl",
        "media_bandwidth: 60 GB/s",
        "media_bandwidth: 0 GB/s",
        "cxl:10:97",
        "found '0 GB/s', expected a value above zero",
    ),
    ("cxl", "confidence: assumed", "confidence: sure", "cxl:10:", "filter.confidence: found 'sure', expected one of"),
    ("cxl", "value: 512 GiB", "value: -512 GiB", "cxl:8:21", "memory.capacity: found"),
    ("platform", "cxl0: cxl.yaml", "cxl0: {name: x}", "platform:6:9", "of no known kind, expected kind: gpu or"),
    ("quest", "format: fp16", "format: {}", "quest:3:43", "of no known kind, expected fp16 or int"),
    ("cxl", "kind: cxl_expander\n", "", "cxl:1:1", "of no known kind, expected kind: gpu or "),
    ("cxl", "value: 512 GiB", "value: 0 B", "cxl:8:21", "above zero"),
    ("gpu", "launch: 1 us", 'launch: "\u0661 us"', "gpu:12:9", "expected a duration with its unit"),
    ("gpu", "launch: 1 us", "launch: 1e5 s", "gpu:12:9", "too large, expected a duration of at most 1000 s"),
    ("gpu", "bandwidth: 60 GB/s", "bandwidth: 1e-300 GB/s", "gpu:14:37", "too small, expected a bandwidth of at least"),
    ("gpu", "bandwidth: 60 GB/s", "bandwidth: 1e30 GB/s", "gpu:14:37", "too large, expected a bandwidth of at most"),
    ("gpu", "sms: 132", "sms: 1000000000", "gpu:7:6", "sms: found 1000000000, expected a number of at most 100000"),
    ("gpu", "channels: 80", "channels: 80, efficiency: 0", "gpu:11:53", "efficiency: found 0, expected a number above"),
    ("dram", "tREFI: 3.9 us", "tREFI: 10 ns", "dram:10:38", "timing.tREFI: found 24 cycles, expected more than one"),
    ("dram", "tRC: 115 nCK", "tRC: 1 nCK", "dram:8:91", "timing.tRC: found 1 cycles, expected at least tRAS, 77"),
    ("dram", "tCL: 38 nCK", f"tCL: {'9' * 5000} nCK", "dram:8:23", "expected a duration or clock cycles up to"),
    ("dram", "row_bytes: 8192", "row_bytes: 100", "dram:11:99", "row_bytes: found 100, expected a multiple of"),
    ("dram", "bankgroups: 8", "bankgroups: 1000, subchannels: 2", "dram:11:11", "geometry: found 8000 banks"),
    ("dram", "nBL: 8", "nBL: 100000", "dram:8:15", "nBL: found 100000, expected a number of at most 64"),
    ("link", "width: 16", "width: 1000000", "link:8:8", "width: found 1000000, expected a number of at most 65536"),
    ("cxl", "kind: cxl_expander", "kind: cxl_expandr", "cxl:2:7", "kind: found 'cxl_expandr', expected one of"),
    ("cxl", "dram: dram.yaml", "dram: link.yaml", "link:", "memory.dram"),
    ("gpu", "sms: 132", "sms: true", "gpu:7:6", "sms: found true, expected a whole number"),
    ("gpu", "sms: 132", "sms: 132.5", "gpu:7:6", "found 132.5, expected a whole number"),
    ("gpu", "l2: 50 MiB", "l2: 50 MB/s", "gpu:10:5", "found unit 'MB/s', expected a size"),
    ("gpu", "launch: 1 us\n", "", "gpu:1:1", "launch: found no key 'launch', expected it, e.g. launch: '14.16 ns'"),
    ("gpu", "tensor: 989", "tensr: 989", "gpu:8:1", "did you mean 'tensor'"),
    ("gpu", "name: small_gpu", "name: ''", "gpu:3:7", "expected a text that is not empty"),
    ("dram", "tRFC: 295 ns", "tRFC: 295", "dram:10:23", "timing.tRFC: found 295, expected a duration or clock cycles"),
    ("dram", "tRFC: 295 ns", "tRFC: 2.5 nCK", "dram:10:23", "clock cycles"),
    ("dram", "standard: DDR5", "standard: DDR6", "dram:6:11", "expected one of 'DDR4'"),
    ("dram", "ranks: 1", "ranks: '1'", "dram:11:37", "geometry.ranks: found '1', expected a whole number"),
    ("link", "encoding: 0.94", "encoding: 1.5", "link:9:11", "of at most 1"),
    (
        "link",
        "width: 16",
        "width: 16\nbandwidth: 65 GB/s",
        "link:9:12",
        "expected at most the raw rate of the link, 64 GB/s",
    ),
    ("link", "protocol: cxl", "protocol: pcie", "link:1:1", "expected both, e.g. mps: 256 B"),
    ("link", "name: small_link", "name: small_link\nextends: 3", "link:4:10", "extends that is not a name"),
    # platforms
    ("platform", "gpu0: gpu.yaml", "gpu0: gpuu.yaml", "platform:5:9", "found no file"),
    ("platform", "between: [gpu0, cxl0]", "between: [gpu0, cxl9]", "platform:8:44", "found 'cxl9', expected a device"),
    ("platform", "between: [gpu0, cxl0]", "between: [gpu0]", "platform:8:37", "expected more entries"),
    ("platform", ", between: [gpu0, cxl0]", "", "platform:8:7", "links.up.between: found no key 'between'"),
    (
        "platform",
        "  up: {extends: link.yaml, between: [gpu0, cxl0]}",
        "  {}",
        "platform:9:28",
        "which no link reaches from gpu0",
    ),
    ("platform", "cxl: [cxl0]", "cxl: [gpu0]", "platform:9:28", "found 'gpu0', expected a device of kind cxl_expander"),
    ("platform", "cxl: [cxl0]", "cxl: []", "platform:9:27", "found no device"),
    ("platform", "cxl: [cxl0]", "cxl: [cxl0, cxl0]", "platform:9:34", "found 'cxl0' again, expected each device once"),
    (
        "platform",
        "tiers:",
        "  up2: {extends: link.yaml, between: [gpu0, cxl0]}\ntiers:",
        "platform:9:38",
        "found a second link between gpu0 and cxl0, expected up alone",
    ),
    ("platform", "cxl: [cxl0]", "tape: [cxl0]", "platform:9:", "tape"),
    ("platform", "hbm: [gpu0], ", "", "platform:9:8", "found no hbm tier"),
    ("platform", "up: {", "cxl: {", "platform:8:8", "expected a name that is not a tier"),
    ("platform", "extends: link.yaml", "extends: [link.yaml, 3]", "platform:8:29", "extends that is not a name"),
    # models
    ("model", "q_heads: 8", "q_heads: 7", "model:1:1", "found 7 query heads for 2 KV heads"),
    ("model", "layers: 4", "layers: 1000000", "model:6:9", "layers: found 1000000, expected a number of at most 10000"),
    ("model", "layers: 4", "layers: 4 layers", "model:6:9", "layers: found '4 layers', expected a whole number"),
    ("model", 'source: "config.json"\n', "", "model:5:9", "found 4 without a source"),
    ("model", "hidden: 256", "hidden: [256]", "model:7:9", "hidden"),
    # policies
    (
        "quest",
        "rule: {topk: 2048}",
        "rule: {topk: 0}",
        "quest:4:21",
        "read.rule.topk: found 0, expected a number above 0",
    ),
    ("quest", "rule: {topk: 2048}", "rule: {top: 2048}", "quest:4:14", "read.rule"),
    (
        "quest",
        "rule: {topk: 2048}",
        "rule: {topfrac: 2}",
        "quest:4:24",
        "read.rule.topfrac: found 2, expected a number of at most 1",
    ),
    ("quest", "rule: {topk: 2048}", "rule: best", "quest:4:14", "found 'best', expected one of 'all'"),
    (
        "quest",
        "score: {box: {page: 16}}, unit: page, pin: {last_page: true}",
        "score: {sketch: {residual: none}}, pin: {sinks: 0.5}",
        "quest:4:76",
        "read.pin.sinks: found 0.5",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {certify: 0.01}, score: {sketch: {residual: none}}}",
        "quest:4:7",
        "found certify on the score sketch",
    ),
    ("quest", "unit: page", "unit: token", "quest:4:7", "expected page"),
    ("quest", "role: hot", "role: tepid", "quest:3:55", "keep.0.role: found 'tepid'"),
    ("quest", "every: step", "evry: step", "quest:3:9", "did you mean 'every'"),
    (
        "quest",
        "keep: [{every: step, select: all, format: fp16, role: hot}]",
        "keep: []",
        "quest:3:7",
        "found an empty list",
    ),
    ("quest", "format: fp16", "format: {int: {bits: 5}}", "quest:3:56", "keep.0.format.int.bits: found 5"),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {sample: 2}, score: exact}",
        "quest:4:7",
        "found sample on the score exact, expected lsh",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {topk: 9}, score: exact, completion: {estimate: 0.2}}",
        "quest:4:7",
        "found completion estimate without clusters",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {topk: 9}, score: exact, completion: importance}",
        "quest:4:7",
        "found completion importance without sampling",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {topk: 9}, score: exact, then: [{rule: all, then: [{rule: all}]}]}",
        "quest:4:7",
        "inside one another",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {topk: 9}, score: exact, also: [{rule: all, pin: {sinks: 4}}]}",
        "quest:4:7",
        "found pin, layers or heads inside",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {certify: 0.01}, score: exact, scope: layer}",
        "quest:4:7",
        "found certify with scope: layer",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {certify: 0.01}, score: exact, lag: step}",
        "quest:4:7",
        "found certify with lag, also or less",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {certify: 0.01}, score: {centroid: {}}}",
        "quest:4:7",
        "which is only an estimate",
    ),
    (
        "quest",
        "{rule: {topk: 2048}, score: {box: {page: 16}}, unit: page, pin: {last_page: true}}",
        "{rule: {topk: 9}, score: exact, pin: {window_pages: 2}}",
        "quest:4:7",
        "without pages",
    ),
    (
        "quest",
        "select: all",
        "select: {rule: {topk: 9}, score: {obs: {}}}",
        "quest:3:8",
        "found the score obs with a clock of the decode",
    ),
    (
        "quest",
        "select: all",
        "select: {rule: {topk: 9}, score: {hist: {}}, scope: layer}",
        "quest:3:8",
        "found scope: layer with a clock of the decode",
    ),
    (
        "quest",
        "format: fp16",
        "format: {k: {int: {group: 32, axis: channel, residual: 40}}, v: fp16}",
        "quest:3:",
        "found residual 40, expected a multiple of group 32",
    ),
    ("quest", "read: ", "reed: ", "quest:4:1", "did you mean 'read'"),
    # sweeps
    ("sweep", "grid:", "gird:", "sweep:3:1", "did you mean 'grid'"),
    ("sweep", "workload.batch: [16, 8]", "workload.batch: [16]", "sweep:1:1", "unequal length"),
    ("sweep", "[4, 8, 16]", "[]", "sweep:3:33", "expected at least 1 entries"),
    ("sweep", "[4, 8, 16]", "4", "sweep:3:33", "found 4, expected a list"),
    ("sweep", "links.up.width", "links.up.widht", "sweep:3:34", "did you mean 'width'"),
    ("sweep", "[4, 8, 16]", "[x, 8, 16]", "sweep:3:34", "found 'x', expected a whole number"),
    ("sweep", "scenario: scenario.yaml", "scenario: no_such", "sweep:2:11", "found no scenario named 'no_such'"),
    (
        "sweep",
        "workload.context",
        "platform.links.up.width",
        "sweep:1:1",
        "in more than one of grid, zip, list, random and latin_hypercube",
    ),
    ("sweep", "scenario: scenario.yaml\n", "", "sweep:1:1", "scenario"),
    ("sweep", "grid:", "list: [{platform: small}]\ngrid:", "sweep:1:1", "found platform after platform.links.up.width"),
    ("sweep", "grid:", "runs: [nope]\ngrid:", "sweep:3:8", "found 'nope', expected runs of the scenario"),
    ("sweep", "grid:", "list: [{workload.bach: 1}]\ngrid:", "sweep:3:24", "did you mean 'batch'"),
    ("sweep", "grid:", DRAWN + "to: 4}}}\ngrid:", "sweep:3:67", "found 4, expected more than from (8)"),
    ("sweep", "grid:", DRAWN + "to: 9 GB/s}}}\ngrid:", "sweep:3:67", "found '9 GB/s', expected a number, as from"),
    ("sweep", "grid:", DRAWN + "to: many}}}\ngrid:", "sweep:3:67", "expected a number, or a quantity"),
    ("sweep", "grid:", DRAWN + "to: 9.5}}}\ngrid:", "sweep:3:67", "found 9.5, expected a whole number"),
    ("sweep", "grid:", DRAWN + "too: 9}}}\ngrid:", "sweep:3:63", "did you mean 'to'"),
    ("sweep", "grid:", "random: {n: 0, fields: {a: [1]}}\ngrid:", "sweep:3:13", "found 0, expected"),
    ("sweep", "grid:", "random: {n: 2, fields: {}}\ngrid:", "sweep:3:24", "expected at least 1 entries"),
    # searches
    (
        "search",
        "macs: minimise",
        "macs: minimize",
        "search:8:",
        "found 'minimize', expected one of 'minimise' or 'maximise'",
    ),
    ("search", "<= 2 * full.step_ms.p95", "<= twice", "search:9:", "found 'twice', expected a figure of a run"),
    ("search", "quest.step_ms.p95 <=", "quest.step_ms.p59 <=", "search:9:", "e.g. 'quest.step_ms.p99'"),
    ("search", "<= 2 * full", "=< 2 * full", "search:9:", "expected PATH OP NUMBER or PATH OP [NUMBER *] PATH"),
    ("search", "objectives: {platform", "objectives: {platfrom", "search:8:", "expected a figure of a run"),
    ("search", "links.up.width: [4", "links.up.widht: [4", "search:6:", "did you mean 'width'"),
    (
        "search",
        "from: 1 TMAC/s",
        "from: 1 TFLOP/s",
        "search:7:",
        "found '8 TMAC/s', expected an arithmetic rate, as from",
    ),
    ("search", "trials: 4", "trials: 0", "search:10:9", "found 0, expected a number above 0"),
    ("search", "trials: 4", "sensitivity: {factor: 2}", "search:1:1", "both of objectives and sensitivity"),
]

LOADERS = {
    "scenario": load_scenario,
    "cxl": load_part,
    "gpu": load_part,
    "dram": load_part,
    "link": load_part,
    "platform": load_platform,
    "model": load_model,
    "quest": load_policy,
    "sweep": load_sweep,
    "search": load_search,
}


@pytest.mark.parametrize(("file", "old", "new", "place", "words"), CASES)
def test_a_malformed_file_is_one_line(house, file, old, new, place, words):
    house.change(file, old, new)
    with pytest.raises(ConfigError) as caught:
        LOADERS[file](house.path(file))
    line = str(caught.value)
    assert _LINE.match(line), line
    assert line.startswith(str(house.folder / place.replace(":", ".yaml:", 1))), line
    assert words in line
    assert caught.value.exit_code == 3


def test_an_error_in_a_part_is_reported_through_the_scenario(house):
    house.change("cxl", "value: 80 ns", "value: 80 GB")
    with pytest.raises(ConfigError) as caught:
        load_scenario(house.path("scenario"))
    assert str(caught.value).startswith(f"{house.path('cxl')}:4:21: platform.devices.cxl0.controller: found unit 'GB'")


def test_the_first_error_of_the_file_is_reported_with_the_number_of_others(house):
    house.change("scenario", "batch: 8", "batch: 0")
    house.change("scenario", "kv_tier: cxl", "kv_tier: tape")
    house.change("scenario", "filter: cxl", "filter: fpga")
    with pytest.raises(ConfigError, match=r":5:55: workload\.batch: .* \(and 2 more\)$"):
        load_scenario(house.path("scenario"))


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text\n", "3\n", "a: 1\n"])
def test_what_is_no_document_is_refused(house, text):
    house.write("odd", text)
    with pytest.raises(ConfigError) as caught:
        load_any(house.path("odd"))
    assert str(caught.value).startswith(f"{house.path('odd')}:1:1: ")


@pytest.mark.parametrize("name", ["", "no_such", "./", "no/such.yaml", "../..", "a\0b.yaml", "x" * 5000])
def test_a_name_of_nothing_is_refused(name):
    with pytest.raises(ConfigError) as caught:
        load_any(name)
    assert "\n" not in str(caught.value)


def test_a_long_key_is_cut(house):
    house.write("scenario", f"schema: 1\n? {'x' * 100_000}\n: 1\nruns: {{}}\n")
    with pytest.raises(ConfigError) as caught:
        load_scenario(house.path("scenario"))
    assert len(str(caught.value)) < 600


def test_a_close_name_is_suggested(house, monkeypatch):
    monkeypatch.setattr("ghostsim.config.catalogue.folder", lambda name: house.folder / name)
    (house.folder / "scenarios/policies").mkdir(parents=True)
    house.path("quest").rename(house.folder / "scenarios/policies/quest.yaml")
    with pytest.raises(ConfigError, match="did you mean 'quest'"):
        load_policy("qest")


def test_an_unreadable_file_is_refused(house, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        load_part(house.path("gpu"))


@pytest.mark.parametrize("file", list(LOADERS))
def test_no_mutilation_of_a_file_ends_in_a_traceback(house, file):
    """Every cut of the file, and every line left out, loads or is refused in one line."""
    text = house.path(file).read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    cuts = [text[:end] for end in range(0, len(text), 37)]
    left_out = ["".join(lines[:i] + lines[i + 1 :]) for i in range(len(lines))]
    twisted = [text.replace(": ", new, count) for new in (": [", ":", ": {a: ") for count in (1, 3)]
    for broken in [*cuts, *left_out, *twisted]:
        house.write(file, broken)
        with contextlib.suppress(ConfigError):
            LOADERS[file](house.path(file))
