"""The cells of a sweep that are finished, kept in one file, so that an interrupted sweep goes on where it was."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.edits.fingerprint import fingerprint
from workbench.errors import ResumeError
from workbench.files import atomic_write
from workbench.model.model import Model
from workbench.paths import expanded
from workbench.text import visible

EVERY = 2.0  # seconds between two writings: what a killed process loses at most
KIND = "finished cells of a sweep"


class SweepCheckpoint:
    """`with SweepCheckpoint(path, inputs) as cells:` holds the results of a sweep by cell, and saves them.

    The file is written anew every few seconds, when the block is left in any way, and always by one rename; without a
    path nothing is written. `inputs` are all that the numbers depend on, by name.

    >>> with SweepCheckpoint(None, {"tokens": [1, 2]}) as cells:
    ...     cells.put(3, np.array([0.5, 0.25]))
    ...     3 in cells, 4 in cells, cells[3].tolist()
    (True, False, [0.5, 0.25])

    Raises ResumeError for a file with the cells of other inputs, and for one that is something else; it stays as it is.
    """

    def __init__(self, path: str | os.PathLike[str] | None, inputs: Mapping[str, Any]):
        self.path = None if path is None else expanded(path)
        self.inputs = {name: fingerprint(value) for name, value in inputs.items()}
        self._cells: dict[str, Any] = {}
        self._written = time.monotonic()
        if self.path is not None:
            if self.path.exists():
                self._cells = self._read(self.path)
            self._write()  # a place that cannot be written is refused now, not after hours

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
        if time.monotonic() - self._written > EVERY:
            self._write()

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            held = json.loads(path.read_text("utf-8"))
            kind, inputs, cells = held["kind"], dict(held["inputs"]), dict(held["cells"])
        except (ValueError, KeyError, TypeError):
            kind, inputs, cells = None, {}, {}
        if kind != KIND:
            raise ResumeError(f"{visible(str(path))} does not hold {KIND}: give another path as `resume`")
        if inputs != self.inputs:
            names = sorted({*inputs, *self.inputs})
            other = [visible(name) for name in names if inputs.get(name) != self.inputs.get(name)]
            raise ResumeError(
                f"{visible(str(path))} holds the cells of another sweep; other than here are: {', '.join(other)}. Give "
                f"another path as `resume`, or ask what was asked then"
            )
        return cells

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.path is None:
            return
        atomic_write(self.path, json.dumps({"kind": KIND, "inputs": self.inputs, "cells": self._cells}))


def of_model(model: Model) -> dict[str, Any]:
    """What every figure of a model depends on: its weights, how it computes, and the edits in force."""
    edits = [edit.describe()["identity"] for edit in model.active_edits()]
    return {"weights": model.digest, "dtype": model.dtype_name, "device": model.device, "edits": edits}
