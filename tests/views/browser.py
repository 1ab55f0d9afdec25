"""A browser for the tests of views: a page that is open, and all that it complained about or asked for."""

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
NOTICE_SHIFT = """
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


def noticing(page):
    """The page, which notices when it has handled a Shift: `Seen.settled` waits for that."""
    page.add_init_script(NOTICE_SHIFT)
    return page


class Seen:
    """A page that is open."""

    def __init__(self, browser, path: Path, *, width: int = 1280, height: int = 900, **options):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = noticing(browser.new_page(viewport={"width": width, "height": height}, **options))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        if options.get("java_script_enabled", True):
            self.page.wait_for_selector("html.drawn", state="attached")

    def close(self):
        """Nobody complained, and nothing was asked for but the file itself."""
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith("file:")] == []
        assert len(self.requests) == 1
        self.page.close()

    def token(self, position: int):
        return self.page.locator(f"#view .wb-part .wb-t >> nth={position}")

    def settled(self) -> None:
        """Waits until the page has handled every key and click so far, and two frames more: views hear of changes then.

        Playwright may go on before the page has handled a key. Keys and clicks are handled in order, so a Shift that is
        pressed now, which means nothing to a view, is handled after all of them.
        """
        self.page.keyboard.press("Shift")
        self.page.evaluate(SETTLED)

    def said(self) -> str:
        self.settled()
        return self.page.locator(".wb-readout").inner_text()

    def python(self) -> str:
        """The line that makes the view, as its button says it."""
        self.page.get_by_role("button", name="the line that makes this view").click()
        self.settled()
        return self.page.locator(".wb-code").input_value()

    def marks(self, kind: str = ".wb-mark:not(.wb-pin)") -> list[tuple[float, float]]:
        """Left and right end of the marks, in pixels from the left of the lanes."""
        self.settled()
        return self.page.evaluate(
            """kind => [...document.querySelectorAll(kind)].map(m => {
              const [own, all] = [m.getBoundingClientRect(), m.parentElement.getBoundingClientRect()];
              return [own.left - all.left, own.right - all.left];
            })""",
            kind,
        )

    def shot(self, name: str) -> Path:
        """A screenshot, kept to be looked at."""
        OUT.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=OUT / f"{name}.png", full_page=True)
        return OUT / f"{name}.png"
