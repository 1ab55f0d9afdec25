"""Matrix products whose rows do not know how many neighbours they have."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.kernels import jit, native
from workbench.model.kernels.lora import Adapted
from workbench.model.kernels.packed import Matrices

ROWS = 4
WIDENED = 8192  # rows of a matrix that are widened at once: 94 MB in the 20b


def linear(x: Tensor, weight: Tensor | Adapted, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. By the native kernels, a row's bits do not depend on the other rows.

    BLAS, which computes it elsewhere, promises nothing of the kind: it rounds differently for different numbers of
    rows. They are filled up to a multiple of 4, which is enough on some processors; `rows_independent` finds out.
    """
    if isinstance(weight, Adapted):
        assert isinstance(weight.matrix, Tensor)
        return changed(linear(x, weight.matrix, bias), x, weight)
    flat = x.reshape(-1, x.shape[-1])
    n = flat.shape[0]
    if native.takes(flat) and native.takes(weight):
        return native.linear(flat, weight, bias).view(*x.shape[:-1], weight.shape[0])
    if streams(flat, weight):
        return jit.linear_bf16(flat, weight, bias).view(*x.shape[:-1], weight.shape[0])
    if spare := -n % ROWS:
        flat = F.pad(flat, (0, 0, 0, spare))
    y = product(flat, weight, bias)
    return y[:n].view(*x.shape[:-1], weight.shape[0])


def changed(y: Tensor, x: Tensor, matrix: Matrices | Adapted, expert: int | None = None) -> Tensor:
    """The product y of x and a matrix, with what the low-rank change of the matrix adds to it, if it has one.

    In fp32 or better, rounded once: a change that is small beside the matrix would drown in bf16.
    """
    if not isinstance(matrix, Adapted):
        return y
    a, b = (matrix.a, matrix.b) if expert is None else (matrix.a[expert], matrix.b[expert])
    wide = torch.promote_types(x.dtype, torch.float32)
    added = linear(linear(x.to(wide), a.to(wide)), b.to(wide))
    return (y.to(wide) + matrix.scale * added).to(y.dtype)


def streams(x: Tensor, weight: Tensor) -> bool:
    """Whether numba computes these few rows in bf16: on the CPU, no native kernels, and no gradient is wanted."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not weight.is_contiguous():
        return False
    return native.isa() is None and jit.takes_decode(x)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b by BLAS; bf16 in fp32, rounded once, where the processor has no arithmetic of its own for it."""
    if not widens(x):
        return F.linear(x, weight, bias)
    wide, y = x.float(), x.new_empty(len(x), len(weight))
    for i in range(0, len(weight), WIDENED):
        part = slice(i, i + WIDENED)
        y[:, part] = F.linear(wide, weight[part].float(), None if bias is None else bias[part].float())
    return y


def widens(x: Tensor) -> bool:
    """Whether products of these are computed in fp32: torch takes six times as long for bf16 that it must emulate."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not multiplies_bf16()


@lru_cache(maxsize=1)
def multiplies_bf16() -> bool:
    """Whether the processor multiplies bf16 by itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False
