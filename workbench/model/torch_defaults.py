"""The settings that torch starts with. A run needs them, whatever the caller has set for the rest of the program."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Within the block: no autocast; new tensors are on the CPU, and in float32 unless another dtype is given.

    Under autocast, or with another default device or dtype, a run would fail in the middle or have other numbers. The
    default dtype is one of the whole process; if it is float32 already, nothing is changed.
    """
    with ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        dtype = torch.get_default_dtype()
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
