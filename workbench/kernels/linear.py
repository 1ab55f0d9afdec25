"""Matrix products whose rows do not know how many neighbours they have."""

import torch.nn.functional as F
from torch import Tensor

ROWS = 4


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, with the rows filled up to a multiple of 4.

    BLAS picks other kernels, and so other roundings, for 1, 2, 3, 5 and 7 rows than for many. With the rows filled up
    a position's bits do not depend on how many positions are computed beside it: an edit at one position can be
    traced by exact equality, and an expert that gets one token computes as if it got four.
    """
    flat = x.reshape(-1, x.shape[-1])
    n = flat.shape[0]
    if spare := -n % ROWS:
        flat = F.pad(flat, (0, 0, 0, spare))
    y = F.linear(flat, weight, bias)
    return y[:n].view(*x.shape[:-1], weight.shape[0])
