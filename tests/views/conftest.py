"""The browser of the tests of views: one for the tests of a file."""

from collections.abc import Iterator

import pytest

from tests.views.browser import CHROMIUM, FLAGS


@pytest.fixture(scope="module")
def browser() -> Iterator:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
