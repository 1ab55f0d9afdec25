"""Memory in pages of 2 MB, where the system has them: a stream through it then rarely waits for page tables."""

import math
import sys

import torch
from torch import Tensor

from workbench.model.madvise import HUGE_PAGE, advise

PAGE = 2 << 20  # bytes: of x86-64, and of ARM with small pages of 4 kB
MIN_PAGES = 8  # of a tensor: up to one more is allocated, to end at a whole page


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor on the CPU with arbitrary contents, contiguous, and aligned to 2 MB if it has 16 MB or more.

    >>> empty(3, 5, dtype=torch.int8).shape
    torch.Size([3, 5])
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes < MIN_PAGES * PAGE or sys.platform != "linux":
        return torch.empty(shape, dtype=dtype, device="cpu")
    whole = -(-n_bytes // PAGE) * PAGE
    memory = torch.empty(whole + PAGE, dtype=torch.uint8, device="cpu")
    start = -memory.data_ptr() % PAGE
    advise(memory.data_ptr() + start, memory.data_ptr() + start + whole, HUGE_PAGE)
    return memory[start : start + n_bytes].view(dtype).view(shape)
