"""Cooperative interrupts: during a run, Ctrl-C only sets a flag, and every hook point checks it.

A run is therefore interrupted between two steps of the arithmetic and never inside a cache or a recording. Threads
other than the main one get no SIGINT; there `stop()` sets the flag.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from workbench.taps import Tap


class Interrupt(Tap):
    """A tap that raises KeyboardInterrupt at the first hook point after `stop()`."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self, *_) -> None:
        if self.stopped:  # the second time: do not wait for the next hook point
            raise KeyboardInterrupt
        self.stopped = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if the flag is set."""
        if self.stopped:
            raise KeyboardInterrupt

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        self.check()
        return x


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """An `Interrupt` that Ctrl-C sets while the block runs; the previous handler is restored afterwards."""
    flag = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # a custom handler is installed: do not replace it
        yield flag
        return
    signal.signal(signal.SIGINT, flag.stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
