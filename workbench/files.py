"""Files and folders that take their place whole or not at all, and stay there when the power fails.

Everything is written beside its target under a hidden name that nothing else has, put on the disk (fsync), and renamed
into place. An error or Ctrl-C on the way leaves what was there before. Knows nothing of what is written.
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

# What a file system answers that has no fsync for this kind of file (some CIFS, vboxsf and FUSE mounts): nothing is
# wrong with the disk then. EIO, ENOSPC and EDQUOT are never among them.
_NO_SYNC = {
    errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR,
}  # fmt: skip
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AGAIN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def atomic_write(target: Path, data: bytes | str) -> Path:
    """Writes `data` (a str as UTF-8) to the file `target`, in place of what was there; gives `target`.

    A symlink is replaced; the file that it leads to stays as it is.

    >>> atomic_write(Path("results.json"), "{}")  # doctest: +SKIP
    PosixPath('results.json')

    Raises FileError, before anything is written, for a folder, a device, a FIFO or a socket at `target`; OSError if
    the disk fails. Then what was there is there still.
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
    """The same for a writer that takes a path: a new empty file beside `target`, which the end of the block puts there.

    An exception in the block leaves what was at `target` and nothing else. Raises what `atomic_write` raises.
    """
    _want_regular(target)
    path = _new_file(target)
    try:
        yield path
        fd = os.open(path, _AGAIN)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise FileError(f"{visible(str(path))} is not a file any more: nothing was written.")
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
    """A new folder beside `target`, which takes its place with all its files at the end of the block.

    `target` may be an empty folder. An exception in the block leaves nothing behind. Raises OSError if something
    else came to `target` in the meantime, or if the disk fails.
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
                _sync_opened(entry, _AGAIN)
            elif entry.is_dir() and not entry.is_symlink():
                sync(entry)
        sync(path)
        path.rename(target)  # replaces an empty folder, and nothing else
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    sync(target.parent)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """`os.write` until all is written: one call may take less."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync(folder: Path) -> bool:
    """Make the names in a folder durable; False if its file system cannot do that."""
    try:
        return _sync_opened(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:  # of the opening
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
    """Wait until what was written to an open file is on the disk; False if its file system cannot do that."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        return False
    return True


def kind_of(mode: int) -> str:
    """What a file of that `st_mode` is, in words."""
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


def _want_regular(target: Path) -> None:
    """FileError if something else than a file is there: a rename would put a file in the place of a device."""
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise FileError(f"{visible(str(target))} is {kind_of(mode)}, and a file is to be written: give another path")


def _new_file(target: Path) -> Path:
    while True:
        path = scratch(target)
        with suppress(FileExistsError):  # left by a process that was killed and had our number
            os.close(os.open(path, _NEW, 0o666))
            return path
