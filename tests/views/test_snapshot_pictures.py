"""The pictures of snapshots: square heat maps with ticks and zero as white, readable on light and dark pages."""

import re
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import OUT, needed
from tests.views.test_page import check_drawing
from tests.views.whole import HOSTILE, whole
from workbench.views.notebook import snapshot
from workbench.views.snapshot_html import Row, table
from workbench.views.snapshot_png import LEVELS, levels, ramp_colors
from workbench.views.snapshot_svg import MAX_BYTES, MAX_CELLS, Axis, Scale, bands, heat_map, ticks

SVG = "{http://www.w3.org/2000/svg}"


def sources(html: str) -> list[str]:
    """The URLs of the drawings in a snapshot."""
    return re.findall(r'src="(data:image/svg[^"]*)"', html)


def texts(source: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(unquote(source)[19:]).iter(f"{SVG}text")]


@pytest.mark.parametrize("ramp", ["blue", "brown", "green", "purple"])
def test_zero_is_white_and_nan_is_empty(ramp: str):
    cells = levels(np.array([[0.0, 1.0, np.nan]]), 0, 1)
    assert cells.tolist() == [[1, LEVELS, 0]]
    assert ramp_colors(ramp)[0] == "ffffff"


def test_zero_of_a_signed_scale_is_white():
    [[low, zero, high]] = levels(np.array([[-3.0, 0.0, 3.0]]), -3, 3)
    colors = ramp_colors("both")
    assert [colors[k - 1] for k in (low, zero, high)] == ["0b5ea8", "ffffff", "b3380a"]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 500, 3000])
def test_a_heat_map_is_square_small_and_has_few_ticks(size: int):
    names = [f"token {i}" for i in range(size)]
    values = np.random.default_rng(0).random((size, size))
    drawing = heat_map(values, Axis("query", names), Axis("key", [f"{i:,}" for i in range(size)]), Scale(0, 1))
    assert len(drawing.url) <= MAX_BYTES
    check_drawing(drawing.url)
    picture, _ = ElementTree.fromstring(drawing.svg).iter(f"{SVG}image")
    assert picture.get("width") == picture.get("height")
    shown = texts(drawing.url)
    assert {"query", "key", "token 0", "0"} <= set(shown)
    assert sum(text.startswith("token") for text in shown) <= 26


def test_pooled_cells_have_the_value_of_largest_magnitude():
    values = np.zeros((2 * MAX_CELLS, 2 * MAX_CELLS))
    values[7, 9], values[300, 301], values[301, 300] = -3, -2, 1
    names = [""] * len(values)
    drawing = heat_map(values, Axis("", names), Axis("", names), Scale(-3, 3, "both"))
    picture, _ = ElementTree.fromstring(drawing.svg).iter(f"{SVG}image")
    data = b64decode(picture.get("href", "").partition(",")[2])
    assert (int.from_bytes(data[16:20]), int.from_bytes(data[20:24])) == (MAX_CELLS, MAX_CELLS)


def test_names_are_apart_and_at_round_numbers():
    for count in (1, 3, 9, 10, 98, 4096):
        for length in (100, 360, 720):
            shown = ticks(count, length, 40)
            assert shown.step in {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000}
            assert length / count * shown.step >= 40 or shown.step == 1


def test_bands_are_named_where_there_is_room():
    drawing = bands(1000, [(0, 10, 0, "system"), (10, 900, 1, "analysis"), (900, 1000, 2, "final")], 720)
    assert [text for text in texts(drawing.url) if text.isalpha()] == ["analysis", "final"]


def test_the_snapshot_of_every_view_has_ticks_and_inert_drawings():
    trace = whole()
    views = [
        wb.views.heads(trace, 1, 2),
        wb.views.steps(trace),
        wb.views.lens(trace),
        wb.views.routing(trace),
        wb.views.score_sheet(trace),
        wb.views.tokens(trace),
    ]
    for view in views:
        html = snapshot(view)
        drawings = sources(html)
        assert drawings
        for drawing in drawings:
            check_drawing(drawing)
            assert "0" in texts(drawing)
        assert len(html) < 40_000
    assert "query" in texts(sources(snapshot(views[0]))[0])


def test_a_snapshot_of_tokens_shows_their_values():
    trace = made.run()
    text = snapshot(wb.views.tokens(trace, np.linspace(-1, 2, len(trace))))
    assert text.count("data:image/png") == 1 and "−1 to 2" in text
    assert "data:image/png" not in snapshot(wb.views.tokens(trace))


def test_hostile_text_in_a_drawing_is_inert():
    for view in (wb.views.heads(whole(HOSTILE)), wb.views.lens(whole(HOSTILE)), wb.views.tokens(made.run(HOSTILE))):
        for drawing in sources(snapshot(view)):
            check_drawing(drawing)


def test_the_text_of_a_snapshot_has_no_background_of_its_own():
    assert '<pre style="white-space: pre-wrap' in table([Row("user", text="x")])
    assert "background-color: transparent" in table([Row("user", text="x")])


@needed
@pytest.mark.parametrize("paper", ["white", "#111111"])
def test_drawings_are_shown_with_sharp_cells(browser, tmp_path: Path, paper: str):
    trace = whole()
    views = [wb.views.heads(trace, 1, 2), wb.views.steps(trace), wb.views.lens(trace), wb.views.routing(trace)]
    views += [wb.views.score_sheet(trace)]
    html = "<hr>".join(map(snapshot, views))
    ink = "black" if paper == "white" else "white"
    look = f"background:{paper};color:{ink};font:13px sans-serif"
    text = f'<!doctype html><meta charset="utf-8"><body style="{look}">{html}'
    (tmp_path / "page.html").write_text(text, "utf-8")
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    OUT.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=OUT / f"snapshots-{'light' if paper == 'white' else 'dark'}.png", full_page=True)
    page.close()
