"""The lines of an unfinished check on the disk, so that an interrupted check continues where it was."""

import json
import warnings
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from typing import Any

from workbench.conversation.o200k import cache_folder
from workbench.errors import FileError, WorkbenchError
from workbench.files import atomic_write, make_folder
from workbench.model_check.line import Line, line_json, line_of
from workbench.untrusted import is_there, read_json


class SavedProgress:
    """A JSON file with the lines of each finished unit ("layer 3", "files").

    A file that is damaged counts as none: the check begins anew. Where none can be written (a full disk, a folder
    without permission), a warning says so and the check goes on.
    """

    def __init__(self, key: Any):
        name = sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:32]
        self.path = cache_folder() / "model-checks" / f"{name}.json"
        self.done: dict[str, list[Line]] = {}
        self.warned = False
        if is_there(self.path):
            with suppress(WorkbenchError):
                self.done = _units(read_json(self.path, FileError))

    def add(self, unit: str, lines: list[Line]) -> None:
        """Adds a finished unit; it is on the disk when this returns."""
        self.done[unit] = lines
        self._write()

    def forget(self, units: Iterable[str]) -> None:
        """Removes these units, and the file with the last one: the next check does them anew."""
        for unit in units:
            self.done.pop(unit, None)
        if self.done:
            self._write()
        elif is_there(self.path):
            with suppress(OSError):  # a folder, or no permission: nothing of it was read
                self.path.unlink()

    def _write(self) -> None:
        value = {unit: [line_json(line) for line in lines] for unit, lines in self.done.items()}
        try:
            make_folder(self.path.parent)
            atomic_write(self.path, json.dumps(value))
        except FileError as error:
            if not self.warned:
                warnings.warn(f"an interrupted check will not continue, but begin anew: {error}", stacklevel=2)
            self.warned = True


def _units(value: Any) -> dict[str, list[Line]]:
    if not isinstance(value, dict) or not all(isinstance(lines, list) for lines in value.values()):
        raise FileError("not the lines of a check")
    return {unit: [line_of(line) for line in lines] for unit, lines in value.items()}
