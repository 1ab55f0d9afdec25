"""The lines of an unfinished check on the disk, so that an interrupted check continues where it was."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from workbench.conversation.o200k import cache_folder
from workbench.files import make_folder
from workbench.model_check.line import Line


class SavedProgress:
    """A file with the lines of each finished unit ("layer 3", "files"), one unit a row of JSON."""

    def __init__(self, key: Any):
        name = sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = make_folder(cache_folder() / "model-checks") / f"{name}.jsonl"
        self.done: dict[str, list[Line]] = dict(_read(self.path))

    def add(self, unit: str, lines: list[Line]) -> None:
        """Appends a finished unit; it is on the disk when this returns."""
        self.done[unit] = lines
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([unit, [asdict(line) for line in lines]]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Removes the file: the next check begins anew."""
        self.path.unlink(missing_ok=True)


def _read(path: Path) -> Iterable[tuple[str, list[Line]]]:
    if not path.is_file():
        return
    for row in path.read_text("utf-8").splitlines(keepends=True):
        if row.endswith("\n"):  # a row that was cut short is done again
            unit, lines = json.loads(row)
            yield unit, [Line(**line) for line in lines]
