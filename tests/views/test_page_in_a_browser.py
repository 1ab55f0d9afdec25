"""The page of a run in Chromium: it draws, it answers the mouse, and it asks the network for nothing."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.views import made
from workbench.views.page import save_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: run `make browser` as root")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OUT = Path(__file__).parents[2] / "out" / "screenshots"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Seen:
    """A page that is open, and all that it complained about or asked for."""

    def __init__(self, browser, path: Path, **options):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, **options)
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def token(self, position: int):
        return self.page.locator("#transcript .t").nth(position)

    def column(self) -> tuple[float, float] | None:
        """Where the mark begins and ends, as shares of the width of the lanes; None if it is not shown."""
        return self.page.evaluate(
            """() => {
              const mark = document.querySelector("#mark.on rect")?.getBoundingClientRect();
              const whole = document.querySelector("#lanes .over").getBoundingClientRect();
              return mark ? [(mark.left - whole.left) / whole.width, (mark.right - whole.left) / whole.width] : null;
            }"""
        )


@pytest.fixture
def seen(browser, tmp_path: Path) -> Iterator[Seen]:
    seen = Seen(browser, save_page(made.run(), tmp_path / "page.html"))
    yield seen
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("file:")] == []
    seen.page.close()


def test_hovering_a_token_marks_its_column(seen: Seen):
    n, position = len(made.run()), 30
    assert seen.column() is None
    seen.token(position).hover()
    assert seen.column() == pytest.approx((position / n, (position + 1) / n), abs=1e-3)
    assert f"position {position} ·" in seen.page.locator("#readout").inner_text()


def test_hovering_a_lane_marks_its_token(seen: Seen):
    n, position = len(made.run()), 41
    box = seen.page.locator("#lanes .over").bounding_box()
    seen.page.locator("#lanes .heat").first.scroll_into_view_if_needed()
    box = seen.page.locator("#lanes .over").bounding_box()
    seen.page.mouse.move(box["x"] + box["width"] * (position + 0.5) / n, box["y"] + 100)
    assert seen.page.locator("#transcript .t.on").count() == 1
    assert f"position {position} ·" in seen.page.locator("#readout").inner_text()


def test_a_click_keeps_the_mark_and_keys_move_it(seen: Seen):
    seen.token(20).click()
    seen.token(3).hover()
    assert "position 20 ·" in seen.page.locator("#readout").inner_text()
    seen.page.keyboard.press("ArrowRight")
    assert "position 21 ·" in seen.page.locator("#readout").inner_text()
    seen.page.keyboard.press("Escape")
    assert seen.column() is None
    assert seen.page.locator("#readout").is_hidden()


def test_the_style_and_the_lanes_are_in_force(seen: Seen):
    """The policy names this style and this script by hash: had it a wrong one, the page would be bare."""
    assert seen.page.locator("#lanes .heat").count() == 3
    for lane in seen.page.locator("#lanes .heat").all():
        assert lane.bounding_box()["width"] > 500
    fill = "path => getComputedStyle(path).fill"
    colours = {path.evaluate(fill) for path in seen.page.locator("#lanes .sink .heat path").all()}
    assert len(colours) > 5


def test_the_page_can_be_read_without_script(browser, tmp_path: Path):
    trace = made.run()
    seen = Seen(browser, save_page(trace, tmp_path / "page.html"), java_script_enabled=False)
    assert seen.page.locator("#transcript .t").count() == len(trace)
    assert seen.page.locator("#lanes .bars").first.is_visible()
    assert seen.page.locator("#readout").is_hidden()
    seen.page.close()


def test_hostile_text_runs_nothing(browser, tmp_path: Path):
    talk: list[made.Message] = [("user", None, made.HOSTILE), ("assistant", "analysis", made.HOSTILE)]
    seen = Seen(browser, save_page(made.run(talk), tmp_path / "page.html"))
    for position in range(len(made.run(talk))):
        seen.token(position).dispatch_event("pointerover")
    assert seen.complaints == []
    assert seen.page.locator("script").count() == 1
    assert seen.page.locator("img").count() == 0
    seen.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_nothing_is_wider_than_the_window(browser, tmp_path: Path, scheme, width: int):
    seen = Seen(browser, save_page(made.run(), tmp_path / "page.html"), color_scheme=scheme)
    seen.page.set_viewport_size({"width": width, "height": 900})
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    OUT.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(path=OUT / f"page-{scheme}-{width}.png", full_page=True)
    seen.page.close()
