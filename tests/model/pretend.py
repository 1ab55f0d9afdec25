"""A simulated GPU: tensors with a CUDA device that compute on the CPU and raise the errors that CUDA would raise.

    with simulated_cuda():
        model = Model(folder, device="cuda")

Two devices in one operation are an error, as on CUDA (except for scalars, and for positions that index a tensor on the
GPU). `numpy()` and `data_ptr()` are errors as well. A GPU's rounding and memory are not simulated.
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
DRIVEN = {getattr(torch.Tensor, name) for name in METHODS}  # they look for a driver before the dispatch
INDEXES = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class OnCuda(torch.Tensor):
    """A tensor on the CPU that reports CUDA as its device."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            on_cpu.shape,
            strides=on_cpu.stride(),
            storage_offset=on_cpu.storage_offset(),
            dtype=on_cpu.dtype,
            device=CUDA,
            requires_grad=on_cpu.requires_grad,
        )
        wrapper.on_cpu = on_cpu
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        cpu_tensors = [x for x in tensors if not isinstance(x, OnCuda) and x.ndim]
        if cpu_tensors and func not in MOVES and not (func in INDEXES and isinstance(args[0], OnCuda)):
            raise RuntimeError(f"{func} got tensors on cuda:0 and on the CPU: {[tuple(x.shape) for x in cpu_tensors]}")
        on_gpu = isinstance(args[0], OnCuda) if func is aten.copy_.default else True
        if (device := kwargs.get("device")) is not None:
            on_gpu, kwargs["device"] = torch.device(device).type == "cuda", "cpu"
        result = func(*tree_map(_unwrap, args), **tree_map(_unwrap, kwargs))
        if func._schema.is_mutable:  # in place, or into `out`
            return kwargs.get("out", args[0])
        return tree_map(lambda x: OnCuda(x) if isinstance(x, torch.Tensor) and on_gpu else x, result)


class _Factories(TorchFunctionMode):
    """Creates and moves tensors to CUDA without a driver."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        args, kwargs = list(args), dict(kwargs or {})
        if func in DRIVEN:
            return _on_cpu(func, *args)
        if func is torch.Tensor.to and len(args) > 1 and isinstance(args[1], torch.Tensor):  # x.to(y)
            args[1:2] = [args[1].device, args[1].dtype]
        if func is torch.where:  # it would move a number onto the GPU by itself
            args[1:] = [torch.tensor(a) if isinstance(a, int | float) else a for a in args[1:]]
        device = kwargs.get("device") if "device" in kwargs else next((a for a in args[1:] if _names_cuda(a)), None)
        if not _names_cuda(device):
            return func(*args, **kwargs)
        kwargs.pop("device", None)
        args = [args[0], *(a for a in args[1:] if not _names_cuda(a))] if args else args
        if func is torch.Tensor.to and len(args) == 1 and not kwargs:
            result = args[0]
        else:
            result = func(*args, **kwargs)
        return result if isinstance(result, OnCuda) else OnCuda(result)


def _on_cpu(func, x, *rest):
    if not isinstance(x, OnCuda):
        if any(isinstance(y, OnCuda) for y in tree_flatten(rest)[0]):
            raise RuntimeError("a tensor on the CPU was indexed with, or assigned, one on cuda:0")
        return func(x, *rest)
    result = func(x.on_cpu, *tree_map(_unwrap, rest))
    return OnCuda(result) if isinstance(result, torch.Tensor) else result


def _unwrap(x):
    return x.on_cpu if isinstance(x, OnCuda) else x


def _names_cuda(x) -> bool:
    return isinstance(x, str | torch.device) and str(x).startswith("cuda")


@contextmanager
def simulated_cuda() -> Iterator[None]:
    with _Factories(), mock.patch("torch.cuda.mem_get_info", return_value=(8 << 30, 16 << 30)):
        yield
