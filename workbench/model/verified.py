"""Remembers on this machine which copies of a model were verified, and when."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from workbench.conversation.o200k import cache_folder
from workbench.files import atomic_write, make_folder


def remember(digest: str, files: Sequence[Path], result: dict[str, Any]) -> Path:
    """Writes the result of a complete check of these files; a later check of the same files replaces it."""
    path = _record(digest, files)
    make_folder(path.parent)
    return atomic_write(path, json.dumps(result))


def verified(digest: str, files: Sequence[Path]) -> dict[str, Any] | None:
    """The result of the last complete check of these files ("date", "ok", "workbench"); None if there was none.

    Files that were changed since, or moved, count as others.
    """
    try:
        value = json.loads(_record(digest, files).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _record(digest: str, files: Sequence[Path]) -> Path:
    state = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    name = sha256(json.dumps([digest, sorted(state)]).encode()).hexdigest()[:32]
    return cache_folder() / "verified-models" / f"{name}.json"
