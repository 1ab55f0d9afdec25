"""Matrices that stay in MXFP4: a quarter of bf16's bytes, read in place, usually straight from the mapped file."""

from typing import NamedTuple

import torch
from torch import Tensor

from workbench.model.kernels.reference import GROUP, dequantise_mxfp4


class Packed(NamedTuple):
    """The matrices of all experts of one layer, [expert, out, in], as the safetensors releases store them."""

    blocks: Tensor  # uint8, expert out group 16
    scales: Tensor  # uint8, expert out group
    usual: bool  # whether all scales lie where the native kernels are exact; see `native.safe_scales`

    @property
    def shape(self) -> torch.Size:
        experts, rows, groups = self.scales.shape
        return torch.Size((experts, rows, GROUP * groups))

    @property
    def device(self) -> torch.device:
        return self.blocks.device


Matrices = Tensor | Packed


def dense(matrices: Matrices, expert: int, dtype: torch.dtype) -> Tensor:
    """One expert's matrix [out, in] as numbers; what is packed is exact in every dtype `dequantise_mxfp4` takes."""
    if isinstance(matrices, Tensor):
        return matrices[expert]
    return dequantise_mxfp4(matrices.blocks[expert], matrices.scales[expert], dtype=dtype)
