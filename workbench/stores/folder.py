"""Which traces are in the folder of a store. This module reads names and times, no contents.

    objects/ab/<id>/     the traces that the store wrote, by the first two digits of their ids
    <name>/              traces that others put there, at the top
    <folder>/<name>/     or one folder deeper

Symlinks are not followed, and hidden names (unfinished writes) are left out.
"""

import os
import re
import stat
import time
from pathlib import Path
from typing import NamedTuple

from workbench.traces.fields import TRACE_ID
from workbench.traces.reader import MANIFEST

OBJECTS = "objects"
RECENT = 2_000_000_000  # nanoseconds: times of file systems are not finer than this everywhere
_PAIR = re.compile(r"[0-9a-f]{2}")


class Listing(NamedTuple):
    """A folder of traces at one moment; all paths are relative to the store."""

    folder: str  # "" for the store itself
    changed: int  # st_mtime_ns, or 0 if it is so recent that a later change could have the same time
    traces: dict[str, str]  # path -> signature of its manifest
    folders: list[str]  # that may hold further traces


def path_of(trace_id: str) -> str:
    """The path of a trace that the store writes.

    >>> path_of("9c41e0f2a6b34d5e8f7a1b2c3d4e5f60")
    'objects/9c/9c41e0f2a6b34d5e8f7a1b2c3d4e5f60'
    """
    return f"{OBJECTS}/{trace_id[:2]}/{trace_id}"


def id_in(path: str) -> str | None:
    """The id in the path of a trace that the store wrote; None for a path that others chose."""
    name = path.rpartition("/")[2]
    return name if TRACE_ID.fullmatch(name) and path == path_of(name) else None


def is_id(text: str) -> bool:
    """Whether a text has the form of a whole id: 32 hex digits."""
    return TRACE_ID.fullmatch(text) is not None


def changed_at(root: Path, folder: str) -> int:
    """When names in a folder last changed, as in `Listing.changed`; -1 if the folder is gone."""
    try:
        changed = (root / folder).lstat().st_mtime_ns
    except OSError:
        return -1
    return 0 if abs(time.time_ns() - changed) < RECENT else changed


def signature(root: Path, path: str) -> str:
    """What changes whenever a manifest is written or replaced: inode, size and times; "" if it is no regular file.

    The time of the last change of the inode (ctime) is among them, which no program can set: an edited manifest is
    noticed although its size and its date are as before.
    """
    try:
        info = os.lstat(f"{root}/{path}/{MANIFEST}")
    except (OSError, ValueError):
        return ""
    return signature_of(info) if stat.S_ISREG(info.st_mode) else ""


def signature_of(info: os.stat_result) -> str:
    """Inode, size and times of a file, as one text."""
    return f"{info.st_ino} {info.st_size} {info.st_mtime_ns} {info.st_ctime_ns}"


def listing(root: Path, folder: str) -> Listing:
    """The traces in one folder of a store. A folder that is gone has none."""
    changed = changed_at(root, folder)  # before it is listed: a change meanwhile is found the next time
    traces: dict[str, str] = {}
    folders: list[str] = []
    try:
        with os.scandir(root / folder) as entries:
            names = [entry.name for entry in entries if _may_be_listed(entry)]
    except OSError:
        names = []
    for name in names:
        path = f"{folder}/{name}" if folder else name
        if folder == OBJECTS:
            if _PAIR.fullmatch(name):
                folders.append(path)
        elif path == OBJECTS:
            folders.append(path)
        elif _belongs(folder):
            if TRACE_ID.fullmatch(name) and name.startswith(folder[-2:]):
                traces[path] = signature(root, path)
        elif os.path.lexists(f"{root}/{path}/{MANIFEST}"):
            traces[path] = signature(root, path)
        elif not folder:
            folders.append(path)
    return Listing(folder, changed, traces, folders)


def _belongs(folder: str) -> bool:
    """Whether a folder is one that the store writes to."""
    return folder.startswith(f"{OBJECTS}/")


def _may_be_listed(entry: os.DirEntry[str]) -> bool:
    if entry.name.startswith("."):
        return False
    try:
        entry.name.encode()  # SQLite holds Unicode; such a name is left out
        return entry.is_dir(follow_symlinks=False)
    except (OSError, UnicodeError):
        return False
