"""Routing: the choices and loads that the analyses give, and what mouse and keys make of them."""

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from tests.views.whole import ACTIVE, EXPERTS, HOSTILE, LAYERS, Alive, inert, whole
from workbench.errors import NotRecorded, SelectionError
from workbench.views.notebook import snapshot


def test_the_choices_are_those_of_the_trace_with_the_heaviest_first():
    trace = whole()
    header, arrays = wb.views.routing(trace).payload()
    assert header["experts"] == EXPERTS
    assert arrays["chosen"].shape == (LAYERS, len(trace), ACTIVE)
    assert (np.diff(arrays["weights"].astype(int)) <= 0).all()
    dense = np.zeros((LAYERS, len(trace), EXPERTS))
    np.put_along_axis(dense, arrays["chosen"].astype(int), arrays["weights"] / 65535, -1)
    assert np.abs(dense - trace["expert_weights"]).max() < 1e-5


def test_it_says_what_it_lacks():
    with pytest.raises(NotRecorded, match="expert_indices"):
        wb.views.routing(made.run())
    with pytest.raises(SelectionError, match="layer must be between 0 and 3, got 4"):
        wb.views.routing(whole(), layer=4)


def test_a_snapshot_shows_load_and_weights():
    text = snapshot(wb.views.routing(whole(), 2))
    assert "expert load" in text
    assert "weights, layer 2" in text
    assert text.count("<img") == 2


def load_cell(seen: Seen, plot: int, row: int, expert: int, rows: int) -> tuple[float, float]:
    """Where a cell of a table of loads is on the screen."""
    box = seen.page.locator(f".wb-plot >> nth={plot}").bounding_box()
    wide = min(34, (box["width"] - 150 - 8) / EXPERTS)
    return box["x"] + 150 + (expert + 0.5) * wide, box["y"] + 42 + (row + 0.5) * (box["height"] - 50) / rows


@needed
def test_loads_are_what_expert_load_gives_also_of_a_channel(browser, tmp_path: Path):
    trace = whole()
    seen = Alive(browser, wb.views.routing(trace), tmp_path)
    load = wb.routing.expert_load(trace)
    for layer, expert in ((0, 0), (3, 1), (2, 10)):
        seen.page.mouse.move(*load_cell(seen, 2, LAYERS - 1 - layer, expert, LAYERS))
        said = seen.said()
        assert said.startswith(f"layer {layer}, expert {expert}\n")
        assert f"{100 * float(load[layer, expert]):.3g}"[:4] in said
    seen.page.locator("select >> nth=0").select_option("channel:analysis")
    seen.settled()
    span = next(span for span in trace.spans if span.channel == "analysis")
    load = wb.routing.expert_load(trace, slice(span.start, span.stop))
    seen.page.mouse.move(*load_cell(seen, 2, LAYERS - 2, 2, LAYERS))
    assert f"runs at {100 * float(load[1, 2]):.3g}"[:11] in seen.said()
    assert seen.complaints == []
    seen.page.close()


@needed
def test_many_steps_share_rows_of_loads(browser, tmp_path: Path):
    said = [word for number in range(230) for word in made.words(f"So c={number}. ")]
    trace = whole([("user", None, ["Go."]), ("assistant", "analysis", said)])
    steps = wb.steps(trace)
    assert len(steps) == 230
    seen = Alive(browser, wb.views.routing(trace, 2), tmp_path)
    box = seen.page.locator(".wb-plot >> nth=-1").bounding_box()
    each = (box["height"] - 50) / 79  # user and analysis, then 3 steps a row
    assert box["height"] < 500
    seen.page.mouse.move(box["x"] + 155, box["y"] + 42 + 3.5 * each)
    load = wb.routing.expert_load(trace, slice(steps[3].start, steps[5].stop)).sel(layer=2, expert=0)
    assert seen.said() == f"steps 3–5, expert 0\nruns at {100 * float(load):.3g} % of the positions"
    seen.page.close()


@needed
def test_a_token_says_its_experts_and_clicks_pin_layer_and_token(browser, tmp_path: Path):
    trace = whole()
    seen = Alive(browser, wb.views.routing(trace, 1), tmp_path)
    box = seen.page.locator(".wb-plot >> nth=0").bounding_box()
    each = (box["height"] - 42) / LAYERS
    x = box["x"] + 150 + (40.5 / len(trace)) * (box["width"] - 158)
    seen.page.mouse.move(x, box["y"] + 20 + each * 0.5)  # the last layer is above
    top = int(trace["expert_weights", LAYERS - 1][40].argmax())
    assert "position 40 ·" in seen.said()
    assert f"layer {LAYERS - 1} ran the experts {top} (" in seen.said()
    seen.page.mouse.click(x, box["y"] + 20 + each * 1.5)
    assert seen.selected() == {"pos": 40, "layer": LAYERS - 2}
    assert len(seen.marks(".wb-pin")) >= 2
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("ArrowLeft")
    assert seen.selected() == {"pos": 39, "layer": LAYERS - 3}
    assert seen.python() == "wb.views.routing(trace, layer=1, selected=39)"
    seen.page.mouse.click(*load_cell(seen, 2, 0, 4, LAYERS))  # pins an expert, and its layer
    seen.settled()
    assert [seen.page.locator(f"select >> nth={k}").input_value() for k in (1, 2)] == [str(LAYERS - 1), "4"]
    assert seen.complaints == []
    seen.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.routing(whole(), 2, selected=50).to_html(tmp_path / "page.html")
    seen = Seen(browser, path, color_scheme=scheme, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.shot(f"routing-{scheme}-{width}")
    seen.close()


@needed
def test_hostile_tokens_are_inert(browser, tmp_path: Path):
    seen = Seen(browser, wb.views.routing(whole(HOSTILE)).to_html(tmp_path / "page.html"))
    assert "expert" in inert(seen, browser, tmp_path)
    seen.close()


@needed
def test_where_tokens_share_a_column_it_says_so(browser, tmp_path: Path):
    long = [("user", None, ["Go."]), ("assistant", "analysis", made.words("So we add 12 and 34. ") * 200)]
    seen = Seen(browser, wb.views.routing(whole(long)).to_html(tmp_path / "page.html"))
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    download.value.save_as(tmp_path / "saved.svg")
    assert (tmp_path / "saved.svg").read_text("utf-8").count("downsampled (max)") == 2
    seen.page.close()
