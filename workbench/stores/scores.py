"""Scores of traces: data, not cache. They are lines of one file, scores.jsonl, which is only ever appended to.

A line is a JSON object with its own hash. The last line of a task, sample, effort, repeat and name of a trace counts.
Lines are appended under a lock and synced to the disk. A line without an end (a full disk, a power cut) is not read,
and the next one begins on a line of its own.
"""

import fcntl
import json
import os
import stat
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from workbench.errors import FileError
from workbench.files import kind_of, sync, sync_file, write_all
from workbench.stores.folder import is_id, signature_of
from workbench.text import visible
from workbench.traces.canonical_json import canonical

FILE = "scores.jsonl"
MAX_LINE = 1 << 16  # bytes
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIGITS = 16  # of a line's hash
TAIL = 32  # bytes


class Score(NamedTuple):
    """A number about a trace, such as whether its answer is right."""

    id: str
    task: str
    sample: str
    effort: str
    repeat: int
    name: str
    value: float


class Read(NamedTuple):
    """What `read` found from an offset on."""

    scores: list[Score]
    start: int  # where reading began
    stop: int  # the offset of the first byte that was not read
    tail: str  # the last bytes before it, as hex digits
    damaged: list[int]  # the offsets of lines that are no score


def append(root: Path, score: Score) -> None:
    """Adds a line to the file of a store. Raises FileError if it cannot be written; the file is then as before."""
    path = root / FILE
    new = not os.path.lexists(path)
    fields = score._asdict() | {"written": datetime.now(UTC).isoformat(timespec="seconds")}
    data = canonical(fields | {"sha256": _hash(fields)}) + b"\n"
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | _OPEN, 0o666)
    except OSError as error:
        raise FileError(f"the score was not written: {visible(str(path))}: {error.strerror}") from None
    try:
        _require_regular(fd, path)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
        try:
            write_all(fd, b"\n" + data if torn else data)
            sync_file(fd)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(fd, size)
            raise FileError(f"the score was not written: {visible(str(path))}: {error.strerror}") from None
    finally:
        os.close(fd)
    if new:
        sync(root)


def signature(root: Path) -> str:
    """What changes whenever the file of a store is written; "" if it has none."""
    try:
        info = (root / FILE).lstat()
    except OSError:
        return ""
    return signature_of(info)


def read(root: Path, start: int = 0, tail: str = "") -> Read:
    """The scores of all complete lines from an offset on; of all lines if the bytes before it are not `tail`.

    Raises FileError if the file cannot be read.
    """
    path = root / FILE
    scores: list[Score] = []
    damaged: list[int] = []
    try:
        fd = os.open(path, os.O_RDONLY | _OPEN)
    except FileNotFoundError:
        return Read([], 0, 0, "", [])
    except OSError as error:
        raise FileError(f"{visible(str(path))} cannot be read: {error.strerror}. Repair or remove it") from None
    with os.fdopen(fd, "rb") as file:
        _require_regular(fd, path)
        if _tail(fd, start) != tail:
            start = 0
        file.seek(start)
        at = start
        while line := file.readline(MAX_LINE):
            begin, length = at, len(line)
            while length >= MAX_LINE and not line.endswith(b"\n") and (more := file.readline(MAX_LINE)):
                line, length = more, length + len(more)  # longer than any score: only its end is looked for
            if not line.endswith(b"\n"):
                break
            at += length
            score = _score(line) if length == len(line) else None
            if score is not None:
                scores.append(score)
            elif length > 1:  # not an empty line
                damaged.append(begin)
        return Read(scores, start, at, _tail(fd, at), damaged)


def _tail(fd: int, stop: int) -> str:
    """The bytes before an offset, as hex digits: the hash of the line that ends there is among them."""
    return os.pread(fd, min(TAIL, stop), max(0, stop - TAIL)).hex()


def _score(line: bytes) -> Score | None:
    """The score in a line; None if it is damaged."""
    try:
        fields = json.loads(line)
        digest = fields.pop("sha256")
        score = Score(*(fields[name] for name in Score._fields))
        if digest != _hash(fields) or not is_id(score.id):
            return None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    kinds = all(type(value) is str for value in (score.task, score.sample, score.effort, score.name))
    numbers = type(score.repeat) is int and abs(score.repeat) < 2**63 and type(score.value) is float
    return score if kinds and numbers else None


def _hash(fields: dict[str, Any]) -> str:
    return sha256(canonical(fields)).hexdigest()[:_DIGITS]


def _require_regular(fd: int, path: Path) -> None:
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        raise FileError(f"{visible(str(path))} is {kind_of(mode)}, not a file: remove it, or give another folder")
