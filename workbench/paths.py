"""Paths from the user: `~` is the home folder in every argument of every function that takes a path."""

import itertools
import os
from pathlib import Path

from workbench.errors import ArgumentError, ArgumentTypeError
from workbench.text import shown

SCRATCH_BYTES = (
    100  # of the target's name in a scratch name: with the suffix it is at most 143 bytes, the limit of eCryptfs
)
_number = itertools.count()


def expanded(path: os.PathLike[str] | str | bytes, what: str = "the path") -> Path:
    """The path with `~` and `~user` replaced by the home folder, as a shell does; an unknown user's name stays.

    >>> expanded("~/traces/first") == Path.home() / "traces" / "first", expanded("a/~b")
    (True, PosixPath('a/~b'))

    Raises ArgumentTypeError for anything that is not a path, ArgumentError for a path that no file can have: an empty
    one, or one with a null character. `what` names the argument in the error.
    """
    try:
        text = os.fsdecode(path)
        os.fsencode(text)
    except TypeError:
        raise ArgumentTypeError(f"{what} must be text or a pathlib.Path, got {shown(path)}.") from None
    except UnicodeError:  # half of a surrogate pair, which no file name can hold
        raise ArgumentError(f"{what} is not valid Unicode: {shown(path)}.") from None
    if not text:
        raise ArgumentError(f"{what} is empty; give the name of a file or folder ('.' is the current folder).")
    if "\0" in text:
        raise ArgumentError(f"{what} must not contain a null character, got {shown(text)}.")
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path.expanduser fails for an unknown user


def absolute(path: os.PathLike[str] | str | bytes, what: str = "the path") -> Path:
    """The expanded path as an absolute path, valid when the working folder changes. Symlinks are not resolved."""
    return Path(os.path.abspath(expanded(path, what)))  # noqa: PTH100  Path.resolve follows symlinks


def scratch(target: Path) -> Path:
    """A new hidden name beside `target`, to be written and then renamed to `target`; valid wherever `target` is."""
    name = os.fsdecode(os.fsencode(target.name)[:SCRATCH_BYTES].decode("utf-8", "ignore"))
    return target.parent / f".{name}.writing-{os.getpid()}-{next(_number)}"
