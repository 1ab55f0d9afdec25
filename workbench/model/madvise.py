"""Advice to the operating system about pages of memory: madvise(2)."""

import ctypes
import mmap

RANDOM, WILL_NEED, DONT_NEED, HUGE_PAGE = 1, 3, 4, 14
POPULATE = 22  # POPULATE_READ, of Linux 5.14


def advise(first: int, last: int, advice: int) -> None:
    """Gives the advice about the addresses first : last, where the system takes any; `first` begins a page."""
    if can_release_pages() and last > first:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), advice)


def can_release_pages() -> bool:
    """Whether pages can be released on this system; Linux and macOS can."""
    return hasattr(mmap, "MADV_DONTNEED")
