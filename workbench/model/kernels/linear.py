"""Matrix products in which a row's result does not depend on the number of rows, as far as the backend allows."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.model.kernels import jit, native, planes
from workbench.model.kernels.lora import Adapted
from workbench.model.kernels.packed import Matrices
from workbench.model.kernels.planes import Planes

ROWS = 4
WIDEN_ROWS = 8192  # rows of a matrix that are converted to fp32 at once: 94 MB in the 20b


def linear(x: Tensor, weight: Tensor | Planes | Adapted, bias: Tensor | None = None) -> Tensor:
    """x W^T + b. With the native kernels, a row's bits do not depend on the other rows, or on whether W is in planes.

    BLAS, the fallback, rounds differently for different numbers of rows. The rows are padded to a multiple of 4, which
    is enough on some processors; `rows_independent` tests it.
    """
    if isinstance(weight, Adapted):
        assert isinstance(weight.matrix, Tensor | Planes)
        return add_low_rank(linear(x, weight.matrix, bias), x, weight)
    flat = x.reshape(-1, x.shape[-1])
    if isinstance(weight, Planes):
        if x.dtype == torch.bfloat16 and native.supports(flat) and weight.is_usable:
            return planes.linear(flat, weight, bias).view(*x.shape[:-1], weight.shape[0])
        weight = weight.matrix
    n = flat.shape[0]
    if native.supports(flat) and native.supports(weight):
        return native.linear(flat, weight, bias).view(*x.shape[:-1], weight.shape[0])
    if numba_supports(flat, weight):
        return jit.linear_bf16(flat, weight, bias).view(*x.shape[:-1], weight.shape[0])
    if spare := -n % ROWS:
        flat = F.pad(flat, (0, 0, 0, spare))
    y = product(flat, weight, bias)
    return y[:n].view(*x.shape[:-1], weight.shape[0])


def add_low_rank(y: Tensor, x: Tensor, matrix: Matrices | Planes | Adapted, expert: int | None = None) -> Tensor:
    """The product y of x and a matrix, plus the product of x and the low-rank change of the matrix, if it has one.

    In fp32 or wider, rounded once: a change that is small relative to the matrix would be lost in bf16.
    """
    if not isinstance(matrix, Adapted):
        return y
    a, b = (matrix.a, matrix.b) if expert is None else (matrix.a[expert], matrix.b[expert])
    wide = torch.promote_types(x.dtype, torch.float32)
    added = linear(linear(x.to(wide), a.to(wide)), b.to(wide))
    return (y.to(wide) + matrix.scale * added).to(y.dtype)


def numba_supports(x: Tensor, weight: Tensor) -> bool:
    """True if numba computes these few rows in bf16: on the CPU, without native kernels and without gradients."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not weight.is_contiguous():
        return False
    return native.isa() is None and jit.supports_decode(x)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b with BLAS; bf16 in fp32, rounded once, if the processor has no bf16 arithmetic."""
    if not needs_fp32(x):
        return F.linear(x, weight, bias)
    wide, y = x.float(), x.new_empty(len(x), len(weight))
    for i in range(0, len(weight), WIDEN_ROWS):
        part = slice(i, i + WIDEN_ROWS)
        y[:, part] = F.linear(wide, weight[part].float(), None if bias is None else bias[part].float())
    return y


def needs_fp32(x: Tensor) -> bool:
    """True if products of x are computed in fp32: torch takes six times as long for emulated bf16."""
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not multiplies_bf16()


@lru_cache(maxsize=1)
def multiplies_bf16() -> bool:
    """True if the processor has bf16 arithmetic."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) if torch.backends.mkldnn.is_available() else False
