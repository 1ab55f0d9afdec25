"""The plotly backend in Chromium: hostile texts are shown letter for letter, nothing runs, nothing is fetched."""

from pathlib import Path

import pytest

from tests.figures.hostile import SETS
from tests.figures.made import every_kind
from tests.views.browser import needed
from workbench.text import visible

plotly = pytest.importorskip("plotly", reason="needs the extra `lab`")
pytestmark = needed


def test_hostile_texts_are_shown_literally_and_nothing_runs_or_is_fetched(browser, tmp_path: Path):
    from plotly.offline import get_plotlyjs

    (tmp_path / "plotly.js").write_text(get_plotlyjs(), "utf-8")
    requests, dialogs = [], []
    page = browser.new_page()
    page.on("request", lambda request: requests.append(request.url))
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for number, names in enumerate(SETS):
        kinds = {kind: figure.plotly() for kind, figure in every_kind(names).items() if kind in ("bars", "rule")}
        body = "".join(plot.to_html(include_plotlyjs=False, full_html=False, div_id=k) for k, plot in kinds.items())
        file = tmp_path / f"{number}.html"
        file.write_text(f"<meta charset=utf-8><script src=plotly.js></script>{body}", "utf-8")
        page.goto(file.as_uri())
        page.wait_for_selector("#rule .annotation-text", state="attached")
        texts = "document.querySelectorAll('#bars .xtick text')"
        labels = page.evaluate(f"[...{texts}].map(node => node.textContent)")
        expected = [visible(name, newline="↵").strip() for name in names if name]
        assert [text.strip() for text in labels] == expected
        assert page.evaluate("document.querySelectorAll('#bars svg a, #bars svg image, #bars img').length") == 0
    page.close()
    assert not dialogs
    assert not [url for url in requests if not url.startswith(("file:", "data:", "blob:"))]
