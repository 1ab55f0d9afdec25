"""Makes the README's picture, a score sheet in Chromium: `python docs/images/make.py`. Look at it before it is kept."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import workbench as wb

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from tests.views.browser import CHROMIUM, FLAGS  # noqa: E402

ASK = "Mod 10: a=3, b=a+4, c=b+2, d=c+b, e=d+a. Find e."


def main() -> None:
    model = wb.Model("pocket")
    trace = model.generate(wb.chat(ASK, reasoning="high"), record="attention lens residuals")
    forced, arcs = wb.reasoning.forced_answer(model, trace), wb.reasoning.suppression(model, trace)["effect"]
    digit = next(i for i in reversed(range(len(trace))) if trace.str_tokens[i].isdigit() and i < trace.spans[-1].start)
    sheet = wb.views.score_sheet(
        trace, forced_answer=forced, arcs=arcs, drift=wb.routing.routing_drift(trace), selected=digit
    )
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        page = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS).new_page(
            viewport={"width": 1180, "height": 1200}, color_scheme="light"
        )
        page.goto(sheet.to_html(Path(folder) / "sheet.html").as_uri())
        page.wait_for_selector("html.drawn", state="attached")
        page.locator(".wb").screenshot(path=HERE / "score_sheet.png")


if __name__ == "__main__":
    main()
