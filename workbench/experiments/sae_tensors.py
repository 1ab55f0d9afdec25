"""Checks of the tensors that an SAE is made of and called with."""

from typing import TYPE_CHECKING, Any

from workbench.checks import check_type
from workbench.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def check_real_tensor(name: str, tensor: Any) -> None:
    """Raises ArgumentTypeError for anything but a tensor, CheckpointError for one that holds no real numbers."""
    import torch

    check_type(name, tensor, torch.Tensor)
    if tensor.is_complex() or tensor.is_meta or tensor.layout != torch.strided:
        raise CheckpointError(f"{name} must be a dense tensor of real numbers, got {tensor.dtype} on {tensor.device}.")


def with_width(name: str, x: Any, width: int) -> "Tensor":
    """`x`, if it is a tensor (… width). Raises ArgumentTypeError for another type, ArgumentError for another width."""
    import torch

    check_type(f"the SAE's {name}", x, torch.Tensor)
    if not x.ndim or x.shape[-1] != width or x.is_complex():
        raise ArgumentError(f"{name} must have real values of shape (… {width}), got {x.dtype} of {list(x.shape)}.")
    return x
