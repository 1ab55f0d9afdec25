"""The heads view: its pixels are the attention patterns; clicks, keys and menus select heads, layers and queries."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import HEADS, HOSTILE, LAYERS, WINDOW, LiveTab, check_inert, whole
from workbench.errors import ArgumentError, NotRecorded, SelectionError
from workbench.views import head_cells, heads_view
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


def test_a_cell_shared_by_several_tokens_has_their_largest_value():
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
def test_cells_of_a_range_are_those_of_the_whole_pattern(start: int, stop: int, layer: int):
    trace = whole(LONG)
    header, arrays = wb.views.heads(trace).query("head", {"layer": layer, "head": 5, "from": start, "to": stop})
    block = levels(wb.attention.pattern(trace, layer, 5))[start:stop, start:stop]
    assert (arrays["cells"] == pooled(block, header["factor"])).all()
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


def test_a_trace_without_patterns_raises_an_error_that_names_the_record_option():
    with pytest.raises(NotRecorded, match="record='attention'"):
        wb.views.heads(made.run(layers=4, lanes=False, model=whole().manifest.model))
    with pytest.raises(SelectionError, match=r"head must be between 0 and .*, got 6"):
        wb.views.heads(whole(), head=6)
    with pytest.raises(LookupError, match="queries of kind 'pattern'"):
        wb.views.heads(whole()).query("pattern", {"layer": 0})


def test_a_snapshot_shows_the_head():
    text = snapshot(wb.views.heads(whole(LONG), 0, 1))
    assert "layer 0, head 1" in text
    assert "downsampled (max)" in text
    assert text.count("<img") == 1
    assert len(text) < 100_000


# In the browser.


def box(tab: Tab, number: int) -> dict:
    return tab.page.locator(f".wb-plot >> nth={number}").bounding_box()


def cell(tab: Tab, query: int, key: int, n: int) -> tuple[float, float]:
    """The center of a cell of the large head on the screen."""
    return cells(tab, [(query, key)], n)[0]


def cells(tab: Tab, pairs: list[tuple[int, int]], n: int) -> list[tuple[float, float]]:
    large = box(tab, 1)
    side = large["height"] - 54 - 24
    return [(large["x"] + 104 + (k + 0.5) * side / n, large["y"] + 54 + (q + 0.5) * side / n) for q, k in pairs]


def colors(tab: Tab, points: list[tuple[float, float]]) -> np.ndarray:
    """The pixels of the large head at these points of the screen (point channel)."""
    pixels = tab.page.evaluate(
        """points => {
          const canvas = document.querySelectorAll(".wb-plot canvas")[1], r = canvas.getBoundingClientRect();
          const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          return points.map(([x, y]) => { const i = 4 * (Math.floor(y - r.top) * width + Math.floor(x - r.left));
            return [...data.slice(i, i + 4)]; }); }""",
        points,
    )
    return np.array(pixels)


def correlation(tab: Tab, pattern: np.ndarray) -> float:
    """The correlation of the drawn pixels with the square root of a pattern (query key)."""
    n = len(pattern)
    pairs = [(q, k) for q in range(1, n, 5) for k in range(0, q, 3)]
    blue = 255 - colors(tab, cells(tab, pairs, n))[:, 0]
    return float(np.corrcoef(blue, [np.sqrt(pattern[pair]) for pair in pairs])[0, 1])


@needed
def test_darker_is_more_attention_and_later_keys_are_blank(browser, tmp_path: Path):
    trace = whole()
    n, pattern = len(trace), wb.attention.pattern(trace, 1, 2).values
    tab = Tab(browser, wb.views.heads(trace, 1, 2).to_html(tmp_path / "page.html"))
    assert correlation(tab, pattern) > 0.99
    [later] = colors(tab, [cell(tab, 10, 60, n)])
    assert later[:3].tolist() == [255, 255, 255]
    tab.console[:] = [text for text in tab.console if "willReadFrequently" not in text]  # from getImageData above
    tab.close()


@needed
def test_hovering_a_cell_names_query_and_key_and_a_click_pins_the_query(browser, tmp_path: Path):
    trace = whole()
    n, pattern = len(trace), wb.attention.pattern(trace, 1, 2).values
    tab = Tab(browser, wb.views.heads(trace, 1, 2).to_html(tmp_path / "page.html"))
    tab.page.mouse.move(*cell(tab, 50, 33, n))
    readout = tab.readout()
    assert "position 50 ·" in readout
    assert f"{trace.str_tokens[33].strip() or '↵'}” 33: ≈ " in readout
    shown = float(readout.split("33: ≈ ")[1].split()[0].replace("−", "-"))
    assert shown == pytest.approx(float(pattern[50, 33]), abs=0.004)
    assert len(tab.marks()) == 2
    tab.page.mouse.click(*cell(tab, 50, 33, n))
    assert len(tab.marks(".wb-pin")) == 3  # one on the row, two on the thumbnail
    top = int(pattern[50].argmax())
    assert f"{top} (" in tab.readout().split("attends most to: ")[1].split(",")[0]
    tab.page.keyboard.press("ArrowRight")
    tab.page.mouse.move(0, 0)
    assert "position 51 ·" in tab.readout()
    tab.close()


@needed
def test_click_keys_and_menus_change_head_and_layer_and_the_python_code_follows(browser, tmp_path: Path):
    trace = whole()
    tab = LiveTab(browser, wb.views.heads(trace, 0, 1), tmp_path)
    shown = tab.page.locator("select >> nth=1"), tab.page.locator("select >> nth=2")
    tab.page.mouse.click(box(tab, 0)["x"] + 30, box(tab, 0)["y"] + 50)
    tab.settled()
    assert shown[1].input_value() == "0"
    tab.page.locator(".wb").press("]")
    tab.page.locator(".wb").press("]")
    tab.page.locator(".wb").press("ArrowUp")
    tab.settled()
    assert [s.input_value() for s in shown] == ["1", "2"]
    tab.page.locator(".wb").press("[")
    shown[0].select_option("3")
    tab.page.mouse.click(*cell(tab, 30, 12, len(trace)))
    assert tab.selected() == {"pos": 30, "layer": 3, "head": 1}
    line = tab.python()
    assert line == "wb.views.heads(trace, layer=3, head=1, selected=30)"
    assert {"layer", "head", "row"} <= set(tab.queries)
    tab.page.wait_for_timeout(300)
    assert correlation(tab, wb.attention.pattern(trace, 3, 1).values) > 0.9  # marks are drawn over it
    exact = wb.attention.pattern(trace, 3, 1, 30).values
    best = int(exact.argmax())
    assert f"{best} ({exact[best]:.3g})" in tab.readout()
    n_queries = len(tab.queries)
    tab.page.locator(".wb").press("]")
    tab.page.wait_for_timeout(200)
    tab.page.locator(".wb").press("[")
    tab.page.wait_for_timeout(200)
    assert tab.queries[n_queries:].count("head") == 1  # the other head was cached
    assert [text for text in tab.console if "willReadFrequently" not in text] == []
    tab.page.close()


@needed
def test_zooming_a_long_run_queries_exact_cells(browser, tmp_path: Path):
    trace = whole(LONG)
    tab = LiveTab(browser, wb.views.heads(trace, 1, 2, window=(400, 464)), tmp_path)
    tab.page.wait_for_timeout(300)
    assert correlation(tab, wb.attention.pattern(trace, 1, 2).values[400:464, 400:464]) > 0.99
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "zoomed.svg")
    assert (tmp_path / "zoomed.svg").read_text("utf-8").count("downsampled (max)") == 1  # the thumbnails
    tab.page.keyboard.press("0")
    tab.page.close()


@needed
def test_a_very_long_run_shows_a_preview_first_and_exact_cells_later(browser, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(heads_view, "PREVIEW_FROM", 500)
    trace = whole(LONG)
    view = wb.views.heads(trace, 1, 2)
    header, arrays = view.payload()
    exact = pooled(levels(wb.attention.pattern(trace, 1, 2)), 2)
    assert header["quick"]
    last = levels(wb.attention.pattern(trace, 1, 2))[1::2]  # the last query of each cell
    assert (arrays["cells"][: len(last), 0] == last[:, :2].max(1)).all()
    assert (arrays["cells"] <= exact).all()
    tab = LiveTab(browser, view, tmp_path)
    tab.page.wait_for_timeout(800)
    assert tab.queries.count("head") == 1
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "exact.svg")
    assert "preview" not in (tmp_path / "exact.svg").read_text("utf-8")
    tab.page.close()
    page = Tab(browser, view.to_html(tmp_path / "page.html"))
    with page.page.expect_download() as download:
        page.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "page.svg")
    assert "preview" not in (tmp_path / "page.svg").read_text("utf-8")
    assert view.quick
    page.page.close()


@needed
def test_a_page_shows_that_other_layers_need_python(browser, tmp_path: Path):
    tab = Tab(browser, wb.views.heads(whole(LONG), 0, 1, selected=700).to_html(tmp_path / "page.html"))
    tab.page.locator(".wb").press("]")
    tab.page.locator("select >> nth=1").select_option("2")
    tab.settled()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert "needs Python" in (tmp_path / "saved.svg").read_text("utf-8")
    tab.requests[:] = [url for url in tab.requests if not url.startswith("blob:")]
    tab.close()


@needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.heads(whole(), 0, 3, selected=50).to_html(tmp_path / "page.html")
    tab = Tab(browser, path, color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.shot(f"heads-{scheme}-{width}")
    tab.close()


@needed
@pytest.mark.parametrize("width", [480, 640, 1280])
def test_the_buttons_of_the_bar_stay_together(browser, tmp_path: Path, width: int):
    """As wide as a view is in JupyterLab's window of 900 pixels, "−" was on another line than "+"."""
    tab = Tab(browser, wb.views.heads(whole(), 0, 3).to_html(tmp_path / "page.html"), width=width)
    buttons = ("zoom out", "zoom in", "all tokens", "save this view as SVG", "Python code", "full screen")
    boxes = [tab.page.get_by_role("button", name=name).bounding_box() for name in buttons]
    assert len({box["y"] for box in boxes}) == 1
    tab.close()


