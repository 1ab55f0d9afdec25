"""The fingerprint of a function, by which a manifest identifies an edit."""

import functools
import hashlib
import secrets
import types

import numpy as np
import torch
from torch import Tensor


def fingerprint(obj) -> str:
    """A digest of a function and the values it reads: the same code with the same values gives the same digest.

    An object that cannot be inspected (a C function with state, an open file) gets a new digest every time. Two equal
    runs may then get different ids, but two different runs never get the same id.
    """
    h = hashlib.sha256()
    _feed(h, obj, frozenset())
    return h.hexdigest()[:32]


def _feed(h, obj, seen: frozenset[int]) -> None:
    h.update(f"{type(obj).__module__}.{type(obj).__qualname__}\0".encode())
    if id(obj) in seen:
        return
    if obj is None or isinstance(obj, bool | int | float | complex | str | bytes | range | slice | torch.dtype):
        h.update(repr(obj).encode() + b"\0")
        return
    if isinstance(obj, types.ModuleType | types.BuiltinFunctionType | type):
        h.update(f"{getattr(obj, '__module__', '')}.{getattr(obj, '__qualname__', obj.__name__)}\0".encode())
        return
    seen = seen | {id(obj)}
    for part in _parts(obj):
        if isinstance(part, bytes):
            h.update(part + b"\0")
        else:
            _feed(h, part, seen)


def _parts(obj) -> list:
    """The parts that identify an object, in order."""
    if isinstance(obj, Tensor):
        plain = obj.detach().cpu().contiguous()
        return [f"{plain.dtype}{tuple(plain.shape)}", plain.flatten().view(torch.uint8).numpy().tobytes()]
    if isinstance(obj, np.ndarray):
        return [f"{obj.dtype}{obj.shape}", np.ascontiguousarray(obj).tobytes()]
    if isinstance(obj, np.generic):
        return [obj.item()]
    if isinstance(obj, list | tuple):
        return [len(obj), *obj]
    if isinstance(obj, dict):
        return [len(obj), *(part for item in obj.items() for part in item)]
    if isinstance(obj, set | frozenset):
        return sorted(map(fingerprint, obj))
    if isinstance(obj, functools.partial):
        return [obj.func, obj.args, obj.keywords]
    if isinstance(obj, types.MethodType):
        return [obj.__func__, obj.__self__]
    if isinstance(obj, types.FunctionType):
        closure = [cell.cell_contents for cell in obj.__closure__ or ()]
        read = {name: obj.__globals__[name] for name in _names(obj.__code__) if name in obj.__globals__}
        return [_code(obj.__code__), closure, obj.__defaults__, obj.__kwdefaults__, read]
    if isinstance(obj, torch.nn.Module):
        return [obj.training, dict(obj.state_dict()), type(obj).forward]
    if hasattr(obj, "__dict__"):
        call = vars(type(obj)).get("__call__")
        return [vars(obj), *([call] if isinstance(call, types.FunctionType) else [])]
    return [secrets.token_bytes(16)]


def _names(code) -> list[str]:
    """The global names that a code object may read, including those of nested functions."""
    inner = [name for const in code.co_consts if hasattr(const, "co_code") for name in _names(const)]
    return sorted({*code.co_names, *inner})


def _code(code) -> tuple:
    """The contents of a code object, without its file and line numbers."""
    consts = tuple(_code(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts)
    return (code.co_code.hex(), consts, code.co_names, code.co_varnames)
