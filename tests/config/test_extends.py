"""Does every name and every `extends` unfold by the one rule?"""

import pytest

from ghostsim.config import catalogue
from ghostsim.config.catalogue import assumed_numbers, provenance
from ghostsim.config.document import dump
from ghostsim.config.load import discover, load_any, load_part, load_platform, load_policy, load_scenario
from ghostsim.errors import ConfigError


def test_a_string_is_short_for_extends(house):
    short = load_platform(house.path("platform"))
    house.change("platform", "gpu0: gpu.yaml", "gpu0: {extends: gpu.yaml}")
    assert load_platform(house.path("platform")).value == short.value


def test_mappings_merge_and_the_rest_replaces(house):
    house.write("mine", "extends: platform.yaml\nname: mine\nlinks: {up: {width: 4}}\ntiers: {cxl: [cxl0]}\n")
    mine = load_platform(house.path("mine")).value
    base = load_platform(house.path("platform")).value
    assert mine.name == "mine"
    assert mine.links["up"].width == 4
    assert mine.links["up"].model_copy(update={"width": 16}) == base.links["up"]
    assert mine.devices == base.devices


def test_later_documents_win(house):
    house.write("one", "sms: {value: 1, source: a, confidence: assumed}\n")
    house.write("two", "sms: {value: 2, source: b, confidence: assumed}\n")
    house.write("both", "extends: [gpu.yaml, one.yaml, two.yaml]\n")
    assert load_part(house.path("both")).value.sms == 2


def test_a_number_with_its_source_replaces_as_one(house):
    house.write("mine", "extends: cxl.yaml\ncontroller: {value: 90 ns}\n")
    with pytest.raises(ConfigError, match="without a source"):
        load_part(house.path("mine"))


def test_a_bare_number_over_a_part_is_the_writers_own(house):
    house.write("mine", "extends: gpu.yaml\nsms: 100\n")
    facts = {fact.path: fact for fact in provenance(load_part(house.path("mine")).document)}
    assert (facts["sms"].value, facts["sms"].confidence) == (100, "assumed")
    assert "mine.yaml" in facts["sms"].source
    assert facts["tensor"].confidence == "datasheet"


def test_another_member_of_a_choice_replaces(house):
    house.write("mine", "extends: quest.yaml\nread: {rule: {topfrac: 0.1}}\n")
    assert load_policy(house.path("mine")).value.read.rule.topfrac == 0.1


def test_the_same_member_of_a_choice_merges(house):
    house.write("base", "name: b\nkeep: [{select: all}]\nread: {rule: {certify: 0.1, form: flat}, score: qkeys}\n")
    house.write("mine", "extends: base.yaml\nread: {rule: {certify: 0.01}}\n")
    rule = load_policy(house.path("mine")).value.read.rule
    assert (rule.certify, rule.form) == (0.01, "flat")


def test_another_device_in_the_same_place_replaces(house):
    house.write("mine", "extends: platform.yaml\ndevices: {gpu0: {extends: gpu.yaml, name: other}}\n")
    assert load_platform(house.path("mine")).value.devices["gpu0"].name == "other"


def test_a_run_that_changes_a_link_keeps_the_rest_of_the_platform(house):
    house.change(
        "scenario", "full: {policy: full.yaml,", "full: {policy: full.yaml, platform: {links: {up: {width: 4}}},"
    )
    runs = load_scenario(house.path("scenario")).scenario.runs
    assert runs["full"].platform.links["up"].width == 4
    assert runs["quest"].platform.links["up"].width == 16
    assert runs["full"].platform.devices == runs["quest"].platform.devices


def test_a_run_that_names_a_platform_takes_it_whole(house):
    house.write(
        "bare", "schema: 1\nkind: platform\nname: bare\ndevices: {gpu0: gpu.yaml}\nlinks: {}\ntiers: {hbm: [gpu0]}\n"
    )
    house.change("scenario", "full: {policy: full.yaml,", "full: {policy: full.yaml, platform: bare.yaml,")
    loaded = load_scenario(house.path("scenario"))
    assert list(loaded.scenario.runs["full"].platform.devices) == ["gpu0"]
    again = house.write("again", dump(loaded.document))
    assert load_scenario(again).scenario == loaded.scenario


def test_runs_inherit_the_workload(house):
    runs = load_scenario(house.path("scenario")).scenario.runs
    assert (runs["full"].workload.batch, runs["full"].workload.context) == ("fits", 131072)
    assert runs["quest"].workload.batch == 8


def test_runs_with_one_platform_share_it(house):
    loaded = load_scenario(house.path("scenario"))
    assert loaded.scenario.runs["full"].platform is loaded.scenario.runs["quest"].platform


def test_the_effective_document_is_a_scenario_that_needs_no_other_file(house):
    loaded = load_scenario(house.path("scenario"))
    alone = house.folder / "alone"
    alone.mkdir()
    file = alone / "config.yaml"
    file.write_text(dump(loaded.document), encoding="utf-8")
    again = load_scenario(file)
    assert again.scenario == loaded.scenario
    assert again.document == loaded.document
    assert list(again.inputs) == [file.as_posix()]


