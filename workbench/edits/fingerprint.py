"""The fingerprint of a function, by which a manifest identifies an edit and a sweep its metric.

It covers all that the result may depend on: code, closures, defaults, the globals that the code names, classes with
their bases, attributes and methods, the state of objects and of random generators, the attributes of a user's modules
that the code names. Code of installed libraries is identified by name and version.

What cannot be looked into (a generator, an open file, a C object with hidden state, code that reads a file or the
clock) makes the fingerprint new every time. Two equal runs may then get different ids, but two different runs never get
the same one. No method of an object is called to look into it, except those that pickle an object of a library.
"""

import builtins
import collections
import contextvars
import copyreg
import dataclasses
import functools
import hashlib
import importlib.util
import logging
import operator
import random
import secrets
import sys
import types
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.edits import outside_reads
from workbench.edits.library_code import is_heap_type, is_own, library_of, module_of_class, module_of_function
from workbench.edits.python_code import code_contents, globals_of, reads_of, text_of
from workbench.traces import Trace

MAX_OBJECTS = 2_000_000  # in one walk, about 10 s
_TEXT_TYPES = {  # a text says all about an object of these types
    cls: f"{cls.__module__}.{cls.__qualname__}\0".encode()
    for cls in (type(None), bool, int, float, complex, str, bytes, range, torch.dtype, type(...), type(NotImplemented))
}
_CONTENTS = (dict, list, tuple, set, frozenset, int, float, complex, str, bytes, bytearray)  # a class may extend them
# What Python itself writes into a class: nothing that its methods compute with.
_OF_EVERY_CLASS = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__qualname__",
    "__annotations__",
    "__annotate__",
    "__annotate_func__",
    "__annotations_cache__",
    "__firstlineno__",
    "__static_attributes__",
    "__abstractmethods__",
    "_abc_impl",
    "__parameters__",
    "__orig_bases__",
    "__match_args__",
    "__dataclass_params__",
    "__slotnames__",
    "__type_params__",
    "__slots__",
}


class _Unknown(Exception):
    """Raised where an object cannot be looked into; the argument says what it is."""


def fingerprint(obj: Any) -> str:
    """A digest of a function and all it depends on: the same code with the same values gives the same digest.

    An object that cannot be looked into gets a new digest every time.
    """
    return identify(obj)[0]


def identify(obj: Any) -> tuple[str, str | None]:
    """The fingerprint, and None; or a new digest, and what it is that cannot be looked into."""
    walk = _Walk({})
    try:
        walk.feed(obj)
        walk.feed_namespaces()
        return walk.digest(), None
    except _Unknown as unknown:
        reason = str(unknown)
    except RecursionError:
        reason = "values that are nested too deep"
    except Exception as error:  # an object may raise anything
        reason = f"an object that raises {type(error).__name__} when it is looked into"
    return secrets.token_hex(16), reason


