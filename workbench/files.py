"""Atomic, durable writing of files and folders: they appear complete or not at all, and survive a power failure.

Everything is written beside its target under a unique hidden name, synced to the disk (fsync), and renamed to the
target. After an error or Ctrl-C, the earlier file is still there. This module is independent of the content.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from workbench.errors import FileError
from workbench.paths import scratch
from workbench.text import visible

# The errors of file systems that have no fsync for this kind of file (some CIFS, vboxsf and FUSE mounts); the disk is
# fine then. EIO, ENOSPC and EDQUOT are never among them.
_NO_SYNC = {
    errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR,
}  # fmt: skip
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def atomic_write(target: Path, data: bytes | str) -> Path:
    """`target`, after `data` (a str as UTF-8) was written to it atomically; an existing file is replaced.

    A symlink is replaced; the file that it points to is not changed.

    >>> atomic_write(Path("results.json"), "{}")  # doctest: +SKIP
    PosixPath('results.json')

    Raises FileError, before anything is written, for a folder, a device, a FIFO or a socket at `target`; OSError if
    the disk fails. In both cases an existing file is unchanged.
    """
    with atomic_path(target) as path:
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            write_all(fd, data.encode() if isinstance(data, str) else data)
        finally:
            os.close(fd)
    return target


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """`atomic_write` for code that takes a path: a new empty file, which the end of the block renames to `target`.

    After an exception in the block, `target` is unchanged and no other file is left. Raises what `atomic_write` raises.
    """
    _require_regular_file(target)
    path = _new_file(target)
    try:
        yield path
        fd = os.open(path, _REOPEN)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileError(f"{visible(str(path))} is no longer a file, so nothing was written.")
            sync_file(fd)
        finally:
            os.close(fd)
        path.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            path.unlink()
        raise
    sync(target.parent)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder, which the end of the block renames to `target` with all its files.

    `target` may be an empty folder. An exception in the block leaves nothing behind. Raises OSError if `target` was
    created in the meantime, or if the disk fails.
    """
    while True:
        path = scratch(target)
        with suppress(FileExistsError):
            path.mkdir()
            break
    try:
        yield path
        for entry in sorted(path.rglob("*")):
            if entry.is_file() and not entry.is_symlink():
                _sync_opened(entry, _REOPEN)
            elif entry.is_dir() and not entry.is_symlink():
                sync(entry)
        sync(path)
        path.rename(target)  # replaces an empty folder, and nothing else
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    sync(target.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Writes all of `data`; a single `os.write` may write less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync(folder: Path) -> bool:
    """Syncs the names in a folder to the disk. Returns False if its file system cannot do that."""
    try:
        return _sync_opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # from os.open
        if error.errno not in _NO_SYNC:
            raise
        return False


def _sync_opened(path: Path, flags: int) -> bool:
    fd = os.open(path, flags)
    try:
        return sync_file(fd)
    finally:
        os.close(fd)


def sync_file(fd: int) -> bool:
    """Syncs an open file to the disk. Returns False if its file system cannot do that."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        return False
    return True


def kind_of(mode: int) -> str:
    """The kind of file of an `st_mode`, as text: "a symlink", "a folder", …"""
    for test, name in (
        (stat.S_ISLNK, "a symlink"),
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISREG, "a file"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
    ):
        if test(mode):
            return name
    return "a device"


def _require_regular_file(target: Path) -> None:
    """Raises FileError if `target` exists and is not a regular file; a rename would replace a device by a file."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise FileError(f"{visible(str(target))} is {kind_of(mode)}, not a file: give another path")


def _new_file(target: Path) -> Path:
    while True:
        path = scratch(target)
        with suppress(FileExistsError):  # the file of a killed process that had the same pid
            os.close(os.open(path, _NEW, 0o666))
            return path
