"""The fingerprint of a function: how a manifest tells one edit from another."""

import functools
import hashlib
import secrets
import types

import numpy as np
import torch
from torch import Tensor


def fingerprint(thing) -> str:
    """A digest of a function with all that it reads: the same code with the same values gives the same digest.

    What cannot be looked into (a C function with state, an open file) counts as new every time: two runs may then get
    two ids although they are one, but never one id although they are two.
    """
    h = hashlib.sha256()
    _feed(h, thing, frozenset())
    return h.hexdigest()[:32]


def _feed(h, thing, met: frozenset[int]) -> None:
    h.update(f"{type(thing).__module__}.{type(thing).__qualname__}\0".encode())
    if id(thing) in met:
        return
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes | range | slice | torch.dtype):
        h.update(repr(thing).encode() + b"\0")
        return
    if isinstance(thing, types.ModuleType | types.BuiltinFunctionType | type):
        h.update(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}\0".encode())
        return
    met = met | {id(thing)}
    for part in _parts(thing):
        if isinstance(part, bytes):
            h.update(part + b"\0")
        else:
            _feed(h, part, met)


def _parts(thing) -> list:
    """What makes a thing what it is, in order."""
    if isinstance(thing, Tensor):
        plain = thing.detach().cpu().contiguous()
        return [f"{plain.dtype}{tuple(plain.shape)}", plain.flatten().view(torch.uint8).numpy().tobytes()]
    if isinstance(thing, np.ndarray):
        return [f"{thing.dtype}{thing.shape}", np.ascontiguousarray(thing).tobytes()]
    if isinstance(thing, np.generic):
        return [thing.item()]
    if isinstance(thing, list | tuple):
        return [len(thing), *thing]
    if isinstance(thing, dict):
        return [len(thing), *(part for item in thing.items() for part in item)]
    if isinstance(thing, set | frozenset):
        return sorted(map(fingerprint, thing))
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, types.FunctionType):
        closure = [cell.cell_contents for cell in thing.__closure__ or ()]
        read = {name: thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__}
        return [_code(thing.__code__), closure, thing.__defaults__, thing.__kwdefaults__, read]
    if isinstance(thing, torch.nn.Module):
        return [thing.training, dict(thing.state_dict()), type(thing).forward]
    if hasattr(thing, "__dict__"):
        call = vars(type(thing)).get("__call__")
        return [vars(thing), *([call] if isinstance(call, types.FunctionType) else [])]
    return [secrets.token_bytes(16)]


def _names(code) -> list[str]:
    """The global names that a code object may read, those of functions inside it included."""
    inner = [name for const in code.co_consts if hasattr(const, "co_code") for name in _names(const)]
    return sorted({*code.co_names, *inner})


def _code(code) -> tuple:
    """What a code object does, without where it stands."""
    consts = tuple(_code(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts)
    return (code.co_code.hex(), consts, code.co_names, code.co_varnames)
