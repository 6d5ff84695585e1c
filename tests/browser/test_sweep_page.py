"""Does the page of a sweep answer first, rank only what can be ranked, and lead to its points?"""

import csv
import itertools
import json

import pytest
from browsing import needs_browser

from ghostsim.errors import StoreError
from ghostsim.report.pareto import undominated
from ghostsim.report.sweep_page import render_sweep, write_sweep_report
from ghostsim.report.sweep_store import load_sweep

WIDTH, RATE = "platform.links.cxl0.width", "platform.devices.host0.root_complex"
HEADER = "point,status,error,missed"
RUNS = {"full": (300.0, 0.0, 40.0), "int4": (60.0, 0.0, 10.0), "ghost": (200.0, 0.004, 55.0)}


def rows():
    for number, (width, rate) in enumerate(itertools.product((4, 8, 16), ("26 GB/s", "55.4 GB/s"))):
        row = {"point": f"{number:016x}", "status": "done", "error": "", "missed": "", WIDTH: width, RATE: rate}
        for label, (p95, lost, energy) in RUNS.items():
            slower = 1 + (4 / width) * (2 if rate == "26 GB/s" else 1) if label == "ghost" else 1.0
            row |= {
                f"{label}.policy": label,
                f"{label}.step_ms.p95": p95 * slower,
                f"{label}.quality.lost_mass.max": lost,
                f"{label}.energy_mj_per_token.hbm": energy * slower,
            }
        yield row


