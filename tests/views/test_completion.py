"""Tab completion in a real JupyterLab shows the topics, and in a topic its public names only."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

import workbench as wb
from tests.views.browser import OUT, needed
from tests.views.lab import Lab

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install -e '.[lab]'")
pytestmark = needed

MENU = ".jp-Completer"
# JupyterLab drops completions that take over a second, and the first of a kernel can.
FIRST_COMPLETION = """async () => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  await kernel.requestComplete({code: "wb.", cursor_pos: 3});
}"""


@pytest.fixture(scope="module")
def page(jupyterlab: Lab, browser) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1100, "height": 1000})
    jupyterlab.write("completion.ipynb", ["import workbench as wb", ""])
    jupyterlab.open(page, "completion.ipynb")
    jupyterlab.run_all(page)
    page.evaluate(FIRST_COMPLETION)
    yield page
    page.close()


def completions(page: Any, code: str) -> list[str]:
    """The names that the menu lists after Tab at the end of `code`, typed into the second cell."""
    cell = page.locator(".jp-Cell .cm-content").nth(1)
    cell.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(code)
    for _ in range(12):  # JupyterLab drops an answer that takes over a second, as it may on a busy machine
        page.keyboard.press("Tab")
        with suppress(playwright.TimeoutError):
            page.wait_for_selector(f"{MENU} .jp-Completer-item", timeout=5_000)
            break
    names = page.locator(f"{MENU} .jp-Completer-match").all_inner_texts()
    OUT.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=OUT / f"completion-{code.rstrip('.')}.png")
    page.keyboard.press("Escape")
    return sorted(names)


@pytest.mark.parametrize("module", ["wb", "wb.routing", "wb.reasoning", "wb.views", "wb.hooks"])
def test_tab_lists_the_public_names_only(page, module):
    public = dir(eval(module, {"wb": wb}))
    assert completions(page, f"{module}.") == sorted(public)
