"""What holds for every test: one thread (the models are tiny, and two threads only wait for each other), no network.

A test that measures something says so with `measured(…)`; the figures are printed at the end of the run.
"""

import os
from functools import partial

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """With --dist loadgroup a file is a core's, for its fixtures, but for tests that are marked as a group of theirs."""
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


@pytest.fixture
def measured(record_property):
    """Call it with a sentence that holds a figure."""
    return partial(record_property, "measured")


def pytest_terminal_summary(terminalreporter):
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome)]
    if figures := [text for report in reports for name, text in report.user_properties if name == "measured"]:
        terminalreporter.section("measured")
        for figure in figures:
            terminalreporter.write_line(figure)
