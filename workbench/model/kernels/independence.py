"""Whether a row's bits depend on the rows beside it, here and now: tried on the products that a model uses.

By the native kernels they do not, by construction. BLAS, numba and GPUs promise nothing, so each is asked.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ROWS = (1, 2, 5, 15, 16, 33, 64)  # where BLAS libraries were seen to change their kernels


def rows_independent(products: Iterable[tuple[Callable[[Tensor], Tensor], int]], like: Tensor) -> bool:
    """Whether the first and the last row of 1 to 64 rows have the bits that they have alone, in every product.

    products: functions from [row, n] to [row, m], each with its n; like: a tensor of the device and dtype that count.

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
                together, last = product(x[:rows]), product(x[rows - 1 : rows])[0]
                if not (torch.equal(together[0], first) and torch.equal(together[-1], last)):
                    return False
    return True
