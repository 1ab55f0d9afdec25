"""Matrices with a low-rank change (LoRA, arXiv 2106.09685): W + s B A, kept as separate factors.

W therefore stays memory-mapped or packed in MXFP4 and is not rounded again, and another s costs no memory.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.model.kernels.packed import Matrices
from workbench.model.kernels.planes import Planes, unpack


class Adapted(NamedTuple):
    """A matrix with a low-rank change: matrix + scale * b @ a."""

    matrix: Matrices | Planes  # [out, in], or [expert, out, in]
    a: Tensor  # [rank, in], or [expert, rank, in]
    b: Tensor  # [out, rank], or [expert, out, rank]
    scale: float


def plain(matrix: Matrices | Planes | Adapted) -> Matrices:
    """The matrix without its change, and without its 12-bit copy."""
    base = unadapted(matrix)
    return base.matrix if isinstance(base, Planes) else base


def unadapted(matrix: Matrices | Planes | Adapted) -> Matrices | Planes:
    """The matrix without its change, with its 12-bit copy if it has one."""
    return matrix.matrix if isinstance(matrix, Adapted) else matrix


def whole(matrix: Tensor | Planes | Adapted) -> Tensor:
    """The matrix plus its low-rank change, for analyses of weights; a new tensor in fp32 or wider if there is a change.

    Of a matrix with a 12-bit copy, it is a new tensor too: the pages of the file stay unread.

    >>> whole(Adapted(torch.eye(2), torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0], [3.0]]), 0.5)).tolist()
    [[1.0, 0.0], [1.5, 4.0]]
    """
    base = unadapted(matrix)
    unchanged = unpack(base) if isinstance(base, Planes) and base.is_usable else plain(base)
    assert isinstance(unchanged, Tensor), "an expert's matrix may be packed: see `dense`"
    if not isinstance(matrix, Adapted):
        return unchanged
    wide = torch.promote_types(unchanged.dtype, torch.float32)
    return unchanged.to(wide) + matrix.scale * (matrix.b.to(wide) @ matrix.a.to(wide))
