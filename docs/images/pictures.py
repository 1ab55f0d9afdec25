"""Pictures of views and figures for the pages of the docs, drawn in Chromium and small enough for a repository."""

import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import workbench as wb
from workbench.views.score_sheet_view import compact

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.views.browser import CHROMIUM, FLAGS  # noqa: E402

WIDTH = 860


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser, closed at the end."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def draw(shown: Any, browser: Any, name: str, width: int = WIDTH) -> None:
    """Writes the picture of a view, a figure or a trace to `name` in this folder, and prints its size."""
    if isinstance(shown, wb.figures.Figure):
        picture = shown.image("png")
    else:
        picture = _screenshot(compact(shown) if isinstance(shown, wb.Trace) else shown, browser, width)
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((width, 2000))
    image.save(HERE / name, optimize=True)
    print(name, (HERE / name).stat().st_size)


def _screenshot(view: Any, browser: Any, width: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": width, "height": 1400}, color_scheme="light")
        page.goto(view.to_html(Path(folder) / "view.html").as_uri())
        page.wait_for_selector("html.drawn", state="attached")
        picture = page.locator(".wb").first.screenshot()
        page.close()
    return picture
