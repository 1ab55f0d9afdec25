"""Opens .gguf files: a single one, or all pieces of a split one.

Independent of gpt-oss. Needs the optional package gguf.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workbench.checks import require
from workbench.errors import CheckpointError
from workbench.model.checkpoints.folder_files import Incomplete, is_lfs_pointer
from workbench.model.checkpoints.validate import listed

PIECE = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")  # the stem of a piece's file name
UNKNOWN = re.compile(r"(\d+)\)? is not a valid (GGMLQuantizationType|GGUFValueType)|file appears to be version (\d+)")
PLAUSIBLE = 1000  # numbers of types and versions are below this; a larger one comes from a damaged file


@dataclass(frozen=True, slots=True)
class Opened:
    """The metadata and the tensors of a model, from all of its files."""

    meta: dict[str, Any]  # without the 200,000 tokens of the vocabulary and their merges
    tensors: dict[str, Any]  # gguf.ReaderTensor, by name; the bytes are mapped


def model_name(file: Path) -> str:
    """The name of the model in a .gguf file or a piece of one.

    >>> model_name(Path("gpt-oss-20b-mxfp4-00001-of-00003.gguf"))
    'gpt-oss-20b-mxfp4'
    """
    piece = PIECE.fullmatch(file.stem)
    return piece["name"] if piece else file.stem


def open_gguf(file: Path) -> Opened:
    """The model in a .gguf file. For a piece of a split model, its other pieces must lie in the same folder.

    Raises MissingDependency without the package gguf; Incomplete (a CheckpointError) for files that are damaged or
    missing; CheckpointError for types newer than the package, and for pieces that do not belong together.
    """
    name = PIECE.fullmatch(file.stem)
    if name is None or int(name["count"]) < 2:
        opened = _open(file)
        if (count := opened.meta.get("split.count", 0)) not in (0, 1):
            raise CheckpointError(
                f"{file} is one of {count} pieces, and its name does not say which. Give the pieces their original "
                f"names (such as {file.stem}-00001-of-00003.gguf), or join them: llama-gguf-split --merge FIRST_PIECE "
                f"whole.gguf"
            )
        return opened
    count = int(name["count"])
    files = [file.with_name(f"{name['name']}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
    if missing := [piece.name for piece in files if not piece.is_file()]:
        what = listed(missing, "piece is missing", "pieces are missing")
        raise Incomplete(f"{file} is one of {count} pieces, and {what}. Fetch the rest into the same folder.")
    return _joined(files)


def _joined(files: Sequence[Path]) -> Opened:
    pieces = [_open(file) for file in files]
    tensors: dict[str, Any] = {}
    for number, (file, piece) in enumerate(zip(files, pieces, strict=True)):
        stated = (piece.meta.get("split.no"), piece.meta.get("split.count"))
        if stated != (number, len(files)):
            raise CheckpointError(
                f"{file} is piece {number} of {len(files)} by its name (counted from 0), but piece {stated[0]} of "
                f"{stated[1]} by its metadata. Fetch it again."
            )
        if twice := sorted(tensors.keys() & piece.tensors.keys()):
            raise CheckpointError(f"{file} contains {twice[0]!r}, and so does another piece. Fetch the pieces again.")
        tensors |= piece.tensors
    total = pieces[0].meta.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise Incomplete(
            f"{files[0]} and the other pieces contain {len(tensors)} of {total} tensors. Fetch them again."
        )
    return Opened(pieces[0].meta, tensors)


def _open(file: Path) -> Opened:
    gguf = require("gguf", extra="interop")
    if is_lfs_pointer(file):
        raise Incomplete(f"{file} is git-lfs's pointer to the file, not the file itself. Run: git lfs pull")
    try:
        reader = gguf.GGUFReader(file, mode="c")  # copy on write: torch needs writable memory
        meta = {
            key: field.contents()
            for key, field in reader.fields.items()
            if not key.startswith(("tokenizer.", "GGUF.")) or key.endswith("_token_id")
        }
    except (ValueError, LookupError, OSError, OverflowError) as error:
        unknown = UNKNOWN.search(str(error))
        if unknown and int(unknown[1] or unknown[3]) < PLAUSIBLE:
            what = f"type {unknown[1]}" if unknown[1] else f"version {unknown[3]} of GGUF"
            raise CheckpointError(
                f"{file} uses {what}, which the installed package gguf {version('gguf')} does not support. If the file "
                f"is newer: pip install -U gguf. Otherwise use a file in MXFP4, F16, BF16, F32 or Q8_0."
            ) from None
        raise Incomplete(f"{file} is damaged, cut short, or not a GGUF file ({error}). Fetch it again.") from None
    return Opened(meta, {tensor.name: tensor for tensor in reader.tensors})
