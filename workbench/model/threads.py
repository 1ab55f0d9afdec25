"""Small models run on one thread: their products finish before a second thread has started."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# A forked process does not have the threads of its parent, and torch would wait for them for ever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

SMALL = 5e7  # parameters: below this size of a model, one thread is faster than two
_lock = threading.Lock()
_depth, _previous = 0, 1


@contextmanager
def one_thread(when: bool) -> Iterator[None]:
    """If `when`, torch uses one thread within the block; the last block to end restores the previous number."""
    global _depth, _previous
    if not when:
        yield
        return
    with _lock:
        if _depth == 0:
            _previous = torch.get_num_threads()
            torch.set_num_threads(1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                torch.set_num_threads(_previous)
