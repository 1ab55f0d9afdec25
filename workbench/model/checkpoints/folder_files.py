"""Reads the JSON and safetensors files of a folder; incomplete files are refused. Tensors are memory-mapped.

Independent of gpt-oss.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.model.checkpoints.validate import listed

INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"


class Incomplete(CheckpointError):
    """Files of the checkpoint are missing or truncated; fetching it again would help."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises Incomplete if there is no such file, CheckpointError if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Incomplete(f"{path.parent} has no {path.name}. Copy it there from where the weights came from.") from None
    except (OSError, ValueError) as error:
        if is_lfs_pointer(path):
            raise Incomplete(
                f"{path} is git-lfs's pointer to the file, not the file itself. Run: git lfs pull"
            ) from None
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Fetch it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must contain a JSON object, got {type(value).__name__}. Fetch it again.")
    return value


def has_safetensors(names: Iterable[str]) -> bool:
    """Whether one of these file names is a safetensors file or the index of several."""
    return any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)


def hf_files(folder: Path) -> list[Path]:
    """The weight files of a Hugging Face model: model.safetensors, or the files named in the index; [] without either.

    Shard names are taken from the index (gpt-oss-20b counts from 0: three files "of 2"). Raises Incomplete (a
    CheckpointError) if a named file is missing, CheckpointError if a name leads out of the folder.
    """
    if (folder / "model.safetensors").is_file():  # as transformers does
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("model*.safetensors"))
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map from tensor names to file names. Fetch it again.")
    files = sorted(set(names.values()))
    for name in files:
        if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
            raise CheckpointError(f"{folder / INDEX} names {name!r}: a shard must lie in the folder itself.")
    if missing := [name for name in files if not (folder / name).is_file()]:
        what = listed(missing, "shard named in the index is missing", "shards named in the index are missing")
        n_present = len(files) - len(missing)
        raise Incomplete(f"{folder}: {what}. {n_present} of {len(files)} are there; fetch the rest.")
    return [folder / name for name in files]


def mapped(files: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor by name, sorted and memory-mapped: its bytes are read when it is used.

    Raises CheckpointError for a file that is damaged or truncated, or that repeats a tensor of another file.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a dict)
                    if name in tensors:
                        raise CheckpointError(
                            f"{file} contains {name!r}, and so does another file beside it. Remove one of them."
                        )
                    tensors[name] = shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            if is_lfs_pointer(file):
                raise Incomplete(
                    f"{file} is git-lfs's pointer to the file, not the file itself. Run: git lfs pull"
                ) from None
            raise Incomplete(f"{file} is damaged or cut short ({error}). Fetch it again.") from None
    return dict(sorted(tensors.items()))


def is_lfs_pointer(file: Path) -> bool:
    """Whether this is a git-lfs pointer and not the file itself, as in a clone made without git-lfs."""
    try:
        with file.open("rb") as opened:
            return opened.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False