def write_store(folder, some=None, effects=()):
    some = list(rows()) if some is None else some
    for row in some:
        (folder / "points" / row["point"]).mkdir(parents=True)
    about = {"workload": {"lossless": {"full": True, "int4": False, "ghost": True}}}
    (folder / "points" / some[0]["point"] / "manifest.json").write_text(json.dumps(about))
    for name, table in (("points.csv", some), ("sensitivity.csv", list(effects))):
        if table:
            with (folder / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(table)
    return folder


@pytest.fixture
def sweep_folder(tmp_path):
    return write_store(tmp_path / "sweep")


EFFECTS = [
    {"paths": "platform.a", "value": "2 us", "source": "recalled", "baseline": "full", "run": "ghost",
     "ratio": "0.9", "divided": "1.2", "multiplied": "0.5", "flips": "true"},
    {"paths": "platform.b", "value": "3", "source": "recalled", "baseline": "full", "run": "ghost",
     "ratio": "0.9", "divided": "0.95", "multiplied": "", "flips": "false"},
]  # fmt: skip


def test_heading_names_the_fastest_lossless_run_and_the_field_that_moves_most(sweep_folder):
    page = render_sweep(load_sweep(sweep_folder))
    assert f"ghost is fastest with {WIDTH} 16, {RATE} 55.4 GB/s: 250 ms at p95" in page
    assert f"{WIDTH} moves most: ghost by 1.82x." in page
    assert "not ranked: int4" in page


def test_heading_leaves_out_a_field_that_its_point_does_not_set(tmp_path):
    some = [row | {RATE: "" if row[RATE] == "55.4 GB/s" else row[RATE]} for row in rows()]
    page = render_sweep(load_sweep(write_store(tmp_path / "sweep", some)))
    assert f"ghost is fastest with {WIDTH} 16: 250 ms at p95" in page


@needs_browser
def test_every_figure_of_a_sweep_renders_without_console_error(tmp_path, visit):
    tab = visit(write_sweep_report(write_store(tmp_path / "sweep")))
    assert tab.drawn() == tab.figures() == {"heat", "along", "effects", "pareto", "parallel"}
    assert tab.said == []


@needs_browser
def test_point_under_the_mouse_is_a_link_to_its_own_report_and_a_click_opens_it(sweep_folder, visit):
    for row in rows():
        (sweep_folder / "points" / row["point"] / "report.html").write_text(f"<title>{row['point']}</title>")
    tab = visit(write_sweep_report(sweep_folder))
    tab.page.locator("#pareto .points path").first.hover(force=True)
    link = tab.page.locator("#pareto a.under")
    link.wait_for()
    page = link.get_attribute("href")
    assert (sweep_folder / page).is_file()
    assert tab.said == []
    tab.page.locator("#pareto .points path").first.click(force=True)
    tab.page.wait_for_url(f"**/{page}")
    assert page == f"points/{tab.page.title()}/report.html"


@needs_browser
def test_points_without_a_report_offer_no_link(sweep_folder, visit):
    tab = visit(write_sweep_report(sweep_folder))
    tab.page.locator("#pareto .points path").first.hover(force=True)
    tab.page.locator("#pareto .hoverlayer .hovertext").first.wait_for()
    assert tab.page.locator("a.under").count() == 0


def test_points_lead_to_their_reports_where_they_have_one(sweep_folder):
    (sweep_folder / "points" / f"{3:016x}" / "report.html").write_text("")
    page = render_sweep(load_sweep(sweep_folder))
    assert f'<a href="points/{3:016x}/report.html">' in page
    assert f"points/{2:016x}/report.html" not in page


def test_sweep_of_one_field_has_no_heat_map(tmp_path):
    some = [row for row in rows() if row[RATE] == "26 GB/s"]
    page = render_sweep(load_sweep(write_store(tmp_path / "sweep", some)))
    assert 'id="heat"' not in page
    assert 'id="along"' in page


# --- searches ----------------------------------------------------------------------------------------------------


def searched(objectives, fits):
    """Return rows as a search writes them: a number, whether the bounds are met, objectives, then fields."""
    for number, row in enumerate(rows()):
        own = {
            "trial": number,
            "meets_bounds": str(fits(row)).lower(),
            **{name: value(row) for name, value in objectives.items()},
        }
        head, tail = dict(list(row.items())[:4]), dict(list(row.items())[4:])
        yield {**head, **own, **tail}


SMALLEST = {f"minimise {WIDTH}": lambda row: float(row[WIDTH])}


def test_heading_of_a_search_is_its_best_point(tmp_path):
    some = list(searched(SMALLEST, lambda row: row[RATE] == "55.4 GB/s" and row[WIDTH] > 4))
    page = render_sweep(load_sweep(write_store(tmp_path / "search", some)))
    assert f"<h1>Best of all: {WIDTH} 8, {RATE} 55.4 GB/s. 2 of 6 points meet the bounds.</h1>" in page
    assert '<p class="crumb">ghostsim · search search</p>' in page


def test_search_whose_points_all_miss_a_bound_says_so(tmp_path):
    some = list(searched(SMALLEST, lambda _: False))
    page = render_sweep(load_sweep(write_store(tmp_path / "search", some)))
    assert "No point meets the bounds: 0 of 6 points meet the bounds." in page


def test_what_a_search_says_of_its_trials_is_no_field(tmp_path):
    store = load_sweep(write_store(tmp_path / "search", list(searched(SMALLEST, lambda _: True))))
    assert store.varied == [WIDTH, RATE]


@needs_browser
def test_every_figure_of_a_search_renders_without_console_error(tmp_path, visit):
    both = SMALLEST | {"maximise ghost.tokens_per_s": lambda row: 1 / row["ghost.step_ms.p95"]}
    some = list(searched(both, lambda row: row[WIDTH] > 4))
    tab = visit(write_sweep_report(write_store(tmp_path / "search", some)))
    assert tab.drawn() == tab.figures() == {"trials", "heat", "along", "effects", "pareto", "parallel"}
    assert tab.said == []


def test_fields_of_many_values_are_shown_in_ranges(tmp_path):
    some = [row | {"point": f"{i:016x}", RATE: f"{i + 0.5} GB/s"} for i, row in enumerate([*rows(), *rows(), *rows()])]
    store = load_sweep(write_store(tmp_path / "sweep", some))
    assert list(dict.fromkeys(store.levels(RATE).values())) == [
        "0.5 to 3.5 GB/s", "4.5 to 8.5 GB/s", "9.5 to 12.5 GB/s", "13.5 to 17.5 GB/s"]  # fmt: skip


def test_fields_that_change_together_are_one(tmp_path):
    store = load_sweep(write_store(tmp_path / "sweep", [row | {RATE: row[WIDTH]} for row in rows()]))
    assert store.varied == [WIDTH]


# --- assumed numbers ---------------------------------------------------------------------------------------------


@needs_browser
def test_sensitivity_is_a_tornado_under_its_verdict(tmp_path, visit):
    tab = visit(write_sweep_report(write_store(tmp_path / "assumed", effects=EFFECTS)))
    assert tab.drawn() == tab.figures() == {"assumed"}
    assert tab.page.locator("h1").text_content() == (
        "ghost against full: 0.9x, turned by platform.a; platform.a moves it most (0.5x to 1.2x)."
    )
    first, second = (tab.page.locator(f"#assumed .ytick:has-text('platform.{name}')") for name in "ab")
    assert first.bounding_box()["y"] < second.bounding_box()["y"]
    assert tab.said == []


def test_failed_points_are_named_with_their_reason(tmp_path):
    some = list(rows())
    some[1] = dict.fromkeys(some[1], "") | {"point": "ab", "status": "failed", "error": "tier hbm overflows"}
    page = render_sweep(load_sweep(write_store(tmp_path / "sweep", some)))
    assert "<li>ab: tier hbm overflows</li>" in page


def test_names_from_a_table_stay_text(tmp_path):
    attack = "<img src=x onerror=alert(1)>"
    some = [{**row, RATE: attack, "missed": attack} for row in rows()]
    page = render_sweep(load_sweep(write_store(tmp_path / "sweep", some)))
    assert "<img" not in page
    assert "&lt;img" in page


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no readable table"), ("a,b\n1,2\n", "other columns"), (f"{HEADER}\nab\n", "1 cells"),
     (f"{HEADER}\nab,failed,x,\n", "no finished point")],
)  # fmt: skip
def test_broken_table_is_one_line_with_its_place(tmp_path, text, words):
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(StoreError, match=words):
        load_sweep(tmp_path)


def test_nothing_on_a_front_is_beaten_and_everything_else_is():
    costs = {"a": (1.0, 5.0), "b": (2.0, 4.0), "c": (2.0, 5.0), "d": (1.0, 5.0), "e": (9.0, 9.0)}
    assert undominated(costs) == ["a", "b", "d"]
