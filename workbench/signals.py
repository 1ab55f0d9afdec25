"""Ctrl-C, SIGTERM and SIGHUP during a run: they only set a flag, and what was computed is saved before they act.

A handler of somebody else (a debugger, an event loop, `nohup`) is never replaced. Threads other than the main one get
no signals. This module is independent of models and traces.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# Signal -> the handler that Python starts with; only those are replaced. SIGINT is Ctrl-C, SIGTERM is `kill` and what a
# supervisor sends, SIGHUP is a terminal that was closed. SIGINT is first: see `receiving`.
DEFAULT_HANDLERS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
GIVE_UP = 5  # presses, after the message, that end even the saving
SAME_PRESS_SECONDS = 0.1  # a key that is held down repeats faster
SAVING = "\nsaving what was recorded; press Ctrl-C five times to give up\n"


class Terminated(KeyboardInterrupt):
    """The run was ended by SIGTERM or SIGHUP: a KeyboardInterrupt, so that it is handled as Ctrl-C is."""

    def __init__(self, signum: int):
        super().__init__(f"ended by {signal.Signals(signum).name}")
        self.signum = signum

    def __reduce__(self):
        return Terminated, (self.signum,)


class StopFlag:
    """Set by a signal while a block runs, or by another thread."""

    def __init__(self) -> None:
        self.stopped = False
        self.signum: int = signal.SIGINT  # of the signal that set it
        # True if an exception at any moment could lose what the block has computed. It then ends at its next check
        # only, or after `GIVE_UP` presses. Otherwise, the second press ends it at once.
        self.has_something_to_lose = False

    def stop(self, signum: int = signal.SIGINT) -> None:
        if not self.stopped:
            self.signum = signum
        self.stopped = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if the flag is set."""
        if self.stopped:
            raise KeyboardInterrupt if self.signum == signal.SIGINT else Terminated(self.signum)


class _Receiver:
    """The handler of the signals while one or several nested blocks run. It sets the flags of all of them."""

    def __init__(self) -> None:
        self.flags: list[StopFlag] = []
        self.n_saving = 0  # `shielded` blocks
        self.unwinding = False  # after an exception at once, or at the end: another one could leave this handler behind
        self._n_presses = 0  # since the message
        self._announced = False
        self._last_press = float("-inf")

    def __call__(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        held_down, self._last_press = now - self._last_press < SAME_PRESS_SECONDS, now
        again = any(flag.stopped for flag in self.flags)
        for flag in self.flags:
            flag.stop(signum)
        if not (self.unwinding or self.n_saving or any(flag.has_something_to_lose for flag in self.flags)):
            if again:
                self.unwinding = True
                raise KeyboardInterrupt
        elif not self._announced:
            if again or self.n_saving:
                self._announced = True
                _say(SAVING)
        elif not held_down:
            self._n_presses += 1
            if self._n_presses >= GIVE_UP:
                self._n_presses, self._announced = 0, False  # the exception is handled under the same protection
                raise KeyboardInterrupt


@contextmanager
def receiving(flag: StopFlag) -> Iterator[None]:
    """While the block runs, the signals set `flag`. The previous handlers are restored afterwards.

    If the block ends normally although the flag is set, KeyboardInterrupt is raised then.
    """
    if threading.current_thread() is threading.main_thread():
        with _installed(flag):
            yield
    else:
        yield
    flag.check()


@contextmanager
def shielded() -> Iterator[StopFlag]:
    """Saves something: while the block runs, the signals only set the flag, and KeyboardInterrupt is raised after it.

    The first signal is answered by a message on stderr. Within `receiving`, its flag is set too, and the exception is
    left to it.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    with _installed(flag) as receiver:
        receiver.n_saving += 1
        try:
            yield flag
        finally:
            receiver.n_saving -= 1
    if receiver.flags == [flag]:  # this block was the outermost one
        flag.check()


@contextmanager
def _installed(flag: StopFlag) -> Iterator[_Receiver]:
    """The receiver of an outer block, or a new one, which is the handler of the signals while the block runs."""
    if outer := _current():
        outer.flags.append(flag)
        try:
            yield outer
        finally:
            outer.flags.remove(flag)
        return
    receiver = _Receiver()
    receiver.flags.append(flag)
    replaced: list[signal.Signals] = []
    try:
        for signum, default in DEFAULT_HANDLERS.items():
            if signal.getsignal(signum) is default:
                replaced.append(signum)
                signal.signal(signum, receiver)
        try:
            yield receiver
        finally:
            receiver.unwinding = True
    finally:
        # SIGINT last: from then on Ctrl-C raises KeyboardInterrupt at any place, and nothing must be left to do
        for signum in reversed(replaced):
            signal.signal(signum, DEFAULT_HANDLERS[signum])


def _current() -> _Receiver | None:
    handlers = map(signal.getsignal, DEFAULT_HANDLERS)
    return next((handler for handler in handlers if isinstance(handler, _Receiver)), None)


def _say(message: str) -> None:
    with suppress(Exception):  # a closed terminal, or the signal came in the middle of another message
        sys.stderr.write(message)
        sys.stderr.flush()
