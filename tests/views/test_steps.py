"""Steps: any array from step to step, as it is, in a matrix and as arcs."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from tests.views.whole import HEADS, HOSTILE, LAYERS, Alive, inert, whole
from workbench.errors import NotRecorded
from workbench.views.live import snapshot

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


def test_without_an_array_it_is_attention_as_a_mean_over_heads():
    trace = whole()
    view = wb.views.steps(trace)
    assert view.payload()[0]["edges"][0]["over"] == f", mean over {HEADS} heads"
    layers = [matrices(view)[0, layer] for layer in range(LAYERS)]
    assert np.allclose(layers, wb.step_attention(trace).mean("head").values)


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
def test_a_cell_says_both_steps_and_a_click_keeps_the_first_token(browser, tmp_path: Path):
    trace, array = whole(), effects()
    seen = Alive(browser, wb.views.steps(trace, array), tmp_path)
    seen.page.mouse.move(*at(seen, 4, 1))
    said = seen.said()
    assert said.startswith("step 4 (")
    assert f"{number(float(array[4, 1]))} nats" in said
    assert wb.steps(trace)[1].text.strip()[:6] in said.splitlines()[2]
    seen.page.mouse.click(*at(seen, 4, 1))
    assert seen.picked() == {"pos": wb.steps(trace)[4].start}
    assert len(seen.marks(".wb-lock")) == 2
    seen.page.mouse.move(0, 0)
    assert "from steps" in seen.said()
    assert seen.complaints == []
    seen.page.close()


@needed
def test_arrays_and_layers_are_chosen_by_the_reader(browser, tmp_path: Path):
    trace = whole()
    attention = wb.step_attention(trace).mean("head")
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
    path = wb.views.steps(whole(), effects(), picked=60).to_html(tmp_path / "page.html")
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
