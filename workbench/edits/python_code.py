"""The contents of compiled Python code: the names that it reads, and a form of it that is the same in every process."""

import dis
import functools
import types
from typing import Any

# The results are kept for each code object: reading the instructions takes most of the time of a fingerprint.


@functools.cache
def _named(code: types.CodeType) -> tuple[tuple[str, str], ...]:
    """The instructions of a code object that have a name as their argument: what they do, and the name."""
    names = set(code.co_names)
    return tuple(
        (instruction.opname, instruction.argval)
        for instruction in dis.get_instructions(code)
        if isinstance(instruction.argval, str) and instruction.argval in names
    )


@functools.cache
def globals_of(code: types.CodeType) -> list[str]:
    """The names of globals and builtins that a code object reads, including those of nested functions."""
    own = {name for operation, name in _named(code) if operation in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in globals_of(const)]
    return sorted({*own, *inner})


def reads_of(code: types.CodeType, scope: dict[str, Any]) -> tuple[set[str], set[str], list[str]]:
    """Names of attributes and builtins in the code, the builtins among them, and the modules that it imports.

    Also the names of globals, but not those of functions in `scope`, which are looked into themselves.
    """
    names, builtin_names, imported = set(), set(), []
    for operation, name in _named(code):
        if operation == "IMPORT_NAME":
            imported.append(name)
        elif operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            if name not in scope:
                builtin_names.add(name)
            elif isinstance(scope[name], types.FunctionType):
                continue
        names.add(name)
    if names & {"getattr", "attrgetter", "methodcaller", "__getattribute__"}:  # names may be texts
        names |= {const for const in code.co_consts if isinstance(const, str)}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner = reads_of(const, scope)
            names |= inner[0]
            builtin_names |= inner[1]
            imported += inner[2]
    return names, builtin_names, imported


@functools.cache
def code_contents(code: types.CodeType) -> tuple[Any, ...]:
    """The contents of a code object, without its file and line numbers."""
    consts = tuple(code_contents(c) if hasattr(c, "co_code") else text_of(c) for c in code.co_consts)
    handlers = (code.co_exceptiontable.hex(),) if code.co_exceptiontable else ()
    signature = (code.co_flags, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount)
    return (code.co_code.hex(), consts, code.co_names, code.co_varnames, *handlers, signature)


def text_of(obj: Any) -> str:
    """A text that identifies a number, a text or a constant of code."""
    if isinstance(obj, frozenset):
        return f"frozenset({sorted(map(text_of, obj))})"  # its own order differs from process to process
    if type(obj) is tuple:
        return f"({', '.join(map(text_of, obj))}{',' * (len(obj) == 1)})"
    return hex(obj) if type(obj) is int and obj.bit_length() > 4000 else repr(obj)  # repr refuses longer ones
