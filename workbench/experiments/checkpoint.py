"""Saves the finished cells of a sweep in one file, so that an interrupted sweep can continue."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.edits.fingerprint import identify
from workbench.errors import ResumeError
from workbench.files import atomic_write
from workbench.model.model import Model
from workbench.paths import expanded
from workbench.text import visible

SAVE_INTERVAL = 2.0  # seconds between saves: the most a killed process loses
KIND = "finished cells of a sweep"


class SweepCheckpoint:
    """`with SweepCheckpoint(path, inputs) as cells:` stores a sweep's values by cell number, and saves them.

    The file is saved every few seconds and when the block ends for any reason, each time by an atomic rename. Without a
    path nothing is saved. `inputs` are all values, by name, that the results depend on. An input that cannot be
    identified, such as a metric that reads a file, counts as new every time, so that its cells are not used again.

    >>> with SweepCheckpoint(None, {"tokens": [1, 2]}) as cells:
    ...     cells.put(3, np.array([0.5, 0.25]))
    ...     3 in cells, 4 in cells, cells[3].tolist()
    (True, False, [0.5, 0.25])

    Raises ResumeError if the file holds another sweep or is not such a file. The file is then left unchanged.
    """

    def __init__(self, path: str | os.PathLike[str] | None, inputs: Mapping[str, Any]):
        self.path = None if path is None else expanded(path)
        identified = {name: identify(value) for name, value in inputs.items()}
        self.inputs = {name: digest for name, (digest, _) in identified.items()}
        self._unknown = {name: reason for name, (_, reason) in identified.items() if reason}
        self._cells: dict[str, Any] = {}
        self._written = time.monotonic()
        if self.path is not None:
            if self.path.exists():
                self._cells = self._read(self.path)
            self._write()  # fails now, not after hours, if the path is not writable

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

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_text("utf-8"))
            kind, inputs, cells = content["kind"], dict(content["inputs"]), dict(content["cells"])
        except (ValueError, KeyError, TypeError):
            kind, inputs, cells = None, {}, {}
        if kind != KIND:
            raise ResumeError(f"{visible(str(path))} does not hold {KIND}; pass another path as `resume`")
        if inputs != self.inputs:
            names = sorted({*inputs, *self.inputs})
            different = [self._described(name) for name in names if inputs.get(name) != self.inputs.get(name)]
            raise ResumeError(
                f"{visible(str(path))} holds the cells of another sweep; these inputs differ: {', '.join(different)}. "
                f"Pass another path as `resume`, or repeat the call with the same inputs"
            )
        return cells

    def _described(self, name: str) -> str:
        if (reason := self._unknown.get(name)) is None:
            return visible(name)
        return f"{visible(name)} (counts as new every time, because it depends on {visible(reason)})"

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.path is None:
            return
        atomic_write(self.path, json.dumps({"kind": KIND, "inputs": self.inputs, "cells": self._cells}))


def model_inputs(model: Model) -> dict[str, Any]:
    """The inputs of every measurement of a model: weights, dtype, device and the edits in force."""
    edits = [edit.identity() for edit in model.active_edits()]
    return {"weights": model.digest, "dtype": model.dtype_name, "device": model.device, "edits": edits}
