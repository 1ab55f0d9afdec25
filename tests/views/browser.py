"""An open browser tab for the tests of views, with its console messages and network requests."""

import shutil
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needed = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: run `make browser` as root")
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
RECORD_SHIFT = """
globalThis.shiftHandled = false;
addEventListener("keydown", ({ key }) => { shiftHandled ||= key === "Shift"; }, true);
"""
SETTLED = """async () => {
  const frame = () => new Promise(requestAnimationFrame);
  while (!shiftHandled) await frame();
  shiftHandled = false;
  await frame();
  await frame();
}"""


def with_shift_flag(page):
    """The page, with a flag that is set when it has handled a Shift key: `Tab.settled` waits for it."""
    page.add_init_script(RECORD_SHIFT)
    return page


class Tab:
    """An open page. `console` has its console messages, errors and dialogs, `requests` the URLs that it requested."""

    def __init__(self, browser, path: Path, *, width: int = 1280, height: int = 900, **options):
        self.console: list[str] = []
        self.requests: list[str] = []
        self.page = with_shift_flag(browser.new_page(viewport={"width": width, "height": height}, **options))
        self.page.on("console", lambda message: self.console.append(message.text))
        self.page.on("pageerror", lambda error: self.console.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.console.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            self.page.wait_for_selector("html.drawn", state="attached")

    def close(self):
        """Close the page, after checking that its console is empty and that it requested only its own file."""
        assert self.console == []
        assert [url for url in self.requests if not url.startswith("file:")] == []
        assert len(self.requests) == 1
        self.page.close()

    def token(self, position: int):
        return self.page.locator(f"#view .wb-part .wb-t >> nth={position}")

    def settled(self) -> None:
        """Wait until the page has handled all keys and clicks so far, plus two frames, in which views are updated.

        Playwright may return before the page has handled a key. Keys and clicks are handled in order, so a Shift key
        that is pressed now, which views ignore, is handled after all of them.
        """
        self.page.keyboard.press("Shift")
        self.page.evaluate(SETTLED)

    def readout(self) -> str:
        """The text below the plots."""
        self.settled()
        return self.page.locator(".wb-readout").inner_text()

    def python(self) -> str:
        """The Python code of the view, from its button."""
        self.page.get_by_role("button", name="Python code of this view").click()
        self.settled()
        return self.page.locator(".wb-code").input_value()

    def marks(self, kind: str = ".wb-mark:not(.wb-pin)") -> list[tuple[float, float]]:
        """The left and right ends of the marks, in pixels from the left of their plot."""
        self.settled()
        return self.page.evaluate(
            """kind => [...document.querySelectorAll(kind)].map(m => {
              const [own, all] = [m.getBoundingClientRect(), m.parentElement.getBoundingClientRect()];
              return [own.left - all.left, own.right - all.left];
            })""",
            kind,
        )

    def shot(self, name: str) -> Path:
        """Save a screenshot for inspection."""
        OUT.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=OUT / f"{name}.png", full_page=True)
        return OUT / f"{name}.png"
