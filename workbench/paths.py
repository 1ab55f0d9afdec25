"""Paths as a user writes them: `~` is the home folder in every argument of every function that takes a path."""

import itertools
import os
from pathlib import Path

SCRATCH_BYTES = 100  # of the name that a scratch file repeats: with its own ending it stays within 143 (eCryptfs)
_number = itertools.count()


def expanded(path: os.PathLike | str | bytes) -> Path:
    """The path with `~` and `~user` replaced by the home folder, as a shell does; a name it does not know stays.

    >>> expanded("~/traces/first") == Path.home() / "traces" / "first", expanded("a/~b")
    (True, PosixPath('a/~b'))

    Raises TypeError for anything that is not a path.
    """
    return Path(os.path.expanduser(os.fsdecode(path)))  # noqa: PTH111  Path.expanduser fails for an unknown user


def absolute(path: os.PathLike | str | bytes) -> Path:
    """The same, counted from the root: it stays right when the working folder changes. Symlinks are not resolved."""
    return Path(os.path.abspath(expanded(path)))  # noqa: PTH100  Path.resolve follows symlinks


def scratch(target: Path) -> Path:
    """A new hidden name beside `target`, to write to before one rename puts it there; legal wherever `target` is."""
    name = os.fsdecode(os.fsencode(target.name)[:SCRATCH_BYTES].decode("utf-8", "ignore"))
    return target.parent / f".{name}.writing-{os.getpid()}-{next(_number)}"
