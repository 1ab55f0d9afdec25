"""Setup of every test: one thread (the models are tiny, and two threads only wait for each other), no network.

A test reports a measurement with `measured(…)`. The measurements are printed at the end of the run, and so are the ten
slowest files.
"""

import asyncio
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """Not the user's: there, a model may be noted as verified."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


# The slowest files run first, so that all cores finish at about the same time.
FIRST = [
    "tests/test_notebooks.py",
    "tests/views/test_views_in_jupyter.py",
    "tests/model/kernels/test_native.py",
    "tests/test_site.py",
    "tests/views/test_page_in_a_browser.py",
    "tests/recording/test_resume.py",
    "tests/views/test_heads.py",
    "tests/conversation/test_tokenizer.py",
    "tests/test_docs.py",
    "tests/test_docstrings.py",
    "tests/pocket/test_training.py",
]


def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With --dist loadfile the tests of a file share a core, for its fixtures; a notebook runs where one is free."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if "test_a_notebook_runs" in nodeid else super()._split_scope(nodeid)

    config.option.loadscopereorder = False  # the order is the one above, not by the number of tests
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_report_header():
    from workbench.model.kernels import native
    from workbench.recording.doctor import cpu_name

    kinds = ", ".join(native.available())
    return f"kernels: {native.status().removeprefix('native kernels: ')}; levels here: {kinds}; {cpu_name()}"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests of a process: the browser and its driver take seconds to start."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
    from tests.views.browser import CHROMIUM, FLAGS

    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def browser(chromium) -> Iterator[Any]:
    """The browser, for the tests of a file; pages that they left open are closed afterwards."""
    yield chromium
    for context in chromium.contexts:
        context.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Playwright leaves its event loop running in this thread, so that other tests could not run one."""
    loop = asyncio._get_running_loop()
    if loop is None or "chromium" in item.fixturenames:
        return (yield)
    asyncio._set_running_loop(None)
    try:
        return (yield)
    finally:
        asyncio._set_running_loop(loop)


@pytest.fixture
def measured(record_property):
    """A function that reports a sentence with a measurement."""
    return partial(record_property, "measured")


def pytest_terminal_summary(terminalreporter):
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome)]
    if figures := [text for report in reports for name, text in report.user_properties if name == "measured"]:
        terminalreporter.section("measured")
        for figure in figures:
            terminalreporter.write_line(figure)
    seconds: defaultdict[str, float] = defaultdict(float)
    for report in (report for kind in terminalreporter.stats.values() for report in kind):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.split("::")[0]] += report.duration
    if len(seconds) > 10:
        terminalreporter.section("slowest files")
        for name, taken in sorted(seconds.items(), key=lambda item: -item[1])[:10]:
            terminalreporter.write_line(f"{taken:6.1f} s  {name}")
