"""Inputs of an attacker or of an accident, each of which must be refused clearly or handled right.

`pytest -m attack` runs them. Every input is one attempt: `attempt.refused(…)` where only a WorkbenchError is fine,
`attempt.right(…)` where the answer must be right, `attempt.safe(…)` where both are. The counts are printed at the end
of the run. An attempt that takes too long fails, as does any other exception.
"""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.attack.outcomes import counts, described
from workbench.errors import WorkbenchError
from workbench.text import printable

HERE = Path(__file__).parent
MIN_CHARACTERS = 15  # a shorter message cannot say what was wrong and what to do


class TookTooLong(BaseException):
    """Raised in the middle of a call that hangs; a BaseException, so that no `except Exception` stops it."""


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.attack)


class Attempt:
    """One input. `record` counts its outcome."""

    def __init__(self, record: Callable[[str, str], None], kind: str):
        self._record, self._kind = record, kind

    def refused(self, call: Callable[[], Any], match: str = "", seconds: float = 10) -> WorkbenchError:
        """The WorkbenchError of `call`, whose message must contain `match`; anything else fails the test."""
        with pytest.raises(WorkbenchError) as caught, time_limit(seconds):
            call()
        message = str(caught.value)
        assert len(message) >= MIN_CHARACTERS, f"says too little: {message!r}"
        assert printable(message, "\n") == message, f"has hidden characters: {message!r}"
        assert match in message, f"does not say {match!r}: {message!r}"
        self._count("refused")
        return caught.value

    def right(self, call: Callable[[], Any], check: Callable[[Any], bool], seconds: float = 10) -> Any:
        """The value of `call`, for which `check` must be true; an exception fails the test."""
        with time_limit(seconds):
            value = call()
        assert check(value), f"wrong: {value!r:.500}"
        self._count("right")
        return value

    def safe(self, call: Callable[[], Any], check: Callable[[Any], bool], seconds: float = 10) -> None:
        """Either the value of `call` is right by `check`, or it is refused clearly."""
        try:
            with time_limit(seconds):
                value = call()
        except WorkbenchError as error:
            raised = error

            def again():
                raise raised

            self.refused(again)
            return
        assert check(value), f"wrong: {value!r:.500}"
        self._count("right")

    def script(self, code: str, *arguments: str, seconds: float = 60, **settings: Any) -> subprocess.CompletedProcess:
        """A Python process that runs `code`, for what could hang in native code or kill the interpreter.

        The test passes its own judgement on the result: call `attempt.judged("refused" | "right")` afterwards.
        """
        settings = {"capture_output": True, "text": True} | settings
        try:
            return subprocess.run([sys.executable, "-c", code, *arguments], timeout=seconds, **settings)
        except subprocess.TimeoutExpired:
            pytest.fail(f"hangs: no end after {seconds} s")

    def judged(self, outcome: str) -> None:
        """Counts an attempt that the test has checked itself."""
        assert outcome in ("refused", "right")
        self._count(outcome)

    def _count(self, outcome: str) -> None:
        self._record("attack", f"{self._kind}\t{outcome}\t1")


@pytest.fixture
def attempt(request, record_property) -> Attempt:
    return Attempt(record_property, request.node.path.stem.removeprefix("test_"))


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TookTooLong in the block after `seconds`; only in the main thread, and not inside native code."""
    assert threading.current_thread() is threading.main_thread()

    def stop(*_):
        raise TookTooLong(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_terminal_summary(terminalreporter):
    counted = counts(terminalreporter)
    if counted:
        terminalreporter.section("attack")
        for kind, numbers in counted.items():
            terminalreporter.write_line(f"{kind:16} {sum(numbers):5} tried: {described(numbers)}")