class _Walk:
    """Feeds objects into a hash: type, then contents; an object that was fed before is fed as its number."""

    def __init__(self, digests: dict[int, str | None]):
        self._hash = hashlib.sha256()
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no id is used twice
        self._digests = digests  # of elements of sets, by id; None while an element is being walked
        self._names: set[str] = set()  # all names in the code so far
        self._namespaces: dict[int, Any] = {id(owner): owner for owner in (builtins, Tensor)}
        self._has_random_states = False
        self._reads_by_text = False  # `getattr(module, NAME)` and the like

    def digest(self) -> str:
        return self._hash.hexdigest()[:32]

    def feed(self, obj: Any) -> None:
        cls = type(obj)
        if cls in _TEXT_TYPES:
            return self._hash.update(_TEXT_TYPES[cls] + text_of(obj).encode("utf-8", "surrogatepass") + b"\0")
        self._text(f"{cls.__module__}.{cls.__qualname__}")
        if isinstance(obj, types.ModuleType | types.BuiltinFunctionType | type) and self._is_named(obj):
            return None
        atoms = type(obj) is tuple and all(type(item) in _TEXT_TYPES for item in obj)  # Python may share equal ones
        if not atoms:
            if (number := self._numbers.get(id(obj))) is not None:
                return self._text(f"#{number}")
            self._numbers[id(obj)] = len(self._numbers)
            if len(self._numbers) > MAX_OBJECTS:
                raise _Unknown(f"more than {MAX_OBJECTS:,} objects")
        self._alive.append(obj)
        for part in self._parts(obj, cls):
            if isinstance(part, memoryview):
                self._hash.update(part)
                self._hash.update(b"\0")
            else:
                self.feed(part)
        return None

    def feed_namespaces(self) -> None:
        """The attributes of modules that the code names: all of a user's module, what was changed of a library's."""
        fed: set[tuple[int, str]] = set()
        if self._reads_by_text and any(self._is_of_user(owner) for owner in self._namespaces.values()):
            raise _Unknown("what is read from a module by a text, as with getattr")
        while True:
            found = [
                (owner, name)
                for owner in list(self._namespaces.values())
                for name in sorted(self._names)
                if (id(owner), name) not in fed and name in vars(owner)
            ]
            if not found:
                return
            for owner, name in found:
                fed.add((id(owner), name))
                value = vars(owner)[name]
                if isinstance(getattr(value, "__self__", None), random.Random | np.random.RandomState):
                    self._feed_random_states()
                elif isinstance(value, types.ModuleType) and library_of(value.__name__):
                    self._check_outside_module(value.__name__)
                    self._namespaces[id(value)] = value
                elif isinstance(value, type) and issubclass(value, torch.nn.Module) and self._is_of_library(owner):
                    self._feed_random_states()  # it may draw its first weights inside the function
                elif not self._is_of_library(owner) or _is_put_into_library(owner, name, value):
                    self._text(f"{owner.__name__}.{name}")
                    self.feed(value)

    def _text(self, text: str) -> None:
        self._hash.update(text.encode("utf-8", "surrogatepass") + b"\0")

    # -- what has a name ----------------------------------------------------------------------------------------------

    def _is_named(self, obj: Any) -> bool:
        """Feeds the name of a module, a class or a function in C. True if that is enough to know it."""
        self._text(f"{getattr(obj, '__module__', '')}.{getattr(obj, '__qualname__', obj.__name__)}")
        if isinstance(obj, types.ModuleType):
            self._namespaces[id(obj)] = obj
            self._alive.append(obj)
            self._check_outside_module(obj.__name__)
            self._version(obj.__name__)
            return True
        if isinstance(obj, types.BuiltinFunctionType):
            self._check_names({obj.__name__}, obj.__module__, _builtins_of({obj.__name__}, obj.__module__))
            owner = obj.__self__
            self._version(obj.__module__)
            return owner is None or isinstance(owner, types.ModuleType) or _is_library_class(owner)
        if _is_library_class(obj):
            self._version(module_of_class(obj))
            return True
        return False

    def _version(self, module: str | None) -> None:
        library = None if is_own(module) else library_of(module)
        if library and library != module:
            self._text(library)

    def _check_outside_module(self, module: str | None) -> None:
        if module and module.partition(".")[0] in outside_reads.MODULES and library_of(module):
            raise _Unknown(f"what the module {module} reads")

    def _check_names(self, names: Iterable[str], module: str | None, builtin_names: Iterable[str] = ()) -> None:
        """Refuses code that reads from outside of its values; adds the random generators where it may draw numbers."""
        self._check_outside_module(module)
        names = set(names)
        if outside := sorted(names & outside_reads.NAMES) or sorted(set(builtin_names) & outside_reads.BUILTINS):
            raise _Unknown(f"what {outside[0]!r} reads")
        if names & outside_reads.RANDOM:
            self._feed_random_states()

    def _feed_random_states(self) -> None:
        if not self._has_random_states:
            self._has_random_states = True
            self.feed(outside_reads.random_states())

    def _is_of_user(self, owner: Any) -> bool:
        return isinstance(owner, types.ModuleType) and not self._is_of_library(owner)

    def _is_of_library(self, owner: Any) -> bool:
        if isinstance(owner, type):
            return True
        return is_own(owner.__name__) or library_of(owner.__name__) is not None

    # -- what is looked into ------------------------------------------------------------------------------------------

    def _parts(self, obj: Any, cls: type) -> list[Any]:
        """The parts that identify an object, in order."""
        if issubclass(cls, Tensor):
            return self._of_tensor(obj, cls)
        if issubclass(cls, np.ndarray | np.generic):
            return self._of_array(obj, cls)
        if cls is types.FunctionType:
            return self._of_function(obj)
        if isinstance(obj, type):
            return self._of_class(obj)
        if cls in _PARTS:
            return _PARTS[cls](obj)
        if cls in (set, frozenset):
            return self._of_set(obj)
        if issubclass(cls, np.random.BitGenerator):
            return [obj.state]
        if isinstance(obj, functools._lru_cache_wrapper):
            if obj.cache_info().currsize:
                raise _Unknown("the cache of a function")
            return [vars(obj), obj.cache_parameters()]
        if cls in (operator.attrgetter, operator.methodcaller):
            self._reads_by_text = True
        if issubclass(cls, Trace):
            return [obj.manifest.content_hash, {name: obj.raw(name) for name in obj.names()}]
        if issubclass(cls, logging.Logger):
            return [obj.name]  # it only writes
        return self._of_object(obj, cls)

    def _of_set(self, elements: Any) -> list[str]:
        if all(type(element) in _TEXT_TYPES for element in elements):
            return sorted(f"{type(element).__name__} {text_of(element)}" for element in elements)
        return sorted(map(self._digest_alone, elements))

    def _digest_alone(self, element: Any) -> str:
        """The digest of an element of a set, which does not depend on the order of the set."""
        if id(element) not in self._digests:
            self._digests[id(element)] = None
            walk = _Walk(self._digests)
            walk.feed(element)
            self._digests[id(element)] = walk.digest()
            self._alive.append(walk)
            self._names |= walk._names
            self._reads_by_text |= walk._reads_by_text
            self._namespaces |= walk._namespaces
        if (digest := self._digests[id(element)]) is None:
            raise _Unknown("a set that contains itself")
        return digest

    def _of_tensor(self, obj: Tensor, cls: type) -> list[Any]:
        if cls not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or obj.is_quantized or obj.is_nested:
            raise _Unknown(f"a {cls.__name__} of torch")
        extra: list[Any] = [vars(obj)] if vars(obj) else []
        if obj.is_leaf and obj.grad is not None:
            extra.append(obj.grad)
        if obj.layout == torch.sparse_coo:
            return [tuple(obj.shape), obj._indices(), obj._values(), *extra]
        if obj.layout != torch.strided:
            raise _Unknown(f"a tensor of layout {obj.layout}")
        described = f"{obj.dtype}{tuple(obj.shape)}"
        if obj.is_meta:
            return [described, *extra]
        plain = obj.detach().cpu().resolve_conj().resolve_neg().contiguous()
        return [described, plain.flatten().view(torch.uint8).numpy().data, *extra]

    def _of_array(self, obj: Any, cls: type) -> list[Any]:
        if issubclass(cls, np.generic):
            array = np.asarray(obj)
            return [obj.item()] if type(obj.item()) in _TEXT_TYPES else [array]
        array = np.ndarray.view(obj, np.ndarray)
        described = f"{array.dtype}{array.shape}"
        state = [] if cls is np.ndarray else self._state(obj, cls)
        if array.dtype.hasobject or array.dtype.kind == "T":  # elements are pointers
            return [described, array.ravel().tolist(), *state]
        return [described, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, *state]

    def _of_function(self, fn: types.FunctionType) -> list[Any]:
        code, module = fn.__code__, module_of_function(fn)
        closure = [_content(cell) for cell in fn.__closure__ or ()]
        attributes = {name: value for name, value in vars(fn).items() if name != "__wrapped__"}
        extra = [attributes] if attributes else []
        names, builtin_names, imported = reads_of(code, fn.__globals__)
        if module and not is_own(module) and (library := library_of(module)):
            self._check_names({code.co_name, *(names & outside_reads.RANDOM)}, module)
            return [f"{library}.{code.co_qualname}", closure, fn.__defaults__, fn.__kwdefaults__, *extra]
        if not is_own(module):
            self._check_names(names, None, builtin_names)
            self._names |= names
            self._reads_by_text |= bool(names & outside_reads.BY_TEXT)
            self._import(imported, fn.__globals__)
        read = {name: fn.__globals__[name] for name in globals_of(code) if name in fn.__globals__}
        return [code_contents(code), closure, fn.__defaults__, fn.__kwdefaults__, read, *extra]

    def _import(self, names: Iterable[str], scope: dict[str, Any]) -> None:
        """The modules that a function imports while it runs."""
        for name in names:
            package = scope.get("__package__")
            full = [name, *([f"{package}.{name}".rstrip(".")] if package else [])]
            loaded = [sys.modules[each] for each in full if isinstance(sys.modules.get(each), types.ModuleType)]
            for module in loaded:
                self._check_outside_module(module.__name__)
                self._namespaces[id(module)] = module
            top = name.partition(".")[0]
            if not loaded and top not in sys.stdlib_module_names:
                spec = importlib.util.find_spec(top) if top else None
                raise _Unknown(f"the module {name}, which {'is not loaded yet' if spec else 'does not exist'}")

    def _of_class(self, cls: type) -> list[Any]:
        attributes = {name: value for name, value in vars(cls).items() if name not in _OF_EVERY_CLASS}
        if "__dataclass_fields__" in attributes:  # methods that it has written follow from the fields
            attributes = {name: value for name, value in attributes.items() if not _is_generated(value)}
        bases = [base for base in type.__dict__["__bases__"].__get__(cls) if base is not object]
        return [bases, type(cls) if type(cls) is not type else None, attributes]

    def _of_object(self, obj: Any, cls: type) -> list[Any]:
        own = module_of_class(cls)
        if is_own(own) and hasattr(cls, "identity_parts"):
            return obj.identity_parts()
        if is_own(own):  # the class is known by its name
            call = vars(cls).get("__call__")
            state = self._state(obj, cls)[:1] if cls.__dictoffset__ else self._state(obj, cls)
            return [*state, *([call] if isinstance(call, types.FunctionType) else [])]
        methods = [vars(cls).get(name) for name in ("forward", "__call__")]
        if _is_library_class(cls):
            for method in methods:
                if isinstance(method, types.FunctionType):
                    self._check_names(outside_reads.RANDOM.intersection(reads_of(method.__code__, {})[0]), None)
            changed = {n: v for n, v in vars(cls).items() if _is_put_into_library(cls, n, v)}
            return [cls, *([changed] if changed else []), *self._contents(obj, cls), *self._state(obj, cls)]
        return [cls, *self._contents(obj, cls), *self._state(obj, cls)]

    def _contents(self, obj: Any, cls: type) -> list[Any]:
        """The contents of an object of a class that extends list, dict, int, …"""
        base = next((base for base in _CONTENTS if issubclass(cls, base)), None)
        if base is None:
            return []
        if base in (set, frozenset):
            return self._of_set(list(base.__iter__(obj)))
        if base is dict:
            factory = [obj.default_factory] if issubclass(cls, collections.defaultdict) else []
            return [len(dict.keys(obj)), *(part for item in dict.items(obj) for part in item), *factory]
        if base in (list, tuple):
            return [list(base.__iter__(obj))]
        plus = vars(base)["__add__"]  # gives the number or text without what the class adds
        return [plus(obj, base())]

    def _state(self, obj: Any, cls: type) -> list[Any]:
        """The attributes of an object, in __dict__ and in __slots__; what pickles it if it has a hidden state in C."""
        state, size = [], object.__basicsize__
        if cls.__dictoffset__:
            state.append(_dict_of(obj, cls))
            size += 8 if cls.__dictoffset__ > 0 else 0
        size += 8 if cls.__weakrefoffset__ > 0 else 0
        for base in cls.__mro__:
            if "__slots__" in vars(base):
                slots = [v for v in vars(base).values() if isinstance(v, types.MemberDescriptorType)]
                state += [_slot(slot, obj, cls) for slot in slots]
                size += 8 * len(slots)
        extends = issubclass(cls, (*_CONTENTS, np.ndarray))
        hidden = [
            b for b in cls.__mro__ if not is_heap_type(b) and b is not object and b not in (*_CONTENTS, np.ndarray)
        ]
        known = (torch.Size, collections.defaultdict, collections.OrderedDict)
        if cls not in known and (hidden or (cls.__basicsize__ > size and not extends)):
            state.append(_reduced(obj, cls))
        return state


