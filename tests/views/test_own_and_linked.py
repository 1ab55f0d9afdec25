"""Several views of one trace in one page: each shows what its own code says; the token that is pointed at is shared."""

from pathlib import Path

import pytest
import xarray as xr

import workbench as wb
from tests.views.browser import needed
from tests.views.whole import Alive, whole
from workbench.views.notebook import snapshot

pytestmark = needed


def choices(seen: Alive) -> list[list[str]]:
    """What the menus of each view show, its filter first."""
    seen.settled()
    return seen.page.evaluate(
        "[...document.querySelectorAll('.wb')].map(wb => [...wb.querySelectorAll('select')].map(menu => menu.value))"
    )


def lines(seen: Alive) -> list[str]:
    """The line of Python that makes each view as it is shown."""
    found = []
    for view in seen.page.locator(".wb").all():
        view.get_by_role("button", name="the line that makes this view").click()
        seen.settled()
        found.append(view.locator(".wb-code").input_value())
        view.get_by_role("button", name="the line that makes this view").click()
    return found


@pytest.fixture
def heads(browser, tmp_path: Path):
    trace = whole()
    seen = Alive(browser, wb.views.heads(trace, 0, 1), tmp_path, wb.views.heads(trace, 3, 5))
    yield seen
    assert seen.complaints == []
    seen.page.close()


def test_two_views_of_heads_show_the_layer_and_head_of_their_code_when_run_and_when_reloaded(heads: Alive):
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


def test_a_pinned_token_is_that_of_both_views_and_says_the_layer_and_head_of_the_first(heads: Alive):
    heads.page.locator(".wb").nth(1).press("End")
    assert heads.selected() == {"pos": len(whole()) - 1, "layer": 0, "head": 1}
    assert choices(heads) == [["", "0", "1"], ["", "3", "5"]]
    said = heads.page.locator(".wb-readout").all_inner_texts()
    assert [f"layer {layer}, head {head} looks" in text for (layer, head), text in zip([(0, 1), (3, 5)], said)] == [
        True
    ] * 2


def test_zoom_and_filter_are_those_of_one_view_until_both_are_linked(heads: Alive):
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


def test_views_of_other_kinds_show_what_their_code_says_beside_it(browser, tmp_path: Path):
    trace = whole()
    views = [
        wb.views.steps(trace),
        wb.views.routing(trace, layer=2),
        wb.views.heads(trace, layer=1),
        wb.views.steps(trace, layer=3),
        wb.views.score_sheet(trace, window=(10, 40)),
        wb.views.score_sheet(trace),
    ]
    seen = Alive(browser, views[0], tmp_path, *views[1:])
    assert choices(seen) == [["", "-1"], ["", "2", "-1"], ["", "1", "0"], ["", "3"], [""], [""]]
    assert ["window=" in line for line in lines(seen)] == [False] * 4 + [True, False]
    assert seen.complaints == []
    seen.page.close()


def test_steps_have_the_numbers_of_the_array_and_of_python_everywhere(browser, tmp_path: Path):
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
    seen = Alive(browser, views[0], tmp_path, *views[1:])
    seen.settled()
    for text in seen.page.locator(".wb-readout").all_inner_texts():
        assert f"step 3 ({steps[3].kind.replace('_', ' ')})" in text
    told = seen.page.locator(".wb-readout").all_inner_texts()
    strongest = ", ".join(f"{k} ({3 + k / 100:.3g})" for k in (2, 1, 0))
    assert f"from steps {strongest}" in told[0]
    assert f"from steps {strongest}" in told[1]
    numbered = (
        "[...document.querySelectorAll('.wb')[2].querySelectorAll('[data-step]')].map(t => [t.place, +t.dataset.step])"
    )
    assert seen.page.evaluate(numbered) == [[step.start, number] for number, step in enumerate(steps)]
    for number, named in ((0, [5]), (1, range(count)), (3, range(count))):  # a ribbon has place for the long ones only
        with seen.page.expect_download() as download:
            button = seen.page.locator(".wb").nth(number).get_by_role("button", name="save what is shown as SVG")
            button.click()
        download.value.save_as(tmp_path / "saved.svg")
        drawn = (tmp_path / "saved.svg").read_text("utf-8")
        for step in named:
            assert f">{step} {steps[step].kind.replace('_', ' ')[:5]}" in drawn
    seen.page.close()
