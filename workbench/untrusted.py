"""Reads files that strangers wrote: bounded in size, depth and number of values, and only regular files.

Checkpoints, tokenizers, adapters, SAEs, graphs and checkpoints of sweeps are read through these functions. Symlinks are
followed, because the Hugging Face cache consists of them; a FIFO or a device at their end is refused without waiting
for it. (A trace follows no links: `traces/untrusted_files.py`.) Each function takes the class of the error to raise.
"""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

from workbench.errors import ArgumentTypeError, WorkbenchError
from workbench.files import kind_of
from workbench.paths import expanded
from workbench.text import brief, size_text

MAX_BYTES = 64 << 20  # of a file of JSON or text
MAX_VALUES = 1_000_000  # in one JSON text: numbers, texts, keys, lists and objects
MAX_DEPTH = 64  # of lists and objects in each other
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_LONE_SURROGATE = re.compile(r"\\u[dD][89abAB]", re.ASCII)  # perhaps: half of a pair, which no text in UTF-8 can hold
# Perhaps without its end, so that no character is looked at twice.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(r"[\[{\]}]")
_STRING_OR_BRACKET = re.compile(f"{_STRING.pattern}|{_BRACKET.pattern}", re.DOTALL)
_LIST_OR_OBJECT = re.compile(r"\s*:\s*(?=[\[{])")

Failure = Callable[[str], WorkbenchError]


def regular_file(path: os.PathLike[str] | str, error: Failure) -> Path:
    """The expanded path, if a regular file is there; call it before a library opens the path.

    Raises `error` for a folder, a FIFO, a device or a socket, for a path that is not valid, and if there is nothing.
    """
    os.close(_open(path, error))
    return expanded(path)


def is_file(path: os.PathLike[str] | str) -> bool:
    """Whether a regular file is there; False for a path that no file can have, where Path.is_file raises OSError."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: os.PathLike[str] | str) -> bool:
    """Whether a folder is there; False for a path that no folder can have, where Path.is_dir raises OSError."""
    return os.path.isdir(path)  # noqa: PTH112


def is_there(path: os.PathLike[str] | str) -> bool:
    """Whether a folder has an entry of that name, also one that cannot be read: a FIFO, a link to nothing."""
    return os.path.lexists(path)


def exists(path: os.PathLike[str] | str) -> bool:
    """Whether the path leads to something; False for a link to nothing, and where Path.exists raises OSError."""
    return os.path.exists(path)  # noqa: PTH110


def file_names(folder: os.PathLike[str] | str, error: Failure) -> list[str]:
    """The sorted names in a folder. Raises `error` if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except OSError as failure:
        raise error(f"the folder {_show(folder)} cannot be read: {failure.strerror}. Check its permissions") from None


def read_bytes(path: os.PathLike[str] | str, error: Failure, max_bytes: int = MAX_BYTES) -> bytes:
    """The content of a regular file of at most `max_bytes`. Raises `error` for anything else."""
    fd = _open(path, error)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size > max_bytes:
            raise error(
                f"{_show(path)} has {size_text(size)}; the limit for such a file is {size_text(max_bytes)}. "
                f"Give the path of another file"
            )
        try:
            data = file.read(max_bytes + 1)  # a file in /proc has size 0
        except OSError as failure:
            raise error(f"{_show(path)} cannot be read from the disk: {failure.strerror}") from None
    if len(data) > max_bytes:
        raise error(f"{_show(path)} has more than {size_text(max_bytes)}, the limit for such a file")
    return data


def read_text(path: os.PathLike[str] | str, error: Failure, max_bytes: int = MAX_BYTES) -> str:
    """The text of a regular file in UTF-8. Raises `error` if it is not, or for what `read_bytes` refuses."""
    data = read_bytes(path, error, max_bytes)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as failure:
        raise error(f"{_show(path)} is not text in UTF-8: byte {failure.start} is not valid") from None


def read_json(path: os.PathLike[str] | str, error: Failure, max_bytes: int = MAX_BYTES) -> Any:
    """The value of a JSON file. Raises `error` for what `parse_json` or `read_text` refuses."""
    return parse_json(read_text(path, error, max_bytes), _show(path), error)


def parse_json(text: str, what: str, error: Failure, max_values: int = MAX_VALUES) -> Any:
    """The value of a JSON text from a stranger; `what` names it in the error.

    NaN and Infinity are values, as in Python; the reader of a number checks that it is finite. A key that an object
    has twice is an error: readers of the same file would disagree on its value.

    >>> parse_json('{"a": [1, 2]}', "config.json", WorkbenchError)
    {'a': [1, 2]}
    >>> parse_json("[" * 100, "config.json", WorkbenchError)
    Traceback (most recent call last):
    workbench.errors.WorkbenchError: config.json is nested more than 64 levels deep, which no such file needs

    Raises `error` if the text is not JSON, has more than `max_values` values, or is nested more than 64 levels deep.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise error(f"{what} has the key {brief(twice)!r} twice in one object. Remove one of the two")
        return value

    marks = _STRING.sub("", text)
    if sum(map(marks.count, ",[{")) > max_values:
        raise error(f"{what} has more than {max_values} values, which no such file needs")
    depths = accumulate(1 if bracket in "[{" else -1 for bracket in _BRACKET.findall(marks))
    if max(depths, default=0) > MAX_DEPTH:
        raise error(f"{what} is nested more than {MAX_DEPTH} levels deep, which no such file needs")
    try:
        value = json.loads(text, object_pairs_hook=unique)
        if _LONE_SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise error(f"{what} has half of a surrogate pair, such as \\ud800, in a text") from None
    except WorkbenchError:  # of `unique`; it may be a ValueError too
        raise
    except (ValueError, RecursionError, MemoryError) as failure:
        raise error(f"{what} is not valid JSON: {brief(str(failure), 200)}") from None
    return value


def json_member(text: str, key: str) -> str | None:
    """The text of one value of the object that `text` is, found without parsing what follows it; None if it is absent.

    Only for values that are lists or objects. It is as fast as reading the text up to the end of the value.

    >>> json_member('{"a": {"b": 1}, "b": [2, 3], "c": 4}', "b")
    '[2, 3]'
    """
    depth, start = 0, -1
    for token in _STRING_OR_BRACKET.finditer(text):
        mark = token[0]
        if mark in ("[", "{"):
            depth += 1
        elif mark in ("]", "}"):
            depth -= 1
            if start >= 0 and depth == 1:
                return text[start : token.end()]
        elif start < 0 and depth == 1 and mark == f'"{key}"':
            value = _LIST_OR_OBJECT.match(text, token.end())
            start = value.end() if value else -1
    return None


def _open(path: os.PathLike[str] | str, error: Failure) -> int:
    """The descriptor of a regular file, opened for reading."""
    try:
        fd = os.open(expanded(path), _READ)
    except ArgumentTypeError:  # not a path at all
        raise
    except (OSError, ValueError) as failure:  # ValueError: a NUL in the path
        reason = failure.strerror if isinstance(failure, OSError) else str(failure)
        if isinstance(failure, OSError) and failure.errno in (errno.ENXIO, errno.ENODEV):
            reason = "it is a socket or a device"
        raise error(f"{_show(path)} cannot be opened: {reason}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise error(f"{_show(path)} is {kind_of(mode)}, not a file. Give the path of a file")
    return fd


def _show(path: Any) -> str:
    return brief(str(path), 500)
