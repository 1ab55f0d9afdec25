"""Kernels at one level for as long as a test needs them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from workbench.model.kernels import native

AT_START = os.environ.get(native.VARIABLE) or None  # what this run of the tests is about; None is the best level


@contextmanager
def computing_with(level: str | None) -> Iterator[None]:
    """Within the block the kernels of one level compute; afterwards those that the environment of the run names."""
    native.use(level)
    try:
        yield
    finally:
        native.use(AT_START)
