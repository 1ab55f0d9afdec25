"""A range of tokens selected in a view reaches Python; copying values, full screen, and the saved picture."""

import re
from pathlib import Path

import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.test_tooltip import until
from tests.views.whole import LiveTab, whole
from workbench.errors import WorkbenchError


def test_a_range_can_be_set_observed_and_cleared_in_python():
    view = wb.views.tokens(made.run())
    seen: list[slice | None] = []
    view.observe(lambda view: seen.append(view.selected_range))
    assert view.selected_range is None
    view.selected_range = slice(3, 7)
    assert view.selected_range == slice(3, 7)
    assert view.payload()[0]["selected_range"] == [3, 7]
    assert view.trace.tokens[view.selected_range] == made.run().tokens[3:7]
    view.selected_range = slice(None, 5)
    view.selected_range = None
    assert seen == [slice(3, 7), slice(0, 5), None]


@pytest.mark.parametrize(
    "wrong", [slice(5, 5), slice(7, 3), slice(0, 99), slice(-1, 4), slice(0, 8, 2), slice("a", 3), 7, "3:7", [1], True]
)
def test_what_is_no_range_is_refused_and_changes_nothing(wrong):
    view = wb.views.tokens(made.run())
    view.selected_range = slice(3, 7)
    with pytest.raises(WorkbenchError, match="selected_range"):
        view.selected_range = wrong
    assert view.selected_range == slice(3, 7)


def test_a_range_of_a_browser_is_checked():
    pytest.importorskip("anywidget")
    from workbench.views.notebook import widget

    view = wb.views.tokens(made.run())
    seen: list[slice | None] = []
    view.observe(lambda view: seen.append(view.selected_range))
    view.selected_range = slice(2, 4)
    live = widget(view)
    assert live.selected_range == [2, 4]
    for wrong in ([1], "x", [5, 2], [0, 10**30], {"a": [1]}, [[0, 1], 2], [1.5, 3]):
        live.set_state({"selected_range": wrong})
        assert view.selected_range == slice(2, 4)
    live.set_state({"selected_range": [8, 30]})
    assert view.selected_range == slice(8, 30)
    view.selected_range = None
    assert live.selected_range is None
    assert seen == [slice(2, 4), slice(8, 30), None]
    live.close()


