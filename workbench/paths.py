"""Paths from the user: `~` is the home folder in every argument of every function that takes a path."""

import itertools
import os
from pathlib import Path

SCRATCH_BYTES = (
    100  # of the target's name in a scratch name: with the suffix it is at most 143 bytes, the limit of eCryptfs
)
_number = itertools.count()


def expanded(path: os.PathLike[str] | str | bytes) -> Path:
    """The path with `~` and `~user` replaced by the home folder, as a shell does; an unknown user's name stays.

    >>> expanded("~/traces/first") == Path.home() / "traces" / "first", expanded("a/~b")
    (True, PosixPath('a/~b'))

    Raises TypeError for anything that is not a path.
    """
    return Path(os.path.expanduser(os.fsdecode(path)))  # noqa: PTH111  Path.expanduser fails for an unknown user


def absolute(path: os.PathLike[str] | str | bytes) -> Path:
    """The expanded path as an absolute path, valid when the working folder changes. Symlinks are not resolved."""
    return Path(os.path.abspath(expanded(path)))  # noqa: PTH100  Path.resolve follows symlinks


def scratch(target: Path) -> Path:
    """A new hidden name beside `target`, to be written and then renamed to `target`; valid wherever `target` is."""
    name = os.fsdecode(os.fsencode(target.name)[:SCRATCH_BYTES].decode("utf-8", "ignore"))
    return target.parent / f".{name}.writing-{os.getpid()}-{next(_number)}"
