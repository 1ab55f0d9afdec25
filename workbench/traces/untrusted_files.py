"""Opens files that may be hostile, and creates folders atomically. Only this module of the package opens files.

Reading follows no symlink, waits for no FIFO, and reads no device. Writing ends with fsync and one rename. This module
is independent of manifests and tensors.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from workbench.errors import TraceCorrupt, TraceError, TraceNotFound, TraceUnsafe
from workbench.files import kind_of, sync
from workbench.paths import scratch
from workbench.text import visible

_STAGING = re.compile(r"\.(.+)\.writing-([0-9]{1,10})-([0-9]{1,10})", re.DOTALL)
CHUNK_BYTES = 1 << 30  # per call: macOS refuses 2 GB, and Linux reads at most that
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def show(path: os.PathLike[str] | str) -> str:
    """A path as an error may print it."""
    return visible(os.fspath(path))


@contextmanager
def open_dir(path: Path) -> Iterator[int]:
    """The descriptor of a folder that is not a symlink.

    Raises TraceNotFound if there is none, TraceUnsafe if the path is a symlink, a FIFO, a socket or a device.
    """
    try:
        fd = os.open(path, _READ | os.O_DIRECTORY)
    except ValueError as error:  # a NUL in the path
        raise TraceNotFound(f"there is no trace at {show(path)}: {error}") from None
    except OSError as error:
        kind = "nothing" if error.errno == errno.ENOENT else _kind(path)
        if kind in ("nothing", "a file"):
            what = "" if kind == "nothing" else "; that is a file, and a trace is a folder"
            raise TraceNotFound(f"there is no trace at {show(path)}{what}") from None
        if kind == "a symlink":
            raise TraceUnsafe(
                f"{show(path)} is a symlink; a trace is a folder, and links are not followed. Give the path "
                f"of its target: {show(os.path.realpath(path))}"
            ) from None
        if kind != "a folder":
            raise TraceUnsafe(f"{show(path)} is {kind}; a trace is a folder") from None
        raise TraceError(f"{show(path)} cannot be opened: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def open_file(folder: int, name: str, limit: int) -> Iterator[tuple[int, int]]:
    """The descriptor and the size in bytes of a regular file in an open folder.

    Raises TraceNotFound if it is missing, TraceUnsafe if it is not a regular file or larger than `limit` bytes.
    """
    try:
        fd = os.open(name, _READ, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise TraceNotFound(f"{name} is missing") from None
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise TraceUnsafe(_not_regular(folder, name)) from None
        raise TraceError(f"{name} cannot be opened: {error.strerror}") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise TraceUnsafe(f"{name} is {kind_of(info.st_mode)}; a trace holds only regular files")
        if info.st_size > limit:
            raise TraceUnsafe(f"{name} has {info.st_size} bytes; the limit is {limit}")
        yield fd, info.st_size
    finally:
        os.close(fd)


def read(fd: int, start: int, stop: int) -> np.ndarray:
    """The bytes `start:stop` of an open file, in memory that nothing else can change.

    Raises TraceCorrupt if the file ends earlier, TraceUnsafe if the bytes do not fit into memory.
    """
    require_memory(stop - start)
    try:
        data = np.empty(stop - start, np.uint8)
    except MemoryError:
        raise TraceUnsafe(f"{stop - start} bytes do not fit into memory") from None
    view, done = data.data, 0
    while done < len(view):
        try:
            count = _read_into(fd, view[done : done + CHUNK_BYTES], start + done)
        except OSError as error:
            raise TraceCorrupt(f"the file cannot be read from the disk: {error.strerror}") from None
        if count == 0:
            raise TraceCorrupt("a file is shorter than it was when it was opened")
        done += count
    return data


def _read_into(fd: int, view: memoryview, at: int) -> int:
    if hasattr(os, "preadv"):  # not in every Python on macOS
        return os.preadv(fd, [view], at)
    data = os.pread(fd, len(view), at)
    view[: len(data)] = data
    return len(data)


_POINTERS = {  # first bytes of a pointer file -> the program that made it, and its command to fetch the file
    b"version https://git-lfs.github.com/": ("git-lfs", "git lfs pull"),
    b"version https://hawser.github.com/": ("git-lfs", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get ."),
}


def refuse_pointer(name: str, start: bytes) -> None:
    """Raises TraceCorrupt, with the command to run, if `start` is that of a git-lfs or git-annex pointer file."""
    for prefix, (program, command) in _POINTERS.items():
        if start.startswith(prefix):
            raise TraceCorrupt(f"{name} is a {program} pointer, not the file itself. Run in its folder: {command}")


def require_memory(size: int) -> None:
    """Raises TraceUnsafe if `size` bytes exceed the memory: Linux would allocate them, then kill the process."""
    if size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise TraceUnsafe(f"{size} bytes are more than this machine's memory")


class Staging:
    """A new folder beside `target` that is renamed to it when it is complete, or removed.

    Its name is `.<name>.writing-<pid>-<n>` (a long name is cut), and it is locked. A staging folder whose process is
    dead and whose lock is free may be removed; the next Staging in the same folder does that.
    """

    def __init__(self, target: Path):
        self.target = target
        if "\0" in os.fspath(target):
            raise OSError(errno.EINVAL, "a path cannot have a NUL in it")
        _make_parents(target.parent)
        sweep(target.parent)
        with suppress(FileNotFoundError):
            os.lstat(target)  # a name that is too long fails now, not at the rename
        while True:
            self.path = scratch(target)
            with suppress(FileExistsError):
                self.path.mkdir()
                break
        self.durable = True  # False after `commit` if the file system cannot sync
        self._lock: int | None = os.open(self.path, _READ | os.O_DIRECTORY)
        with suppress(OSError):  # some network file systems have no locks; there, nothing is swept
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def create(self, name: str) -> int:
        """A descriptor for writing a new file of that name; the caller closes it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(self.path / name, flags, 0o666)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def commit(self) -> None:
        """Syncs every name to the disk and renames the folder to `target`. Raises OSError if something is there.

        `durable` is False afterwards if the file system cannot sync names.
        """
        self.durable = bool(sync(self.path))
        self.path.rename(self.target)  # replaces an empty folder, and nothing else
        self._unlock()
        try:
            self.durable = bool(sync(self.target.parent)) and self.durable
        except OSError as error:
            raise TraceError(
                f"the trace is at {show(self.target)}, but a power cut could still undo it: {error.strerror}"
            ) from error

    def abort(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            lock, self._lock = self._lock, None
            os.close(lock)


def sweep(folder: Path) -> list[Path]:
    """The staging folders of dead processes in `folder`, which it removes; nothing else is touched."""
    removed = []
    for entry in os.scandir(folder):
        staging_name = _STAGING.fullmatch(entry.name)
        if not staging_name or not entry.is_dir(follow_symlinks=False) or _alive(int(staging_name[2])):
            continue
        with suppress(OSError):
            lock = os.open(entry.path, _READ | os.O_DIRECTORY)
            try:
                # A pid is not valid across containers or hosts; the lock is.
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(entry.path, ignore_errors=True)
                removed.append(Path(entry.path))
            finally:
                os.close(lock)
    return removed


def _make_parents(folder: Path) -> None:
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    for parent in reversed(missing):
        with suppress(FileExistsError):
            parent.mkdir()
        sync(parent.parent)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # a process of another user, or not a valid pid: its folder is not ours to remove
    return True


def _not_regular(folder: int, name: str) -> str:
    """The error text for a name in an open folder that is not a regular file, with advice if it is a symlink."""
    try:
        target = os.readlink(name, dir_fd=folder)
    except OSError:
        return f"{name} is not a file; a trace holds only regular files"
    return (
        f"{name} is a symlink to {show(target)[:200]}, which is not followed; a trace holds only regular files. Copy "
        f"the folder with the files instead of the links: cp -rL FOLDER COPY. From the Hugging Face hub: "
        f"hf download REPOSITORY --local-dir FOLDER (local_dir= in Python)"
    )


def _kind(path: Path) -> str:
    try:
        return kind_of(os.lstat(path).st_mode)
    except OSError:
        return "nothing"
