"""Checks of the tensors that an SAE is made of and called with; they may be from a file of a stranger."""

from typing import TYPE_CHECKING, Any

from workbench.checks import check_type
from workbench.errors import ArgumentError, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def check_plain_tensor(name: str, tensor: Any) -> None:
    """Raises CheckpointError unless `tensor` is an ordinary tensor of real numbers that are all in memory.

    A file can describe a small storage as a tensor of any size (with a stride of 0), which the first operation on it
    would try to allocate.
    """
    import torch

    problem = None
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        problem = f"is a {type(tensor).__name__}"
    elif tensor.layout != torch.strided or tensor.is_nested or tensor.device.type == "meta":
        problem = "is sparse, nested or without values"
    elif not tensor.is_floating_point():
        problem = f"holds {str(tensor.dtype).removeprefix('torch.')}"
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        problem = f"has the shape {list(tensor.shape)} and only {tensor.untyped_storage().nbytes()} bytes of values"
    if problem:
        raise CheckpointError(f"{name} {problem}; it must be a dense tensor of float numbers")


def with_width(name: str, x: Any, width: int) -> "Tensor":
    """`x`, if it is a tensor (… width). Raises ArgumentTypeError for another type, ArgumentError for another width."""
    import torch

    check_type(f"the SAE's {name}", x, torch.Tensor)
    if not x.ndim or x.shape[-1] != width or x.is_complex():
        raise ArgumentError(f"{name} must have real values of shape (… {width}), got {x.dtype} of {list(x.shape)}.")
    return x
