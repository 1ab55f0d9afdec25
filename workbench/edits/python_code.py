"""The contents of compiled Python code: the names that it reads, and a form of it that is the same in every process."""

import dis
import types
from typing import Any


def names_in(code: types.CodeType) -> list[str]:
    """The global names that a code object may read, including those of nested functions."""
    inner = [name for const in code.co_consts if hasattr(const, "co_code") for name in names_in(const)]
    return sorted({*code.co_names, *inner})


def reads_of(code: types.CodeType, scope: dict[str, Any]) -> tuple[set[str], set[str], list[str]]:
    """All names in the code, those of builtins among them, and the modules that it imports."""
    names, builtin_names, imported = set(code.co_names), set(), []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            imported.append(instruction.argval)
        elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and instruction.argval not in scope:
            builtin_names.add(instruction.argval)
    if names & {"getattr", "attrgetter", "methodcaller", "__getattribute__"}:  # names may be texts
        names |= {const for const in code.co_consts if isinstance(const, str)}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            inner = reads_of(const, scope)
            names |= inner[0]
            builtin_names |= inner[1]
            imported += inner[2]
    return names, builtin_names, imported


def code_contents(code: types.CodeType) -> tuple[Any, ...]:
    """The contents of a code object, without its file and line numbers."""
    consts = tuple(code_contents(c) if hasattr(c, "co_code") else text_of(c) for c in code.co_consts)
    handlers = (code.co_exceptiontable.hex(),) if code.co_exceptiontable else ()
    return (code.co_code.hex(), consts, code.co_names, code.co_varnames, *handlers)


def text_of(obj: Any) -> str:
    """A text that identifies a number, a text or a constant of code."""
    if isinstance(obj, frozenset):
        return f"frozenset({sorted(map(text_of, obj))})"  # its own order differs from process to process
    if type(obj) is tuple:
        return f"({', '.join(map(text_of, obj))}{',' * (len(obj) == 1)})"
    return hex(obj) if type(obj) is int and obj.bit_length() > 4000 else repr(obj)  # repr refuses longer ones
