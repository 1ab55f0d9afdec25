"""Replaces a saved trace by another: the old one stays at its path until the new one is complete.

The new trace is written beside the old one, then two renames exchange them. A process that is killed between those two
leaves the old trace whole beside its path, as `.NAME.replaced-…`; at every other moment a whole trace is at the path.
"""

import errno
import fcntl
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from workbench.errors import TraceError, TraceExists
from workbench.files import sync
from workbench.paths import absolute, scratch
from workbench.signals import shielded
from workbench.traces.manifest import Manifest
from workbench.traces.reader import MANIFEST, StoredArrays
from workbench.traces.untrusted_files import show
from workbench.traces.writer import write

ATTEMPTS = 20  # to write a trace that other writers of the same path take for unfinished
_FILE_OF_A_TRACE = re.compile(rf"{re.escape(MANIFEST)}|part-[0-9]{{5,}}\.safetensors")


def replace(path: os.PathLike[str] | str, manifest: Manifest, arrays: Mapping[str, np.ndarray]) -> Path:
    """The path of the trace that was written; a trace that was there before is removed afterwards.

    >>> replace("traces/first", manifest, {"logprob": np.zeros(74, "f4")})  # doctest: +SKIP
    PosixPath('/home/me/traces/first')

    Raises TraceExists, before anything is written, if what is at `path` is not a trace and nothing else; TraceError if
    the disk fails, and then the old trace is still there.
    """
    target = absolute(path)
    try:
        return write(target, manifest, arrays)
    except TraceExists:
        require_replaceable(target)
    with shielded():
        for _ in range(ATTEMPTS):
            new = scratch(target)  # a name that the next writer in this folder removes if this process is killed
            write(new, manifest, arrays)
            if _locked_exchange(new, target):
                return target
    raise TraceError(f"the trace at {show(target)} was not replaced: other processes write there. It is still there.")


def _locked_exchange(new: Path, target: Path) -> bool:
    """`_exchange`, while no other writer may remove `new`; False if one did so before it was locked."""
    try:
        lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not (new / MANIFEST).exists():
            return False
        _exchange(new, target)
    finally:
        os.close(lock)
    return True


def require_replaceable(path: os.PathLike[str] | str) -> None:
    """Raises TraceExists if something is at `path` that is not a trace, or that contains other files too."""
    target = absolute(path)
    advice = "Only a trace is replaced. Nothing was written; choose another path, or move what is there."
    while (folder := _identity(target)) is not None:
        try:
            if not os.listdir(target):
                return
            others = _other_names(target, StoredArrays(target).manifest)
        except (TraceError, OSError) as error:
            if _identity(target) != folder:
                continue  # another process moved it away, or put its own trace there, while it was read
            raise TraceExists(
                f"what is at {show(target)} is not a trace that can be read: {error}. {advice}"
            ) from error
        if others:
            raise TraceExists(
                f"the folder {show(target)} has more in it than a trace: {', '.join(others[:3])}. {advice}"
            )
        return


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at a path; None if nothing is there."""
    try:
        info = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return info.st_dev, info.st_ino


def _other_names(folder: Path, manifest: Manifest) -> list[str]:
    """The names in a folder that are not those of a trace's files, as an error may print them."""
    own = {MANIFEST, *(chunk.file for info in manifest.tensors.values() for chunk in info.chunks)}
    with os.scandir(folder) as entries:
        return sorted(
            show(entry.name) for entry in entries if entry.name not in own or not entry.is_file(follow_symlinks=False)
        )


def _exchange(new: Path, target: Path) -> None:
    """Renames the trace at `new` to `target`, and removes the one that was there."""
    aside: list[Path] = []  # what was at the target; more than one if other processes replace it at the same time
    try:
        while not _moved(new, target):
            require_replaceable(target)
            old = target.with_name(scratch(target).name.replace(".writing-", ".replaced-"))  # nothing removes it
            with suppress(FileNotFoundError):  # another process has moved it and not yet put its own there
                target.rename(old)
                aside.append(old)
        sync(target.parent)
    except BaseException as error:
        _remove(new)
        if aside and not os.path.lexists(target):
            aside.pop().rename(target)
        if not isinstance(error, OSError):
            raise
        kept = f"It is now at {show(aside[-1])}." if aside else "It is still there."
        raise TraceError(
            f"the trace at {show(target)} could not be replaced: {error.strerror or error}. {kept}"
        ) from error
    for old in aside:
        _discard(old, target)


def _discard(old: Path, target: Path) -> None:
    """Removes a trace that was replaced; a file of somebody else in its folder stays."""
    with suppress(OSError):
        if all(map(_FILE_OF_A_TRACE.fullmatch, os.listdir(old))):
            old = old.rename(scratch(target))  # if this process is killed now, the next writer removes it
    _remove(old)


def _moved(new: Path, target: Path) -> bool:
    """Whether `new` is now at `target`: False if something is there, which a rename never replaces."""
    try:
        new.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            return False
        raise
    return True


def _remove(folder: Path) -> None:
    """Removes the files of a trace, and the folder if nothing else is in it."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if _FILE_OF_A_TRACE.fullmatch(name) and stat.S_ISREG((folder / name).lstat().st_mode):
                (folder / name).unlink()
        folder.rmdir()
