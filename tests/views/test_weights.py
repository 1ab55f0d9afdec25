"""Weights: what the circuits say, beside what the run did; of another model, or nothing, is refused."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from tests.views.whole import EXPERTS, HEADS, LAYERS, Alive, inert, whole
from workbench.errors import SelectionError
from workbench.views.notebook import snapshot
from workbench.views.weights_view import NEURONS

RANKS, TOTAL = 3, 70


def sinks() -> xr.Dataset:
    logit = np.linspace(-2, 3, LAYERS * HEADS).reshape(LAYERS, HEADS)
    data = {"logit": (("layer", "head"), logit), "share": (("layer", "head"), 1 / (1 + 9 * np.exp(-logit)))}
    return xr.Dataset(data, attrs={"keys": 9})


def router(layer: int, words=None) -> xr.Dataset:
    texts = np.array([[f"r{layer}e{e}k{k}" for k in range(RANKS)] for e in range(EXPERTS)], object)
    if words is not None:
        texts[:, 0] = words[:EXPERTS]
    share = np.arange(EXPERTS) / EXPERTS
    return xr.Dataset({"text": (("expert", "rank"), texts), "share": ("expert", share)}, attrs={"layer": layer})


def expert(layer: int, number: int) -> xr.Dataset:
    texts = {
        f"{name}_text": (
            ("neuron", "rank"),
            np.array([[f"{name}{n}k{k}" for k in range(RANKS)] for n in range(TOTAL)], object),
        )
        for name in ("raised", "lowered")
    }
    data = {**texts, "bias_text": ("rank", np.array(["b0", "b1", "b2"], object)), "norm": ("neuron", np.arange(TOTAL))}
    return xr.Dataset(data, {"neuron": np.arange(TOTAL)}, {"layer": layer, "expert": number})


def test_numbers_of_weights_and_run_stand_side_by_side():
    trace = whole()
    _, arrays = wb.views.weights(trace, sinks(), [router(1)]).payload()
    assert np.allclose(arrays["share"], sinks()["share"])
    assert np.allclose(arrays["load"], wb.routing.expert_load(trace))
    assert (arrays["chosen"] == trace["expert_indices"]).all()
    assert "mass" not in arrays  # this run kept no sinks' mass


def test_the_neurons_that_write_most_come_first():
    header, _ = wb.views.weights(whole(), experts=expert(2, 5)).payload()
    [one] = header["experts"]
    assert one["neurons"] == list(range(TOTAL - 1, TOTAL - 1 - NEURONS, -1))
    assert one["raised"][0] == [f"raised{TOTAL - 1}k{k}" for k in range(RANKS)]
    assert (one["layer"], one["expert"], one["total"]) == (2, 5, TOTAL)


def test_what_does_not_fit_is_told():
    trace = whole()
    with pytest.raises(ValueError, match="nothing to show"):
        wb.views.weights(trace)
    with pytest.raises(ValueError, match="as this run's model has"):
        wb.views.weights(trace, sinks().isel(head=slice(1, None)))
    with pytest.raises(ValueError, match="routers must hold text, share"):
        wb.views.weights(trace, routers=[router(0).isel(expert=slice(1, None))])
    with pytest.raises(SelectionError, match=r"layer must be between 0 and .*, got 7"):
        wb.views.weights(trace, routers=[router(7)])
    with pytest.raises(ValueError, match="experts must hold raised_text"):
        wb.views.weights(trace, experts=[router(0)])


def test_a_snapshot_shows_sinks_and_words():
    text = snapshot(wb.views.weights(whole(), sinks(), [router(1)], [expert(2, 5)]))
    assert text.count("<img") == 1
    assert "r1e0k0" in text
    assert f"raised{TOTAL - 1}k0" in text
    assert "<script" not in snapshot(wb.views.weights(whole(), routers=[router(1, made.HOSTILE)]))


@needed
def test_a_click_on_a_sink_goes_to_its_layer_and_head(browser, tmp_path: Path):
    trace = whole()
    seen = Alive(browser, wb.views.weights(trace, sinks(), [router(1), router(2)], selected=30), tmp_path)
    box = seen.page.locator(".wb-plot >> nth=0").bounding_box()
    tall = (box["height"] - 50) / LAYERS
    x, y = box["x"] + 150 + 34 * 4.5, box["y"] + 42 + tall * (LAYERS - 1 - 2 + 0.5)
    seen.page.mouse.move(x, y)
    said = seen.said()
    assert said.startswith("layer 2 (sliding), head 4\n")
    assert f"sink logit {float(sinks()['logit'][2, 4]):.3g}" in said
    seen.page.mouse.click(x, y)
    assert seen.selected() == {"pos": 30, "layer": 2, "head": 4}
    seen.page.mouse.move(0, 0)
    ran = trace["expert_indices", 2][30]
    assert all(f"expert {e} of layer 2: “r2e{e}k0”" in seen.said() for e in ran[:1])
    assert len(seen.page.locator(".wb-plot >> nth=1").locator(".wb-pin").all()) == len(ran)
    seen.page.locator(".wb").press("ArrowDown")
    seen.page.locator(".wb").press("ArrowDown")
    line = "wb.views.weights(trace, sinks=sinks, routers=routers, selected=30)"
    assert seen.python() == line
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert "router of layer 0: not given; there are the layers 1, 2" in (tmp_path / "saved.svg").read_text("utf-8")
    assert seen.complaints == []
    seen.page.close()


@needed
def test_experts_are_chosen_by_the_reader(browser, tmp_path: Path):
    path = wb.views.weights(whole(), experts=[expert(1, 3), expert(2, 5)]).to_html(tmp_path / "page.html")
    seen = Seen(browser, path)
    seen.page.locator("select >> nth=2").select_option("1")
    seen.settled()
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    text = (tmp_path / "saved.svg").read_text("utf-8")
    assert "expert 5 of layer 2" in text
    assert f"the {NEURONS} neurons that write most, of {TOTAL}" in text
    seen.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    view = wb.views.weights(whole(), sinks(), [router(1)], [expert(2, 5)], selected=30)
    seen = Seen(browser, view.to_html(tmp_path / "page.html"), color_scheme=scheme, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.shot(f"weights-{scheme}-{width}")
    seen.close()


@needed
def test_hostile_words_are_seen_and_inert(browser, tmp_path: Path):
    view = wb.views.weights(whole(), routers=[router(0, made.HOSTILE)])
    seen = Seen(browser, view.to_html(tmp_path / "page.html"))
    texts = inert(seen, browser, tmp_path)
    assert "<script>" in texts
    assert "⟨U+202E⟩" in texts
    seen.close()
