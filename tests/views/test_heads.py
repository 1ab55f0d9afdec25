"""The heads of a layer: their pixels are the patterns, and every click and key reaches what it says."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from tests.views.whole import HEADS, HOSTILE, LAYERS, WINDOW, Alive, inert, whole
from workbench.errors import NotRecorded, SelectionError
from workbench.views import heads_view
from workbench.views.heads_view import CELLS
from workbench.views.notebook import snapshot
from workbench.views.payload import unpacked

LONG = [("user", None, ["Go."]), ("assistant", "analysis", made.words("So we add 12 and 34. ") * 200)]


def levels(pattern) -> np.ndarray:
    return np.sqrt(np.asarray(pattern) * 65025.0).round()


def pooled(array: np.ndarray, factor: int) -> np.ndarray:
    n = len(array)
    size = -(-n // factor)
    padded = np.zeros((size * factor, size * factor))
    padded[:n, :n] = array
    return padded.reshape(size, factor, size, factor).max((1, 3))


def test_the_cells_are_the_pattern_on_a_square_root_scale():
    trace = whole()
    _, arrays = unpacked(wb.views.heads(trace, 1, 4).reply("open", {}))
    assert np.abs(arrays["cells"] - levels(wb.attention.pattern(trace, 1, 4))).max() == 0
    assert np.abs(arrays["thumbs"] - levels(wb.attention.pattern(trace, 1))).max() == 0
    sums = wb.attention.pattern(trace, 1, 4).values.sum(-1)
    assert np.allclose(arrays["sinks"], 1 - sums, atol=1e-6)
    assert np.allclose(arrays["means"], 1 - wb.attention.pattern(trace, 1).values.sum(-1).mean(-1), atol=1e-6)


def test_where_tokens_share_a_cell_it_is_the_largest_of_theirs():
    trace = whole(LONG)
    n = len(trace)
    header, arrays = wb.views.heads(trace, 1, 3).payload()
    assert n > CELLS
    assert header["factor"] == 2
    assert (arrays["cells"] == pooled(levels(wb.attention.pattern(trace, 1, 3)), 2)).all()
    one = levels(wb.attention.pattern(trace, 1, 3))
    assert (arrays["thumbs"][3] == pooled(one, header["small"])).all()


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (300, 1000), (5, 1090)])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_stretch_is_that_piece_of_the_whole_pattern(start: int, stop: int, layer: int):
    trace = whole(LONG)
    header, arrays = wb.views.heads(trace).query("head", {"layer": layer, "head": 5, "from": start, "to": stop})
    piece = levels(wb.attention.pattern(trace, layer, 5))[start:stop, start:stop]
    assert (arrays["cells"] == pooled(piece, header["factor"])).all()
    sinks = 1 - wb.attention.pattern(trace, layer, 5).values.sum(-1)
    starts = np.arange(0, stop - start, header["factor"])
    assert np.allclose(arrays["sinks"], np.maximum.reduceat(sinks[start:stop], starts), atol=1e-6)


def test_the_row_of_a_query_is_exact():
    trace = whole()
    header, arrays = wb.views.heads(trace).query("row", {"layer": 3, "head": 2, "query": 40})
    assert (arrays["row"] == wb.attention.pattern(trace, 3, 2, 40).values).all()
    assert header["sink"] == pytest.approx(1 - arrays["row"].sum(), abs=1e-6)


def test_all_thumbnails_of_a_layer_stay_under_300_kb():
    _, arrays = wb.views.heads(whole(LONG, heads=64)).query("layer", {"layer": 1})
    assert arrays["thumbs"].shape[0] == 64
    assert arrays["thumbs"].nbytes <= 300_000


def test_a_trace_without_patterns_says_what_records_them():
    with pytest.raises(NotRecorded, match="record='attention'"):
        wb.views.heads(made.run(layers=4, model=whole().manifest.model))
    with pytest.raises(SelectionError, match=r"head must be between 0 and .*, got 6"):
        wb.views.heads(whole(), head=6)
    with pytest.raises(LookupError, match="no 'pattern'"):
        wb.views.heads(whole()).query("pattern", {"layer": 0})


def test_a_snapshot_shows_the_head():
    text = snapshot(wb.views.heads(whole(LONG), 0, 1))
    assert "layer 0, head 1" in text
    assert "downsampled (max)" in text
    assert text.count("<img") == 1
    assert len(text) < 100_000


# In the browser.


def box(seen: Seen, number: int) -> dict:
    return seen.page.locator(f".wb-plot >> nth={number}").bounding_box()


def cell(seen: Seen, query: int, key: int, n: int) -> tuple[float, float]:
    """Where a cell of the large head is on the screen."""
    return cells(seen, [(query, key)], n)[0]


def cells(seen: Seen, pairs: list[tuple[int, int]], n: int) -> list[tuple[float, float]]:
    large = box(seen, 1)
    side = large["height"] - 54 - 24
    return [(large["x"] + 104 + (k + 0.5) * side / n, large["y"] + 54 + (q + 0.5) * side / n) for q, k in pairs]


def colors(seen: Seen, points: list[tuple[float, float]]) -> np.ndarray:
    """The pixels of the large head that lie there on the screen (point channel)."""
    found = seen.page.evaluate(
        """points => {
          const canvas = document.querySelectorAll(".wb-plot canvas")[1], r = canvas.getBoundingClientRect();
          const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return points.map(([x, y]) => { const i = 4 * (Math.floor(y - r.top) * width + Math.floor(x - r.left));
            return [...data.slice(i, i + 4)]; }); }""",
        points,
    )
    return np.array(found)


def alike(seen: Seen, pattern: np.ndarray) -> float:
    """The correlation of what is drawn with the square root of the pattern (query key) that should be."""
    n = len(pattern)
    pairs = [(q, k) for q in range(1, n, 5) for k in range(0, q, 3)]
    blue = 255 - colors(seen, cells(seen, pairs, n))[:, 0]
    return float(np.corrcoef(blue, [np.sqrt(pattern[pair]) for pair in pairs])[0, 1])


@needed
def test_darker_is_more_attention_and_what_is_not_yet_generated_is_blank(browser, tmp_path: Path):
    trace = whole()
    n, pattern = len(trace), wb.attention.pattern(trace, 1, 2).values
    seen = Seen(browser, wb.views.heads(trace, 1, 2).to_html(tmp_path / "page.html"))
    assert alike(seen, pattern) > 0.99
    [later] = colors(seen, [cell(seen, 10, 60, n)])
    assert later[:3].tolist() == [255, 255, 255]
    seen.complaints[:] = [text for text in seen.complaints if "willReadFrequently" not in text]  # we did, twice
    seen.close()


@needed
def test_hovering_a_cell_names_query_and_key_and_a_click_pins_the_query(browser, tmp_path: Path):
    trace = whole()
    n, pattern = len(trace), wb.attention.pattern(trace, 1, 2).values
    seen = Seen(browser, wb.views.heads(trace, 1, 2).to_html(tmp_path / "page.html"))
    seen.page.mouse.move(*cell(seen, 50, 33, n))
    said = seen.said()
    assert "position 50 ·" in said
    assert f"{trace.str_tokens[33].strip() or '↵'}” 33: ≈ " in said
    told = float(said.split("33: ≈ ")[1].split()[0].replace("−", "-"))
    assert told == pytest.approx(float(pattern[50, 33]), abs=0.004)
    assert len(seen.marks()) == 2
    seen.page.mouse.click(*cell(seen, 50, 33, n))
    assert len(seen.marks(".wb-pin")) == 3  # of the row, and two of the thumbnail
    top = int(pattern[50].argmax())
    assert f"{top} (" in seen.said().split("looks most at: ")[1].split(",")[0]
    seen.page.keyboard.press("ArrowRight")
    seen.page.mouse.move(0, 0)
    assert "position 51 ·" in seen.said()
    seen.close()


@needed
def test_heads_and_layers_change_by_click_key_and_menu_and_python_says_which(browser, tmp_path: Path):
    trace = whole()
    seen = Alive(browser, wb.views.heads(trace, 0, 1), tmp_path)
    shown = seen.page.locator("select >> nth=1"), seen.page.locator("select >> nth=2")
    seen.page.mouse.click(box(seen, 0)["x"] + 30, box(seen, 0)["y"] + 50)
    seen.settled()
    assert shown[1].input_value() == "0"
    seen.page.locator(".wb").press("]")
    seen.page.locator(".wb").press("]")
    seen.page.locator(".wb").press("ArrowUp")
    seen.settled()
    assert [s.input_value() for s in shown] == ["1", "2"]
    seen.page.locator(".wb").press("[")
    shown[0].select_option("3")
    seen.page.mouse.click(*cell(seen, 30, 12, len(trace)))
    assert seen.selected() == {"pos": 30, "layer": 3, "head": 1}
    line = seen.python()
    assert line == "wb.views.heads(trace, layer=3, head=1, selected=30)"
    assert {"layer", "head", "row"} <= set(seen.asked)
    seen.page.wait_for_timeout(300)
    assert alike(seen, wb.attention.pattern(trace, 3, 1).values) > 0.9  # marks lie over it
    exact = wb.attention.pattern(trace, 3, 1, 30).values
    best = int(exact.argmax())
    assert f"{best} ({exact[best]:.3g})" in seen.said()
    asked = len(seen.asked)
    seen.page.locator(".wb").press("]")
    seen.page.wait_for_timeout(200)
    seen.page.locator(".wb").press("[")
    seen.page.wait_for_timeout(200)
    assert seen.asked[asked:].count("head") == 1  # the other one was kept
    assert [text for text in seen.complaints if "willReadFrequently" not in text] == []
    seen.page.close()


@needed
def test_zooming_a_long_run_asks_for_the_exact_stretch(browser, tmp_path: Path):
    trace = whole(LONG)
    seen = Alive(browser, wb.views.heads(trace, 1, 2, window=(400, 464)), tmp_path)
    seen.page.wait_for_timeout(300)
    assert alike(seen, wb.attention.pattern(trace, 1, 2).values[400:464, 400:464]) > 0.99
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "zoomed.svg")
    assert (tmp_path / "zoomed.svg").read_text("utf-8").count("downsampled (max)") == 1  # the thumbnails
    seen.page.keyboard.press("0")
    seen.page.close()


@needed
def test_of_a_very_long_run_a_preview_comes_first_and_then_the_exact_picture(browser, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(heads_view, "QUICK", 500)
    trace = whole(LONG)
    view = wb.views.heads(trace, 1, 2)
    header, arrays = view.payload()
    exact = pooled(levels(wb.attention.pattern(trace, 1, 2)), 2)
    assert header["quick"]
    last = levels(wb.attention.pattern(trace, 1, 2))[1::2]  # of each cell, its last query
    assert (arrays["cells"][: len(last), 0] == last[:, :2].max(1)).all()
    assert (arrays["cells"] <= exact).all()
    seen = Alive(browser, view, tmp_path)
    seen.page.wait_for_timeout(800)
    assert seen.asked.count("head") == 1
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "exact.svg")
    assert "preview" not in (tmp_path / "exact.svg").read_text("utf-8")
    seen.page.close()
    page = Seen(browser, view.to_html(tmp_path / "page.html"))
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "page.svg")
    assert "preview" not in (tmp_path / "page.svg").read_text("utf-8")
    assert view.quick
    page.page.close()


@needed
def test_a_page_says_what_it_does_not_hold(browser, tmp_path: Path):
    seen = Seen(browser, wb.views.heads(whole(LONG), 0, 1, selected=700).to_html(tmp_path / "page.html"))
    seen.page.locator(".wb").press("]")
    seen.page.locator("select >> nth=1").select_option("2")
    seen.settled()
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert "needs Python" in (tmp_path / "saved.svg").read_text("utf-8")
    seen.requests[:] = [url for url in seen.requests if not url.startswith("blob:")]
    seen.close()


@needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.heads(whole(), 0, 3, selected=50).to_html(tmp_path / "page.html")
    seen = Seen(browser, path, color_scheme=scheme, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.shot(f"heads-{scheme}-{width}")
    seen.close()


@needed
def test_hostile_tokens_are_seen_and_inert(browser, tmp_path: Path):
    trace = whole(HOSTILE)
    seen = Seen(browser, wb.views.heads(trace, 1, 0, selected=20).to_html(tmp_path / "page.html"))
    texts = inert(seen, browser, tmp_path)
    assert "<script>" in texts
    assert "⟨U+202E⟩" in texts
    seen.close()


def test_the_made_run_has_all_sizes_different():
    assert len({LAYERS, HEADS, WINDOW}) == 3
