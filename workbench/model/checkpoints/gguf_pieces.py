"""Opens .gguf files: a single one, or all pieces of a split one.

Independent of gpt-oss. Needs the optional package gguf.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from workbench.checks import require
from workbench.errors import CheckpointError
from workbench.model.checkpoints.folder_files import Incomplete, require_file
from workbench.model.checkpoints.gguf_header import BadHeader, Place, TooNew, read_header
from workbench.model.checkpoints.validate import listed
from workbench.text import brief
from workbench.untrusted import exists, regular_file

PIECE = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})")  # the stem of a piece's file name
PLAIN = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it is stored: numbers, or the bytes of its blocks."""

    name: str
    tensor_type: Any  # gguf.GGMLQuantizationType
    shape: tuple[int, ...]  # of the numbers, outermost axis first
    data: np.ndarray  # mapped


@dataclass(frozen=True, slots=True)
class Opened:
    """The metadata and the tensors of a model, from all of its files."""

    meta: dict[str, Any]  # without the 200,000 tokens of the vocabulary and their merges
    tensors: dict[str, Stored]


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
                f"{file} is one of {brief(count)} pieces, and its name does not say which. Give the pieces their "
                f"original names (such as {file.stem}-00001-of-00003.gguf), or join them: "
                f"llama-gguf-split --merge FIRST_PIECE whole.gguf"
            )
        return opened
    count = int(name["count"])
    files = [file.with_name(f"{name['name']}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
    if missing := [piece.name for piece in files if not exists(piece)]:
        what = listed(missing, "piece is missing", "pieces are missing")
        raise Incomplete(f"{file} is one of {count} pieces, and {what}. Fetch the rest into the same folder.")
    return _joined(files)


def _joined(files: Sequence[Path]) -> Opened:
    pieces = [_open(file) for file in files]
    tensors: dict[str, Stored] = {}
    for number, (file, piece) in enumerate(zip(files, pieces, strict=True)):
        stated = (piece.meta.get("split.no"), piece.meta.get("split.count"))
        if stated != (number, len(files)):
            raise CheckpointError(
                f"{file} is piece {number} of {len(files)} by its name (counted from 0), but piece "
                f"{brief(stated[0])} of {brief(stated[1])} by its metadata. Fetch it again."
            )
        if twice := sorted(tensors.keys() & piece.tensors.keys()):
            raise CheckpointError(
                f"{file} contains {brief(twice[0])!r}, and so does another piece. Fetch the pieces again."
            )
        tensors |= piece.tensors
    total = pieces[0].meta.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise Incomplete(
            f"{files[0]} and the other pieces contain {len(tensors)} of {brief(total)} tensors. Fetch them again."
        )
    return Opened(pieces[0].meta, tensors)


def _open(file: Path) -> Opened:
    """The settings and tensors of one file.

    The package gguf is used for its types and their decoding. Its reader is not: `gguf_header` says why.
    """
    gguf = require("gguf", extra="interop")
    require_file(file)
    regular_file(file, CheckpointError)
    kinds = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    try:
        data = np.memmap(file, mode="c")  # copy on write: torch needs writable memory
        meta, places = read_header(data.data, kinds, _is_setting)
    except TooNew as error:
        raise CheckpointError(
            f"{file} uses {error}, which the installed package gguf {version('gguf')} does not support. If the file "
            f"is newer: pip install -U gguf. Otherwise use a file in MXFP4, F16, BF16, F32 or Q8_0."
        ) from None
    except (BadHeader, ValueError, OSError) as error:  # ValueError: an empty file cannot be mapped
        raise Incomplete(
            f"{file} is damaged, cut short, or not a GGUF file ({brief(str(error), 300)}). Fetch it again."
        ) from None
    return Opened(meta, {name: _tensor(name, place, data, gguf) for name, place in places.items()})


def _is_setting(key: str) -> bool:
    """Whether a setting is needed: not the tokens and merges of the vocabulary."""
    return not key.startswith("tokenizer.") or key.endswith("_token_id")


def _tensor(name: str, place: Place, data: np.ndarray, gguf: Any) -> Stored:
    kind = gguf.GGMLQuantizationType(place.kind)
    stored = data[place.start : place.start + place.n_bytes]
    if kind.name in PLAIN:
        stored = stored.view(PLAIN[kind.name]).reshape(place.shape)
    else:  # bytes of blocks
        stored = stored.reshape(*place.shape[:-1], -1)
    return Stored(name, kind, place.shape, stored)
