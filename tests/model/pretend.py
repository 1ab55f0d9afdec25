"""A GPU that is none: tensors that say they are on CUDA, compute on the CPU, and refuse what CUDA would refuse.

    with pretended_cuda():
        model = Model(folder, device="cuda")

Two devices in one operation are an error, as they would be (but for numbers without axes, and for positions that index
a tensor on the GPU); so are `numpy()` and `data_ptr()`. Of a GPU's roundings and of its memory it knows nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda:0")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
METHODS = ("__getitem__", "__setitem__", "contiguous", "nonzero", "tolist", "item", "__bool__", "__int__", "__float__")
DRIVEN = {getattr(torch.Tensor, name) for name in METHODS}  # they look for a driver before anything is dispatched
INDEXES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class OnCuda(torch.Tensor):
    """Holds a tensor of the CPU and gives CUDA as its device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=CUDA,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        alien = [x for x in tensors if not isinstance(x, OnCuda) and x.ndim]
        if alien and func not in MOVES and not (func in INDEXES and isinstance(args[0], OnCuda)):
            raise RuntimeError(f"{func} got tensors on cuda:0 and on the CPU: {[tuple(x.shape) for x in alien]}")
        there = isinstance(args[0], OnCuda) if func is aten.copy_.default else True
        if (device := kwargs.get("device")) is not None:
            there, kwargs["device"] = torch.device(device).type == "cuda", "cpu"
        found = func(*tree_map(_down, args), **tree_map(_down, kwargs))
        if func._schema.is_mutable:  # in place, or into `out`
            return kwargs.get("out", args[0])
        return tree_map(lambda x: OnCuda(x) if isinstance(x, torch.Tensor) and there else x, found)


class _Factories(TorchFunctionMode):
    """Makes and moves tensors to CUDA without asking a driver."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args, kwargs = list(args), dict(kwargs or {})
        if func in DRIVEN:
            return _held(func, *args)
        if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):  # x.to(y)
            args[1:2] = [args[1].device, args[1].dtype]
        if func is torch.where:  # it would put a number onto the GPU by itself
            args[1:] = [torch.tensor(a) if isinstance(a, int | float) else a for a in args[1:]]
        given = kwargs.get("device") if "device" in kwargs else next((a for a in args[1:] if _names_cuda(a)), None)
        if not _names_cuda(given):
            return func(*args, **kwargs)
        kwargs.pop("device", None)
        args = [args[0], *(a for a in args[1:] if not _names_cuda(a))] if args else args
        if func is torch.Tensor.to and len(args) == 1 and not kwargs:
            found = args[0]
        else:
            found = func(*args, **kwargs)
        return found if isinstance(found, OnCuda) else OnCuda(found)


def _held(func, x, *rest):
    if not isinstance(x, OnCuda):
        if any(isinstance(y, OnCuda) for y in tree_flatten(rest)[0]):
            raise RuntimeError("a tensor on the CPU was indexed with, or given, one on cuda:0")
        return func(x, *rest)
    found = func(x.held, *tree_map(_down, rest))
    return OnCuda(found) if isinstance(found, torch.Tensor) else found


def _down(x):
    return x.held if isinstance(x, OnCuda) else x


def _names_cuda(x) -> bool:
    return isinstance(x, str | torch.device) and str(x).startswith("cuda")


@contextmanager
def pretended_cuda() -> Iterator[None]:
    with _Factories(), mock.patch("torch.cuda.mem_get_info", return_value=(8 << 30, 16 << 30)):
        yield
