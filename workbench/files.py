"""Atomic, durable writing of files and folders: they appear complete or not at all, and survive a power failure.

Everything is written beside its target under a unique hidden name, synced to the disk (fsync), and renamed to the
target. After an error or Ctrl-C, the earlier file is still there. This module is independent of the content.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from workbench.errors import FileError
from workbench.paths import SCRATCH_BYTES, scratch
from workbench.text import size_text, visible

# The errors of file systems that have no fsync for this kind of file (some CIFS, vboxsf and FUSE mounts); the disk is
# fine then. EIO, ENOSPC and EDQUOT are never among them.
_NO_SYNC = {
    errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR,
}  # fmt: skip
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_REOPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LEFTOVER = re.compile(r"\..+\.writing-([0-9]{1,10})-[0-9]{1,10}", re.DOTALL)  # of `paths.scratch`
LOCK_SECONDS = 60.0  # that `locked` waits; a holder writes one file


def atomic_write(target: Path, data: bytes | str) -> Path:
    """`target`, after `data` (a str as UTF-8) was written to it atomically; an existing file is replaced.

    An existing file keeps its permissions.

    >>> atomic_write(Path("results.json"), "{}")  # doctest: +SKIP
    PosixPath('results.json')

    Raises FileError, before anything is written, if anything but a regular file is at `target` (a folder, a device, a
    FIFO, a socket, a symlink) or its folder is missing; and if the disk is full or fails, with the free space. In all
    cases an existing file is unchanged.
    """
    with atomic_path(target) as path:
        _write(path, data)
    return target


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """`atomic_write` for code that takes a path: a new empty file, which the end of the block renames to `target`.

    After an exception in the block, `target` is unchanged and no other file is left. An OSError in the block becomes a
    FileError. Raises what `atomic_write` raises.
    """
    with _explained(target), _staged(target) as path:
        yield path
        _sync_written(path)
        path.replace(target)
        _sync_name(target)


def atomic_files(contents: Mapping[Path, bytes | str]) -> list[Path]:
    """The paths of several files, after all of them were written; after an error, none of them has changed.

    All are on the disk before the first is renamed; they get their names in order. Only a process that is killed
    between two renames leaves some new and some earlier files: let the last file hold the hashes of the others.

    >>> atomic_files({Path("a.csv"): "1", Path("a.json"): "{}"})  # doctest: +SKIP
    [PosixPath('a.csv'), PosixPath('a.json')]

    Raises what `atomic_write` raises.
    """
    staged: list[tuple[Path, Path]] = []
    with ExitStack() as stack:
        for target, data in contents.items():
            with _explained(target):
                path = stack.enter_context(_staged(target))
                _write(path, data)
                _sync_written(path)
                staged.append((path, target))
        _replace_all(staged)
    return list(contents)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder, which the end of the block renames to `target` with all its files.

    `target` may be an empty folder. An exception in the block leaves nothing behind; an OSError becomes a FileError.
    Raises FileError if `target` was created in the meantime, or if the disk is full or fails.
    """
    with _explained(target):
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
        _sync_name(target)


def make_folder(folder: Path) -> Path:
    """The folder, made with its parents if it is missing. Raises FileError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise _failure(folder, error, "the folder {} cannot be made") from None
    return folder


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """While the block runs, no other process or thread is in such a block for the same file.

    The lock is on a hidden file beside `target`, since `target` itself is replaced. The system frees it when a process
    dies. Where a file system has no locks, nobody waits.

    Raises FileError if another process keeps the lock for longer than `LOCK_SECONDS`, and for a target that
    `atomic_write` refuses.
    """
    _mode_of(target)
    name = os.fsencode(target.name)[:SCRATCH_BYTES].decode("utf-8", "ignore")
    path = target.parent / f".{name}.workbench-lock"
    with _explained(target):
        fd = _lock(path)
    try:
        yield
    finally:
        with suppress(OSError):
            if path.stat().st_size == 0:  # a file with a content is somebody else's
                path.unlink()
        os.close(fd)


def _lock(path: Path) -> int:
    """The descriptor of the locked file at `path`, which is made if it is missing."""
    start = time.monotonic()
    while True:
        fd = os.open(path, _LOCK, 0o666)
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise FileError(f"{_show(path)} is {kind_of(info.st_mode)}, not a file to lock: remove it")
            if _try_lock(fd) and _is_at(path, info):  # its last holder may have removed the file
                return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() - start > LOCK_SECONDS:
            raise FileError(
                f"another process has locked {_show(path)} for more than {LOCK_SECONDS:g} s. Wait until it has "
                f"finished or end it, or give another path"
            )
        time.sleep(0.005)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_at(path: Path, info: os.stat_result) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (info.st_dev, info.st_ino)


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


def _write(path: Path, data: bytes | str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        write_all(fd, data.encode() if isinstance(data, str) else data)
    finally:
        os.close(fd)


def _sync_written(path: Path) -> None:
    """Syncs what a writer left at the hidden name. Raises FileError if it put something else there."""
    fd = os.open(path, _REOPEN)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileError(f"{_show(path)} is no longer a file, so nothing was written.")
        sync_file(fd)
    finally:
        os.close(fd)


def _sync_name(target: Path) -> None:
    """Syncs the new name of `target` to the disk."""
    try:
        sync(target.parent)
    except OSError as error:
        raise FileError(
            f"{_show(target)} was written, but a power failure could still undo it: {error.strerror}. Write it again"
        ) from error


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A new hidden file beside `target` that is locked, so that no other process sweeps it; removed at the end."""
    mode = _mode_of(target)
    _sweep(target.parent)
    path, fd = _new_file(target)
    try:
        _try_lock(fd)
        if mode is not None:
            with suppress(PermissionError):  # some mounts have fixed permissions
                os.fchmod(fd, mode)
        yield path
    finally:
        os.close(fd)
        with suppress(FileNotFoundError):
            path.unlink()


