"""Makes the pictures of docs/tutorial.md in Chromium: `python docs/images/tutorial.py`. Look at each before keeping it.

It runs the page's blocks in order. A block whose next paragraph is a picture is drawn: the value of its last line, as a
notebook would show it. So a picture is always that of the code above it.
"""

import ast
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

import workbench as wb
from workbench.views.score_sheet_view import compact

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.views.browser import CHROMIUM, FLAGS  # noqa: E402

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n!\[[^\]]*\]\(images/([\w.]+)\))?", re.MULTILINE | re.DOTALL)
COLORS = 160  # a picture of text and a few hues is a third of its size with a palette
WIDTH = 860


def value_of(code: str, names: dict[str, Any]) -> Any:
    """Runs the code and returns the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return exec(compile(tree, "tutorial.md", "exec"), names)
    exec(compile(ast.Module(tree.body[:-1], []), "tutorial.md", "exec"), names)
    return eval(compile(ast.Expression(last.value), "tutorial.md", "eval"), names)


def screenshot(view: Any, browser: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        page = browser.new_page(viewport={"width": WIDTH, "height": 1400}, color_scheme="light")
        page.goto(view.to_html(Path(folder) / "view.html").as_uri())
        page.wait_for_selector("html.drawn", state="attached")
        picture = page.locator(".wb").first.screenshot()
        page.close()
    return picture


def main() -> None:
    text, names = (HERE.parent / "tutorial.md").read_text("utf-8"), {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        os.chdir(folder)
        for code, target in BLOCK.findall(text):
            shown = value_of(code, names)
            if target:
                if isinstance(shown, wb.figures.Figure):
                    picture = shown.image("png")
                else:
                    picture = screenshot(compact(shown) if isinstance(shown, wb.Trace) else shown, browser)
                image = Image.open(io.BytesIO(picture)).convert("RGB")
                image.thumbnail((WIDTH, 1400))
                image.quantize(COLORS).save(HERE / target, optimize=True)
                print(target, (HERE / target).stat().st_size)
        browser.close()


if __name__ == "__main__":
    main()
