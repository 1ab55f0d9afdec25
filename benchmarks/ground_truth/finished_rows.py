"""Stores the figures of each finished row in a file, so that an interrupted run continues with the next row."""

import json
from pathlib import Path
from typing import Any

import torch

import workbench as wb
from benchmarks.ground_truth import methods
from benchmarks.ground_truth.measure import measure_row
from workbench.errors import ArgumentError
from workbench.files import atomic_write


def settings(model: wb.Model, n: int, seed: str) -> dict[str, Any]:
    """What the figures of a row depend on."""
    return {"model": [model.name, model.digest], "n": n, "seed": seed, "methods": [*methods.METHODS, methods.PROBE]}


def measured(where: str, row: str, n: int, seed: str, file: Path) -> dict[str, Any]:
    """The figures of a row, from its file or measured and written to it.

    Raises ArgumentError if the file was made with other settings.
    """
    torch.set_num_threads(1)
    model = wb.Model(where)
    made_with = settings(model, n, seed)
    if file.exists():
        stored = json.loads(file.read_text("utf-8"))
        if stored["settings"] != made_with:
            raise ArgumentError(f"{file} was made with other settings. Remove it, or give another --folder.")
        return stored
    figures = {"settings": made_with, **measure_row(model, row, n, seed)}
    atomic_write(file, json.dumps(figures, indent=1) + "\n")
    return figures
