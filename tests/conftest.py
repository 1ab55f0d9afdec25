"""What holds for every test: one thread (the models are tiny, and two threads only wait for each other), no network.

A test that measures something says so with `measured(…)`; the figures are printed at the end of the run.
"""

import os

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)

_FIGURES = pytest.StashKey[list]()


@pytest.fixture
def measured(request):
    """Call it with a sentence that holds a figure."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter, config):
    if figures := config.stash.get(_FIGURES, []):
        terminalreporter.section("measured")
        for figure in figures:
            terminalreporter.write_line(figure)
