"""Does the README say what the commands it names print?"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ghostsim.accuracy.involved import stored_errors
from ghostsim.accuracy.report import accuracy

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def table():
    text = README.read_text(encoding="utf-8")
    block = text[text.index("<!-- accuracy:begin -->") : text.index("<!-- accuracy:end -->")]
    rows = [
        re.split(r"\s*\|\s*", line.strip().strip("|").strip()) for line in block.splitlines() if line.startswith("| `")
    ]
    return {row[0].split("`")[1]: row[1:] for row in rows}


@pytest.fixture(scope="module")
def measured():
    return accuracy(jobs=0).as_json()["probes"]


@pytest.mark.slow
def test_every_probe_is_in_the_table(table, measured):
    assert set(table) == set(measured)


@pytest.mark.slow
def test_accuracy_table_holds_the_figures_of_the_command(table, measured):
    for probe, (rows, median, p90, worst, _) in table.items():
        found = measured[probe]
        assert (rows, median, p90, worst) == (
            str(found["n"]), f"{100 * found['median']:.1f}", f"{100 * found['p90']:.1f}", f"{100 * found['max']:.1f}"
        )  # fmt: skip


@pytest.mark.slow
def test_stored_errors_are_those_of_the_command(measured):
    for probe, stored in stored_errors().items():
        for key in ("n", "skipped", "median", "p90", "max", "bias"):
            assert stored[key] == pytest.approx(measured[probe][key], rel=1e-3, abs=1e-5)
    assert set(stored_errors()) == set(measured)


@pytest.mark.slow
def test_every_bar_is_met(table):
    for _, median, p90, _, bar in table.values():
        if bar != "none":
            limits = [float(number) for number in bar.split("/")]
            assert (float(median) <= limits[0], float(p90) <= limits[1]) == (True, True)


def test_every_file_that_the_readme_names_exists():
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:hwmodels|scenarios|traces|reports|ghostsim|tests)/[\w./-]*)`", text):
        assert (README.parent / name).exists(), name


@pytest.mark.slow
def test_table_of_the_main_scenario_holds_what_it_prints(tmp_path):
    text = README.read_text(encoding="utf-8")
    text = text[text.index("## What it says") : text.index("## What the verdict means")]
    call = [sys.executable, "-m", "ghostsim", "run", "cxl_pim", "--json", "--quiet"]
    runs = json.loads(subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)["runs"]
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (\d+) \| ([\d,.]+) \| ([\d,.]+) \|", text, re.MULTILINE)
    assert {label for label, *_ in rows} == set(runs) - {"ghostkv_sketch"}
    for label, batch, p95, rate in rows:
        found = runs[label]
        assert int(batch) == found["batch"]
        assert float(p95.replace(",", "")) == pytest.approx(found["step_ms"]["p95"], rel=0.005)
        assert float(rate.replace(",", "")) == pytest.approx(found["tokens_per_s"], rel=0.005)
