"""Does ``--set`` change exactly the value it names?"""

import pytest

from ghostsim.config.catalogue import provenance
from ghostsim.config.document import dump
from ghostsim.config.load import load_part, load_policy, load_scenario, load_sweep
from ghostsim.config.settings import parse_setting
from ghostsim.config.sweep import Sweep, as_sets
from ghostsim.errors import ConfigError


def scenario(house, *sets):
    return load_scenario(house.path("scenario"), sets).scenario


def test_a_setting_reaches_every_run(house):
    runs = scenario(house, "platform.links.up.width=4").runs
    assert [run.platform.links["up"].width for run in runs.values()] == [4, 4]


def test_a_setting_does_not_reach_a_run_that_says_otherwise(house):
    runs = scenario(house, "workload.batch=2").runs
    assert [run.workload.batch for run in runs.values()] == ["fits", 2]


def test_a_setting_of_one_run_stays_there(house):
    runs = scenario(house, "runs.quest.platform.links.up.width=4", "runs.quest.workload.steps=2").runs
    assert [run.platform.links["up"].width for run in runs.values()] == [16, 4]
    assert [run.workload.steps for run in runs.values()] == [32, 2]


def test_settings_apply_in_their_order(house):
    assert scenario(house, "workload.batch=2", "workload.batch=3").workload.batch == 3


def test_a_changed_number_is_the_users(house):
    loaded = load_scenario(house.path("scenario"), ["platform.devices.cxl0.controller=90 ns", "model.layers=2"])
    facts = {fact.path: fact for fact in provenance(loaded.document)}
    for path, value in (("platform.devices.cxl0.controller", "90 ns"), ("model.layers", 2)):
        fact = facts[path]
        assert (fact.value, fact.source, fact.confidence) == (value, "set by the user", "assumed")


def test_the_value_of_a_sourced_number_cannot_be_changed_behind_its_source(house):
    loaded = load_scenario(house.path("scenario"), ["platform.devices.cxl0.controller.value=90 ns"])
    fact = next(fact for fact in provenance(loaded.document) if fact.path == "platform.devices.cxl0.controller")
    assert (fact.value, fact.source) == ("90 ns", "set by the user")


def test_an_optional_field_can_be_set(house):
    assert scenario(house, "platform.links.up.bandwidth=40 GB/s").platform.links["up"].bandwidth == 40e9


def test_a_field_can_be_unset(house):
    assert scenario(house, "platform.devices.cxl0.filter=null").platform.devices["cxl0"].filter is None


def test_a_list_entry_is_set_by_its_index(house):
    assert scenario(house, "platform.links.up.between.1=cxl0").platform.links["up"].between == ("gpu0", "cxl0")


def test_a_list_entry_of_an_inherited_platform_can_be_set_for_one_run(house):
    house.change("platform", "  cxl0: cxl.yaml\n", "  cxl0: cxl.yaml\n  cxl1: cxl.yaml\n")
    house.change("platform", "[gpu0, cxl0]}\n", "[gpu0, cxl0]}\n  up1: {extends: link.yaml, between: [gpu0, cxl1]}\n")
    runs = scenario(house, "runs.quest.platform.tiers.cxl.0=cxl1").runs
    assert [run.platform.tiers["cxl"] for run in runs.values()] == [("cxl0",), ("cxl1",)]


def test_a_name_is_unfolded(house):
    other = house.write("other", f"extends: {house.path('gpu')}\nname: other\n")
    assert scenario(house, f"platform.devices.gpu0={other}").platform.devices["gpu0"].name == "other"


def test_a_policy_can_be_set_by_name(house):
    assert scenario(house, f"runs.full.policy={house.path('quest')}").runs["full"].policy.name == "quest"


def test_a_run_can_be_added(house):
    runs = scenario(house, f"runs.more={{policy: {house.path('full')}}}").runs
    assert list(runs) == ["full", "quest", "more"]


def test_values_are_yaml_and_not_python(house):
    value = parse_setting("a.b=__import__('os').getpid()").value.plain()
    assert value == "__import__('os').getpid()"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1e9", 1e9),
        ("a=on", "on"),
        ("a=", None),
        ("a=180 ns", "180 ns"),
        ("a={x: [1, 2]}", {"x": [1, 2]}),
        ("a=b=c", "b=c"),
    ],
)
def test_a_value_is_one_yaml_value(text, value):
    assert parse_setting(text).value.plain() == value


def test_the_seed_replaces_the_scenarios(house):
    assert load_scenario(house.path("scenario"), ["seed=5"], seed=7).scenario.seed == 7


def test_policies_and_parts_take_settings(house):
    assert load_policy(house.path("quest"), ["read.rule.topk=64"]).value.read.rule.topk == 64
    assert load_part(house.path("gpu"), ["memory.channels=2"]).value.memory.channels == 2


