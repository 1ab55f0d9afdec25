"""Cooperative interrupts: while a run is on, Ctrl-C only raises a flag, and every hook point looks at it.

So an interrupt lands between two steps of the arithmetic and never inside a cache or a recording. Threads other than
the main one get no SIGINT: there `stop()` raises the flag.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from workbench.taps import Tap


class Interrupt(Tap):
    """A tap that raises KeyboardInterrupt at the next hook point once it has been told to stop."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self, *_) -> None:
        if self.stopped:  # asked twice: do not wait for the next hook point
            raise KeyboardInterrupt
        self.stopped = True

    def check(self) -> None:
        """Raises KeyboardInterrupt if the flag is up."""
        if self.stopped:
            raise KeyboardInterrupt

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        self.check()
        return x


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """An `Interrupt` that Ctrl-C raises for as long as the block runs; the old handler is back afterwards."""
    flag = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # somebody else handles Ctrl-C: leave it to them
        yield flag
        return
    signal.signal(signal.SIGINT, flag.stop)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)
