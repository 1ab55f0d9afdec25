"""Matrices that stay in MXFP4: a quarter of bf16's bytes, used in place, usually in the mapped file."""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.model.kernels.reference import GROUP, dequantize_mxfp4


class Packed(NamedTuple):
    """The matrices of all experts of one layer, [expert, out, in], as the safetensors releases store them."""

    blocks: Tensor  # uint8, expert out group 16
    scales: Tensor  # uint8, expert out group
    scales_are_safe: bool  # True if the native kernels are exact for all scales; see `native.safe_scales`

    @property
    def shape(self) -> torch.Size:
        experts, rows, groups = self.scales.shape
        return torch.Size((experts, rows, GROUP * groups))

    @property
    def device(self) -> torch.device:
        return self.blocks.device


Matrices = Tensor | Packed


def dense(matrices: Matrices, expert: int, dtype: torch.dtype) -> Tensor:
    """One expert's dequantized matrix [out, in]; packed values are exact in every dtype of `dequantize_mxfp4`."""
    if isinstance(matrices, Tensor):
        return matrices[expert]
    return dequantize_mxfp4(matrices.blocks[expert], matrices.scales[expert], dtype=dtype)
