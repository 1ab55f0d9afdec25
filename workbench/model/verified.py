"""Remembers on this machine which copies of a model were verified by `wb.verify_model`, and when."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from workbench.conversation.o200k import cache_folder
from workbench.files import atomic_write, make_folder


def remember(digest: str, folder: Path, files: Sequence[Path], result: dict[str, Any]) -> Path:
    """Writes the result of a complete check of these files; a later check of the same model replaces it."""
    path = _record(digest, folder)
    make_folder(path.parent)
    return atomic_write(path, json.dumps({"result": result, "files": [_state(file) for file in files]}))


def verified(digest: str, folder: Path | None) -> dict[str, Any] | None:
    """The result of the last complete check of the model in `folder`: "date", "ok", "workbench" (the version).

    None if there was none, or if one of its files was changed since.
    """
    if folder is None:
        return None
    try:
        record = json.loads(_record(digest, folder).read_text("utf-8"))
        unchanged = all(_state(Path(path)) == [path, size, changed] for path, size, changed in record["files"])
        return dict(record["result"]) if unchanged else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verification_note(result: dict[str, Any] | None) -> str:
    """The result of `verified` for the repr of a Model.

    >>> verification_note({"date": "2026-12-01", "ok": True, "workbench": "0.1.0"}), verification_note(None)
    (', verified 2026-12-01', '')
    """
    return f", {'verified' if result['ok'] else 'FAILED to verify'} {result['date']}" if result else ""


def _state(file: Path) -> list[Any]:
    info = file.resolve().stat()
    return [str(file.resolve()), info.st_size, info.st_mtime_ns]


def _record(digest: str, folder: Path) -> Path:
    name = sha256(f"{digest} {folder.resolve()}".encode()).hexdigest()[:32]
    return cache_folder() / "verified-models" / f"{name}.json"