def test_a_set_scenario_survives_its_effective_form(house):
    sets = ["runs.quest.platform.links.up.width=4", "workload.batch=2", "platform.links.up.latency=10 ns"]
    loaded = load_scenario(house.path("scenario"), sets)
    again = house.write("again", dump(loaded.document))
    assert load_scenario(again).scenario == loaded.scenario


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("workload.batch", "no '='"),
        ("=3", "an empty name"),
        ("workload..batch=3", "an empty name"),
        (".=3", "an empty name"),
        ("workload.batch=[1", "bad YAML"),
        ("workload.batch=a: b", "a block value"),
        ("workload.batch=- b", "a block value"),
        ("workload.batch=!!int 3", "the tag"),
        ("workload.batch=.nan", "finite"),
        ("workload.batch=1.5", "a whole number or one of 'fits'"),
        ("workload.batch=-1", "above 0"),
        ("workload.bacth=3", "did you mean 'batch'"),
        ("worklod.batch=3", "did you mean 'workload'"),
        ("policy.name=x", "did you mean runs.LABEL.policy"),
        ("kv_tier=cxl", "did you mean runs.LABEL.kv_tier"),
        ("runs.qest.kv_tier=cxl", "did you mean 'quest'"),
        ("runs.quest.platform.links.upp.width=4", "did you mean 'up'"),
        ("platform.links.up.widht=4", "did you mean 'width'"),
        ("platform.links.up.width=4 lanes", "a whole number"),
        ("platform.links.up.latency=4", "with its unit"),
        ("platform.links.up.latency=4 GB", "found unit 'GB'"),
        ("platform.links.up.rate=0 GT/s", "above zero"),
        ("platform.links.up.between.2=gpu0", "an index from 0 to 1"),
        ("platform.links.up.between.x=gpu0", "an index from 0 to 1"),
        ("platform.links.up.name.x=1", "expected a mapping or a list"),
        ("platform=nowhere", "no platform named 'nowhere'"),
        ("platform.devices.gpu0.architecture=sm_91", "did you mean 'sm_90'"),
        ("platform.devices.gpu0.attention_kernels=vlm", "expected one of vllm"),
        ("runs.quest.filter=dram", "index_tier: dram"),
        ("runs.quest.policy.read.rule={topk: x}", "a whole number"),
        ("runs.quest.policy.read.rule={certify: 0.1, form: x}", "read.rule.form: found 'x'"),
        ("model={a: 1}", "model.a: found the unknown key 'a'"),
        ("platform.links.up.latency=true", "found true, expected a duration"),
        ("platform.devices.cxl0.memory.dram={a: {b: 1}}", "memory.dram"),
        ("runs.quest.policy.keep.4.role=hot", "an index from 0 to 0"),
        ("require.0=full.tokens_per_s > x", "PATH OP NUMBER"),
    ],
)
def test_a_bad_setting_is_one_line_that_names_it(house, text, words):
    with pytest.raises(ConfigError) as caught:
        scenario(house, text)
    line = str(caught.value)
    assert line.startswith(f"--set {text!r}: ")
    assert words in line
    assert "\n" not in line


def test_a_sweep_has_the_points_of_grid_by_zip_by_list(house):
    house.change(
        "sweep", "schema: 1\n", "schema: 1\nlist: [{workload.steps: 1}, {model.layers: 2, workload.steps: 2}]\n"
    )
    sweep = load_sweep(house.path("sweep")).value
    points = sweep.expand()
    assert len(points) == sweep.size == 3 * 2 * 2
    assert points[0] == {
        "platform.links.up.width": 4,
        "workload.context": 32768,
        "workload.batch": 16,
        "workload.steps": 1,
    }
    assert len({str(sorted(point.items())) for point in points}) == 12


def test_a_point_of_a_sweep_can_be_set(house):
    sweep = load_sweep(house.path("sweep")).value
    point = sweep.expand()[-1]
    runs = load_scenario(sweep.scenario, as_sets(point)).scenario.runs
    assert runs["quest"].platform.links["up"].width == 16
    assert (runs["quest"].workload.context, runs["quest"].workload.batch) == (131072, 8)


def test_points_survive_being_written_as_settings():
    values = ["1e9", 1e-9, None, True, "180 ns", {"topk": 3}, [1, "a"]]
    sets = as_sets({f"a.b{i}": value for i, value in enumerate(values)})
    assert [parse_setting(text).value.plain() for text in sets] == values


def test_a_sweep_of_only_listed_points_has_them_in_order():
    sweep = Sweep(scenario="s", list_=({"a": 1}, {"a": 2}))
    assert sweep.expand() == [{"a": 1}, {"a": 2}]
