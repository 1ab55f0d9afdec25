"""Views in a real JupyterLab on the loopback: live, and as snapshots in saved notebooks."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from tests.views import made
from tests.views.browser import OUT, needed
from tests.views.lab import Lab
from tests.views.whole import whole

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install -e '.[lab]'")
pytest.importorskip("anywidget", reason="anywidget is not installed: pip install -e '.[lab]'")
pytestmark = needed

CELLS = [
    "import workbench as wb\ntrace = wb.load('made.trace')",
    "trace",
    "view = wb.views.tokens(trace, trace['entropy'])\nview",
]
SHOWN = """() => [...document.querySelectorAll(".jp-OutputArea-child")].filter(o => o.checkVisibility()).map(o =>
  o.querySelector(".wb") ? "live" : o.querySelector("[data-wb-still], table img") ? "snapshot" : o.innerText.trim())"""


@pytest.fixture(scope="module")
def server(jupyterlab: Lab) -> Lab:
    made.run([*made.TALK, ("assistant", "final", made.HOSTILE)]).save(jupyterlab.root / "made.trace")
    return jupyterlab


@pytest.fixture(scope="module")
def page(server: Lab, browser) -> Iterator[Any]:
    """The notebook, opened and run; at the end it checks that all requests went to the server."""
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    urls: list[str] = []
    alarms: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: alarms.append(str(error)))
    server.write("live.ipynb", CELLS)
    server.open(page, "live.ipynb")
    server.run_all(page)
    page.wait_for_function("document.querySelectorAll('.wb .wb-t').length > 0", timeout=30_000)
    page.wait_for_function("document.querySelectorAll('.wb').length == 2", timeout=30_000)
    yield page
    page.close()
    assert [url for url in urls if not url.startswith((server.url, "data:", "blob:"))] == []
    assert alarms == []


def pinned(page) -> list[int]:
    page.wait_for_timeout(300)  # a message to the kernel or from it
    return page.evaluate("[...document.querySelectorAll('.wb-pinned')].map(token => token.place)")


def test_a_live_trace_hides_its_snapshot(page):
    assert page.evaluate(SHOWN) == ["live", "live"]
    assert page.locator(".wb-plot canvas").first.is_visible()


def test_a_click_in_one_cell_marks_the_other_and_reaches_python(server: Lab, page):
    page.locator(".wb").first.locator(".wb-t").nth(30).click()
    assert pinned(page) == [30, 30]
    assert server.execute(page, "print(view.selected)") == "{'pos': 30}"


def test_python_moves_the_mark(server: Lab, page):
    server.execute(page, "view.selected = 44")
    assert pinned(page) == [44, 44]
    assert server.execute(page, "print(view.selected)") == "{'pos': 44}"
    server.execute(page, "view.selected = None")
    assert pinned(page) == []


def test_a_range_goes_from_a_view_to_python_and_back(server: Lab, page):
    first, last = (page.locator(".wb").first.locator(".wb-t").nth(i).bounding_box() for i in (40, 44))
    page.mouse.move(first["x"] + 1, first["y"] + first["height"] / 2)
    page.mouse.down()
    page.mouse.move(last["x"], last["y"] + last["height"] / 2)
    page.mouse.move(last["x"] + last["width"] - 1, last["y"] + last["height"] / 2)
    page.mouse.up()
    page.wait_for_function("document.querySelectorAll('.wb-in').length == 10")  # five in each of two views
    page.wait_for_timeout(300)
    assert server.execute(page, "print(view.selected_range)") == "slice(40, 45, None)"
    server.execute(page, "view.selected_range = slice(10, 12)")
    page.wait_for_function("[...document.querySelectorAll('.wb-in')].map(t => t.place).join() == '10,11,10,11'")
    server.execute(page, "view.selected_range = None")
    page.wait_for_function("!document.querySelector('.wb-in')")


def test_keys_in_a_view_do_not_reach_jupyter(server: Lab, page):
    page.locator(".wb").first.locator(".wb-t").nth(30).click()
    for key in ("ArrowRight", "d", "d", "x", "a", "ArrowDown"):
        page.keyboard.press(key)
    assert pinned(page) == [31, 31]
    assert page.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length") == len(CELLS)


def test_shortcuts_of_the_notebook_work_inside_a_view(server: Lab, page):
    book = "window.jupyterapp.shell.currentWidget"
    page.evaluate(f"{book}.content.activeCell.model.setMetadata('edited', Math.random())")
    assert page.evaluate(f"{book}.context.model.dirty")
    page.locator(".wb").first.locator(".wb-t").nth(30).click()
    assert pinned(page) == [30, 30]
    page.keyboard.press("Control+s")
    page.wait_for_function(f"!{book}.context.model.dirty", timeout=10_000)
    counts = f"{book}.content.widgets.map(cell => cell.model.executionCount)"
    before = page.evaluate(counts)
    page.locator(".wb").first.focus()
    page.keyboard.press("Shift+Enter")
    page.wait_for_function(f"({counts})[1] > {max(before)}", timeout=20_000)
    page.wait_for_function("document.querySelectorAll('.wb').length == 2", timeout=30_000)


def test_a_second_escape_gives_the_focus_back_to_the_notebook(server: Lab, page):
    cells = "window.jupyterapp.shell.currentWidget.content.widgets.length"
    page.locator(".wb").first.locator(".wb-t").nth(33).click()
    assert pinned(page) == [33, 33]
    page.keyboard.press("Escape")
    assert pinned(page) == []
    page.keyboard.press("b")  # still the view's
    assert page.evaluate(cells) == len(CELLS)
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.wait_for_function(f"{cells} == {len(CELLS) + 1}", timeout=10_000)
    page.keyboard.press("d")
    page.keyboard.press("d")
    page.wait_for_function(f"{cells} == {len(CELLS)}", timeout=10_000)


def test_views_answer_while_a_cell_runs(server: Lab, page):
    busy = page.evaluate(
        """() => { const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
             window.busy = kernel.requestExecute({code: "import time; time.sleep(3)"}).done.then(() => window.busy = 0);
             return true; }"""
    )
    assert busy
    page.locator(".wb").nth(1).locator(".wb-t").nth(12).click()
    assert pinned(page) == [12, 12]
    assert page.evaluate("window.busy !== 0")
    page.wait_for_function("window.busy === 0", timeout=20_000)


def test_running_a_cell_again_removes_old_subscribers(server: Lab, page):
    size = "[...globalThis[Symbol.for('workbench.views.1')].values()].map(bus => bus.size())"
    before = page.evaluate(size)
    for _ in range(2):
        server.run_all(page)
        page.wait_for_function("document.querySelectorAll('.wb').length == 2", timeout=30_000)
        page.wait_for_timeout(300)
    assert page.evaluate(size) == before


def test_views_follow_the_jupyterlab_theme(server: Lab, page):
    for theme, paper in (("Dark", "rgb(22, 24, 28)"), ("Light", "rgb(255, 255, 255)")):
        page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        page.wait_for_function(f"document.body.dataset.jpThemeLight === '{str(theme == 'Light').lower()}'")
        page.wait_for_timeout(700)
        assert page.evaluate("getComputedStyle(document.querySelector('.wb')).backgroundColor") == paper
        OUT.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=OUT / f"jupyter-{theme.lower()}.png")


def test_all_views_of_a_kind_load_one_script_and_a_view_that_does_not_start_says_so(server: Lab, browser):
    cells = [
        "import workbench as wb\nimport workbench.views.notebook as notebook\ntrace = wb.load('made.trace')\n"
        "sent, reply = [], notebook._reply\n"
        "notebook._reply = lambda view, message: sent.append(message.get('kind')) or reply(view, message)",
        *["wb.views.tokens(trace)"] * 4,
        "notebook.loader = lambda module: 'export default { render: () => new Promise(() => {}) }'",
        "wb.views.tokens(trace)",
    ]
    server.write("late.ipynb", cells)
    page = browser.new_page(viewport={"width": 1400, "height": 3000})
    server.open(page, "late.ipynb")
    server.run_all(page)
    page.wait_for_function("document.querySelectorAll('.wb').length == 4", timeout=30_000)
    assert server.execute(page, "print(sent.count('script'), sent.count('open'))") == "1 4"
    late = """() => [...document.querySelectorAll("[data-wb-still]")].filter(e => e.checkVisibility()).map(e => {
      for (const animation of e.getAnimations({subtree: true})) animation.currentTime = 10001;
      const {content, visibility} = getComputedStyle(e, "::after");
      return [content, visibility];
    })"""
    assert page.evaluate(late) == [['"The live view did not start: run the cell again."', "visible"]]
    page.screenshot(path=OUT / "jupyter-late.png")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.close()


def menus(page) -> list[list[str]]:
    """Layer and head of each live view."""
    page.wait_for_function("document.querySelectorAll('.wb canvas').length >= 4", timeout=30_000)
    page.wait_for_timeout(300)
    menus_of = "wb => [...wb.querySelectorAll('select')].slice(1, 3).map(menu => menu.value)"
    return page.evaluate(f"[...document.querySelectorAll('.wb')].map({menus_of})")


def test_two_heads_views_show_their_own_layer_and_head_run_reloaded_and_stored(server: Lab, browser):
    whole().save(server.root / "whole.trace")
    cells = ["import workbench as wb\ntrace = wb.load('whole.trace')"]
    cells += [f"wb.views.heads(trace, layer={layer}, head={head})" for layer, head in ((0, 1), (3, 5))]
    server.write("heads.ipynb", cells)
    page = browser.new_page(viewport={"width": 1400, "height": 2600})
    server.open(page, "heads.ipynb")
    server.run_all(page)
    assert menus(page) == [["0", "1"], ["3", "5"]]
    page.locator(".wb").nth(1).press("End")  # the pinned token is shared, the layer is not
    page.locator(".wb").nth(0).press("ArrowUp")
    assert menus(page) == [["1", "1"], ["3", "5"]]
    server.save(page)
    server.open(page, "heads.ipynb")
    assert menus(page) == [["0", "1"], ["3", "5"]]
    page.screenshot(path=OUT / "jupyter-heads.png")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    assert "no kernel" not in page.locator(".wb").nth(0).inner_text()
    page.locator(".wb").nth(0).press("]")
    bar = "getComputedStyle(document.querySelector('.wb-lost .wb-bar') ?? document.body, '::after').content"
    page.wait_for_function(f"{bar}.includes('no kernel: run the cell again')", timeout=10_000)
    page.screenshot(path=OUT / "jupyter-no-kernel.png")
    page.close()
    outputs = json.loads((server.root / "heads.ipynb").read_text("utf-8"))["cells"]
    stored = ["".join("".join(one["data"].get("text/html", "")) for one in cell["outputs"]) for cell in outputs[1:]]
    assert ["layer 0, head 1" in stored[0], "layer 3, head 5" in stored[1]] == [True, True]


# At the end: the notebook is saved, and its kernel is shut down.


@pytest.fixture(scope="module")
def saved(server: Lab, page) -> Path:
    server.save(page)
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.wait_for_timeout(500)
    return server.root / "live.ipynb"


def test_a_saved_notebook_is_small(saved: Path):
    book = json.loads(saved.read_text("utf-8"))
    assert "widgets" not in book["metadata"]
    assert saved.stat().st_size < 2 * 100_000


def test_a_notebook_opened_without_a_kernel_shows_snapshots(server: Lab, browser, saved: Path):
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    server.open(page, saved.name)
    page.wait_for_timeout(2000)
    assert page.evaluate(SHOWN) == ["snapshot", "snapshot"]
    page.screenshot(path=OUT / "jupyter-reopened.png")
    page.close()


def test_an_untrusted_notebook_shows_snapshots_and_runs_no_script(server: Lab, browser, saved: Path):
    book = json.loads(saved.read_text("utf-8"))
    book["cells"][0]["source"] = "'written by somebody else'"  # so the notebook is unsigned
    (server.root / "foreign.ipynb").write_text(json.dumps(book), "utf-8")
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    alarms: list[str] = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    server.open(page, "foreign.ipynb")
    page.wait_for_timeout(2000)
    assert page.evaluate(SHOWN).count("snapshot") == 2
    assert "live" not in page.evaluate(SHOWN)
    assert alarms == []
    page.screenshot(path=OUT / "jupyter-untrusted.png")
    page.close()


def test_a_notebook_converted_to_html_shows_snapshots(browser, saved: Path, tmp_path: Path):
    convert = [sys.executable, "-m", "nbconvert", "--to", "html", "--output-dir", str(tmp_path), str(saved)]
    subprocess.run(convert, check=True, capture_output=True)
    page = browser.new_page(viewport={"width": 1400, "height": 1500})
    alarms: list[str] = []
    page.on("dialog", lambda dialog: (alarms.append(dialog.message), dialog.dismiss()))
    page.goto((tmp_path / "live.html").as_uri(), wait_until="domcontentloaded")
    page.wait_for_timeout(1000)
    assert page.evaluate(SHOWN).count("snapshot") == 2
    assert alarms == []
    page.screenshot(path=OUT / "jupyter-nbconvert.png")
    page.close()


def test_a_snapshot_has_the_transcript_as_text():
    sheet = wb.views.tokens(made.run())
    from workbench.views.notebook import snapshot

    assert "b=3+4=7" in snapshot(sheet)
    assert "<script" not in snapshot(wb.views.tokens(made.run([("user", None, made.HOSTILE)])))
