"""Cooperative interrupts: during a run, Ctrl-C only sets a flag, and every hook point checks it.

A run is therefore interrupted between two steps of the arithmetic and never inside a cache or a recording. SIGTERM and
SIGHUP act as Ctrl-C does. Threads other than the main one get no signals; there `stop()` sets the flag.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from workbench.signals import StopFlag, receiving
from workbench.taps import Tap


class Interrupt(StopFlag, Tap):
    """A tap that raises KeyboardInterrupt at the first hook point after `stop()`."""

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        self.check()
        return x


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """An `Interrupt` that Ctrl-C sets while the block runs; the previous handlers are restored afterwards."""
    flag = Interrupt()
    with receiving(flag):
        yield flag
