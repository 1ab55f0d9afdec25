"""What holds for every test: one thread (the models are tiny, and two threads only wait for each other), no network.

A test that measures something says so with `measured(…)`; the figures are printed at the end of the run.
"""

import os
from functools import partial

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile the tests of a file share a core, for its fixtures; a notebook runs where one is free."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "test_a_notebook_runs" in nodeid else super()._split_scope(nodeid)

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_report_header():
    from workbench.model.kernels import native
    from workbench.recording.doctor import cpu_name

    kinds = ", ".join(native.kinds())
    return f"kernels: {native.why().removeprefix('native kernels: ')}; levels here: {kinds}; {cpu_name()}"


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
