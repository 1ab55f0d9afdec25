"""The lens: words and numbers as `logit_lens` gives them, in a grid that follows the reader."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from tests.views.whole import HOSTILE, LAYERS, Alive, inert, whole
from workbench.errors import NotRecorded
from workbench.views.notebook import snapshot

HEADER, WIDE, TALL = 62, 62, 19


def test_the_words_and_chances_are_those_of_the_lens():
    trace = whole()
    header, arrays = wb.views.lens(trace).payload()
    lens = wb.lens.logit_lens(trace)
    said = np.array(header["words"], object)[arrays["said"]]
    assert (said == lens["text"].values).all()
    assert np.abs(arrays["chance"] / 65535 - np.exp(lens["logprob"].values)).max() < 1e-5
    assert (arrays["kl"] == lens["kl"].values).all()
    assert (arrays["entropy"] == lens["entropy"].values).all()


def test_a_trace_without_a_lens_says_what_records_it():
    with pytest.raises(NotRecorded, match="record='lens'"):
        wb.views.lens(made.run(lanes=False))


def test_a_snapshot_says_the_words_of_the_pinned_token():
    trace = whole()
    text = snapshot(wb.views.lens(trace, selected=40))
    assert "at position 40" in text
    assert text.count("<img") == 1
    assert "<script" not in snapshot(wb.views.lens(whole(HOSTILE), selected=6))


def word_cell(seen: Seen, column: int, layer: int) -> tuple[float, float]:
    box = seen.page.locator(".wb-plot >> nth=1").bounding_box()
    return box["x"] + 150 + (column + 0.5) * WIDE, box["y"] + HEADER + (LAYERS - 1 - layer + 0.5) * TALL


@needed
def test_a_cell_says_what_its_layer_predicts_and_a_click_pins_both(browser, tmp_path: Path):
    trace = whole()
    lens = wb.lens.logit_lens(trace)
    seen = Alive(browser, wb.views.lens(trace), tmp_path)
    first = trace.prompt_length - 2
    seen.page.mouse.move(*word_cell(seen, 3, 2))
    said = seen.said()
    assert f"position {first + 3} ·" in said
    shown = str(lens["text"].values[2, first + 3, 0]).replace("\n", "↵")
    assert f"layer 2 predicts “{shown.strip() or '␣'}" in said.replace("“ ", "“")
    assert f"{np.exp(float(lens['logprob'][2, first + 3, 0])):.3g}" in said
    assert f"entropy {float(lens['entropy'][2, first + 3]):.3g} nats" in said
    seen.page.mouse.click(*word_cell(seen, 3, 2))
    assert seen.selected() == {"pos": first + 3, "layer": 2}
    seen.page.keyboard.press("ArrowUp")
    seen.page.mouse.move(0, 0)
    assert "layer 3 predicts" in seen.said()
    assert seen.complaints == []
    seen.page.close()


@needed
def test_the_words_follow_the_pinned_token(browser, tmp_path: Path):
    trace = whole()
    seen = Alive(browser, wb.views.lens(trace, selected=5), tmp_path)
    seen.page.locator(".wb").press("End")
    seen.settled()
    box = seen.page.locator(".wb-plot >> nth=1").bounding_box()
    fit = int((box["width"] - 158) // WIDE)
    seen.page.mouse.move(*word_cell(seen, fit - 1, 0))
    assert f"position {len(trace) - 1} ·" in seen.said()
    assert seen.python() == f"wb.views.lens(trace, selected={len(trace) - 1})"
    seen.page.close()


@needed
def test_the_color_can_be_entropy_or_divergence(browser, tmp_path: Path):
    seen = Alive(browser, wb.views.lens(whole()), tmp_path)
    picture = "document.querySelector('.wb-plot canvas').toDataURL()"
    looks = set()
    for choice in ("0", "1", "2"):
        seen.page.locator("select >> nth=1").select_option(choice)
        seen.settled()
        looks.add(seen.page.evaluate(picture))
    assert len(looks) == 3
    seen.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.lens(whole(), selected=50).to_html(tmp_path / "page.html")
    seen = Seen(browser, path, color_scheme=scheme, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.shot(f"lens-{scheme}-{width}")
    seen.close()


@needed
def test_hostile_tokens_are_seen_and_inert(browser, tmp_path: Path):
    seen = Seen(browser, wb.views.lens(whole(HOSTILE), selected=12).to_html(tmp_path / "page.html"))
    assert "<scr" in inert(seen, browser, tmp_path)
    seen.close()