def _mode_of(target: Path) -> int | None:
    """The permissions of the file at `target`; None if nothing is there.

    Raises FileError if anything but a regular file is there: a rename would replace a device, or a symlink to one.
    """
    try:
        mode = target.lstat().st_mode
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise _failure(target, error) from None
    if stat.S_ISLNK(mode):
        raise FileError(
            f"{_show(target)} is a symlink to {_kind_at(target)}, and links are neither replaced nor followed: give "
            f"the path of a file, perhaps {_show(Path(os.path.realpath(target)))}, or remove the link"
        )
    if not stat.S_ISREG(mode):
        raise FileError(f"{_show(target)} is {kind_of(mode)}, not a file: give another path")
    return stat.S_IMODE(mode)


def _kind_at(path: Path) -> str:
    try:
        return kind_of(path.stat().st_mode)
    except OSError:  # a link to nothing, or to itself
        return "nothing"


def _new_file(target: Path) -> tuple[Path, int]:
    while True:
        path = scratch(target)
        with suppress(FileExistsError):  # the file of a killed process that had the same pid
            return path, os.open(path, _NEW, 0o666)


def _replace_all(staged: list[tuple[Path, Path]]) -> None:
    """Renames each file to its target; after an error or Ctrl-C, every target is as before."""
    earlier: dict[Path, Path] = {}  # target -> a second name of the file that was there
    renamed: list[Path] = []
    try:
        for _, target in staged:
            with _explained(target):
                _keep(target, earlier)
        for path, target in staged:
            with _explained(target):
                renamed.append(target)
                path.replace(target)
    except BaseException:
        for target in renamed:
            with suppress(OSError):
                earlier[target].replace(target) if target in earlier else target.unlink()
        raise
    finally:
        for path in earlier.values():
            with suppress(FileNotFoundError):
                path.unlink()
    for target in {target.parent: target for _, target in staged}.values():
        _sync_name(target)


def _keep(target: Path, earlier: dict[Path, Path]) -> None:
    if not target.exists():
        return
    while True:
        path = scratch(target)
        with suppress(FileExistsError):
            try:
                os.link(target, path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                shutil.copy2(target, path)
            earlier[target] = path
            return


def _sweep(folder: Path) -> None:
    """Removes the hidden files of dead processes in a folder; nothing else is touched."""
    with os.scandir(folder) as entries:
        for entry in entries:
            name = _LEFTOVER.fullmatch(entry.name)
            if not name or not entry.is_file(follow_symlinks=False) or _is_alive(int(name[1])):
                continue
            with suppress(OSError):
                fd = os.open(entry.path, _REOPEN)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a pid is not valid across containers; a lock is
                    os.unlink(entry.path)  # noqa: PTH108
                finally:
                    os.close(fd)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # a process of another user, or not a valid pid: its file is not ours to remove
    return True


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turns an OSError into a FileError with the path, the reason and what to do."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise _failure(target, error) from error


def _failure(
    target: Path, error: OSError | ValueError, what: str = "{} was not written, and an earlier file there is unchanged"
) -> FileError:
    code = error.errno if isinstance(error, OSError) else errno.EINVAL
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if code in (errno.ENOSPC, errno.EDQUOT):
        reason = f"{reason}: {_free_space(target)}. Free some space, or give a path on another disk"
    elif code == errno.EFBIG:
        reason = f"{reason}: see `ulimit -f`, and the largest file of this file system"
    elif code == errno.ENOENT:
        reason = f"there is no folder {_show(target.parent)}. Make it first, or give another path"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = f"{reason}. Give a path in a folder that you may write to"
    elif code in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
        reason = f"{reason}. Give another path"
    failure = FileError(f"{what.format(_show(target))}: {reason}")
    failure.errno = code
    return failure


def _free_space(target: Path) -> str:
    try:
        return f"{size_text(shutil.disk_usage(target.parent).free)} are free"
    except OSError:
        return "the free space is unknown"


def _show(path: Path) -> str:
    return visible(str(path))[:500]
