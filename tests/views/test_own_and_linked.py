"""Several views of one trace in one page: each has its own layer, head, zoom and filter; hover and pin are shared."""

from pathlib import Path

import pytest
import xarray as xr

import workbench as wb
from tests.views.browser import needed
from tests.views.whole import LiveTab, whole
from workbench.views.notebook import snapshot

pytestmark = needed


def choices(tab: LiveTab) -> list[list[str]]:
    """The values of the menus of each view, its filter first, without the menu of a second head."""
    tab.settled()
    return tab.page.evaluate(
        """[...document.querySelectorAll('.wb')].map(wb =>
          [...wb.querySelectorAll('select:not([title^="a second head"])')].map(menu => menu.value))"""
    )


def lines(tab: LiveTab) -> list[str]:
    """The Python code of each view."""
    codes = []
    for view in tab.page.locator(".wb").all():
        view.get_by_role("button", name="Python code of this view").click()
        tab.settled()
        codes.append(view.locator(".wb-code").input_value())
        view.get_by_role("button", name="Python code of this view").click()
    return codes


@pytest.fixture
def heads(browser, tmp_path: Path):
    trace = whole()
    tab = LiveTab(browser, wb.views.heads(trace, 0, 1), tmp_path, wb.views.heads(trace, 3, 5))
    yield tab
    assert tab.console == []
    tab.page.close()


def test_two_heads_views_show_their_own_layer_and_head_also_after_reloading(heads: LiveTab):
    assert choices(heads) == [["", "0", "1"], ["", "3", "5"]]
    assert lines(heads) == ["wb.views.heads(trace, layer=0, head=1)", "wb.views.heads(trace, layer=3, head=5)"]
    heads.shot("heads-two")
    heads.page.locator(".wb").first.locator("select").nth(1).select_option("2")
    assert choices(heads) == [["", "2", "1"], ["", "3", "5"]]
    heads.page.reload()
    heads.page.wait_for_selector("html.drawn", state="attached")
    assert choices(heads) == [["", "0", "1"], ["", "3", "5"]]
    trace = whole()
    for layer, head in ((0, 1), (3, 5)):
        assert f"layer {layer}, head {head}" in snapshot(wb.views.heads(trace, layer, head))


def test_a_pinned_token_is_shared_and_selected_has_layer_and_head_of_the_first_view(heads: LiveTab):
    heads.page.locator(".wb").nth(1).press("End")
    assert heads.selected() == {"pos": len(whole()) - 1, "layer": 0, "head": 1}
    assert choices(heads) == [["", "0", "1"], ["", "3", "5"]]
    readouts = heads.page.locator(".wb-readout").all_inner_texts()
    assert [
        f"layer {layer}, head {head} attends" in text for (layer, head), text in zip([(0, 1), (3, 5)], readouts)
    ] == [True] * 2


def test_zoom_and_filter_belong_to_one_view_until_both_are_linked(heads: LiveTab):
    first, second = heads.page.locator(".wb").all()
    first.press("+")
    first.locator("select").first.select_option("generated")
    assert choices(heads) == [["generated", "0", "1"], ["", "3", "5"]]
    assert ["window=" in line for line in lines(heads)] == [True, False]
    for view in (first, second):
        view.get_by_role("button", name="share layer, head, zoom and filter").click()
    assert choices(heads) == [["generated", "0", "1"]] * 2
    assert len(set(lines(heads))) == 1
    second.press("ArrowUp")
    second.press("]")
    assert choices(heads) == [["generated", "1", "2"]] * 2
    heads.shot("heads-linked")
    first.get_by_role("button", name="share layer, head, zoom and filter").click()
    second.press("ArrowUp")
    assert choices(heads) == [["generated", "1", "2"], ["generated", "2", "2"]]


def test_views_of_different_kinds_keep_their_own_layer_head_and_window(browser, tmp_path: Path):
    trace = whole()
    views = [
        wb.views.steps(trace),
        wb.views.routing(trace, layer=2),
        wb.views.heads(trace, layer=1),
        wb.views.steps(trace, layer=3),
        wb.views.score_sheet(trace, window=(10, 40)),
        wb.views.score_sheet(trace),
    ]
    tab = LiveTab(browser, views[0], tmp_path, *views[1:])
    assert choices(tab) == [
        ["", "-1"],
        ["", "2", "-1"],
        ["", "1", "0"],
        ["", "3"],
        ["", "generated"],
        ["", "generated"],
    ]
    assert ["window=" in line for line in lines(tab)] == [False] * 4 + [True, False]
    assert tab.console == []
    tab.page.close()


def test_steps_have_the_same_numbers_in_all_views_as_in_python(browser, tmp_path: Path):
    trace = whole()
    steps = wb.steps(trace)
    count = len(steps)
    array = xr.DataArray(
        [[float(r > k) * (r + k / 100) for k in range(count)] for r in range(count)], dims=("step", "key_step")
    )
    views = [
        wb.views.score_sheet(trace, arcs=array, selected=steps[3].start),
        wb.views.steps(trace, array),
        wb.views.tokens(trace),
        wb.views.routing(trace),
        wb.views.lens(trace),
    ]
    tab = LiveTab(browser, views[0], tmp_path, *views[1:])
    tab.settled()
    for text in tab.page.locator(".wb-readout").all_inner_texts():
        assert f"step 3 ({steps[3].kind.replace('_', ' ')})" in text
    readouts = tab.page.locator(".wb-readout").all_inner_texts()
    strongest = ", ".join(f"{k} ({3 + k / 100:.3g})" for k in (2, 1, 0))
    assert f"from steps {strongest}" in readouts[0]
    assert f"from steps {strongest}" in readouts[1]
    numbered = (
        "[...document.querySelectorAll('.wb')[2].querySelectorAll('[data-step]')].map(t => [t.place, +t.dataset.step])"
    )
    assert tab.page.evaluate(numbered) == [[step.start, number] for number, step in enumerate(steps)]
    for number, named in (
        (0, [5]),
        (1, range(count)),
        (3, range(count)),
    ):  # the ribbon of the score sheet labels only long steps
        with tab.page.expect_download() as download:
            button = tab.page.locator(".wb").nth(number).get_by_role("button", name="save this view as SVG")
            button.click()
        download.value.save_as(tmp_path / "saved.svg")
        drawn = (tmp_path / "saved.svg").read_text("utf-8")
        for step in named:
            assert f">{step} {steps[step].kind.replace('_', ' ')[:5]}" in drawn
    tab.page.close()
