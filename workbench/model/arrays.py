"""Lossless conversion between torch tensors and numpy arrays."""

import ml_dtypes
import numpy as np
import torch
from torch import Tensor


def array(x: Tensor) -> np.ndarray:
    """The tensor as a numpy array: bfloat16 stays bfloat16 (ml_dtypes), int64 becomes int32."""
    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return (x.int() if x.dtype == torch.int64 else x).numpy()


def tensor(a: np.ndarray) -> Tensor:
    """The inverse of `array`."""
    a = np.ascontiguousarray(a)
    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(a.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(a.copy())


def exact(x: Tensor) -> np.ndarray:
    """The tensor as a numpy array in fp32 or wider, without loss."""
    return x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32)).numpy()
