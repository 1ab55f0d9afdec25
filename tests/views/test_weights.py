"""The weights view: results of `wb.circuits` beside the run; results of another model are refused."""

import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import EXPERTS, HEADS, LAYERS, LiveTab, check_inert, whole
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


def test_payload_has_the_values_of_the_weights_and_of_the_run():
    trace = whole()
    _, arrays = wb.views.weights(trace, sinks(), [router(1)]).payload()
    assert np.allclose(arrays["share"], sinks()["share"])
    assert np.allclose(arrays["load"], wb.routing.expert_load(trace))
    assert (arrays["chosen"] == trace["expert_indices"]).all()
    assert "mass" not in arrays  # attention to the sinks was not recorded in this run


def test_neurons_are_sorted_by_output_norm():
    header, _ = wb.views.weights(whole(), experts=expert(2, 5)).payload()
    [one] = header["experts"]
    assert one["neurons"] == list(range(TOTAL - 1, TOTAL - 1 - NEURONS, -1))
    assert one["raised"][0] == [f"raised{TOTAL - 1}k{k}" for k in range(RANKS)]
    assert (one["layer"], one["expert"], one["total"]) == (2, 5, TOTAL)


def test_datasets_that_do_not_fit_are_refused():
    trace = whole()
    with pytest.raises(ValueError, match="nothing to show"):
        wb.views.weights(trace)
    with pytest.raises(ValueError, match="the sizes of this run's model"):
        wb.views.weights(trace, sinks().isel(head=slice(1, None)))
    with pytest.raises(ValueError, match="routers must have the variables text, share"):
        wb.views.weights(trace, routers=[router(0).isel(expert=slice(1, None))])
    with pytest.raises(SelectionError, match=r"layer must be between 0 and .*, got 7"):
        wb.views.weights(trace, routers=[router(7)])
    with pytest.raises(ValueError, match="experts must have the variables raised_text"):
        wb.views.weights(trace, experts=[router(0)])
    with pytest.raises(
        TypeError, match=re.escape("sinks needs a Dataset (as from wb.circuits.sink_logits(model)), got a")
    ):
        wb.views.weights(trace, cast(Any, trace))


def test_a_snapshot_shows_sinks_and_tokens():
    text = snapshot(wb.views.weights(whole(), sinks(), [router(1)], [expert(2, 5)]))
    assert text.count("<img") == 1
    assert "r1e0k0" in text
    assert f"raised{TOTAL - 1}k0" in text
    assert "<script" not in snapshot(wb.views.weights(whole(), routers=[router(1, made.HOSTILE)]))


@needed
def test_a_click_on_a_sink_selects_its_layer_and_head(browser, tmp_path: Path):
    trace = whole()
    tab = LiveTab(browser, wb.views.weights(trace, sinks(), [router(1), router(2)], selected=30), tmp_path)
    box = tab.page.locator(".wb-plot >> nth=0").bounding_box()
    tall = (box["height"] - 50) / LAYERS
    x, y = box["x"] + 150 + 34 * 4.5, box["y"] + 42 + tall * (LAYERS - 1 - 2 + 0.5)
    tab.page.mouse.move(x, y)
    readout = tab.readout()
    assert readout.startswith("layer 2 (sliding), head 4\n")
    assert f"sink logit {float(sinks()['logit'][2, 4]):.3g}" in readout
    tab.page.mouse.click(x, y)
    assert tab.selected() == {"pos": 30, "layer": 2, "head": 4}
    tab.page.mouse.move(0, 0)
    ran = trace["expert_indices", 2][30]
    assert all(f"expert {e} of layer 2: “r2e{e}k0”" in tab.readout() for e in ran[:1])
    assert len(tab.page.locator(".wb-plot >> nth=1").locator(".wb-pin").all()) == len(ran)
    tab.page.locator(".wb").press("ArrowDown")
    tab.page.locator(".wb").press("ArrowDown")
    line = "wb.views.weights(trace, sinks=sinks, routers=routers, selected=30)"
    assert tab.python() == line
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert "router of layer 0 was not passed to this view; it has layers 1, 2" in (tmp_path / "saved.svg").read_text(
        "utf-8"
    )
    assert tab.console == []
    tab.page.close()


@needed
def test_a_row_of_a_table_has_a_tooltip_with_all_its_texts(browser, tmp_path: Path):
    trace = whole()
    view = wb.views.weights(trace, routers=[router(0)], experts=[expert(0, 3)], selected=30)
    tab = Tab(browser, view.to_html(tmp_path / "page.html"))
    pinned = tab.readout()
    tables = tab.page.locator(".wb-plot")
    for table, row, name, last in (
        (0, 2, "expert 2", "r0e2k2"),
        (1, 1, f"neuron {TOTAL - 1}", f"lowered{TOTAL - 1}k2"),
    ):
        tables.nth(table).hover(position={"x": 300, "y": 40 + 18 * row + 9})
        lines = tab.readout().split("\n")
        assert lines[0] == name and lines[-1].endswith(f"“{last}”")
        assert tab.page.locator(".wb-tip").inner_text().split("\n") == lines
    tab.page.mouse.move(5, 5)
    assert tab.readout() == pinned
    tab.close()


@needed
def test_the_menu_chooses_the_expert(browser, tmp_path: Path):
    path = wb.views.weights(whole(), experts=[expert(1, 3), expert(2, 5)]).to_html(tmp_path / "page.html")
    tab = Tab(browser, path)
    tab.page.locator("select >> nth=2").select_option("1")
    tab.settled()
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    text = (tmp_path / "saved.svg").read_text("utf-8")
    assert "expert 5 of layer 2" in text
    assert f"the {NEURONS} neurons with the largest output norm, of {TOTAL}" in text
    tab.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    view = wb.views.weights(whole(), sinks(), [router(1)], [expert(2, 5)], selected=30)
    tab = Tab(browser, view.to_html(tmp_path / "page.html"), color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.shot(f"weights-{scheme}-{width}")
    tab.close()


@needed
def test_hostile_texts_are_visible_and_inert(browser, tmp_path: Path):
    view = wb.views.weights(whole(), routers=[router(0, made.HOSTILE)])
    tab = Tab(browser, view.to_html(tmp_path / "page.html"))
    texts = check_inert(tab, browser, tmp_path)
    assert "<script>" in texts
    assert "⟨U+202E⟩" in texts
    tab.close()
