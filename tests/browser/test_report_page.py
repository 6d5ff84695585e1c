"""Is the report complete, self-contained, the same every time, and honest about broken folders?"""

import gzip
import html
import itertools
import json
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from ghostsim.errors import StoreError
from ghostsim.report.page import render, render_compare, write_report
from ghostsim.report.store import check_run, load_run
from ghostsim.report.text import summary_text

FIGURES = [
    "throughput",
    "latency",
    "critical-path",
    "frontier",
    "quality",
    "bounds",
    "elimination",
    "lost-by-step",
    "lost-by-context",
    "bytes",
    "state",
    "energy",
    "capacity",
    "topology",
    "utilisation",
    "over-time",
    "roofline",
    "layer",
]


class _Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.headings, self.figures, self.inside, self.links, self.scripts = [], {}, None, [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "figure":
            self.inside = found["id"]
            self.figures[self.inside] = set()
        elif self.inside:
            self.figures[self.inside].add(tag)
        self.scripts += tag == "script"
        self.links += [found[name] for name in ("src", "href") if found.get(name)]

    def handle_endtag(self, tag):
        if tag == "figure":
            self.inside = None


def own_part(page):
    """The page without Plotly's source."""
    return page.replace(get_plotlyjs(), "")


def plots(page):
    return json.loads(re.search(r'<script type="application/json" id="plots">(.*?)</script>', page, re.DOTALL)[1])


def test_every_figure_has_caption_and_table(run_folder):
    page = _Page(own_part(render(run_folder)))
    assert list(page.figures) == FIGURES
    assert all({"figcaption", "table", "details"} <= tags for tags in page.figures.values())


def test_headings_descend_one_level_at_a_time(run_folder):
    levels = _Page(own_part(render(run_folder))).headings
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_no_two_parts_of_a_page_share_an_id_and_every_link_inside_it_leads_somewhere(run_folder):
    page = own_part(render(run_folder))
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in _Page(page).links if link.startswith("#")} <= set(ids)


def test_heading_names_label_factor_percentile_limit_and_lost_mass(run_folder):
    heading = re.search("<h1>(.*?)</h1>", render(run_folder), re.DOTALL)[1]
    for expected in ("ghostkv_gpu", "19x fewer tokens/s", "2.27x faster at p95", "pcie0 (95 % busy)", "0.41 %"):
        assert expected in heading


def test_nothing_is_loaded_from_elsewhere(run_folder):
    page = own_part(render(run_folder))
    assert all(link.startswith(("#", "data:")) for link in _Page(page).links)
    assert "default-src 'none'" in html.unescape(page)
    assert "@import" not in page


def test_page_is_small_enough_to_mail(run_folder):
    assert len(render(run_folder).encode()) < 6_000_000


@pytest.mark.bench
def test_page_renders_in_less_than_three_seconds(run_folder):
    began = time.process_time()
    render(run_folder)
    assert time.process_time() - began < 3


def test_page_is_byte_identical_in_another_process_and_hash_seed(run_folder):
    program = "import sys, hashlib; from pathlib import Path; from ghostsim.report.page import render; "
    program += "print(hashlib.sha256(render(Path(sys.argv[1])).encode()).hexdigest())"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program, str(run_folder)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_every_drawing_is_a_valid_plotly_figure_with_titled_axes(run_folder):
    for key, views in plots(render(run_folder)).items():
        for view in views:
            figure = go.Figure(view)
            titled = [axis.title.text for axis in figure.select_xaxes()]
            assert any(titled) or key == "utilisation"


def test_no_trace_is_told_apart_by_colour_alone(run_folder):
    drawn = plots(render(run_folder))
    for key in ("critical-path", "energy", "capacity"):
        looks = [json.dumps(trace["marker"].get("pattern", {}).get("shape")) for trace in drawn[key][0]["data"]]
        assert len(set(looks)) == len(looks)
    symbols = [trace["marker"]["symbol"] for trace in drawn["elimination"][0]["data"]]
    assert len(set(symbols)) == len(symbols)
    dashes = [trace["line"]["dash"] + trace["marker"]["symbol"] for trace in drawn["lost-by-step"][0]["data"]]
    assert len(set(dashes)) == len(dashes)


def test_critical_path_bars_sum_to_the_mean_step(run_folder):
    milliseconds = plots(render(run_folder))["critical-path"][1]["data"]
    found = load_run(run_folder).metrics["runs"]
    for index, run in enumerate(found.values()):
        assert sum(trace["x"][index] for trace in milliseconds) == pytest.approx(run["step_ms"]["mean"], rel=1e-4)


def test_published_bound_stands_beside_the_sound_one(run_folder):
    page = own_part(render(run_folder))
    warning = re.search('<p class="warning"><strong>Not sound.</strong>(.*?)</p>', page, re.DOTALL)[1]
    for expected in (
        "ghostkv_published",
        "41.2 % of the tokens checked",
        "93 %",
        "ghostkv_sketch",
        "0.02 %",
        "as many",
    ):
        assert expected in warning