def test_the_effective_document_shows_defaults(house):
    document = load_scenario(house.path("scenario")).document
    assert document["seed"] == 1
    assert document["runs"]["full"]["fetch"] == "dma"
    assert document["runs"]["quest"]["policy"]["read"]["completion"] == "renormalise"


def test_a_default_number_is_an_assumed_one(house):
    assumed = {fact.path: fact.source for fact in assumed_numbers(load_part(house.path("gpu")).document)}
    assert assumed["memory.efficiency"] == "default of ghostsim"


def test_the_effective_document_keeps_the_platform_once(house):
    text = dump(load_scenario(house.path("scenario")).document)
    assert text.count("small_gpu") == 1


def test_every_file_that_is_read_is_an_input(house):
    inputs = load_scenario(house.path("scenario")).inputs
    names = [name.rpartition("/")[2] for name in inputs]
    expected = ["cxl", "dram", "full", "gpu", "link", "model", "platform", "quest", "scenario", "sm_90"]
    assert names == [f"{name}.yaml" for name in expected]


def test_places_point_into_the_file_a_value_comes_from(house):
    loaded = load_scenario(house.path("scenario"))
    assert str(loaded.at("platform", "devices", "gpu0", "sms")) == f"{house.path('gpu')}:7:6"
    assert str(loaded.at("runs", "quest", "platform", "links", "up", "rate")) == f"{house.path('link')}:7:7"
    assert str(loaded.at("runs", "full", "workload", "batch")) == f"{house.path('scenario')}:8:47"
    assert str(loaded.at("workload", "nothing")) == f"{house.path('scenario')}:5:11"


def test_a_cycle_is_named(house):
    house.write("a", "extends: b.yaml\n")
    house.write("b", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match="a extends b extends a") as caught:
        load_part(house.path("a"))
    assert str(caught.value).startswith(f"{house.path('b')}:1:10:")


def test_a_document_may_not_extend_itself(house):
    house.write("a", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match="a extends a"):
        load_part(house.path("a"))


def test_a_long_chain_ends(house):
    for i in range(60):
        house.write(f"p{i}", f"extends: p{i + 1}.yaml\n")
    with pytest.raises(ConfigError, match="extend one another"):
        load_part(house.path("p0"))


def test_documents_that_multiply_are_refused(house):
    for i in range(9):
        house.write(f"p{i}", "devices:\n" + "".join(f"  d{j}: {{extends: p{i + 1}.yaml}}\n" for j in range(9)))
    house.write("p9", "name: x\n")
    with pytest.raises(ConfigError):
        load_platform(house.path("p0"))


@pytest.mark.parametrize(
    ("file", "kind"),
    [("gpu", "part"), ("platform", "platform"), ("model", "model"), ("quest", "policy"), ("scenario", "scenario")],
)
def test_the_kind_of_a_document_is_seen_from_its_keys(house, file, kind):
    house.write("child", f"extends: {file}.yaml\n")
    assert discover(house.path(file)) == discover(house.path("child")) == kind
    assert load_any(house.path(file)).kind == kind


def test_a_sourced_block_reaches_the_parts_of_a_platform(house):
    house.write("one", LINKLESS)
    assert load_platform(house.path("one")).value.devices["sw0"].ports == 4


LINKLESS = """\
schema: 1
kind: platform
name: one
source: "a drawing"
confidence: assumed
devices:
  gpu0: gpu.yaml
  sw0: {kind: switch, name: sw, ports: 4, hop: 50 ns, bandwidth: 1 TB/s, static: 5 W}
links: {}
tiers: {hbm: [gpu0]}
"""


def test_every_list_is_sorted_by_name_and_parts_by_kind_first():
    for plural in catalogue.PLURALS:
        entries = [(entry.kind, entry.name) for entry in catalogue.names(plural)]
        assert entries == sorted(entries)


def test_the_traces_are_listed():
    assert "natural_4k" in [entry.name for entry in catalogue.names("traces")]


def test_a_scenario_may_extend_another(house):
    house.write(
        "longer", "extends: scenario.yaml\nname: longer\nworkload: {context: 262144}\nruns: {quest: {chunks: 4}}\n"
    )
    scenario = load_scenario(house.path("longer")).scenario
    assert (scenario.name, scenario.workload.context, scenario.workload.batch) == ("longer", 262144, 8)
    assert (scenario.runs["quest"].chunks, scenario.runs["quest"].filter) == (4, "cxl")
    assert list(scenario.runs) == ["full", "quest"]


def test_a_file_is_looked_for_beside_the_one_that_names_it(house, monkeypatch):
    (house.folder / "inner").mkdir()
    (house.folder / "inner/mine.yaml").write_text("extends: ../gpu.yaml\nname: mine\n", encoding="utf-8")
    monkeypatch.chdir("/")
    assert load_part(house.folder / "inner/mine.yaml").value.name == "mine"


def test_a_new_choice_of_one_run_does_not_touch_another(house):
    sets = ["runs.full.policy.name=changed"]
    runs = load_scenario(house.path("scenario"), sets).scenario.runs
    assert [run.policy.name for run in runs.values()] == ["changed", "quest"]
