"""Does a finding end in the verdict that its numbers carry, and is what is wrong with one told in one line?"""

import json
from pathlib import Path

import pytest
from tiny import SCENARIO

from ghostsim.config.catalogue import files
from ghostsim.config.expressions import Columns
from ghostsim.config.finding import Evidence
from ghostsim.config.load import load_finding
from ghostsim.errors import ConfigError
from ghostsim.findings.answer import answer, written
from ghostsim.findings.evidence import WAYS, Gathered

SWEEP = """
schema: 1
scenario: tiny.yaml
grid: {workload.steps: [1, 2], platform.links.cxl0.width: [4, 16]}
"""
FINDING = """
schema: 1
title: Offloading
question: "Is KV behind a link as fast as in HBM?"
evidence: {grid: {sweep: grid.yaml}, one: {run: tiny.yaml}}
values: {ratio: grid.offload.step_ms.p95 / grid.full.step_ms.p95}
claims:
- {name: slow, says: "the link is slower", published: "never", value: min(ratio), unit: x, holds: "> 1"}
- {name: wider, says: "a wide link is slower by", unit: x, value: "max(ratio[grid.platform.links.cxl0.width == 16])"}
verdict:
- {when: slow, says: "No: it takes {slow} as long, {wider} at 16 lanes."}
- {says: "Yes."}
charts:
- {title: "<b>p95</b>", x: grid.platform.links.cxl0.width, y: {KV: grid.offload.step_ms.p95}, by: grid.workload.steps, x_title: lanes, y_title: ms}
tables:
- {title: all, columns: {lanes: grid.platform.links.cxl0.width, ms: grid.offload.step_ms.p95, lossless: one.runs.full.batch}}
not_covered: ["other links"]
"""  # noqa: E501
LOOP = """
schema: 1
title: Loop
question: "Does full attention read everything?"
evidence:
  loop: {perplexity: docs_5m, text: natural_4k/token_ids.npy, policies: [full], prompt: 64, steps: 2}
claims:
- {name: all, says: "everything is read", value: loop.policies.full.read_share, holds: "== 1"}
verdict:
- {when: all, says: "Yes."}
- {says: "No."}
"""


@pytest.fixture(scope="module")
def answered(tmp_path_factory, ghostsim):
    folder = tmp_path_factory.mktemp("findings")
    for name, text in (("grid", SWEEP), ("tiny", SCENARIO), ("offloading", FINDING)):
        (folder / f"{name}.yaml").write_text(text)
    result = ghostsim(
        "findings", "offloading.yaml", "--out", "out", "--json", cwd=folder, GHOSTSIM_CACHE=folder / "cache"
    )
    assert result.returncode == 0, result.stderr
    return folder, json.loads(result.stdout)["findings"]["offloading"], result


def test_the_verdict_holds_the_numbers_of_its_claims(answered):
    _, found, _ = answered
    claims = found["claims"]
    told = (written(claims[name]["value"], "x") for name in ("slow", "wider"))
    assert found["verdict"] == found["headline"] == "No: it takes {} as long, {} at 16 lanes.".format(*told)


def test_a_claim_without_a_bar_is_a_figure_only(answered):
    assert answered[1]["claims"]["wider"]["holds"] is None
    assert answered[1]["claims"]["slow"]["holds"] is True


def test_points_are_counted(answered):
    assert answered[1]["points"] == 4 + 2


def test_every_piece_of_evidence_has_a_page(answered):
    folder = answered[0] / "out"
    pages = {path.parent.name for path in folder.glob("*/index.html")}
    assert pages == {"offloading", "sweep-grid.yaml", "run-tiny.yaml"}
    assert (folder / "plotly.min.js").is_file()


def test_a_page_escapes_what_a_finding_says(answered):
    page = (answered[0] / "out" / "offloading" / "index.html").read_text()
    assert "&lt;b&gt;p95&lt;/b&gt;" in page
    assert "<b>p95</b>" not in page


def test_the_index_links_the_finding_under_its_verdict(answered):
    page = (answered[0] / "out" / "index.html").read_text()
    assert 'href="offloading/index.html"' in page
    assert answered[1]["verdict"] in page


def test_the_second_time_nothing_is_simulated_and_all_bytes_are_the_same(answered, ghostsim):
    folder, _, first = answered
    again = ghostsim(
        "findings", "offloading.yaml", "--out", "again", "--json", cwd=folder, GHOSTSIM_CACHE=folder / "cache"
    )
    assert again.stdout == first.stdout
    assert "point" not in again.stderr
    for path in (folder / "out").rglob("*.html"):
        assert (folder / "again" / path.relative_to(folder / "out")).read_bytes() == path.read_bytes()


def test_evidence_is_computed_again_when_the_scenario_changes(answered, ghostsim):
    folder, found, _ = answered
    for name in ("grid", "offloading"):
        (folder / "other").mkdir(exist_ok=True)
        (folder / "other" / f"{name}.yaml").write_text((folder / f"{name}.yaml").read_text())
    (folder / "other" / "tiny.yaml").write_text(SCENARIO.replace("batch: 1", "batch: 2"))
    result = ghostsim(
        "findings", "other/offloading.yaml", "--out", "other/out", "--json", cwd=folder, GHOSTSIM_CACHE=folder / "cache"
    )
    other = json.loads(result.stdout)["findings"]["offloading"]
    assert other["claims"]["slow"]["value"] != found["claims"]["slow"]["value"]