@needed
def test_hostile_tokens_are_visible_and_inert(browser, tmp_path: Path):
    trace = whole(HOSTILE)
    tab = Tab(browser, wb.views.heads(trace, 1, 0, selected=20).to_html(tmp_path / "page.html"))
    texts = check_inert(tab, browser, tmp_path)
    assert "<script>" in texts
    assert "⟨U+202E⟩" in texts
    tab.close()


def test_sizes_of_the_synthetic_run_are_all_different():
    assert len({LAYERS, HEADS, WINDOW}) == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"from": 5, "to": 2},
        {"from": 3, "to": 3},
        {"to": 10**9},
        {"from": -1},
        {"from": 0.5},
        {"layer": 99},
        {"head": None},
    ],
)
def test_wrong_numbers_in_a_query_are_refused(wrong):
    with pytest.raises((ArgumentError, SelectionError)):
        wb.views.heads(whole()).query("head", {"layer": 1, "head": 0, "from": 0, "to": 8} | wrong)


# Over the heads, and two heads side by side.


@pytest.mark.parametrize("name", ["mean", "max"])
def test_a_head_may_be_the_mean_or_the_maximum_over_the_heads(name: str):
    trace = whole(LONG)
    over = getattr(wb.attention.pattern(trace, 1).values, name)(0)
    view = wb.views.heads(trace, 1, name)
    header, arrays = view.payload()
    assert np.abs(arrays["cells"].astype(int) - pooled(levels(over), header["factor"])).max() <= 1  # rounding of a mean
    header, arrays = view.query("head", {"layer": 1, "head": name, "from": 300, "to": 1000})
    assert np.abs(arrays["cells"].astype(int) - levels(over)[300:1000, 300:1000]).max() <= 1
    header, arrays = view.query("row", {"layer": 1, "head": name, "query": 40})
    assert np.allclose(arrays["row"], over[40], atol=1e-6)
    sinks = getattr(1 - wb.attention.pattern(trace, 1).values[:, 40].sum(-1), name)()
    assert header["sink"] == pytest.approx(sinks, abs=1e-6)
    assert f"layer 1, {name} over heads" in snapshot(view)


