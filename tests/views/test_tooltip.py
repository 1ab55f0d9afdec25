"""The tooltip at the pointer, the wheel over a transcript, and its button that shows all."""

from pathlib import Path

import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import HOSTILE, whole
from workbench.text import visible

pytestmark = needed
PLACE = """() => {
  const tip = document.querySelector(".wb-tip:popover-open");
  if (!tip) return null;
  const { left, right, top, bottom } = tip.getBoundingClientRect();
  return [tip.textContent, left, right, top, bottom];
}"""


def tip(tab: Tab) -> str:
    """The text of the tooltip, "" without one; it must be inside the window."""
    tab.settled()
    place = tab.page.evaluate(PLACE)
    if place is None:
        return ""
    text, left, right, top, bottom = place
    size = tab.page.viewport_size
    assert 0 <= left < right <= size["width"] and 0 <= top < bottom <= size["height"]
    return text


def until(tab: Tab, condition: str) -> None:
    """Wait for a condition; the policy of a page forbids `wait_for_function`."""
    for _ in range(100):
        if tab.page.evaluate(condition):
            return
        tab.page.wait_for_timeout(30)
    pytest.fail(f"never: {condition}")


def test_the_values_under_the_pointer_are_beside_it_and_vanish_with_it(browser, tmp_path: Path):
    trace = whole()
    tab = Tab(browser, wb.views.score_sheet(trace).to_html(tmp_path / "page.html"), width=900, height=700)
    assert tip(tab) == ""
    tab.token(30).hover()
    assert tip(tab) == tab.readout()
    assert "position 30 ·" in tip(tab)
    plot = tab.page.locator(".wb-plot").first
    for x in (200, 500, 700):
        plot.hover(position={"x": x, "y": 60})
        assert "position" in tip(tab)
    tab.shot("tooltip-light-900")
    tab.page.mouse.move(5, 5)
    assert tip(tab) == ""
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_cell_of_a_matrix_has_a_tooltip(browser, tmp_path: Path, scheme: str):
    tab = Tab(browser, wb.views.steps(whole()).to_html(tmp_path / "page.html"), color_scheme=scheme)
    box = tab.page.locator(".wb-plot").first
    box.scroll_into_view_if_needed()
    box.hover(position={"x": 158, "y": 90})
    assert tip(tab) == tab.readout()
    assert "step" in tip(tab)
    tab.shot(f"tooltip-{scheme}-steps")
    tab.close()


def test_the_keyboard_cursor_has_a_tooltip_and_typing_elsewhere_has_none(browser, tmp_path: Path):
    tab = Tab(browser, wb.views.tokens(made.run()).to_html(tmp_path / "page.html"))
    tab.page.locator(".wb").focus()
    assert tip(tab) == ""
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("ArrowRight")
    assert "position 1 ·" in tip(tab)
    assert tip(tab) == tab.readout()
    tab.page.keyboard.press("Escape")
    assert tip(tab) == ""
    tab.close()


def test_hostile_text_in_a_tooltip_is_inert(browser, tmp_path: Path):
    trace = made.run(HOSTILE)
    tab = Tab(browser, wb.views.tokens(trace).to_html(tmp_path / "page.html"))
    start = trace.spans[0].content_start
    for position in range(start, start + len(made.HOSTILE)):
        tab.token(position).hover()
        shown = visible(trace.str_tokens[position], "\n").replace("\n", "↵") or "∅"
        assert tip(tab).startswith(f"“{shown}”")
    assert tab.page.locator(".wb-tip *").count() == 0
    tab.close()


def test_the_wheel_scrolls_the_page_until_the_transcript_was_clicked(browser, tmp_path: Path):
    long = made.run([*made.TALK, ("assistant", "analysis", made.words("So we add 12 and 34. ") * 200)])
    tab = Tab(browser, wb.views.score_sheet(long).to_html(tmp_path / "page.html"), height=600)
    box = tab.page.locator(".wb-text")
    scrolled = "() => [scrollY > 0, document.querySelector('.wb-text').scrollTop > 0]"
    box.scroll_into_view_if_needed()
    tab.page.evaluate("scrollTo(0, 0)")
    box.hover(position={"x": 300, "y": 30})
    before = tab.page.evaluate("scrollY")
    tab.page.mouse.wheel(0, 120)
    until(tab, f"scrollY > {before}")
    assert tab.page.evaluate(scrolled)[1] is False
    box.click(position={"x": 300, "y": 30})
    tab.page.mouse.wheel(0, 120)
    until(tab, "document.querySelector('.wb-text').scrollTop > 0")
    tab.page.locator(".wb-readout").click()
    assert tab.page.evaluate("getComputedStyle(document.querySelector('.wb-text')).overflowY") == "hidden"
    tab.close()


def test_a_long_transcript_can_be_shown_whole_and_a_short_one_has_no_button(browser, tmp_path: Path):
    long = made.run([*made.TALK, ("assistant", "analysis", made.words("So we add 12 and 34. ") * 200)])
    tab = Tab(browser, wb.views.tokens(long).to_html(tmp_path / "page.html"))
    heights = "(() => { const b = document.querySelector('.wb-text'); return [b.clientHeight, b.scrollHeight]; })()"
    tab.page.get_by_role("button", name="show the whole transcript").click()
    until(tab, f"{heights}[0] >= {heights}[1]")
    until(tab, "document.querySelectorAll('.wb-t').length > 500")
    tab.page.get_by_role("button", name="show the whole transcript").click()
    until(tab, f"{heights}[0] <= 360")
    tab.close()
    tab = Tab(browser, wb.views.tokens(made.run()).to_html(tmp_path / "page.html"))
    assert tab.page.locator(".wb-expand").is_hidden()
    tab.close()
