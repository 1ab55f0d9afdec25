"""Remembers on this machine which copies of a model were verified by `wb.verify_model`, and when."""

import json
import re
import warnings
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from workbench.conversation.o200k import cache_folder
from workbench.errors import FileError
from workbench.files import atomic_write, make_folder
from workbench.untrusted import read_json

MAX_BYTES = 1 << 20  # of a record
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,100}")


def remember(digest: str, folder: Path, states: Sequence[list[Any]], result: dict[str, Any]) -> None:
    """Writes the result of a complete check of files in these states; a later check of the same model replaces it.

    Where it cannot be written, a warning says so: the check is more than its record.
    """
    path = _record(digest, folder)
    try:
        make_folder(path.parent)
        atomic_write(path, json.dumps({"result": result, "files": list(states)}))
    except FileError as error:
        warnings.warn(f"a Model will not say that its files were verified: {error}", stacklevel=3)


def verified(digest: str, folder: Path | None) -> dict[str, Any] | None:
    """The result of the last complete check of the model in `folder`: "date", "ok", "workbench" (the version).

    None if there was none, or if one of its files was changed since.
    """
    if folder is None:
        return None
    try:
        record = read_json(_record(digest, folder), FileError, MAX_BYTES)
        result, files = record["result"], record["files"]
        if not files or any(_state(Path(path)) != [path, size, changed] for path, size, changed in files):
            return None
        date, ok, version = (result[name] for name in ("date", "ok", "workbench"))
        if not DATE.fullmatch(date) or not isinstance(ok, bool) or not VERSION.fullmatch(version):
            return None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # RuntimeError: links in a circle
        return None
    return {"date": date, "ok": ok, "workbench": version}


def verification_note(result: dict[str, Any] | None) -> str:
    """The result of `verified` for the repr of a Model.

    >>> verification_note({"date": "2026-12-01", "ok": True, "workbench": "0.1.0"}), verification_note(None)
    (', verified 2026-12-01', '')
    """
    return f", {'verified' if result['ok'] else 'FAILED to verify'} {result['date']}" if result else ""


def states_of(files: Sequence[Path]) -> list[list[Any]]:
    """The path, the size and the time of the last change of each file; 0 and 0 if it is gone.

    >>> states_of([Path("nowhere/a")])[0][1:]
    [0, 0]
    """
    states = []
    for file in files:
        try:
            states.append(_state(file))
        except OSError:
            states.append([str(file), 0, 0])
    return states


def _state(file: Path) -> list[Any]:
    info = file.resolve().stat()
    return [str(file.resolve()), info.st_size, info.st_mtime_ns]


def _record(digest: str, folder: Path) -> Path:
    name = sha256(f"{digest} {folder.resolve()}".encode()).hexdigest()[:32]
    return cache_folder() / "verified-models" / f"{name}.json"