def _is_generated(value: Any) -> bool:
    """True for a method that dataclasses has compiled from a text."""
    return isinstance(value, types.FunctionType) and value.__code__.co_filename == "<string>"


def _reduced(obj: Any, cls: type) -> Any:
    """What pickle would write of an object of a library."""
    for base in cls.__mro__:
        if method := next((vars(base)[n] for n in ("__reduce_ex__", "__reduce__") if n in vars(base)), None):
            if isinstance(method, types.FunctionType) and module_of_function(method) is None:
                raise _Unknown(f"a {cls.__name__}, which pickles itself")
            break
    special = copyreg.dispatch_table.get(cls)
    try:
        reduced: Any = special(obj) if special else obj.__reduce_ex__(4)
    except Exception:
        raise _Unknown(f"a {cls.__name__}") from None
    if isinstance(reduced, str):
        module = sys.modules.get(getattr(obj, "__module__", None) or "")
        if getattr(module, reduced, None) is not obj:
            raise _Unknown(f"a {cls.__name__}")
        return reduced
    parts: list[Any] = list(reduced)
    for i in (3, 4):  # iterators over the elements of a list or dict
        if len(parts) > i and parts[i] is not None:
            parts[i] = list(parts[i])
    return parts


def _dict_of(obj: Any, cls: type) -> dict[str, Any]:
    for base in cls.__mro__:
        if "__dict__" in vars(base):
            descriptor = vars(base)["__dict__"]
            if isinstance(descriptor, types.GetSetDescriptorType | types.MemberDescriptorType):
                return descriptor.__get__(obj, cls)
            raise _Unknown(f"a {cls.__name__}")  # it computes its own
    return object.__getattribute__(obj, "__dict__")


