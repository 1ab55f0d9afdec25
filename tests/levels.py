"""Runs a test with the kernels of one level."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from workbench.model.kernels import native

AT_START = os.environ.get(native.VARIABLE) or None  # what this run of the tests is about; None is the best level


@contextmanager
def computing_with(level: str | None) -> Iterator[None]:
    """Uses the kernels of one level within the block; afterwards those of the environment variable."""
    native.use(level)
    try:
        yield
    finally:
        native.use(AT_START)
