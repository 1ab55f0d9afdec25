"""The files of a checkpoint: their sizes, headers and index, and their content where a digest of it is known."""

import hashlib
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from workbench.errors import CheckpointError, WorkbenchError
from workbench.model.checkpoints.folder_files import INDEX, files_of, hf_files
from workbench.model_check.line import FAILS, HOLDS, NOT_CHECKED, Line
from workbench.model_check.published import published_files
from workbench.model_check.raw_tensors import gguf_pieces
from workbench.text import brief, size_text
from workbench.untrusted import exists, is_file, read_json, read_text, regular_file

SMALL = ("config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
UNKNOWN = "content not checked: no digest of it is known here"
CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Expected:
    """The digest that a file should have, and where that is known from."""

    digest: str  # 64 hex digits: sha256; 40: git's own sha1 of a file
    source: str
    certain: bool  # False: a file of another model may have the same name and size


def files_of_model(folder: Path, weights: list[Path]) -> list[Path]:
    """The weight files and the small files beside them, as far as they are there."""
    small = [folder / name for name in (*SMALL, INDEX) if is_file(folder / name)]
    return [*weights, *(file for file in small if file not in weights)]


def expected_digests(folder: Path, files: list[Path], named: str) -> dict[Path, Expected]:
    """What is known of each file's content.

    Hugging Face's cache names each file by its digest, and `hf download --local-dir` writes the digest beside it. For
    files with the published names and sizes, the published digest is used.
    """
    sizes = {file.name: file.stat().st_size for file in files}
    model, table = published_files(sizes)
    known = {}
    for file in files:
        if recorded := _recorded_digest(folder, file):
            known[file] = recorded
        elif file.name in table and table[file.name][0] == sizes[file.name]:
            known[file] = Expected(table[file.name][1], f"published, {model}", certain=named == model)
    return known


def _recorded_digest(folder: Path, file: Path) -> Expected | None:
    """The digest that Hugging Face's own tools wrote when they fetched the file."""
    blob = file.resolve()
    if blob.parent.name == "blobs" and _is_digest(blob.name):
        return Expected(blob.name, "Hugging Face's cache", certain=True)
    record = folder / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
    if is_file(record):
        try:
            lines = read_text(record, CheckpointError, 10_000).split()
        except CheckpointError:  # it is damaged: no digest is known
            return None
        if len(lines) >= 2 and _is_digest(lines[1]):
            return Expected(lines[1], "hf download", certain=True)
    return None


def _is_digest(text: str) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", text) is not None


def digest_of(file: Path, n_digits: int) -> str:
    """The file's sha256 (64 hex digits), or git's sha1 of it (40)."""
    sha = hashlib.sha256() if n_digits == 64 else hashlib.sha1(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def check_content(file: Path, expected: Expected | None) -> Line:
    """The line about one file's size and content."""
    start = time.perf_counter()
    regular_file(file, CheckpointError)  # a FIFO would never end
    size = size_text(file.stat().st_size)
    if expected is None:
        return Line("files", None, file.name, NOT_CHECKED, note=f"{size}, {UNKNOWN}")
    found = digest_of(file, len(expected.digest))
    seconds = time.perf_counter() - start
    if found == expected.digest:
        return Line("files", None, file.name, HOLDS, 0.0, 0.0, seconds, f"{size}, content as in {expected.source}")
    if not expected.certain:
        note = f"{size}, not OpenAI's file of that name and size: another model, or damage. sha256 {found}"
        return Line("files", None, file.name, NOT_CHECKED, None, None, seconds, note)
    note = (
        f"{size}, damaged or replaced: its digest is {found}, and {expected.source} says {expected.digest}. "
        f"Fetch it again"
    )
    return Line("files", None, file.name, FAILS, 1.0, 0.0, seconds, note)


def damaged_if_others_match(lines: list[Line]) -> list[Line]:
    """The lines, where a file that differs from OpenAI's fails if another weight file is OpenAI's.

    All different: a fine-tune of the same shape. One different: damage, or a file of another model.
    """
    weights = [line for line in lines if line.tensor.endswith(".safetensors")]
    if not any(line.status == HOLDS for line in weights):
        return lines
    return [
        Line("files", None, line.tensor, FAILS, 1.0, 0.0, line.seconds, f"{line.note}. The others are OpenAI's")
        if line in weights and "not OpenAI's file" in line.note
        else line
        for line in lines
    ]


def check_headers(folder: Path, weights: list[Path]) -> Iterator[Line]:
    """Lines about the headers of safetensors files and the index: names, offsets and sizes that must agree."""
    stored: dict[str, str] = {}
    total = 0
    for file in weights:
        start = time.perf_counter()
        try:
            names, n_bytes = _header(file)
        except (WorkbenchError, ValueError, KeyError, TypeError) as error:
            yield Line("files", None, f"{file.name} (header)", FAILS, 1.0, 0.0, time.perf_counter() - start, str(error))
            continue
        stored |= dict.fromkeys(names, file.name)
        total += n_bytes
        note = f"{len(names)} tensors fill {size_text(n_bytes)} without a gap"
        yield Line("files", None, f"{file.name} (header)", HOLDS, 0.0, 0.0, time.perf_counter() - start, note)
    if exists(folder / INDEX) and folder / "model.safetensors" not in weights:  # beside that file nobody reads it
        yield _check_index(folder / INDEX, stored, total)


def _header(file: Path) -> tuple[list[str], int]:
    """The names of a safetensors file's tensors, and their bytes. Raises CheckpointError where its parts disagree."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        n_header = int.from_bytes(opened.read(8), "little")
        if not 2 <= n_header <= min(size - 8, 16 << 20):
            raise CheckpointError(
                f"a header of {n_header:,} bytes in a file of {size:,}: cut short, or not safetensors"
            )
        header = json.loads(opened.read(n_header))
    header.pop("__metadata__", None)
    end = 0
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = info["data_offsets"]
        if first != end:
            raise CheckpointError(f"{name} begins at byte {first:,}, but the tensor before it ends at {end:,}")
        end = last
    if 8 + n_header + end != size:
        raise CheckpointError(
            f"its tensors end at byte {8 + n_header + end:,}, the file at {size:,}: cut short or longer"
        )
    return list(header), end


def _check_index(file: Path, stored: dict[str, str], total: int) -> Line:
    start = time.perf_counter()
    index = read_json(file, CheckpointError)
    named = index.get("weight_map", {})
    facts = index.get("metadata")
    size = facts.get("total_size") if isinstance(facts, dict) else None
    problems = []
    if wrong := [name for name in {*named, *stored} if named.get(name) != stored.get(name)]:
        problems.append(f"{len(wrong)} tensors are not in the file that the index names, such as {min(wrong)}")
    if size not in (None, total, str(total)):
        problems.append(f"the index says {brief(size)} bytes of tensors, and there are {total:,}")
    status, note = (FAILS, "; ".join(problems)) if problems else (HOLDS, f"{len(named)} tensors, each in its file")
    return Line("files", None, file.name, status, float(len(problems)), 0.0, time.perf_counter() - start, note)


def weight_files(path: Path, layout: str) -> tuple[Path, list[Path]]:
    """The folder of a checkpoint and its weight files."""
    if layout == "gguf":
        return path.parent, gguf_pieces(path)
    if layout == "original":
        return path, files_of(path, "", ".safetensors")
    return path, hf_files(path)
