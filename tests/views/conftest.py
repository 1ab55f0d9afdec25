"""A fixture for the tests of views: one JupyterLab for all files that a process runs."""

from collections.abc import Iterator

import pytest

from tests.views.lab import Lab, lab


@pytest.fixture(scope="session")
def jupyterlab() -> Iterator[Lab]:
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: pip install -e '.[lab]'")
    with lab() as running:
        yield running
