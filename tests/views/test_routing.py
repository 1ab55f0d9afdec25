"""The routing view: experts and loads are those of the analyses; mouse and keys select layer, expert and token."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import ACTIVE, EXPERTS, HOSTILE, LAYERS, LiveTab, check_inert, whole
from workbench.errors import NotRecorded, SelectionError
from workbench.views.notebook import snapshot


def test_chosen_experts_are_those_of_the_trace_with_the_largest_weight_first():
    trace = whole()
    header, arrays = wb.views.routing(trace).payload()
    assert header["experts"] == EXPERTS
    assert arrays["chosen"].shape == (LAYERS, len(trace), ACTIVE)
    assert (np.diff(arrays["weights"].astype(int)) <= 0).all()
    dense = np.zeros((LAYERS, len(trace), EXPERTS))
    np.put_along_axis(dense, arrays["chosen"].astype(int), arrays["weights"] / 65535, -1)
    assert np.abs(dense - trace["expert_weights"]).max() < 1e-5


def test_a_missing_recording_or_layer_is_an_error():
    with pytest.raises(NotRecorded, match="expert_indices"):
        wb.views.routing(made.run())
    with pytest.raises(SelectionError, match="layer must be between 0 and 3, got 4"):
        wb.views.routing(whole(), layer=4)


def test_a_snapshot_shows_load_and_weights():
    text = snapshot(wb.views.routing(whole(), 2))
    assert "expert load" in text
    assert "weights, layer 2" in text
    assert text.count("<img") == 2


def load_cell(tab: Tab, plot: int, row: int, expert: int, rows: int) -> tuple[float, float]:
    """The center of a cell of a load table on the screen."""
    box = tab.page.locator(f".wb-plot >> nth={plot}").bounding_box()
    wide = min(34, (box["width"] - 150 - 8) / EXPERTS)
    return box["x"] + 150 + (expert + 0.5) * wide, box["y"] + 42 + (row + 0.5) * (box["height"] - 50) / rows


@needed
def test_loads_are_those_of_expert_load_also_with_a_filter(browser, tmp_path: Path):
    trace = whole()
    tab = LiveTab(browser, wb.views.routing(trace), tmp_path)
    load = wb.routing.expert_load(trace)
    for layer, expert in ((0, 0), (3, 1), (2, 10)):
        tab.page.mouse.move(*load_cell(tab, 3, LAYERS - 1 - layer, expert, LAYERS))
        readout = tab.readout()
        assert readout.startswith(f"layer {layer}, expert {expert}\n")
        assert f"{100 * float(load[layer, expert]):.3g}"[:4] in readout
    tab.page.locator("select >> nth=0").select_option("channel:analysis")
    tab.settled()
    span = next(span for span in trace.spans if span.channel == "analysis")
    load = wb.routing.expert_load(trace, slice(span.start, span.stop))
    tab.page.mouse.move(*load_cell(tab, 3, LAYERS - 2, 2, LAYERS))
    assert f"runs at {100 * float(load[1, 2]):.3g}"[:11] in tab.readout()
    assert tab.console == []
    tab.page.close()


@needed
def test_many_steps_share_rows_of_the_load_table(browser, tmp_path: Path):
    thoughts = [word for number in range(230) for word in made.words(f"So c={number}. ")]
    trace = whole([("user", None, ["Go."]), ("assistant", "analysis", thoughts)])
    steps = wb.steps(trace)
    assert len(steps) == 230
    tab = LiveTab(browser, wb.views.routing(trace, 2), tmp_path)
    box = tab.page.locator(".wb-plot >> nth=-1").bounding_box()
    each = (box["height"] - 50) / 79  # user and analysis, then 3 steps a row
    assert box["height"] < 500
    tab.page.mouse.move(box["x"] + 155, box["y"] + 42 + 3.5 * each)
    load = wb.routing.expert_load(trace, slice(steps[3].start, steps[5].stop)).sel(layer=2, expert=0)
    assert tab.readout() == f"steps 3–5, expert 0\nruns at {100 * float(load):.3g} % of the positions"
    tab.page.close()


@needed
def test_readout_lists_the_experts_of_a_token_and_clicks_pin_layer_and_token(browser, tmp_path: Path):
    trace = whole()
    tab = LiveTab(browser, wb.views.routing(trace, 1), tmp_path)
    box = tab.page.locator(".wb-plot >> nth=0").bounding_box()
    each = (box["height"] - 42) / LAYERS
    x = box["x"] + 150 + (40.5 / len(trace)) * (box["width"] - 158)
    tab.page.mouse.move(x, box["y"] + 20 + each * 0.5)  # the last layer is at the top
    top = int(trace["expert_weights", LAYERS - 1][40].argmax())
    assert "position 40 ·" in tab.readout()
    assert f"layer {LAYERS - 1} chose experts {top} (" in tab.readout()
    tab.page.mouse.click(x, box["y"] + 20 + each * 1.5)
    assert tab.selected() == {"pos": 40, "layer": LAYERS - 2}
    assert len(tab.marks(".wb-pin")) >= 2
    tab.page.keyboard.press("ArrowDown")
    tab.page.keyboard.press("ArrowLeft")
    assert tab.selected() == {"pos": 39, "layer": LAYERS - 3}
    assert tab.python() == "wb.views.routing(trace, layer=1, selected=39)"
    tab.page.mouse.click(*load_cell(tab, 3, 0, 4, LAYERS))  # pins an expert and its layer
    tab.settled()
    assert [tab.page.locator(f"select >> nth={k}").input_value() for k in (1, 2)] == [str(LAYERS - 1), "4"]
    key = tab.page.locator(".wb-plot >> nth=1").bounding_box()
    tab.page.mouse.click(key["x"] + 150 + 7.5 / EXPERTS * (key["width"] - 158), key["y"] + 5)  # the color of an expert
    tab.settled()
    assert tab.page.locator("select >> nth=2").input_value() == "7"
    assert tab.console == []
    tab.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.routing(whole(), 2, selected=50).to_html(tmp_path / "page.html")
    tab = Tab(browser, path, color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.shot(f"routing-{scheme}-{width}")
    tab.close()


@needed
def test_hostile_tokens_are_inert(browser, tmp_path: Path):
    tab = Tab(browser, wb.views.routing(whole(HOSTILE)).to_html(tmp_path / "page.html"))
    assert "expert" in check_inert(tab, browser, tmp_path)
    tab.close()


@needed
def test_shared_columns_are_labeled_downsampled(browser, tmp_path: Path):
    long = [("user", None, ["Go."]), ("assistant", "analysis", made.words("So we add 12 and 34. ") * 200)]
    tab = Tab(browser, wb.views.routing(whole(long)).to_html(tmp_path / "page.html"))
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert (tmp_path / "saved.svg").read_text("utf-8").count("downsampled (max)") == 2
    tab.page.close()