def _slot(slot: types.MemberDescriptorType, obj: Any, cls: type) -> Any:
    try:
        return [slot.__name__, slot.__get__(obj, cls)]
    except AttributeError:  # not set
        return slot.__name__


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        raise _Unknown("a variable without a value") from None


def _of_slice(obj: slice) -> list[Any]:
    return [obj.start, obj.stop, obj.step]


_PARTS: dict[type, Any] = {
    list: lambda obj: [len(obj), *obj],
    tuple: lambda obj: [len(obj), *obj],
    dict: lambda obj: [len(obj), *(part for item in obj.items() for part in item)],
    types.MappingProxyType: lambda obj: [dict(obj)],
    slice: _of_slice,
    bytearray: lambda obj: [bytes(obj)],
    functools.partial: lambda obj: [obj.func, obj.args, obj.keywords, *([vars(obj)] if vars(obj) else [])],
    functools.cached_property: lambda obj: [obj.func, obj.attrname],
    weakref.ReferenceType: lambda obj: [obj()],
    types.MethodType: lambda obj: [obj.__func__, obj.__self__],
    types.BuiltinFunctionType: lambda obj: [obj.__self__],
    types.MethodWrapperType: lambda obj: [obj.__name__, obj.__self__],
    types.MethodDescriptorType: lambda obj: [obj.__objclass__, obj.__name__],
    types.WrapperDescriptorType: lambda obj: [obj.__objclass__, obj.__name__],
    types.ClassMethodDescriptorType: lambda obj: [obj.__objclass__, obj.__name__],
    types.CellType: lambda obj: [_content(obj)],
    types.CodeType: lambda obj: [code_contents(obj)],
    staticmethod: lambda obj: [obj.__func__],
    classmethod: lambda obj: [obj.__func__],
    property: lambda obj: [obj.fget, obj.fset, obj.fdel],
    types.MemberDescriptorType: lambda obj: [obj.__name__],
    types.GetSetDescriptorType: lambda obj: [obj.__name__],
    dataclasses.Field: lambda obj: [obj.name, obj.default, obj.default_factory, obj.metadata],
    contextvars.ContextVar: lambda obj: [obj.name, obj.get(None)],
    torch.device: lambda obj: [str(obj)],
    torch.Generator: lambda obj: [obj.get_state()],
    np.random.Generator: lambda obj: [obj.bit_generator.state],
    np.random.RandomState: lambda obj: [obj.get_state(legacy=False)],
}


