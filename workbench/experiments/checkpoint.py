"""Saves the finished cells of a sweep in one file, so that an interrupted sweep can continue.

Two processes that use one file share their cells: each takes in what the other has saved before it replaces the file.
"""

import json
import os
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from workbench.edits.fingerprint import identify
from workbench.errors import ResumeError
from workbench.files import atomic_write, locked
from workbench.model.model import Model
from workbench.paths import expanded
from workbench.text import visible
from workbench.untrusted import parse_json, read_text

SAVE_INTERVAL = 2.0  # seconds between saves: the most a killed process loses
KIND = "finished cells of a sweep"
MAX_BYTES, MAX_VALUES = 1 << 30, 20_000_000  # of a file that is read

Cells = dict[str, Any]  # number of a cell -> its value, as nested lists


class SweepCheckpoint:
    """`with SweepCheckpoint(path, inputs) as cells:` stores a sweep's values by cell number, and saves them.

    The file is saved every few seconds and when the block ends for any reason, each time by an atomic rename. Without a
    path nothing is saved. `inputs` are all values, by name, that the results depend on; `shape` is that of every cell.
    An input that cannot be identified, such as a metric that reads a file, counts as new every time, so that its cells
    are not used again.

    >>> with SweepCheckpoint(None, {"tokens": [1, 2]}, shape=(2,)) as cells:
    ...     cells.put(3, np.array([0.5, 0.25]))
    ...     3 in cells, 4 in cells, cells[3].tolist()
    (True, False, [0.5, 0.25])

    Raises ResumeError if the file holds another sweep, is damaged or is not such a file; it is then left unchanged.
    FileError if it cannot be written.
    """

    def __init__(self, path: os.PathLike[str] | str | None, inputs: Mapping[str, Any], *, shape: tuple[int, ...] = ()):
        self.path = None if path is None else expanded(path)
        identified = {name: identify(value) for name, value in inputs.items()}
        self.inputs = {name: digest for name, (digest, _) in identified.items()}
        self._unknown = {name: reason for name, (_, reason) in identified.items() if reason}
        self.shape = shape
        self._cells: Cells = {}
        self._saved: tuple[int, ...] | None = None  # what identifies the file that was read or written last
        self._written = time.monotonic()
        if self.path is not None:
            with locked(self.path):
                self._take_in(self.path)
                self._replace(self.path)  # fails now, not after hours, if the path is not writable

    def __enter__(self) -> "SweepCheckpoint":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._write()

    def __contains__(self, cell: int) -> bool:
        return str(cell) in self._cells

    def __getitem__(self, cell: int) -> np.ndarray:
        return np.array(self._cells[str(cell)], np.float64)

    def put(self, cell: int, values: np.ndarray | float) -> None:
        self._cells[str(cell)] = np.asarray(values, np.float64).tolist()
        if time.monotonic() - self._written > SAVE_INTERVAL:
            self._write()

    def _described(self, name: str) -> str:
        if (reason := self._unknown.get(name)) is None:
            return visible(name)
        return f"{visible(name)} (counts as new every time, because it depends on {visible(reason)})"

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.path is None:
            return
        with locked(self.path):
            try:
                self._take_in(self.path)
            except ResumeError as error:  # another program has changed the file: hours of work must not be lost
                elsewhere = self.path.with_name(f"{self.path.name}.{os.getpid()}")
                self._replace(elsewhere)
                raise ResumeError(f"{error} The cells of this sweep are in {visible(str(elsewhere))}") from None
            self._replace(self.path)

    def _take_in(self, path: Path) -> None:
        """Adds the cells of the file, unless it is the one that this process has written last."""
        there = _identity(path)
        if there is not None and there != self._saved:
            self._cells = self._read(path) | self._cells

    def _replace(self, path: Path) -> None:
        atomic_write(path, _encoded(self.inputs, self._cells))
        self._saved = _identity(path)

    def _read(self, path: Path) -> Cells:
        def error(problem: str) -> ResumeError:
            return ResumeError(f"{name} does not hold {KIND}; pass another path as `resume` ({problem})")

        name = visible(str(path))
        text = read_text(path, error, MAX_BYTES)
        content = parse_json(text, "it", error, MAX_VALUES)
        if not isinstance(content, dict) or content.get("kind") != KIND:
            raise error("it was not written by a sweep")
        inputs, cells = content.get("inputs"), content.get("cells")
        if not isinstance(inputs, dict) or not isinstance(cells, dict):
            raise error("its inputs or its cells are missing")
        if "sha256" not in content:
            raise ResumeError(
                f"{name} was written by an earlier version of workbench, without a hash, so its numbers cannot be "
                f"checked. Pass another path as `resume`, or delete the file; the sweep then starts from its beginning"
            )
        if text != _encoded(inputs, cells):
            raise ResumeError(
                f"{name} is damaged or was changed: its content does not match its hash. Restore it from a copy, or "
                f"delete it; the sweep then starts from its beginning"
            )
        if inputs != self.inputs:
            names = sorted({*inputs, *self.inputs})
            different = [self._described(name) for name in names if inputs.get(name) != self.inputs.get(name)]
            raise ResumeError(
                f"{name} holds the cells of another sweep; these inputs differ: {', '.join(different)[:500]}. "
                f"Pass another path as `resume`, or repeat the call with the same inputs"
            )
        wrong = next((cell for cell, value in cells.items() if not _has_shape(value, self.shape)), None)
        if wrong is not None:
            raise ResumeError(
                f"cell {visible(wrong)[:20]} of {name} must hold numbers of the shape {list(self.shape)}, got "
                f"{visible(repr(cells[wrong])[:60])}. Delete the file; the sweep then starts from its beginning"
            )
        return cells


def _encoded(inputs: Mapping[str, Any], cells: Cells) -> str:
    """The content of the file, which ends with its own hash; equal cells give equal text."""
    content = {"cells": cells, "inputs": inputs, "kind": KIND}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return f'{text[:-1]},"sha256":"{sha256(text.encode()).hexdigest()}"}}'


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _has_shape(value: Any, shape: tuple[int, ...]) -> bool:
    if not shape:
        return type(value) is float  # not True, not 5, not "5"
    return isinstance(value, list) and len(value) == shape[0] and all(_has_shape(each, shape[1:]) for each in value)


def model_inputs(model: Model) -> dict[str, Any]:
    """The inputs of every measurement of a model: weights, dtype, device and the edits in force."""
    edits = [edit.identity() for edit in model.active_edits()]
    return {"weights": model.digest, "dtype": model.dtype_name, "device": model.device, "edits": edits}
