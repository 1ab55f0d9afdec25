"""Pages in Chromium: they draw, respond to mouse and keys, and make no network requests."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from workbench.text import visible

pytestmark = needed


@pytest.fixture
def tab(browser, tmp_path: Path) -> Iterator[Tab]:
    tab = Tab(browser, wb.views.score_sheet(made.run()).to_html(tmp_path / "page.html"))
    yield tab
    tab.close()


def middle(tab: Tab, position: int) -> tuple[float, float]:
    """A point of the lanes on the screen, in the column of a position."""
    tab.token(position).hover()
    [(left, right)] = tab.marks()
    box = tab.page.locator(".wb-plot").bounding_box()
    return box["x"] + (left + right) / 2, box["y"] + 120


def test_hovering_a_token_marks_its_column(tab: Tab):
    assert tab.marks() == []
    tab.token(30).hover()
    [(first, _)] = tab.marks()
    assert "position 30 ·" in tab.readout()
    tab.token(40).hover()
    [(second, end)] = tab.marks()
    assert end - second == pytest.approx((second - first) / 10, abs=0.3)


def test_hovering_a_lane_marks_its_token(tab: Tab):
    x, y = middle(tab, 41)
    tab.page.mouse.move(0, 0)
    tab.page.mouse.move(x, y)
    assert "position 41 ·" in tab.readout()
    assert tab.page.locator(".wb-t.wb-on").count() == 1


def test_a_click_pins_the_token_and_keys_move_the_pin(tab: Tab):
    tab.token(20).click()
    tab.page.mouse.move(0, 0)
    assert "position 20 ·" in tab.readout()
    tab.page.keyboard.press("ArrowRight")
    assert "position 21 ·" in tab.readout()
    tab.page.keyboard.press("End")
    assert f"position {len(made.run()) - 1} ·" in tab.readout()
    assert len(tab.marks(".wb-pin")) == 1
    tab.page.keyboard.press("Escape")
    assert tab.marks(".wb-pin") == []


def test_pinned_position_is_announced_to_screen_readers(tab: Tab):
    tab.token(20).hover()
    assert tab.page.locator(".wb-announcement").inner_text() == ""
    tab.token(20).click()
    tab.settled()
    assert "position 20 ·" in tab.page.locator(".wb-announcement").inner_text()


def test_enter_in_the_search_goes_to_the_next_hit(tab: Tab):
    tab.token(5).click()
    tab.page.mouse.move(0, 0)
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("a+4")  # three tokens
    tab.settled()
    assert tab.page.locator(".wb-t.wb-hit").count() == 6
    tab.page.keyboard.press("Enter")
    first = tab.readout()
    assert tab.page.locator(".wb-count").inner_text() == "1 of 2"
    tab.page.keyboard.press("Enter")
    tab.settled()
    assert tab.page.locator(".wb-count").inner_text() == "2 of 2"
    assert tab.readout() != first
    assert tab.readout().startswith("“a”")


def test_a_filter_grays_out_all_other_tokens(tab: Tab):
    tab.page.get_by_label("show only").select_option("channel:final")
    tab.settled()
    final = next(span for span in made.run().spans if span.channel == "final")
    assert tab.page.locator(".wb-t:not(.wb-off)").count() == final.stop - final.start


def test_zoom_shows_fewer_tokens_and_their_texts(tab: Tab):
    tab.token(40).click()
    for _ in range(2):
        tab.page.keyboard.press("+")
    [(left, right)] = tab.marks(".wb-pin")
    assert right - left > 24
    tab.page.keyboard.press("0")
    [(left, right)] = tab.marks(".wb-pin")
    assert right - left < 24


def test_dragging_over_the_lanes_zooms_to_the_dragged_range(tab: Tab):
    x1, y = middle(tab, 20)
    x2, _ = middle(tab, 59)
    tab.page.mouse.move(x1, y)
    tab.page.mouse.down()
    tab.page.mouse.move((x1 + x2) / 2, y)
    tab.page.mouse.move(x2, y)
    tab.page.mouse.up()
    assert "window=(20, 60)" in tab.python()


def test_the_menu_chooses_and_orders_lanes_and_the_python_code_follows(tab: Tab):
    tab.page.locator("summary").click()
    for name in ("forced_answer", "drift", "arcs"):
        label = {"forced_answer": "forced answer", "drift": "routing drift", "arcs": "causal edges"}[name]
        tab.page.locator(".wb-menu label", has_text=label).locator("input").uncheck()
    tab.page.get_by_role("button", name="entropy up").click()
    tab.token(7).click()
    line = tab.python()
    lanes = '"transcript", "entropy", "logprob", "depth", "sink", "margin", "norm"'
    assert line == f"wb.views.score_sheet(trace, lanes=({lanes}), selected=7)"
    sheet = eval(line, {"wb": wb, "trace": made.run()})
    assert (", ".join(f'"{name}"' for name in sheet.shown), sheet.selected) == (lanes, {"pos": 7})


def bar_height(tab: Tab, position: int, n: int) -> int:
    """The height in pixels of the bar of a position in the first lane."""
    width = tab.page.locator(".wb-plot").bounding_box()["width"] - 168 - 76
    alphas = tab.page.evaluate(
        """(x) => { const canvas = document.querySelector(".wb-plot canvas");
          return [...canvas.getContext("2d").getImageData(x, 44, 1, 44).data].filter((_, i) => i % 4 === 3); }""",
        int(168 + (position + 0.5) * width / n),
    )
    return sum(alpha > 128 for alpha in alphas)


def test_an_unlikely_prompt_does_not_flatten_what_the_model_wrote(browser, tmp_path: Path):
    trace = made.run()
    surprises = np.r_[np.full(trace.prompt_length, -26.0), np.full(len(trace) - trace.prompt_length, -1.0)]
    surprises[-3] = -2
    own = xr.DataArray(surprises, dims="pos", name="own")
    sheet = wb.views.score_sheet(trace, [own])
    tab = Tab(browser, sheet.to_html(tmp_path / "page.html"))
    place = len(trace) - 10
    half = bar_height(tab, place, len(trace))
    assert 19 <= half <= 25, "a bar of -1 on a scale from -2 to 0 has half of the 44 pixels"
    menu = tab.page.get_by_role("combobox", name="which tokens set the scales")
    menu.select_option("run")
    tab.settled()
    assert bar_height(tab, place, len(trace)) <= 3
    assert tab.python() == 'wb.views.score_sheet(trace, lanes=("own",), scale="run")'
    tab.console[:] = [text for text in tab.console if "willReadFrequently" not in text]
    tab.close()


@pytest.mark.parametrize(("button", "suffix"), [("SVG", "svg"), ("PNG", "png")])
def test_a_view_can_be_saved_as_a_picture(tab: Tab, button: str, suffix: str, tmp_path: Path):
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name=f"save this view as {button}").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    assert path.name == f"score_sheet-{made.run().id[:12]}.{suffix}"
    data = path.read_bytes()
    if suffix == "png":
        assert data.startswith(b"\x89PNG")
    else:
        text = data.decode("utf-8")
        assert "router margin" in text
        assert made.run().id in text
        assert text.count("<image ") >= 3
    tab.requests[:] = [url for url in tab.requests if not url.startswith("blob:")]  # the saved file


@pytest.mark.parametrize("view", ["score_sheet", "tokens"])
def test_hostile_text_is_visible_and_runs_no_script(browser, tmp_path: Path, view: str):
    trace = made.run([("user", None, made.HOSTILE), ("assistant", "analysis", made.HOSTILE)])
    tab = Tab(browser, getattr(wb.views, view)(trace).to_html(tmp_path / "page.html"))
    texts = tab.page.locator(".wb-part .wb-t").all_text_contents()
    assert texts == [visible(text, "↵\n") or "∅" for text in trace.str_tokens]
    sizes = tab.page.evaluate(
        "[...document.querySelectorAll('.wb-part .wb-t')].map(t => t.getBoundingClientRect().width)"
    )
    assert min(sizes) > 0
    for position in range(len(trace)):
        tab.token(position).dispatch_event("pointerover")
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    drawing = browser.new_page()
    alarms = []
    drawing.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    download.value.save_as(tmp_path / "saved.svg")
    drawing.goto((tmp_path / "saved.svg").as_uri())
    assert drawing.locator("script, img, [onmouseover]").count() == 0
    assert drawing.locator("text").count() > 5
    assert alarms == []
    drawing.close()
    assert tab.page.locator("script").count() == 2
    assert tab.page.locator("#view img").count() == 0
    tab.requests[:] = [url for url in tab.requests if not url.startswith("blob:")]
    tab.close()


def test_the_page_can_be_read_without_script(browser, tmp_path: Path):
    trace = made.run()
    path = wb.views.score_sheet(trace).to_html(tmp_path / "page.html")
    tab = Tab(browser, path, java_script_enabled=False)
    assert tab.page.locator("#snapshot").is_visible()
    assert "b=3+4=7" in tab.page.locator("#snapshot").inner_text()
    assert tab.page.locator("#snapshot img").count() == 7
    for picture in tab.page.locator("#snapshot img").all():
        assert picture.evaluate("img => img.naturalWidth") > 0
    assert tab.page.locator("#view").is_hidden()
    tab.page.close()


def test_missing_lanes_show_how_to_record_them(browser, tmp_path: Path):
    sheet = wb.views.score_sheet(made.run(lanes=False))
    assert sheet.lanes["depth"].missing == 'not in this trace; record="lens" records it'
    tab = Tab(browser, sheet.to_html(tmp_path / "page.html"))
    tab.token(3).hover()
    assert "position 3 ·" in tab.readout()
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_is_wider_than_the_window(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.score_sheet(made.run(), selected=50).to_html(tmp_path / "page.html")
    tab = Tab(browser, path, color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.page.evaluate("getComputedStyle(document.querySelector('.wb')).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    tab.shot(f"sheet-{scheme}-{width}")
    tab.close()


def test_a_page_of_sixteen_thousand_tokens_makes_spans_only_in_view(browser, tmp_path: Path):
    thoughts = made.words("So we add 12 and 34, which gives 46. Wait, check that again. ") * 800
    trace = made.run([("user", None, ["Add."]), ("assistant", "analysis", thoughts[:16_000])], layers=4)
    tab = Tab(browser, wb.views.score_sheet(trace, selected=9_000).to_html(tmp_path / "page.html"))
    # the whole text is in the page, as spans only where it is in view
    whole = "".join(tab.page.locator(".wb-part").all_text_contents()).replace("↵", "")
    assert whole == "".join(visible(text, "\n") or "∅" for text in trace.str_tokens)
    assert 100 < tab.page.locator(".wb-part .wb-t").count() < 6_000
    assert tab.page.locator(".wb-pinned").count() == 1
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as PNG").click()
    assert download.value.suggested_filename.endswith(".png")
    tab.page.keyboard.press("ArrowRight")
    tab.requests.clear()
    tab.shot("sheet-16k")
    tab.page.close()


def test_tokens_can_be_colored_by_values(browser, tmp_path: Path):
    trace = made.run()
    values = np.linspace(-1, 1, len(trace))
    tab = Tab(browser, wb.views.tokens(trace, values).to_html(tmp_path / "page.html"))
    colors = tab.page.evaluate("[...document.querySelectorAll('.wb-t')].map(t => t.style.background)")
    assert len(set(colors)) > len(trace) / 2
    tab.token(0).hover()
    assert "value −1" in tab.readout()
    tab.close()


def test_names_of_roles_and_channels_are_not_wrapped(browser, tmp_path: Path):
    talk: list[made.Message] = [("assistant", channel, ["x"]) for channel in ("analysis", "commentary", "final")]
    talk = [*((role, None, ["x"]) for role in ("system", "developer", "user", "tool", "unparsed")), *talk]
    tab = Tab(browser, wb.views.score_sheet(made.run(talk)).to_html(tmp_path / "page.html"))
    lines = tab.page.evaluate(
        """[...document.querySelectorAll(".wb-who b")].map(name => {
          const line = document.createRange();
          line.selectNodeContents(name);
          return [name.textContent, line.getClientRects().length];
        })"""
    )
    assert "commentary" in dict(lines) and set(dict(lines).values()) == {1}
    tab.close()
