"""Matrices of bf16 in 12 bits a weight, without loss, so that decoding reads three quarters of the bytes.

The upper byte of a bf16 has its sign and most of its exponent, and few different values in one matrix: the 15 commonest
get a code of 4 bits, and weights with another one are listed separately. The native kernels decode a row in registers
(planes.h), in the order of the products with the bf16 matrix, so every sum has the same bits. DFloat11 (arXiv
2504.11651) uses the same redundancy on GPUs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.model.kernels import large_pages, native

BLOCK, BLOCK_BYTES = 64, 96  # weights, and their bytes
N_CODES = 15  # upper bytes with a code
MAX_ROW = 1 << 14  # weights of a row
MAX_LISTED = 0.01  # share of the weights that are listed separately, at 4 bytes each


class Planes(NamedTuple):
    """A bf16 matrix [out, in] and its 12-bit copy, which products use; `matrix` usually is in a mapped file."""

    matrix: Tensor
    blocks: Tensor  # uint8: out, in / 64 * 96
    table: Tensor  # uint8: 16 upper bytes, the last one 0
    starts: Tensor  # int64: out + 1, where each row's listed weights begin
    listed_at: Tensor  # int16: place in the row (as unsigned)
    listed: Tensor  # bf16: the weights at these places
    version: int  # of `matrix` when it was packed: torch counts changes in place

    @property
    def shape(self) -> torch.Size:
        return self.matrix.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the copy."""
        return sum(t.nbytes for t in (self.blocks, self.table, self.starts, self.listed_at, self.listed))

    @property
    def is_current(self) -> bool:
        """False if the matrix was changed in place since it was packed."""
        return self.matrix._version == self.version

    @property
    def is_usable(self) -> bool:
        """True if the copy can stand for the matrix: it is current, kernels can read it, and no gradient is needed."""
        return self.is_current and native.supports(self.matrix)


def pack(matrix: Tensor) -> Planes | None:
    """The matrix with its 12-bit copy; None if it does not get smaller without loss.

    Rows must be multiples of 64 weights, at most 16,384, and at most 1 % of the weights may have an upper byte outside
    the 15 commonest.

    >>> planes = pack(torch.randn(8, 128, generator=torch.Generator().manual_seed(0)).bfloat16())
    >>> planes.blocks.nbytes / planes.matrix.nbytes, torch.equal(unpack(planes), planes.matrix)
    (0.75, True)
    """
    if not packable(matrix):
        return None
    n_rows, n = matrix.shape
    counts = torch.empty(n_rows, 256, dtype=torch.int32, device="cpu")
    library, threads = native.library(), torch.get_num_threads()
    library.wb_upper_bytes(threads, matrix.data_ptr(), matrix.stride(0), n_rows, n, counts.data_ptr())
    common = counts.sum(0).topk(N_CODES).indices
    listed_by_row = n - counts[:, common].sum(1)
    n_listed = int(listed_by_row.sum())
    if n_listed > MAX_LISTED * n_rows * n:
        return None
    starts = torch.zeros(n_rows + 1, dtype=torch.int64, device="cpu")
    starts[1:] = listed_by_row.cumsum(0)
    table = torch.zeros(16, dtype=torch.uint8, device="cpu")
    table[:N_CODES] = common.to(torch.uint8)
    blocks = large_pages.empty(n_rows, n // BLOCK * BLOCK_BYTES, dtype=torch.uint8)
    listed_at = torch.empty(n_listed, dtype=torch.int16, device="cpu")
    listed = torch.empty(n_listed, dtype=torch.bfloat16, device="cpu")
    library.wb_pack_planes(
        threads, matrix.data_ptr(), matrix.stride(0), n_rows, n, table.data_ptr(), starts.data_ptr(),
        blocks.data_ptr(), listed_at.data_ptr(), listed.data_ptr(),
    )  # fmt: skip
    return Planes(matrix, blocks, table, starts, listed_at, listed, matrix._version)


def packable(matrix: Tensor) -> bool:
    """True if the native kernels can pack this matrix: bf16 on the CPU, with contiguous rows of a supported length."""
    if not isinstance(matrix, Tensor) or matrix.dtype != torch.bfloat16 or matrix.ndim != 2 or not matrix.numel():
        return False
    n = matrix.shape[1]
    return (
        native.supports(matrix)
        and not matrix.is_inference()
        and matrix.stride(1) == 1
        and n % BLOCK == 0
        and n <= MAX_ROW
    )


def unpack(planes: Planes) -> Tensor:
    """The bf16 matrix [out, in] from the 12-bit copy alone."""
    out = torch.empty(planes.shape, dtype=torch.bfloat16, device="cpu")
    native.library().wb_unpack_planes(
        native.level(), torch.get_num_threads(), *_addresses(planes), out.shape[1], out.shape[0], out.data_ptr()
    )
    return out


def linear(x: Tensor, planes: Planes, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for x [row, in] in bf16, from the 12-bit copy: the bits of `native.linear` with the bf16 matrix.

    Raises ArgumentError for unsupported shapes, dtypes and strides.
    """
    native.check_dense(x, planes.matrix, bias)
    n_out, n_in = planes.matrix.shape
    out = x.new_empty(len(x), n_out)
    if not out.numel():
        return out
    failed = native.library().wb_linear_planes(
        native.level(), torch.get_num_threads(), x.data_ptr(), x.stride(0), len(x), *_addresses(planes),
        None if bias is None else bias.data_ptr(), n_in, n_out, out.data_ptr(),
    )  # fmt: skip
    native.check_memory(failed)
    return out


def _addresses(planes: Planes) -> tuple[int, ...]:
    return tuple(t.data_ptr() for t in (planes.blocks, planes.table, planes.starts, planes.listed_at, planes.listed))
