"""Tests whether a row's bits depend on the rows beside it, on this machine and for the products of a model.

With the native kernels they do not, by construction. BLAS, numba and GPUs have no such guarantee, so they are tested.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ROWS = (1, 2, 5, 15, 16, 33, 64)  # sizes at which BLAS libraries were observed to change kernels


def rows_independent(products: Iterable[tuple[Callable[[Tensor], Tensor], int]], like: Tensor) -> bool:
    """True if the first and the last of 1 to 64 rows have the same bits as alone, in every product.

    products: functions from [row, n] to [row, m], each with its n; like: a tensor with the device and dtype to test.

    >>> rows_independent([(lambda x: x * 2, 8)], torch.empty(0))
    True
    >>> rows_independent([(lambda x: x - x.mean(0), 8)], torch.empty(0))
    False
    """
    generator = torch.Generator().manual_seed(0)
    for product, n in products:
        x = torch.randn(max(ROWS), n, generator=generator).to(like.device, like.dtype)
        with torch.no_grad():
            first = product(x[:1])[0]
            for rows in ROWS:
                batch, last = product(x[:rows]), product(x[rows - 1 : rows])[0]
                if not (torch.equal(batch[0], first) and torch.equal(batch[-1], last)):
                    return False
    return True