def test_an_out_that_exists_is_not_replaced(answered, ghostsim):
    folder = answered[0]
    result = ghostsim("findings", "offloading.yaml", "--out", "out", cwd=folder, GHOSTSIM_CACHE=folder / "cache")
    assert result.returncode == 2
    assert "exists" in result.stderr


# --- what is wrong is told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("value: min(ratio)", "value: min(ration)", "claims.0.value: found the name 'ration', expected one of"),
        ("value: min(ratio)", "value: 'min(ratio'", "claims.0.value: found 'min(ratio', expected an expression"),
        ('holds: "> 1"', 'holds: "about 1"', "claims.0.holds: found 'about 1', expected OP NUMBER"),
        ("{slow} as long", "{fast} as long", "{wider} at 16 lanes.', expected the name of a claim: slow, wider"),
        ("when: slow", "when: fast", "verdict.0.when: found the name 'fast', expected one of slow, wider"),
        ('- {says: "Yes."}', "", "verdict: found no verdict for all other cases"),
        ("sweep: grid.yaml", "sweep: grid.yaml, audit: natural_4k", "found sweep and audit, expected one of"),
        ("name: wider", "name: slow", "claims.1: found a second claim named 'slow'"),
        ("run: tiny.yaml", "walk: tiny.yaml", "walk"),
    ],
)
def test_a_wrong_finding_is_refused_with_its_place(tmp_path, old, new, told):
    path = tmp_path / "wrong.yaml"
    assert old in FINDING
    path.write_text(FINDING.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_finding(path)
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)


@pytest.fixture
def loaded(tmp_path):
    def load(old="", new=""):
        path = tmp_path / "finding.yaml"
        path.write_text(FINDING.replace(old, new) if old else FINDING)
        return load_finding(path)

    return load


def _evidence(**columns):
    common = {"workload.steps": [1.0, 2.0], "platform.links.cxl0.width": [4.0, 16.0]}
    grid = Gathered("grid", "ghostsim sweep grid", Columns(common | columns), 2, 0, None)
    return [grid, Gathered("one", "ghostsim run tiny", {"runs": {"full": {"batch": 1}}}, 1, 0, None)]


@pytest.mark.parametrize(
    ("offload", "verdict"), [([4.0, 6.0], "No: it takes 2x as long, 3x at 16 lanes."), ([1.0, 6.0], "Yes.")]
)
def test_the_first_branch_whose_claims_hold_is_the_verdict(loaded, offload, verdict):
    evidence = _evidence(**{"offload.step_ms.p95": offload, "full.step_ms.p95": [2.0, 2.0]})
    assert answer("finding", loaded(), evidence).verdict == verdict


def test_a_figure_that_is_missing_is_an_error_with_its_place(loaded):
    evidence = _evidence(**{"offload.step_ms.p95": [None, 1.0], "full.step_ms.p95": [2.0, 2.0]})
    with pytest.raises(ConfigError, match=r"finding.yaml:8:.*found nan as the value of claim 'slow'"):
        answer("finding", loaded(), evidence)


def test_a_column_that_is_not_there_is_an_error_with_its_place(loaded):
    evidence = _evidence(**{"offload.step_ms.p95": [1.0, 1.0]})
    with pytest.raises(ConfigError, match=r"finding.yaml:6:.*found no column 'full.step_ms.p95' in grid"):
        answer("finding", loaded(), evidence)


def test_other_weights_are_other_evidence(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "text.npy").write_bytes(b"ids")
    asked = Evidence(perplexity="model", text="text.npy", policies=("quest",))

    def depends(weights):
        (tmp_path / "model" / "model.safetensors").write_bytes(weights)
        return dict(WAYS["perplexity"](asked, tmp_path, 1, lambda _: None).depends)

    assert depends(b"one") != depends(b"two")
    assert depends(b"one") == depends(b"one")


@pytest.mark.parametrize("name", list(files("finding")))
def test_every_bundled_finding_is_valid(name):
    assert load_finding(name).value.claims


GALLERY = Path(__file__).parents[2] / "reports" / "gallery" / "findings"


@pytest.fixture
def gallery():
    if not (GALLERY / "findings.json").is_file():
        pytest.skip("no gallery here")
    return json.loads((GALLERY / "findings.json").read_text())["findings"]


def test_the_gallery_holds_the_findings_that_are_bundled(gallery):
    assert set(gallery) == set(files("finding"))


def test_the_readme_says_what_the_gallery_says(gallery):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    part = readme.partition("<!-- findings:begin -->")[2].partition("<!-- findings:end -->")[0]
    told = (
        f"- [{each['title']}](reports/gallery/findings/{name}/index.html): {each['headline']}"
        for name, each in gallery.items()
    )
    assert part.strip() == "\n".join(told)


@pytest.mark.parametrize(
    ("value", "unit", "text"), [(0.1234, "%", "12.3 %"), (1.5, "x", "1.5x"), (2.5, "ms", "2.5 ms"), (7, "", "7")]
)
def test_a_value_is_written_with_its_unit(value, unit, text):
    assert written(value, unit) == text


def test_a_model_may_read_token_ids(tmp_path, ghostsim):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    (tmp_path / "loop.yaml").write_text(LOOP)
    result = ghostsim("findings", "loop.yaml", "--out", "out", "--json", cwd=tmp_path, GHOSTSIM_CACHE=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["findings"]["loop"]["verdict"] == "Yes."