@pytest.mark.parametrize("factor", [3, 7])
def test_a_preview_over_the_heads_uses_the_last_query_of_each_cell(factor: int):
    trace = whole(LONG)
    n, size = len(trace), -(-len(trace) // factor)
    over = wb.attention.pattern(trace, 1).values.max(0)
    cells, _, used = head_cells.pooled(trace, 1, "max", 0, n, size, sampled=True)
    last = np.minimum(np.arange(1, len(cells) + 1) * used, n) - 1
    expected = np.maximum.reduceat(over[last], np.arange(0, n, used), axis=1)
    assert used == factor and np.allclose(cells, expected, atol=1e-6)


def test_heads_that_do_not_exist_are_refused_with_what_is_allowed():
    with pytest.raises(ArgumentError, match="head must be 'mean' or 'max', got 'median'"):
        wb.views.heads(whole(), head="median")
    with pytest.raises(ArgumentError, match=r"beside must be \(layer, head\)"):
        wb.views.heads(whole(), beside=(1, 2, 3))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SelectionError, match="head must be between"):
        wb.views.heads(whole(), beside=(1, 6))


@needed
def test_two_heads_are_side_by_side_and_hovering_names_both_values(browser, tmp_path: Path):
    trace = whole()
    first, second = wb.attention.pattern(trace, 1, 2).values, wb.attention.pattern(trace, 3).values.mean(0)
    tab = LiveTab(browser, wb.views.heads(trace, 1, 2, beside=(3, "mean")), tmp_path)
    tab.page.set_viewport_size({"width": 1800, "height": 900})
    tab.settled()
    left, right = box(tab, 1), box(tab, 2)
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    query, key = 60, 57
    tab.page.mouse.move(*cell(tab, query, key, len(trace)))
    tab.settled()
    text = tab.page.locator(".wb-readout").inner_text()
    assert f"layer 1, head 2: attention to “{trace.str_tokens[key]}” {key}: ≈ " in text
    values = [float(part.split()[0].replace("−", "-")) for part in text.split(f" {key}: ≈ ")[1:]]
    assert values == pytest.approx([first[query, key], second[query, key]], abs=0.01)
    assert tab.python() == 'wb.views.heads(trace, layer=1, head=2, beside=(3, "mean"))'
    tab.page.get_by_label("a second head beside the first").select_option("")
    tab.page.get_by_label("head ([ ])").select_option("-3")
    tab.settled()
    assert not tab.page.locator(".wb-plot >> nth=2").is_visible()
    assert correlation(tab, wb.attention.pattern(trace, 1).values.max(0)) > 0.99
    assert tab.python() == 'wb.views.heads(trace, layer=1, head="max")'
    tab.console[:] = [text for text in tab.console if "willReadFrequently" not in text]
    tab.close()
