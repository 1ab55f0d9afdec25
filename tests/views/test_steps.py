"""The steps view: arrays (step key_step) as a matrix and as arcs."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import HEADS, HOSTILE, LAYERS, LiveTab, check_inert, whole
from workbench.errors import NotRecorded, SelectionError
from workbench.views.notebook import snapshot
from workbench.views.payload import unpacked
from workbench.views.step_links import LINKS_PER_STEP, MAX_LINKS, pooled, strongest
from workbench.views.steps_view import CELLS, INITIAL_BYTES, _edges

COUNT = len(wb.steps(made.run()))


def effects(seed: int = 0) -> xr.DataArray:
    values = np.tril(np.random.default_rng(seed).normal(size=(COUNT, COUNT)), -1)
    return xr.DataArray(values, dims=("step", "key_step"), attrs={"long_name": "suppression", "units": "nats"})


def matrices(view) -> dict[tuple[int, int], np.ndarray]:
    """The matrices that are sent with the view, by array and layer; -1 is the mean."""
    header, arrays = view.payload()
    return {(m["array"], m["layer"]): arrays[f"{k}:cells"] for k, m in enumerate(header["matrices"])}


def test_matrices_are_those_of_the_arrays_for_any_order_of_axes():
    trace, array = whole(), effects()
    drift = xr.DataArray(
        np.random.default_rng(1).normal(size=(LAYERS, COUNT, COUNT)), dims=("layer", "step", "key_step")
    )
    drift[:, 2, 2] = np.nan
    view = wb.views.steps(trace, {"one": array.T, "two": drift, "three": xr.Dataset({"p": 3, "drift": drift})})
    header, _ = view.payload()
    all_layers = list(range(LAYERS))
    assert [(each["label"], each["layers"]) for each in header["edges"]] == [
        ("one", []),
        ("two", all_layers),
        ("three", all_layers),
    ]
    sent = matrices(view)
    assert np.allclose(sent[0, -1], array.values)
    for number in (1, 2):
        assert np.allclose([sent[number, layer] for layer in all_layers], drift.values, equal_nan=True)
        assert np.allclose(sent[number, -1], drift.mean("layer").values, equal_nan=True)


@pytest.mark.parametrize("size", [1, 2, 7, 40, 230])
def test_links_are_the_strongest_overall_and_of_every_row_and_column(size: int):
    rng = np.random.default_rng(size)
    matrix = rng.normal(size=(size, size))
    matrix[rng.random((size, size)) < 0.3] = 0
    matrix[rng.random((size, size)) < 0.1] = np.nan
    cells = sorted(
        ((abs(matrix[i, j]), i, j) for i in range(size) for j in range(size) if i != j and abs(matrix[i, j]) > 0),
        reverse=True,
    )
    expected = {cell[1:] for cell in cells[:MAX_LINKS]}
    for axis in (1, 2):
        for step in range(size):
            expected |= {cell[1:] for cell in [cell for cell in cells if cell[axis] == step][:LINKS_PER_STEP]}
    ends, strength = strongest(matrix)
    assert {tuple(end) for end in ends.tolist()} == expected
    assert (np.diff(np.abs(strength)) >= 0).all()
    assert np.array_equal(strength, matrix[tuple(ends.T)].astype("f4"))


@pytest.mark.parametrize("factor", [1, 2, 3, 50])
def test_a_cell_shared_by_several_steps_has_their_value_of_largest_magnitude(factor: int):
    matrix = np.random.default_rng(factor).normal(size=(31, 31))
    matrix[3:9, 3:9] = np.nan
    cells, side = pooled(matrix, factor), -(-31 // factor)
    assert cells.shape == (side, side)
    for r in range(side):
        for c in range(side):
            block = matrix[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor].ravel()
            known = block[np.isfinite(block)]
            assert np.isnan(cells[r, c]) if not len(known) else cells[r, c] == known[np.abs(known).argmax()]


def test_the_default_array_is_step_attention_averaged_over_heads():
    trace = whole()
    view = wb.views.steps(trace)
    assert view.payload()[0]["edges"][0]["over"] == f", mean over {HEADS} heads"
    layers = [matrices(view)[0, layer] for layer in range(LAYERS)]
    assert np.allclose(layers, wb.attention.step_attention(trace).mean("head").values)


def test_changing_an_array_later_does_not_change_the_view():
    array = effects()
    view = wb.views.steps(whole(), array)
    array[:] = 7
    assert np.allclose(matrices(view)[0, -1], effects().values)


def test_arrays_that_do_not_fit_are_refused():
    trace = whole()
    with pytest.raises(ValueError, match=f"this trace has {COUNT} steps"):
        wb.views.steps(trace, effects()[1:, 1:])
    with pytest.raises(ValueError, match=r"must be a labeled array \(step key_step\)"):
        wb.views.steps(trace, xr.DataArray(np.zeros((3, 3)), dims=("pos", "key")))
    with pytest.raises(ValueError, match="a list"):
        wb.views.steps(trace, {"mine": [[1.0]]})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="empty"):
        wb.views.steps(trace, {})
    with pytest.raises(NotRecorded, match="no steps"):
        wb.views.steps(made.run([("user", None, ["Go."])]))
    with pytest.raises(NotRecorded, match=r"record='(steps|attention)'"):
        wb.views.steps(made.run(layers=4, lanes=False, model=trace.manifest.model))


def test_a_snapshot_shows_every_array():
    text = snapshot(wb.views.steps(whole(), {"a": effects(), "b": abs(effects())}))
    assert text.count("<img") == 2
    assert "nats" in text


def at(tab: Tab, step: int, key_step: int) -> tuple[float, float]:
    box = tab.page.locator(".wb-plot >> nth=0").bounding_box()
    side = (box["height"] - 50) / COUNT  # cells are square
    return box["x"] + 150 + (key_step + 0.5) * side, box["y"] + 42 + (step + 0.5) * side


def number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−").rstrip("0") if "." in f"{value:.3g}" else f"{value:.3g}".replace("-", "−")


@needed
def test_a_cell_names_both_steps_and_a_click_pins_the_first_token_of_its_row(browser, tmp_path: Path):
    trace, array = whole(), effects()
    tab = LiveTab(browser, wb.views.steps(trace, array), tmp_path)
    tab.page.mouse.move(*at(tab, 4, 1))
    readout = tab.readout()
    assert readout.startswith("step 4 (")
    assert f"{number(float(array[4, 1]))} nats" in readout
    assert wb.steps(trace)[1].text.strip()[:6] in readout.splitlines()[2]
    tab.page.mouse.click(*at(tab, 4, 1))
    assert tab.selected() == {"pos": wb.steps(trace)[4].start}
    assert len(tab.marks(".wb-pin")) == 2
    tab.page.mouse.move(0, 0)
    assert "from steps" in tab.readout()
    assert tab.console == []
    tab.page.close()


@needed
def test_menus_choose_array_and_layer(browser, tmp_path: Path):
    trace = whole()
    attention = wb.attention.step_attention(trace).mean("head")
    tab = LiveTab(browser, wb.views.steps(trace, {"suppression": effects(), "attention": attention}), tmp_path)
    tab.page.locator("select >> nth=1").select_option("1")
    tab.page.mouse.move(*at(tab, 5, 2))
    assert f"{number(float(attention.mean('layer')[5, 2]))} probability" in tab.readout()
    tab.page.locator("select >> nth=2").select_option("3")
    tab.page.mouse.move(*at(tab, 5, 3))
    assert f"{number(float(attention[3, 5, 3]))} probability" in tab.readout()
    tab.page.locator(".wb").press("ArrowDown")
    tab.page.mouse.move(*at(tab, 5, 2))
    assert f"{number(float(attention[2, 5, 2]))} probability" in tab.readout()
    assert tab.console == []
    tab.page.close()


# Two thousand steps.


@cache
def long() -> tuple[wb.Trace, xr.DataArray]:
    """A run of 2,000 steps, and an array of 3 layers with one strong link at a known place."""
    thoughts = [word for number in range(2000) for word in made.words(f"So c={number}. ")]
    trace = made.run([("user", None, ["Go."]), ("assistant", "analysis", thoughts)], layers=4)
    values = np.tril(np.random.default_rng(3).gamma(0.3, 0.05, (3, 2000, 2000)).astype("f4"), -1)
    values[:, 1500, 700] = [-3, 4, 2]
    return trace, xr.DataArray(values, {"layer": [0, 2, 3]}, ("layer", "step", "key_step"), attrs={"units": "nats"})


def test_two_thousand_steps_are_sent_as_a_mean_and_layers_on_demand():
    trace, array = long()
    view = wb.views.steps(trace, array)
    assert len(view.reply("open", {})) < 10_000_000
    header, arrays = view.payload()
    [matrix] = header["matrices"]  # only the mean
    assert (matrix["array"], matrix["layer"], matrix["factor"]) == (0, -1, 3)
    mean = array.mean("layer").values
    assert arrays["0:cells"].shape == (667, 667)
    assert max(arrays["0:cells"].shape) <= CELLS
    assert arrays["0:cells"][500, 233] == pytest.approx(mean[1500:1503, 699:702].max())
    assert matrix["high"] == pytest.approx(mean.max())
    request = {"array": 0, "layer": 2, "from": 1400, "to": 1600}
    packed = view.reply("cells", request)
    assert len(packed) < INITIAL_BYTES
    header, arrays = unpacked(packed)
    assert (header["factor"], header["start"]) == (1, 1400)
    assert np.array_equal(arrays["cells"], array.sel(layer=2).values[1400:1600, 1400:1600])
    assert header["high"] == arrays["cells"].max() < 4  # the scale of the requested range
    with pytest.raises(LookupError, match="layer 1 is not in this array; it has layers 0, 2, 3"):
        view.reply("cells", request | {"layer": 1})


def test_a_score_sheet_sends_the_strongest_links_of_two_thousand_steps_without_a_matrix():
    trace, array = long()
    arcs = array.sel(layer=2, drop=True)
    sheet = wb.views.score_sheet(trace, ["arcs"], arcs=arcs)
    header, arrays = sheet.payload()
    assert sum(arrays[name].nbytes for name in ("ends:arcs", "lane:arcs")) < 300_000
    assert (arrays["ends:arcs"][-1].tolist(), float(arrays["lane:arcs"][-1])) == ([1500, 700], 4.0)
    assert next(lane for lane in header["lanes"] if lane["name"] == "arcs")["kind"] == "arcs"
    assert "downsampled, 13 × 13 steps a cell" in snapshot(sheet)
    assert "−3 to 3" in snapshot(wb.views.score_sheet(trace, ["arcs"], arcs=array.sel(layer=0, drop=True)))


def test_the_layer_argument_is_shown_first():
    trace, array = long()
    view = wb.views.steps(trace, array, layer=3)
    header, _ = view.payload()
    assert (header["layer"], header["matrices"][0]["layer"]) == (3, 3)
    assert "layer 3; steps 0 to 1999; downsampled, 13 × 13 steps a cell" in snapshot(view)
    assert "mean over 3 layers" in snapshot(wb.views.steps(trace, array))
    with pytest.raises(SelectionError, match="layer=1 is in none of the arrays; they have layers 0, 2, 3"):
        wb.views.steps(trace, array, layer=1)
    named = array[:, :5, :5].assign_coords(layer=["first", "second", "third"])
    assert _edges("named", named, 5).layers == (0, 1, 2)
    with pytest.raises(SelectionError, match="no array has an axis layer"):
        wb.views.steps(trace, array.sel(layer=2, drop=True), layer=1)


@needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_thousand_steps_fit_the_window_and_are_exact_when_zoomed(browser, tmp_path: Path, scheme):
    trace, array = long()
    mean = array.mean("layer").values
    tab = LiveTab(browser, wb.views.steps(trace, array), tmp_path, color_scheme=scheme)
    height, width = tab.page.evaluate(
        "[document.querySelector('.wb').offsetHeight, document.documentElement.scrollWidth]"
    )
    assert (height <= 700, width <= 1280) == (True, True)
    box = tab.page.locator(".wb-plot >> nth=0").bounding_box()
    side = (box["height"] - 50) / 334  # cells of 6 x 6 steps
    tab.page.mouse.move(box["x"] + 150 + 116.5 * side, box["y"] + 42 + 250.5 * side)
    assert tab.readout() == "steps 1500–1505 from steps 696–701: 1 nats, the largest of 6 × 6 steps"
    tab.shot(f"steps-2000-{scheme}")
    tab.page.mouse.click(box["x"] + 150 + 116.5 * side, box["y"] + 42 + 250.5 * side)
    assert tab.selected() == {"pos": wb.steps(trace)[1500].start}
    tab.page.mouse.move(0, 0)
    assert "from steps 700 (1)" in tab.readout()
    for _ in range(5):
        tab.page.locator(".wb").press("+")
    tab.page.wait_for_function("document.querySelector('.wb-plot').clientHeight < 500")
    tab.settled()
    box = tab.page.locator(".wb-plot >> nth=0").bounding_box()
    tab.page.mouse.move(box["x"] + 151, box["y"] + 43 + (box["height"] - 50) / 2)
    readout = tab.readout()
    assert "largest" not in readout
    row, column = (int(part.split(" ")[0]) for part in readout.split("step ")[1:3])
    assert abs(row - 1500) < 40
    assert f"step {row} (" in readout
    assert f"{number(float(mean[row, column]))} nats" in readout
    tab.shot(f"steps-2000-zoomed-{scheme}")
    assert tab.console == []
    tab.page.close()


@needed
def test_a_page_shows_that_other_layers_need_python(browser, tmp_path: Path):
    trace, array = long()
    tab = Tab(browser, wb.views.steps(trace, array).to_html(tmp_path / "page.html"))
    tab.page.locator('select[aria-label^="layer"]').select_option("2")
    tab.settled()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert "layer 2 · cells needs Python" in (tmp_path / "saved.svg").read_text("utf-8")
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    tab.page.close()


@needed
def test_the_arcs_are_those_of_the_array(browser, tmp_path: Path):
    array = effects()
    tab = Tab(browser, wb.views.steps(whole(), array).to_html(tmp_path / "page.html"))
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    text = (tmp_path / "saved.svg").read_text("utf-8")
    largest = float(abs(array).max())
    assert text.count("<path ") == int((abs(array) > largest / 50).sum())
    assert text.count('stroke="#b3380a"') == int((array > largest / 50).sum())
    tab.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.steps(whole(), effects(), selected=60).to_html(tmp_path / "page.html")
    tab = Tab(browser, path, color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.shot(f"steps-{scheme}-{width}")
    tab.close()


@needed
def test_hostile_tokens_and_labels_are_inert(browser, tmp_path: Path):
    trace = whole(HOSTILE)
    count = len(wb.steps(trace))
    array = xr.DataArray(np.ones((count, count)), dims=("step", "key_step"), attrs={"units": "\u202e<img src=x>"})
    tab = Tab(browser, wb.views.steps(trace, {"<script>alert(1)</script>": array}).to_html(tmp_path / "page.html"))
    assert "<script>" in check_inert(tab, browser, tmp_path)
    tab.close()
