"""Pages in Chromium: they draw, they answer mouse and keys, and they ask the network for nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from workbench.text import visible

pytestmark = needed


@pytest.fixture
def seen(browser, tmp_path: Path) -> Iterator[Seen]:
    seen = Seen(browser, wb.views.score_sheet(made.run()).to_html(tmp_path / "page.html"))
    yield seen
    seen.close()


def middle(seen: Seen, position: int) -> tuple[float, float]:
    """Where the column of a position is on the screen, in the lanes."""
    seen.token(position).hover()
    [(left, right)] = seen.marks()
    box = seen.page.locator(".wb-plot").bounding_box()
    return box["x"] + (left + right) / 2, box["y"] + 120


def test_hovering_a_token_marks_its_column(seen: Seen):
    assert seen.marks() == []
    seen.token(30).hover()
    [(first, _)] = seen.marks()
    assert "position 30 ·" in seen.said()
    seen.token(40).hover()
    [(second, end)] = seen.marks()
    assert end - second == pytest.approx((second - first) / 10, abs=0.3)


def test_hovering_a_lane_marks_its_token(seen: Seen):
    x, y = middle(seen, 41)
    seen.page.mouse.move(0, 0)
    seen.page.mouse.move(x, y)
    assert "position 41 ·" in seen.said()
    assert seen.page.locator(".wb-t.wb-on").count() == 1


def test_a_click_pins_the_token_and_keys_move_the_pin(seen: Seen):
    seen.token(20).click()
    seen.page.mouse.move(0, 0)
    assert "position 20 ·" in seen.said()
    seen.page.keyboard.press("ArrowRight")
    assert "position 21 ·" in seen.said()
    seen.page.keyboard.press("End")
    assert f"position {len(made.run()) - 1} ·" in seen.said()
    assert len(seen.marks(".wb-pin")) == 1
    seen.page.keyboard.press("Escape")
    assert seen.marks(".wb-pin") == []


def test_pinned_position_is_announced_to_screen_readers(seen: Seen):
    seen.token(20).hover()
    assert seen.page.locator(".wb-announcement").inner_text() == ""
    seen.token(20).click()
    seen.settled()
    assert "position 20 ·" in seen.page.locator(".wb-announcement").inner_text()


def test_search_goes_from_hit_to_hit(seen: Seen):
    seen.token(5).click()
    seen.page.mouse.move(0, 0)
    seen.page.keyboard.press("/")
    seen.page.keyboard.type("a+4")  # three tokens
    seen.settled()
    assert seen.page.locator(".wb-t.wb-hit").count() == 6
    seen.page.keyboard.press("Enter")
    first = seen.said()
    assert seen.page.locator(".wb-count").inner_text() == "1 of 2"
    seen.page.keyboard.press("Enter")
    seen.settled()
    assert seen.page.locator(".wb-count").inner_text() == "2 of 2"
    assert seen.said() != first
    assert seen.said().startswith("“a”")


def test_a_filter_greys_out_what_it_does_not_name(seen: Seen):
    seen.page.locator("select").select_option("channel:final")
    seen.settled()
    final = next(span for span in made.run().spans if span.channel == "final")
    assert seen.page.locator(".wb-t:not(.wb-off)").count() == final.stop - final.start


def test_zoom_shows_fewer_tokens_and_their_texts(seen: Seen):
    seen.token(40).click()
    for _ in range(2):
        seen.page.keyboard.press("+")
    [(left, right)] = seen.marks(".wb-pin")
    assert right - left > 24
    seen.page.keyboard.press("0")
    [(left, right)] = seen.marks(".wb-pin")
    assert right - left < 24


def test_dragging_over_the_lanes_zooms_to_what_was_marked(seen: Seen):
    x1, y = middle(seen, 20)
    x2, _ = middle(seen, 59)
    seen.page.mouse.move(x1, y)
    seen.page.mouse.down()
    seen.page.mouse.move((x1 + x2) / 2, y)
    seen.page.mouse.move(x2, y)
    seen.page.mouse.up()
    assert "window=(20, 60)" in seen.python()


def test_lanes_are_chosen_and_ordered_by_the_reader_and_python_says_how(seen: Seen):
    seen.page.locator("summary").click()
    for name in ("belief", "drift", "arcs"):
        label = {"belief": "belief", "drift": "routing drift", "arcs": "causal edges"}[name]
        seen.page.locator(".wb-menu label", has_text=label).locator("input").uncheck()
    seen.page.get_by_role("button", name="entropy up").click()
    seen.token(7).click()
    line = seen.python()
    lanes = '"transcript", "entropy", "logprob", "depth", "sink", "margin", "norm"'
    assert line == f"wb.views.score_sheet(trace, lanes=({lanes}), selected=7)"
    sheet = eval(line, {"wb": wb, "trace": made.run()})
    assert (", ".join(f'"{name}"' for name in sheet.shown), sheet.selected) == (lanes, {"pos": 7})


@pytest.mark.parametrize(("button", "suffix"), [("SVG", "svg"), ("PNG", "png")])
def test_what_is_shown_can_be_saved(seen: Seen, button: str, suffix: str, tmp_path: Path):
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name=f"save what is shown as {button}").click()
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
    seen.requests[:] = [url for url in seen.requests if not url.startswith("blob:")]  # the file that it saved


@pytest.mark.parametrize("view", ["score_sheet", "tokens"])
def test_hostile_text_runs_nothing_and_hides_nothing(browser, tmp_path: Path, view: str):
    trace = made.run([("user", None, made.HOSTILE), ("assistant", "analysis", made.HOSTILE)])
    seen = Seen(browser, getattr(wb.views, view)(trace).to_html(tmp_path / "page.html"))
    texts = seen.page.locator(".wb-part .wb-t").all_text_contents()
    assert texts == [visible(piece, "↵\n") or "∅" for piece in trace.str_tokens]
    sizes = seen.page.evaluate(
        "[...document.querySelectorAll('.wb-part .wb-t')].map(t => t.getBoundingClientRect().width)"
    )
    assert min(sizes) > 0
    for position in range(len(trace)):
        seen.token(position).dispatch_event("pointerover")
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as SVG").click()
    drawing = browser.new_page()
    alarms = []
    drawing.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    download.value.save_as(tmp_path / "saved.svg")
    drawing.goto((tmp_path / "saved.svg").as_uri())
    assert drawing.locator("script, img, [onmouseover]").count() == 0
    assert drawing.locator("text").count() > 5
    assert alarms == []
    drawing.close()
    assert seen.page.locator("script").count() == 2
    assert seen.page.locator("#view img").count() == 0
    seen.requests[:] = [url for url in seen.requests if not url.startswith("blob:")]
    seen.close()


def test_the_page_can_be_read_without_script(browser, tmp_path: Path):
    trace = made.run()
    path = wb.views.score_sheet(trace).to_html(tmp_path / "page.html")
    seen = Seen(browser, path, java_script_enabled=False)
    assert seen.page.locator("#still").is_visible()
    assert "b=3+4=7" in seen.page.locator("#still").inner_text()
    assert seen.page.locator("#still img").count() == 7
    for picture in seen.page.locator("#still img").all():
        assert picture.evaluate("img => img.naturalWidth") > 0
    assert seen.page.locator("#view").is_hidden()
    seen.page.close()


def test_a_trace_without_lanes_says_how_to_record_them(browser, tmp_path: Path):
    sheet = wb.views.score_sheet(made.run(lanes=False))
    assert sheet.lanes["depth"].missing == 'not in this trace; record="lens" records it'
    seen = Seen(browser, sheet.to_html(tmp_path / "page.html"))
    seen.token(3).hover()
    assert "position 3 ·" in seen.said()
    seen.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_is_wider_than_the_window(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.score_sheet(made.run(), selected=50).to_html(tmp_path / "page.html")
    seen = Seen(browser, path, color_scheme=scheme, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    paper = seen.page.evaluate("getComputedStyle(document.querySelector('.wb')).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    seen.shot(f"sheet-{scheme}-{width}")
    seen.close()


def test_sixteen_thousand_tokens_are_drawn_and_say_that_they_share_columns(browser, tmp_path: Path):
    said = made.words("So we add 12 and 34, which gives 46. Wait, check that again. ") * 800
    trace = made.run([("user", None, ["Add."]), ("assistant", "analysis", said[:16_000])], layers=4)
    seen = Seen(browser, wb.views.score_sheet(trace, selected=9_000).to_html(tmp_path / "page.html"))
    # all of the text is there, spans only where it is seen
    whole = "".join(seen.page.locator(".wb-part").all_text_contents()).replace("↵", "")
    assert whole == "".join(visible(piece, "\n") or "∅" for piece in trace.str_tokens)
    assert 100 < seen.page.locator(".wb-part .wb-t").count() < 6_000
    assert seen.page.locator(".wb-pinned").count() == 1
    with seen.page.expect_download() as download:
        seen.page.get_by_role("button", name="save what is shown as PNG").click()
    assert download.value.suggested_filename.endswith(".png")
    seen.page.keyboard.press("ArrowRight")
    seen.requests.clear()
    seen.shot("sheet-16k")
    seen.page.close()


def test_tokens_are_colored_by_a_number(browser, tmp_path: Path):
    trace = made.run()
    values = np.linspace(-1, 1, len(trace))
    seen = Seen(browser, wb.views.tokens(trace, values).to_html(tmp_path / "page.html"))
    colors = seen.page.evaluate("[...document.querySelectorAll('.wb-t')].map(t => t.style.background)")
    assert len(set(colors)) > len(trace) / 2
    seen.token(0).hover()
    assert "value −1" in seen.said()
    seen.close()


def test_no_name_of_a_role_or_channel_is_broken_in_two(browser, tmp_path: Path):
    talk: list[made.Message] = [("assistant", channel, ["x"]) for channel in ("analysis", "commentary", "final")]
    talk = [*((role, None, ["x"]) for role in ("system", "developer", "user", "tool", "unparsed")), *talk]
    seen = Seen(browser, wb.views.score_sheet(made.run(talk)).to_html(tmp_path / "page.html"))
    lines = seen.page.evaluate(
        """[...document.querySelectorAll(".wb-who b")].map(name => {
          const line = document.createRange();
          line.selectNodeContents(name);
          return [name.textContent, line.getClientRects().length];
        })"""
    )
    assert "commentary" in dict(lines) and set(dict(lines).values()) == {1}
    seen.close()
