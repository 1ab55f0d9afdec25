"""The sizes and digests of OpenAI's files, and harmony's rendering of a fixed conversation, from data/reference."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError

FILE = "gpt-oss-files.json"


@cache
def published() -> dict[str, Any]:
    """The content of data/reference/gpt-oss-files.json, with sources and date."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_reference", package.parent / "data" / "reference"):
        if (folder / FILE).is_file():
            return json.loads((folder / FILE).read_text("utf-8"))
    raise CheckpointError(f"{FILE} is not in this copy of workbench. Install again: pip install --force-reinstall …")


def published_files(sizes: dict[str, int]) -> tuple[str, dict[str, list]]:
    """The published model whose weight files have these names and sizes, and its files: name -> [size, sha256].

    ("", {}) if there is none. A model of the same shape may have other bytes in files of the same sizes.
    """
    weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors")}
    for model, files in published()["models"].items():
        expected = {name: size for name, (size, _) in files.items() if name.endswith(".safetensors")}
        if weights == expected:
            return model, files
    return "", {}
