"""Does a browser draw the report, offline, without an error, and without running what a file smuggles in?"""

from browsing import needs_browser

from ghostsim.report.page import render_compare, write_report


@needs_browser
def test_every_figure_renders_offline_without_console_error(run_folder, visit):
    tab = visit(write_report(run_folder))
    assert len(tab.figures()) == 18
    assert tab.drawn() == tab.figures()
    assert tab.said == []


def ink(tab):
    """Return the colour of the first axis title."""
    return tab.page.locator(".xtitle").first.evaluate("title => getComputedStyle(title).fill")


@needs_browser
def test_dark_scheme_changes_the_ink_of_figures(run_folder, visit):
    page = write_report(run_folder)
    light, dark = (visit(page, color_scheme=scheme) for scheme in ("light", "dark"))
    assert dark.drawn() == dark.figures()
    assert ink(dark) != ink(light)


@needs_browser
def test_paper_is_printed_in_black_whatever_the_scheme(run_folder, visit):
    tab = visit(write_report(run_folder), color_scheme="dark")
    tab.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert ink(tab) == "rgb(0, 0, 0)"
    tab.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert ink(tab) != "rgb(0, 0, 0)"


@needs_browser
def test_narrow_page_does_not_scroll_sideways(run_folder, visit):
    tab = visit(write_report(run_folder), viewport={"width": 400, "height": 800})
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 400


@needs_browser
def test_shared_script_draws_too(run_folder, visit):
    tab = visit(write_report(run_folder, "directory"))
    assert tab.drawn() == tab.figures()
    assert tab.said == []


@needs_browser
def test_hostile_names_stay_text(hostile_folder, visit):
    tab = visit(write_report(hostile_folder))
    assert tab.drawn() == tab.figures()
    assert tab.page.locator("body").get_attribute("data-owned") is None
    assert tab.page.locator("img").count() == 0
    assert tab.said == []


@needs_browser
def test_compare_page_renders(run_folder, tmp_path, visit):
    page = tmp_path / "compare.html"
    page.write_text(render_compare([run_folder, run_folder]), encoding="utf-8")
    tab = visit(page)
    assert tab.drawn() == tab.figures() == {"compare-throughput", "compare-latency"}
    assert tab.said == []