def test_int4_is_printed_as_not_lossless(run_folder):
    assert "Not lossless, because the format changes scores: int4." in render(run_folder)
    assert "* not lossless" in summary_text(run_folder)


def test_assumed_numbers_and_what_is_not_modelled_are_listed(run_folder):
    page = render(run_folder)
    assert "platform.devices.host0.root_complex" in page
    assert "platform.links.cxl0.width" in page
    assert "<li>prefill</li>" in page


def test_text_from_files_cannot_inject_markup(hostile_folder):
    page = own_part(render(hostile_folder))
    assert "<img" not in page
    assert _Page(page).scripts == 3
    assert "\\u003cimg" in page or "&lt;img" in page


def test_report_without_a_timeline_leaves_its_figures_out(run_folder):
    (run_folder / "timeline.json.gz").unlink()
    assert list(_Page(own_part(render(run_folder))).figures) == FIGURES[:-3]


def test_directory_mode_shares_one_script(run_folder):
    page = write_report(run_folder, "directory")
    assert page.stat().st_size < 600_000
    assert 'src="../plotly.min.js"' in page.read_text()
    assert (run_folder.parent / "plotly.min.js").read_text() == get_plotlyjs()


def test_compare_page_shows_what_differs(run_folder, tmp_path):
    other = tmp_path / "wider"
    other.mkdir()
    for path in run_folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(text.replace("26 GB/s", "52 GB/s"))
    page = own_part(render_compare([run_folder, other]))
    row = re.search('<tr><th scope="row">platform.devices.host0.root_complex</th>(.*?)</tr>', page)[1]
    assert "26 GB/s" in row
    assert "52 GB/s" in row
    assert page.count("platform.links.cxl0.width") == 0
    heading = re.search("<h1>(.*?)</h1>", page)[1]
    for expected in ("ghostkv_gpu in wider is as fast as in cxl_pim at p95", "at most 0.41 %", "limit there is pcie0"):
        assert expected in heading


def test_summary_text_has_a_row_for_every_run(run_folder):
    lines = summary_text(run_folder).splitlines()
    for label in load_run(run_folder).metrics["runs"]:
        assert sum(line.startswith(f"{label} ") for line in lines) >= 1


BROKEN = [
    ("metrics.json", "{", "broken JSON"),
    ("metrics.json", "[]", "found a list"),
    ("metrics.json", '{"schema": 2}', "schema"),
    ("metrics.json", '{"schema": 1, "x": NaN}', "NaN"),
    ("metrics.json", "[" * 100_000, "found"),
    ("manifest.json", "\xff", "found"),
    ("config.yaml", "a: [", "bad YAML"),
    ("config.yaml", "- 1", "found a list"),
    ("config.yaml", "!!python/object:os.system {}", "found the tag"),
    ("config.yaml", "a: &a [*a]", "expected no recursion"),
    ("manifest.json", '{"workload": 5}', "workload: found 5"),
    ("manifest.json", '{"notes": "x"}', "notes: found 'x'"),
    ("manifest.json", '{"lost_mass_by_context": {"a": [1]}}', "lost_mass_by_context.a.0: found 1"),
    ("steps.csv", "", "columns"),
    ("steps.csv", "label,step,step_ms\na,0\n", "2 cells"),
    ("steps.csv", "label,step,step_ms\na,0,inf\n", "inf"),
    ("timeline.json.gz", "no gzip", "timeline"),
]


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN)
def test_broken_file_is_one_line_that_names_it(run_folder, name, content, expected):
    (run_folder / name).write_text(content)
    with pytest.raises(StoreError) as caught:
        render(run_folder)
    message = str(caught.value)
    assert message.startswith(str(run_folder / name))
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("name", ["metrics.json", "manifest.json", "config.yaml", "steps.csv"])
def test_missing_file_is_refused(run_folder, name):
    (run_folder / name).unlink()
    with pytest.raises(StoreError, match=name):
        check_run(run_folder)


def test_missing_run_is_refused(tmp_path):
    with pytest.raises(StoreError, match="found no run folder"):
        check_run(tmp_path / "nothing")


def test_metrics_of_the_wrong_shape_are_named_by_their_path(run_folder):
    found = json.loads((run_folder / "metrics.json").read_text())
    found["runs"]["quest"]["step_ms"]["p95"] = "fast"
    (run_folder / "metrics.json").write_text(json.dumps(found))
    with pytest.raises(StoreError, match=r"runs\.quest\.step_ms\.p95: found 'fast'"):
        check_run(run_folder)


def test_timeline_that_is_not_ours_is_refused(run_folder):
    (run_folder / "timeline.json.gz").write_bytes(gzip.compress(b'{"traceEvents": [{"ph": "X"}]}'))
    with pytest.raises(StoreError, match="timeline"):
        load_run(run_folder)
