"""Tells code of installed libraries, which a name and a version identify, from code that a user wrote."""

import functools
import importlib.metadata
import os
import site
import sys
import sysconfig
import types
from pathlib import Path

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: classes without it are part of the interpreter or of a C extension
_OWN = f"{Path(__file__).resolve().parent.parent}{os.sep}"  # workbench
_WITH_THE_NUMERICS = {"torch", "numpy", "ml_dtypes"}  # a trace's `numerics` have their versions


def library_of(module_name: object) -> str | None:
    """The library that a module belongs to, with its version; None for a module that a user wrote.

    The version is left out for the standard library, torch and numpy, because every trace records it separately.

    >>> library_of("json"), library_of("torch.nn"), library_of("__main__")
    ('json', 'torch.nn', None)
    """
    if not isinstance(module_name, str):
        return None
    module = sys.modules.get(module_name)
    if not isinstance(module, types.ModuleType):
        return None
    top = module_name.partition(".")[0]
    path = _path(vars(module).get("__file__"))
    if top in sys.stdlib_module_names:
        return module_name if path is None or path.startswith(_stdlib()) else None
    if path is None and module_name.startswith("torch."):  # namespaces that torch makes while it runs, as torch.ops
        return module_name
    if path is None or not path.startswith(_installed()):
        return None
    if top in _WITH_THE_NUMERICS:
        return module_name
    version = _version(top)
    return None if version is None else f"{module_name} {version}"


def is_heap_type(cls: type) -> bool:
    """True for a class that was made while the program runs, by a class statement or by an extension in C."""
    return bool(cls.__flags__ & _HEAP_TYPE)


def is_own(module_name: object) -> bool:
    """True for a module of workbench."""
    return isinstance(module_name, str) and (module_name == "workbench" or module_name.startswith("workbench."))


def module_of_function(fn: types.FunctionType) -> str | None:
    """The name of the module in whose file a function was written, or None.

    `fn.__module__` is not it: functools.wraps copies that from another function.
    """
    name = fn.__globals__.get("__name__")
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is None or vars(module) is not fn.__globals__:
        return None
    file = fn.__code__.co_filename
    if file.startswith("<frozen "):
        return name
    return name if (path := _path(file)) and path.startswith((*_stdlib(), *_installed(), _OWN)) else None


def module_of_class(cls: type) -> str | None:
    """The name of the module that defines a class under its own name, or None for a class made while a program runs."""
    name = type.__dict__["__module__"].__get__(cls)
    if not is_heap_type(cls):
        return str(name)
    found = sys.modules.get(name) if isinstance(name, str) else None
    for part in type.__dict__["__qualname__"].__get__(cls).split("."):
        found = None if found is None else vars(found).get(part) if hasattr(found, "__dict__") else None
    return name if found is cls else None


@functools.cache
def _stdlib() -> tuple[str, ...]:
    """The folders of the standard library."""
    return tuple(f"{Path(sysconfig.get_path(name)).resolve()}{os.sep}" for name in ("stdlib", "platstdlib"))


@functools.cache
def _installed() -> tuple[str, ...]:
    """The folders of installed libraries."""
    paths = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    folders = (*site.getsitepackages(), site.getusersitepackages(), *paths)
    return tuple({f"{Path(folder).resolve()}{os.sep}" for folder in folders})


@functools.cache
def _path(file: object) -> str | None:
    try:
        return str(Path(file).resolve()) if isinstance(file, str) and not file.startswith("<") else None
    except (OSError, ValueError, RuntimeError):
        return None


@functools.cache
def _version(top: str) -> str | None:
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        version = getattr(sys.modules.get(top), "__version__", None)
        return version if isinstance(version, str) else None
