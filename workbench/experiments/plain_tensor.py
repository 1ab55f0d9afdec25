"""Checks a tensor from a file of a stranger before anything is computed with it."""

from typing import Any

from workbench.errors import CheckpointError


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
