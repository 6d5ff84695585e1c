"""Does the report answer a mouse and a keyboard: is a run that is picked in one place followed in all others?"""

import pytest
from browsing import needs_browser

from ghostsim.report.page import write_report

DIMMED = 0.15


@pytest.fixture
def tab(run_folder, visit):
    return visit(write_report(run_folder))


def settles(tab, figure, name, **expected):
    """Wait until a trace looks as expected."""
    for _ in range(600):
        found = tab.trace(figure, name)
        if all(found.get(key) == value for key, value in expected.items()):
            return
        tab.page.wait_for_timeout(50)
    raise AssertionError(
        f"{figure}, {name}: found { ({key: found.get(key) for key in expected}) }, expected {expected}"
    )


def marked_rows(tab):
    return set(tab.page.locator("tr.on th").all_text_contents())


@needs_browser
def test_run_picked_by_address_stands_out_in_figures_and_tables(run_folder, visit):
    tab = visit(write_report(run_folder), "#run=quest")
    settles(tab, "quality", "full_fits", opacity=DIMMED)
    settles(tab, "frontier", "full_fits", opacity=DIMMED)
    assert tab.page.locator("#throughput .shapelayer path").count() == 1
    assert tab.page.locator('button[aria-pressed="true"]').all_text_contents() == ["quest"]
    assert marked_rows(tab) == {"quest"}
    assert tab.said == []


@needs_browser
def test_click_on_a_run_picks_it_and_a_second_click_lets_go(tab):
    button = tab.page.get_by_role("button", name="ghostkv_cxl")
    button.click()
    settles(tab, "quality", "quest", opacity=DIMMED)
    settles(tab, "quality", "ghostkv_cxl", opacity=1)
    assert marked_rows(tab) == {"ghostkv_cxl"}
    assert tab.page.url.endswith("#run=ghostkv_cxl")
    button.click()
    settles(tab, "quality", "quest", opacity=1)
    assert marked_rows(tab) == set()
    assert tab.said == []


@needs_browser
def test_click_in_one_legend_hides_the_run_in_other_figures(tab):
    tab.page.locator("#quality .legendtoggle").nth(3).click()
    for figure in ("quality", "frontier", "roofline"):
        settles(tab, figure, "quest", visible="legendonly")
        settles(tab, figure, "int4", visible=True)
    tab.page.locator("#quality .legendtoggle").nth(3).click()
    settles(tab, "frontier", "quest", visible=True)
    assert tab.said == []


@needs_browser
def test_run_under_the_mouse_stands_out_in_a_figure_beside_it(tab):
    tab.page.set_viewport_size({"width": 1300, "height": 2600})
    tab.page.locator("#frontier").scroll_into_view_if_needed()
    tab.page.locator("#frontier .points path").nth(3).hover(force=True)
    settles(tab, "quality", "full_fits", opacity=DIMMED)
    settles(tab, "quality", "quest", opacity=1)
    assert tab.said == []


@needs_browser
def test_keyboard_alone_skips_to_the_figures_picks_a_run_and_opens_a_table(tab):
    keys = tab.page.keyboard
    keys.press("Tab")
    assert tab.page.evaluate("document.activeElement.className") == "skip"
    keys.press("Enter")
    keys.press("Tab")
    assert tab.page.evaluate("document.activeElement.dataset.run") == "full_fits"
    keys.press("Space")
    settles(tab, "quality", "quest", opacity=DIMMED)
    keys.press("Escape")
    settles(tab, "quality", "quest", opacity=1)
    for _ in range(40):
        keys.press("Tab")
        if tab.page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    keys.press("Enter")
    assert tab.page.locator("#throughput details").get_attribute("open") is not None
    assert tab.page.locator("#throughput table").is_visible()
    assert tab.said == []


@needs_browser
def test_another_view_of_a_figure_is_drawn_when_it_is_chosen(tab):
    tab.page.locator("#critical-path select").select_option("ms")
    title = tab.page.locator("#critical-path .xtitle")
    title.filter(has_text="Mean step, ms").wait_for()
    assert tab.said == []
