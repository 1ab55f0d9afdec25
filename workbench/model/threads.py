"""One thread for small models: their products are over before a second thread has woken up."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_depth, _before = 0, 1


@contextmanager
def one_thread(when: bool) -> Iterator[None]:
    """Within the block torch uses one thread, if `when`; the last block to be left gives back what there was before."""
    global _depth, _before
    if not when:
        yield
        return
    with _lock:
        if _depth == 0:
            _before = torch.get_num_threads()
            torch.set_num_threads(1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                torch.set_num_threads(_before)
