"""The lens view: texts and values are those of `logit_lens`, in a grid that follows the pinned token."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import HOSTILE, LAYERS, LiveTab, check_inert, whole
from workbench.errors import NotRecorded
from workbench.views.notebook import snapshot

HEADER, WIDE, TALL = 62, 62, 19


def test_predictions_and_probabilities_are_those_of_logit_lens():
    trace = whole()
    header, arrays = wb.views.lens(trace).payload()
    lens = wb.lens.logit_lens(trace)
    predictions = np.array(header["token_texts"], object)[arrays["prediction_text_ids"]]
    assert (predictions == lens["text"].values).all()
    assert np.abs(arrays["probability"] / 65535 - np.exp(lens["logprob"].values)).max() < 1e-5
    assert (arrays["kl"] == lens["kl"].values).all()
    assert (arrays["entropy"] == lens["entropy"].values).all()


def test_a_trace_without_a_lens_raises_an_error_that_names_the_record_option():
    with pytest.raises(NotRecorded, match="record='lens'"):
        wb.views.lens(made.run(lanes=False))


def test_a_snapshot_lists_the_predictions_at_the_pinned_token():
    trace = whole()
    text = snapshot(wb.views.lens(trace, selected=40))
    assert "at position 40" in text
    assert text.count("<img") == 1
    assert "<script" not in snapshot(wb.views.lens(whole(HOSTILE), selected=6))


def prediction_cell(tab: Tab, column: int, layer: int) -> tuple[float, float]:
    box = tab.page.locator(".wb-plot >> nth=1").bounding_box()
    return box["x"] + 150 + (column + 0.5) * WIDE, box["y"] + HEADER + (LAYERS - 1 - layer + 0.5) * TALL


@needed
def test_a_cell_shows_the_prediction_of_its_layer_and_a_click_pins_token_and_layer(browser, tmp_path: Path):
    trace = whole()
    lens = wb.lens.logit_lens(trace)
    tab = LiveTab(browser, wb.views.lens(trace), tmp_path)
    first = trace.prompt_length - 2
    tab.page.mouse.move(*prediction_cell(tab, 3, 2))
    readout = tab.readout()
    assert f"position {first + 3} ·" in readout
    shown = str(lens["text"].values[2, first + 3, 0]).replace("\n", "↵")
    assert f"layer 2 predicts “{shown.strip() or '␣'}" in readout.replace("“ ", "“")
    assert f"{np.exp(float(lens['logprob'][2, first + 3, 0])):.3g}" in readout
    assert f"entropy {float(lens['entropy'][2, first + 3]):.3g} nats" in readout
    tab.page.mouse.click(*prediction_cell(tab, 3, 2))
    assert tab.selected() == {"pos": first + 3, "layer": 2}
    tab.page.keyboard.press("ArrowUp")
    tab.page.mouse.move(0, 0)
    assert "layer 3 predicts" in tab.readout()
    assert tab.console == []
    tab.page.close()


@needed
def test_the_grid_follows_the_pinned_token(browser, tmp_path: Path):
    trace = whole()
    tab = LiveTab(browser, wb.views.lens(trace, selected=5), tmp_path)
    tab.page.locator(".wb").press("End")
    tab.settled()
    box = tab.page.locator(".wb-plot >> nth=1").bounding_box()
    fit = int((box["width"] - 158) // WIDE)
    tab.page.mouse.move(*prediction_cell(tab, fit - 1, 0))
    assert f"position {len(trace) - 1} ·" in tab.readout()
    assert tab.python() == f"wb.views.lens(trace, selected={len(trace) - 1})"
    tab.page.close()


@needed
def test_the_color_can_be_probability_entropy_or_divergence(browser, tmp_path: Path):
    tab = LiveTab(browser, wb.views.lens(whole()), tmp_path)
    picture = "document.querySelector('.wb-plot canvas').toDataURL()"
    drawings = set()
    for choice in ("0", "1", "2"):
        tab.page.locator("select >> nth=1").select_option(choice)
        tab.settled()
        drawings.add(tab.page.evaluate(picture))
    assert len(drawings) == 3
    tab.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.lens(whole(), selected=50).to_html(tmp_path / "page.html")
    tab = Tab(browser, path, color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.shot(f"lens-{scheme}-{width}")
    tab.close()


@needed
def test_hostile_tokens_are_visible_and_inert(browser, tmp_path: Path):
    tab = Tab(browser, wb.views.lens(whole(HOSTILE), selected=12).to_html(tmp_path / "page.html"))
    assert "<scr" in check_inert(tab, browser, tmp_path)
    tab.close()
