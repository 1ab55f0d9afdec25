"""Reads the JSON and safetensors files of a folder; incomplete files are refused. Tensors are memory-mapped.

Independent of gpt-oss.
"""

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench import untrusted
from workbench.errors import BudgetError, CheckpointError
from workbench.model.checkpoints.validate import listed
from workbench.text import brief
from workbench.untrusted import exists, file_names, is_file, is_there

MAX_HEADER_BYTES = 16 << 20  # of a safetensors file: the names and shapes of 100,000 tensors
INDEX = "model.safetensors.index.json"
LFS_POINTER = b"version https://git-lfs"


class Incomplete(CheckpointError):
    """Files of the checkpoint are missing or truncated; fetching it again would help."""


def require_file(path: Path) -> None:
    """Raises Incomplete if there is no such file, or only the pointer of git-lfs to it."""
    if not exists(path):
        raise Incomplete(f"{path.parent} has no {path.name}. Copy it there from where the weights came from.")
    if is_lfs_pointer(path):
        raise Incomplete(f"{path} is git-lfs's pointer to the file, not the file itself. Run: git lfs pull")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises Incomplete if there is no such file, CheckpointError if it cannot be read."""
    require_file(path)
    value = untrusted.read_json(path, _fetch_again)
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
    if is_there(folder / "model.safetensors"):  # as transformers does
        return [folder / "model.safetensors"]
    if not is_there(folder / INDEX):
        return files_of(folder, "model", ".safetensors")
    names = read_json(folder / INDEX).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise CheckpointError(f"{folder / INDEX} has no weight_map from tensor names to file names. Fetch it again.")
    files = sorted(set(names.values()))
    for name in files:
        if name in ("", ".", "..") or any(c in name for c in "/\\:\0"):
            raise CheckpointError(f"{folder / INDEX} names {brief(name)!r}: a shard must lie in the folder itself.")
    if missing := [name for name in files if not exists(folder / name)]:
        what = listed(missing, "shard named in the index is missing", "shards named in the index are missing")
        n_present = len(files) - len(missing)
        raise Incomplete(f"{folder}: {what}. {n_present} of {len(files)} are there; fetch the rest.")
    return [folder / name for name in files]


def files_of(folder: Path, start: str, end: str) -> list[Path]:
    """The files of a folder whose names start and end like this, sorted."""
    return [folder / n for n in file_names(folder, CheckpointError) if n.startswith(start) and n.endswith(end)]


def mapped(files: Iterable[Path]) -> dict[str, Tensor]:
    """Every tensor by name, sorted and memory-mapped: its bytes are read when it is used.

    Raises CheckpointError for a file that is damaged or truncated, or that repeats a tensor of another file;
    BudgetError if the process may not map that much memory.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        require_file(file)
        untrusted.regular_file(file, _fetch_again)  # the library would wait for a FIFO, out of reach of Ctrl-C
        try:
            _check_header_size(file)
            with safe_open(file, framework="pt", device="cpu") as shard:
                for name in shard.keys():  # noqa: SIM118 (not a dict)
                    if name in tensors:
                        raise CheckpointError(
                            f"{file} contains {brief(name)!r}, and so does another file beside it. Remove one of them."
                        )
                    tensors[name] = shard.get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
                raise BudgetError(
                    f"{file} cannot be mapped: this process may not use that much address space (ulimit -v). "
                    f"Raise the limit, or use a smaller model."
                ) from None
            raise Incomplete(f"{file} is damaged or cut short ({brief(str(error), 200)}). Fetch it again.") from None
    return dict(sorted(tensors.items()))


def _check_header_size(file: Path) -> None:
    """Raises CheckpointError for a header of tens of megabytes, for which the library would need gigabytes."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        size = opened.seek(0, 2)
    if MAX_HEADER_BYTES < length < size:
        raise CheckpointError(
            f"{file} has a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed, enough for 100,000 "
            f"tensors. Export the model again."
        )


def is_lfs_pointer(file: Path) -> bool:
    """Whether this is a git-lfs pointer and not the file itself, as in a clone made without git-lfs."""
    if not is_file(file):
        return False
    try:
        with file.open("rb") as opened:
            return opened.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def _fetch_again(message: str) -> CheckpointError:
    return CheckpointError(f"{message}. Fetch it again.")