def drag(tab: Tab, start: tuple[float, float], end: tuple[float, float]) -> None:
    tab.page.mouse.move(*start)
    tab.page.mouse.down()
    tab.page.mouse.move((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    tab.page.mouse.move(*end)
    tab.page.mouse.up()
    tab.settled()


def inside(tab: Tab) -> list[int]:
    """The tokens that the transcript marks as selected."""
    tab.settled()
    return tab.page.evaluate("[...document.querySelectorAll('.wb .wb-t.wb-in')].map(token => token.place)")


@needed
def test_dragging_over_text_selects_its_tokens_in_all_views_and_escape_clears_them(browser, tmp_path: Path):
    trace = whole()
    tab = LiveTab(browser, wb.views.tokens(trace), tmp_path, wb.views.score_sheet(trace))
    first, last = (tab.page.locator(".wb").first.locator(".wb-t").nth(i).bounding_box() for i in (10, 20))
    assert first and last
    drag(
        tab,
        (first["x"] + 1, first["y"] + first["height"] / 2),
        (last["x"] + last["width"] - 1, last["y"] + last["height"] / 2),
    )
    assert tab.page.evaluate("window.selectedRange") == [10, 21]
    assert inside(tab) == [*range(10, 21)] * 2
    assert tab.page.locator(".wb-pinned").count() == 0
    assert "selected: positions 10 to 20, 11 tokens" in tab.page.locator(".wb-readout").first.inner_text()
    band = tab.page.locator(".wb").nth(1).locator(".wb-range")
    assert band.first.is_visible()
    tab.shot("range-two-views")
    tab.page.locator(".wb").first.press("Escape")
    assert inside(tab) == []
    assert tab.page.evaluate("window.selectedRange") is None
    assert not band.first.is_visible()
    assert tab.console == []
    tab.page.close()


@needed
@pytest.mark.parametrize("shift", [False, True])
def test_dragging_over_lanes_selects_and_with_shift_does_not_zoom(browser, tmp_path: Path, shift: bool):
    trace = whole()
    tab = LiveTab(browser, wb.views.score_sheet(trace), tmp_path)
    box = tab.page.locator(".wb-plot")
    box.scroll_into_view_if_needed()
    ends = []
    for position in (20, 59):
        tab.page.locator(".wb-t").nth(position).hover()
        [(left, right)] = tab.marks()
        ends.append((left + right) / 2)
    area = box.bounding_box()
    assert area
    if shift:
        tab.page.keyboard.down("Shift")
    drag(tab, (area["x"] + ends[0], area["y"] + 120), (area["x"] + ends[1], area["y"] + 120))
    if shift:
        tab.page.keyboard.up("Shift")
    assert tab.page.evaluate("window.selectedRange") == [20, 60]
    assert inside(tab) == [*range(20, 60)]
    assert ("window=(20, 60)" in tab.python()) is not shift
    assert tab.page.locator(".wb-t.wb-out").count() == (0 if shift else len(trace) - 40)
    tab.page.close()


@needed
def test_a_page_shows_the_range_of_its_view(browser, tmp_path: Path):
    view = wb.views.tokens(made.run())
    view.selected_range = slice(40, 44)
    tab = Tab(browser, view.to_html(tmp_path / "page.html"))
    assert inside(tab) == [40, 41, 42, 43]
    tab.close()


@needed
def test_c_copies_the_values_under_the_pointer_and_f_shows_the_view_in_full_screen(browser, tmp_path: Path):
    tab = Tab(browser, wb.views.score_sheet(whole()).to_html(tmp_path / "page.html"))
    tab.page.evaluate(
        "navigator.clipboard.writeText = async text => { window.copied = text; }"
        if tab.page.evaluate("!!navigator.clipboard")
        else "document.execCommand = () => { window.copied = document.activeElement.value; return true; }"
    )
    tab.token(30).click()
    tab.settled()
    tab.page.keyboard.press("c")
    tab.settled()
    copied = tab.page.evaluate("window.copied")
    assert "position 30 ·" in copied and "entropy" in copied
    assert tab.page.locator(".wb-announcement").inner_text().startswith("copied: “")
    tab.page.keyboard.press("f")
    until(tab, "document.fullscreenElement?.classList.contains('wb') ?? false")
    tab.page.keyboard.press("f")
    until(tab, "document.fullscreenElement === null")
    tab.close()


@needed
def test_the_saved_picture_of_a_zoomed_view_says_which_positions_it_shows(browser, tmp_path: Path):
    tab = Tab(browser, wb.views.tokens(made.run(), window=(20, 60)).to_html(tmp_path / "page.html"))
    assert tab.page.locator(".wb-t:not(.wb-out)").count() == 40
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert "positions 20 to 59 of 98 tokens" in (tmp_path / "saved.svg").read_text("utf-8")
    tab.page.close()


@needed
def test_the_saved_picture_has_a_margin_and_the_marks_and_window_of_the_screen(browser, tmp_path: Path):
    trace = whole()
    tab = Tab(browser, wb.views.steps(trace, selected=wb.steps(trace)[3].start).to_html(tmp_path / "page.html"))

    def saved(tab: Tab) -> str:
        with tab.page.expect_download() as download:
            tab.page.get_by_role("button", name="save this view as SVG").click()
        download.value.save_as(tmp_path / "saved.svg")
        tab.requests[:] = [url for url in tab.requests if not url.startswith("blob:")]
        return (tmp_path / "saved.svg").read_text("utf-8")

    pinned = saved(tab)
    assert re.search(r'viewBox="-12 0 ', pinned)
    mark = tab.page.evaluate("getComputedStyle(document.querySelector('.wb')).getPropertyValue('--mark').trim()")
    veil = f'fill="{mark}" fill-opacity="0.22"'
    assert pinned.count(veil) == tab.page.locator(".wb-mark.wb-pin").count() > 0
    tab.page.locator(".wb").press("Escape")
    assert veil not in saved(tab)
    tab.close()


def test_an_observer_that_fails_does_not_keep_the_others_from_being_called():
    view, seen = wb.views.tokens(made.run()), []
    view.observe(lambda view: 1 // 0)
    view.observe(lambda view: seen.append(view.selected_range))
    with pytest.raises(ZeroDivisionError):
        view.selected_range = slice(2, 5)
    assert seen == [slice(2, 5)]
