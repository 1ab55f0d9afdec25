"""Steps: any array from step to step, as it is, in a matrix and as arcs."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from tests.views.whole import HEADS, HOSTILE, LAYERS, Alive, inert, whole
from workbench.errors import NotRecorded, SelectionError
from workbench.views.notebook import snapshot
from workbench.views.payload import unpacked
from workbench.views.step_links import EACH, MOST, pooled, strongest
from workbench.views.steps_view import BYTES, CELLS, _edges

COUNT = len(wb.steps(made.run()))


def effects(seed: int = 0) -> xr.DataArray:
    values = np.tril(np.random.default_rng(seed).normal(size=(COUNT, COUNT)), -1)
    return xr.DataArray(values, dims=("step", "key_step"), attrs={"long_name": "suppression", "units": "nats"})


def matrices(view) -> dict[tuple[int, int], np.ndarray]:
    """What a view sends at once, by array and layer; -1 is the mean."""
    header, arrays = view.payload()
    return {(m["array"], m["layer"]): arrays[f"{k}:cells"] for k, m in enumerate(header["matrices"])}


def test_the_numbers_are_those_of_the_array_whatever_the_order_of_its_axes():
    trace, array = whole(), effects()
    drift = xr.DataArray(
        np.random.default_rng(1).normal(size=(LAYERS, COUNT, COUNT)), dims=("layer", "step", "key_step")
    )
    drift[:, 2, 2] = np.nan
    view = wb.views.steps(trace, {"one": array.T, "two": drift, "three": xr.Dataset({"p": 3, "drift": drift})})
    header, _ = view.payload()
    every = list(range(LAYERS))
    assert [(each["label"], each["layers"]) for each in header["edges"]] == [
        ("one", []),
        ("two", every),
        ("three", every),
    ]
    found = matrices(view)
    assert np.allclose(found[0, -1], array.values)
    for number in (1, 2):
        assert np.allclose([found[number, layer] for layer in every], drift.values, equal_nan=True)
        assert np.allclose(found[number, -1], drift.mean("layer").values, equal_nan=True)


@pytest.mark.parametrize("size", [1, 2, 7, 40, 230])
def test_links_are_the_strongest_of_all_and_of_every_row_and_column(size: int):
    rng = np.random.default_rng(size)
    matrix = rng.normal(size=(size, size))
    matrix[rng.random((size, size)) < 0.3] = 0
    matrix[rng.random((size, size)) < 0.1] = np.nan
    cells = sorted(
        ((abs(matrix[i, j]), i, j) for i in range(size) for j in range(size) if i != j and abs(matrix[i, j]) > 0),
        reverse=True,
    )
    expected = {cell[1:] for cell in cells[:MOST]}
    for axis in (1, 2):
        for step in range(size):
            expected |= {cell[1:] for cell in [cell for cell in cells if cell[axis] == step][:EACH]}
    ends, strength = strongest(matrix)
    assert {tuple(end) for end in ends.tolist()} == expected
    assert (np.diff(np.abs(strength)) >= 0).all()
    assert np.array_equal(strength, matrix[tuple(ends.T)].astype("f4"))


@pytest.mark.parametrize("factor", [1, 2, 3, 50])
def test_steps_that_share_a_cell_show_the_value_of_the_largest_size(factor: int):
    matrix = np.random.default_rng(factor).normal(size=(31, 31))
    matrix[3:9, 3:9] = np.nan
    cells, side = pooled(matrix, factor), -(-31 // factor)
    assert cells.shape == (side, side)
    for r in range(side):
        for c in range(side):
            block = matrix[r * factor : (r + 1) * factor, c * factor : (c + 1) * factor].ravel()
            known = block[np.isfinite(block)]
            assert np.isnan(cells[r, c]) if not len(known) else cells[r, c] == known[np.abs(known).argmax()]


def test_without_an_array_it_is_attention_as_a_mean_over_heads():
    trace = whole()
    view = wb.views.steps(trace)
    assert view.payload()[0]["edges"][0]["over"] == f", mean over {HEADS} heads"
    layers = [matrices(view)[0, layer] for layer in range(LAYERS)]
    assert np.allclose(layers, wb.attention.step_attention(trace).mean("head").values)


def test_an_array_that_was_given_may_change_afterwards():
    array = effects()
    view = wb.views.steps(whole(), array)
    array[:] = 7
    assert np.allclose(matrices(view)[0, -1], effects().values)


def test_what_does_not_fit_is_told():
    trace = whole()
    with pytest.raises(ValueError, match=f"this trace has {COUNT} steps"):
        wb.views.steps(trace, effects()[1:, 1:])
    with pytest.raises(ValueError, match=r"takes a labelled array \(step key_step\)"):
        wb.views.steps(trace, xr.DataArray(np.zeros((3, 3)), dims=("pos", "key")))
    with pytest.raises(ValueError, match="a list"):
        wb.views.steps(trace, {"mine": [[1.0]]})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="empty"):
        wb.views.steps(trace, {})
    with pytest.raises(NotRecorded, match="no steps"):
        wb.views.steps(made.run([("user", None, ["Go."])]))
    with pytest.raises(NotRecorded, match=r"record='(steps|attention)'"):
        wb.views.steps(made.run(layers=4, model=trace.manifest.model))


def test_a_snapshot_shows_every_array():
    text = snapshot(wb.views.steps(whole(), {"a": effects(), "b": abs(effects())}))
    assert text.count("<img") == 2
    assert "nats" in text


def at(seen: Seen, step: int, key_step: int) -> tuple[float, float]:
    box = seen.page.locator(".wb-plot >> nth=0").bounding_box()
    side = (box["height"] - 50) / COUNT  # cells are square
    return box["x"] + 150 + (key_step + 0.5) * side, box["y"] + 42 + (step + 0.5) * side


def number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−").rstrip("0") if "." in f"{value:.3g}" else f"{value:.3g}".replace("-", "−")


@needed
def test_a_cell_says_both_steps_and_a_click_pins_the_first_token(browser, tmp_path: Path):
    trace, array = whole(), effects()
    seen = Alive(browser, wb.views.steps(trace, array), tmp_path)
    seen.page.mouse.move(*at(seen, 4, 1))
    said = seen.said()
    assert said.startswith("step 4 (")
    assert f"{number(float(array[4, 1]))} nats" in said
    assert wb.steps(trace)[1].text.strip()[:6] in said.splitlines()[2]
    seen.page.mouse.click(*at(seen, 4, 1))
    assert seen.selected() == {"pos": wb.steps(trace)[4].start}
    assert len(seen.marks(".wb-pin")) == 2
    seen.page.mouse.move(0, 0)
    assert "from steps" in seen.said()
    assert seen.complaints == []
    seen.page.close()


@needed
def test_arrays_and_layers_are_chosen_by_the_reader(browser, tmp_path: Path):
    trace = whole()
    attention = wb.attention.step_attention(trace).mean("head")
    seen = Alive(browser, wb.views.steps(trace, {"suppression": effects(), "attention": attention}), tmp_path)
    seen.page.locator("select >> nth=1").select_option("1")
    seen.page.mouse.move(*at(seen, 5, 2))
    assert f"{number(float(attention.mean('layer')[5, 2]))} probability" in seen.said()
    seen.page.locator("select >> nth=2").select_option("3")
    seen.page.mouse.move(*at(seen, 5, 3))
    assert f"{number(float(attention[3, 5, 3]))} probability" in seen.said()
    seen.page.locator(".wb").press("ArrowDown")
    seen.page.mouse.move(*at(seen, 5, 2))
    assert f"{number(float(attention[2, 5, 2]))} probability" in seen.said()
    assert seen.complaints == []
    seen.page.close()


# Two thousand steps.


@cache
def long() -> tuple[wb.Trace, xr.DataArray]:
    """A run of 2,000 steps, and an array for each of 3 layers with one strong link that is known."""
    said = [word for number in range(2000) for word in made.words(f"So c={number}. ")]
    trace = made.run([("user", None, ["Go."]), ("assistant", "analysis", said)], layers=4)
    values = np.tril(np.random.default_rng(3).gamma(0.3, 0.05, (3, 2000, 2000)).astype("f4"), -1)
    values[:, 1500, 700] = [-3, 4, 2]
    return trace, xr.DataArray(values, {"layer": [0, 2, 3]}, ("layer", "step", "key_step"), attrs={"units": "nats"})


def test_two_thousand_steps_are_sent_as_a_mean_and_a_layer_when_it_is_asked_for():
    trace, array = long()
    view = wb.views.steps(trace, array)
    assert len(view.reply("open", {})) < 10_000_000
    header, arrays = view.payload()
    [matrix] = header["matrices"]  # the mean, and nothing else
    assert (matrix["array"], matrix["layer"], matrix["factor"]) == (0, -1, 3)
    mean = array.mean("layer").values
    assert arrays["0:cells"].shape == (667, 667)
    assert max(arrays["0:cells"].shape) <= CELLS
    assert arrays["0:cells"][500, 233] == pytest.approx(mean[1500:1503, 699:702].max())
    assert matrix["high"] == pytest.approx(mean.max())
    request = {"array": 0, "layer": 2, "from": 1400, "to": 1600}
    packed = view.reply("cells", request)
    assert len(packed) < BYTES
    header, arrays = unpacked(packed)
    assert (header["factor"], header["start"]) == (1, 1400)
    assert np.array_equal(arrays["cells"], array.sel(layer=2).values[1400:1600, 1400:1600])
    assert header["high"] == arrays["cells"].max() < 4  # the scale is that of the stretch
    with pytest.raises(LookupError, match="layer 1 is not in this array; it has the layers 0, 2, 3"):
        view.reply("cells", request | {"layer": 1})


def test_a_score_sheet_sends_the_strongest_links_of_two_thousand_steps_and_no_matrix():
    trace, array = long()
    arcs = array.sel(layer=2, drop=True)
    sheet = wb.views.score_sheet(trace, ["arcs"], arcs=arcs)
    header, arrays = sheet.payload()
    assert sum(arrays[name].nbytes for name in ("ends:arcs", "lane:arcs")) < 300_000
    assert (arrays["ends:arcs"][-1].tolist(), float(arrays["lane:arcs"][-1])) == ([1500, 700], 4.0)
    assert next(lane for lane in header["lanes"] if lane["name"] == "arcs")["kind"] == "arcs"
    assert "downsampled, 13 × 13 steps a cell" in snapshot(sheet)
    assert "−3 to 3" in snapshot(wb.views.score_sheet(trace, ["arcs"], arcs=array.sel(layer=0, drop=True)))


def test_a_layer_is_shown_first_if_it_is_given():
    trace, array = long()
    view = wb.views.steps(trace, array, layer=3)
    header, _ = view.payload()
    assert (header["layer"], header["matrices"][0]["layer"]) == (3, 3)
    assert "layer 3; steps 0 to 1999; downsampled, 13 × 13 steps a cell" in snapshot(view)
    assert "mean over 3 layers" in snapshot(wb.views.steps(trace, array))
    with pytest.raises(SelectionError, match="layer=1 is in none of the arrays; they have the layers 0, 2, 3"):
        wb.views.steps(trace, array, layer=1)
    named = array[:, :5, :5].assign_coords(layer=["first", "second", "third"])
    assert _edges("named", named, 5).layers == (0, 1, 2)
    with pytest.raises(SelectionError, match="no array has an axis layer"):
        wb.views.steps(trace, array.sel(layer=2, drop=True), layer=1)


@needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_thousand_steps_fit_and_are_exact_where_one_zooms(browser, tmp_path: Path, scheme):
    trace, array = long()
    mean = array.mean("layer").values
    seen = Alive(browser, wb.views.steps(trace, array), tmp_path, color_scheme=scheme)
    height, width = seen.page.evaluate(
        "[document.querySelector('.wb').offsetHeight, document.documentElement.scrollWidth]"
    )
    assert (height <= 700, width <= 1280) == (True, True)
    box = seen.page.locator(".wb-plot >> nth=0").bounding_box()
    side = (box["height"] - 50) / 334  # cells of 6 x 6 steps
    seen.page.mouse.move(box["x"] + 150 + 116.5 * side, box["y"] + 42 + 250.5 * side)
    assert seen.said() == "steps 1500–1505 from steps 696–701: 1 nats, the largest of 6 × 6 steps"
    seen.shot(f"steps-2000-{scheme}")
    seen.page.mouse.click(box["x"] + 150 + 116.5 * side, box["y"] + 42 + 250.5 * side)
    assert seen.selected() == {"pos": wb.steps(trace)[1500].start}
    seen.page.mouse.move(0, 0)
    assert "from steps 700 (1)" in seen.said()
    for _ in range(5):
        seen.page.locator(".wb").press("+")
    seen.page.wait_for_function("document.querySelector('.wb-plot').clientHeight < 500")
    seen.settled()
    box = seen.page.locator(".wb-plot >> nth=0").bounding_box()
    seen.page.mouse.move(box["x"] + 151, box["y"] + 43 + (box["height"] - 50) / 2)
    said = seen.said()
    assert "largest" not in said
    row, column = (int(part.split(" ")[0]) for part in said.split("step ")[1:3])
    assert abs(row - 1500) < 40
    assert f"step {row} (" in said
    assert f"{number(float(mean[row, column]))} nats" in said
    seen.shot(f"steps-2000-zoomed-{scheme}")
    assert seen.complaints == []
    seen.page.close()


@needed
def test_a_page_says_that_the_other_layers_take_python(browser, tmp_path: Path):
    trace, array = long()
    seen = Seen(browser, wb.views.steps(trace, array).to_html(tmp_path / "page.html"))
    seen.page.locator('select[aria-label^="layer"]').select_option("2")
    seen.settled()
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert "layer 2 · cells needs Python" in (tmp_path / "saved.svg").read_text("utf-8")
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    seen.page.close()


@needed
def test_the_arcs_are_those_of_the_array(browser, tmp_path: Path):
    array = effects()
    seen = Seen(browser, wb.views.steps(whole(), array).to_html(tmp_path / "page.html"))
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    text = (tmp_path / "saved.svg").read_text("utf-8")
    most = float(abs(array).max())
    assert text.count("<path ") == int((abs(array) > most / 50).sum())
    assert text.count('stroke="#b3380a"') == int((array > most / 50).sum())
    seen.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.steps(whole(), effects(), selected=60).to_html(tmp_path / "page.html")
    seen = Seen(browser, path, color_scheme=scheme, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.shot(f"steps-{scheme}-{width}")
    seen.close()


@needed
def test_hostile_tokens_and_labels_are_inert(browser, tmp_path: Path):
    trace = whole(HOSTILE)
    count = len(wb.steps(trace))
    array = xr.DataArray(np.ones((count, count)), dims=("step", "key_step"), attrs={"units": "\u202e<img src=x>"})
    seen = Seen(browser, wb.views.steps(trace, {"<script>alert(1)</script>": array}).to_html(tmp_path / "page.html"))
    assert "<script>" in inert(seen, browser, tmp_path)
    seen.close()
