"""Each notebook in a real JupyterLab: as stored, without running a cell, and run from top to bottom.

This takes minutes, so it runs only with WORKBENCH_LONG=1. Inspect the screenshots in out/screenshots.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.views.browser import OUT, needed
from tests.views.lab import HOME, Lab

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install -e '.[lab]'")
NAMES = sorted(path.stem for path in (HOME / "notebooks").glob("[0-9][0-9]_*.ipynb"))
pytestmark = [
    needed,
    pytest.mark.long,
    pytest.mark.skipif(not os.environ.get("WORKBENCH_LONG"), reason="takes minutes; set WORKBENCH_LONG=1 to run it"),
]

# Every cell, also those out of view: the number of errors, live views and snapshots.
SCROLL = """async () => {
  const box = document.querySelector(".jp-WindowedPanel-outer"), step = box.clientHeight / 2;
  for (let y = 0; y < box.scrollHeight; y += step) { box.scrollTop = y; await new Promise(f => setTimeout(f, 150)); }
}"""
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => ({
  id: cell.model.id,
  errors: cell.node.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"]').length,
  live: cell.node.querySelectorAll(".wb").length,
  snapshots: [...cell.node.querySelectorAll(".jp-OutputArea-child")].filter(output =>
    output.checkVisibility() && output.querySelector("[data-wb-still], table img")).length,
  missing: cell.node.innerText.includes("Error displaying widget") || cell.node.innerText.includes("Loading widget"),
}))"""


@pytest.fixture(scope="module")
def server(jupyterlab: Lab) -> Lab:
    for folder in ("notebooks", "docs/figures", "data"):
        ignored = shutil.ignore_patterns("out", "__pycache__", ".*")
        shutil.copytree(HOME / folder, jupyterlab.root / folder, ignore=ignored)
    return jupyterlab


@pytest.fixture
def page(browser, server: Lab) -> Iterator[Any]:
    page, urls = browser.new_page(viewport={"width": 1300, "height": 1800}), []
    page.on("request", lambda request: urls.append(request.url))
    yield page
    page.close()
    assert [url for url in urls if not url.startswith((server.url, "data:", "blob:"))] == []


def shot(page: Any, name: str) -> None:
    """Screenshots of the notebook, one screen at a time."""
    OUT.mkdir(parents=True, exist_ok=True)
    for old in OUT.glob(f"{name}-*.png"):
        old.unlink()
    height = page.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
    for number, top in enumerate(range(0, height, 1600)):
        page.evaluate(f"document.querySelector('.jp-WindowedPanel-outer').scrollTop = {top}")
        page.wait_for_timeout(500)
        page.screenshot(path=OUT / f"{name}-{number:02}.png")


def views_of(name: str) -> int:
    """The number of views in the stored notebook."""
    return (HOME / "notebooks" / f"{name}.ipynb").read_text("utf-8").count('"application/vnd.jupyter.widget-view+json"')


@pytest.mark.parametrize("name", NAMES)
def test_an_opened_notebook_shows_its_snapshots(name: str, server: Lab, page):
    server.open(page, f"notebooks/{name}.ipynb")
    page.evaluate(SCROLL)
    cells = page.evaluate(CELLS)
    assert sum(cell["live"] for cell in cells) == 0
    assert sum(cell["snapshots"] for cell in cells) == views_of(name)
    assert [cell["id"] for cell in cells if cell["errors"] or cell["missing"]] == []
    shot(page, f"notebook-{name}-stored")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_that_was_run_saved_reopened_and_converted_has_no_dead_view(
    name: str, server: Lab, browser, page, tmp_path: Path
):
    server.open(page, f"notebooks/{name}.ipynb")
    server.run_all(page, timeout=600_000)
    page.wait_for_timeout(1000)
    page.evaluate(SCROLL)
    cells = page.evaluate(CELLS)
    assert [cell["id"] for cell in cells if cell["errors"] or cell["missing"]] == []
    assert sum(cell["live"] for cell in cells) == views_of(name) and not any(cell["snapshots"] for cell in cells)
    shot(page, f"notebook-{name}-run")

    server.save(page)
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    saved = server.root / "notebooks" / f"{name}.ipynb"
    reopened = browser.new_page(viewport={"width": 1300, "height": 1800})
    server.open(reopened, f"notebooks/{name}.ipynb")
    reopened.evaluate(SCROLL)
    cells = reopened.evaluate(CELLS)
    assert sum(cell["snapshots"] for cell in cells) == views_of(name) and not any(cell["live"] for cell in cells)
    assert [cell["id"] for cell in cells if cell["errors"] or cell["missing"]] == []
    shot(reopened, f"notebook-{name}-reopened")
    reopened.close()

    convert = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path), str(saved)]
    subprocess.run(convert, check=True, capture_output=True)
    converted = browser.new_page(viewport={"width": 1100, "height": 1800})
    converted.route("https://**", lambda route: route.abort())  # nbconvert's own: MathJax
    converted.goto((tmp_path / f"{name}.html").as_uri())
    text = converted.inner_text("body")
    assert "Error displaying widget" not in text and "0%|" not in text and "it/s]" not in text
    assert converted.locator("[data-wb-still]").count() == views_of(name)
    converted.screenshot(path=OUT / f"notebook-{name}-converted.png", full_page=True)
    converted.close()