def _builtins_of(names: set[str], module: str | None) -> set[str]:
    return names if module == "builtins" else set()


def _is_library_class(cls: Any) -> bool:
    """True for a class that a library, workbench or the interpreter defines."""
    if not isinstance(cls, type):
        return False
    module = module_of_class(cls)
    return not is_heap_type(cls) or is_own(module) or library_of(module) is not None


def _is_put_into_library(owner: Any, name: str, value: Any) -> bool:
    """True for an attribute of a library's module or class that somebody else may have put there."""
    if name in outside_reads.CONSTANTS or (
        name.startswith("__") and isinstance(value, str | int | tuple | dict | None)
    ):
        return False
    if isinstance(value, types.FunctionType):
        module = module_of_function(value)
        return not is_own(module) and library_of(module) is None
    if isinstance(value, type):
        return not _is_library_class(value)
    if isinstance(value, types.MethodType | types.BuiltinFunctionType) and not isinstance(owner, type):
        own_self = getattr(value, "__self__", None)  # a library's functions in C have their module, or nothing
        return own_self is not None and not isinstance(own_self, types.ModuleType | type)
    if isinstance(value, functools.partial | torch.nn.Module):
        return True
    plain = (int, float, complex, str, bytes, list, dict, tuple, set, frozenset, Tensor, np.ndarray)
    return type(value) in plain or not _is_library_class(type(value))
