"""Arrays that a trace hands out: each has memory of its own, so that nothing done to it reaches the trace.

A read-only flag is not enough. numpy clears it on request, and torch.from_numpy and DLPack write into the memory of a
read-only array. Small arrays are copied. A large one is mapped copy-on-write: the system copies only the pages that are
written to, so that reading one head of a large pattern does not copy all heads.
"""

import mmap
import os
from threading import Lock

import numpy as np

MAPPED_BYTES = 32 << 20  # from this size on, arrays are mapped instead of copied


class Original:
    """An array of a trace. `array` is for workbench's own functions; `private_copy()` is for everybody else.

    >>> original = Original(np.arange(3.0))
    >>> copied = original.private_copy()
    >>> copied.tolist(), np.shares_memory(copied, original.array)
    ([0.0, 1.0, 2.0], False)
    """

    def __init__(self, array: np.ndarray):
        self.array = array.view()
        self.array.flags.writeable = False
        self._file: _Descriptor | None = None
        self._lock = Lock()

    def private_copy(self) -> np.ndarray:
        if self.array.nbytes >= MAPPED_BYTES and hasattr(os, "memfd_create"):
            try:
                return self._mapped()
            except OSError:  # too many open files
                pass
        return locked(self.array.copy(order="C"))

    def _mapped(self) -> np.ndarray:
        with self._lock:
            if self._file is None:
                self._file = self._move_to_file()
            return locked(_mapping(self._file.fd, self.array.dtype, self.array.shape))

    def _move_to_file(self) -> "_Descriptor":
        """Moves the array to a file in memory, from which it can be mapped any number of times."""
        array, file = self.array, _Descriptor(os.memfd_create("trace"))
        os.ftruncate(file.fd, array.nbytes)
        with mmap.mmap(file.fd, array.nbytes) as memory:
            np.ndarray(array.shape, array.dtype, buffer=memory)[...] = array
        moved = _mapping(file.fd, array.dtype, array.shape)
        moved.flags.writeable = False
        self.array = moved
        return file


class _Descriptor:
    """Closes a file descriptor when nobody holds it. Few arrays have one: Python drops a Ctrl-C that comes inside."""

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


def locked(array: np.ndarray) -> np.ndarray:
    """A read-only view of a C-contiguous array that nobody else holds; nothing can make it writable."""
    if not array.size:
        array.flags.writeable = False
        return array
    memory = array.reshape(-1).view(np.uint8).data.toreadonly()
    return np.frombuffer(memory, array.dtype).reshape(array.shape)


def _mapping(fd: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    return np.ndarray(shape, dtype, buffer=mmap.mmap(fd, size, access=mmap.ACCESS_COPY))
