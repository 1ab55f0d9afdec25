"""The stop token ids of a checkpoint, combined from every file that lists any."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError
from workbench.model.checkpoints.folder_files import Incomplete, is_lfs_pointer, read_json

STOPS = ("<|return|>", "<|endoftext|>", "<|call|>")
# generation_config.json of the first gpt-oss release lacks <|call|>, so the ids of all files are combined. original/
# and single .gguf files of the published models may have no tokenizer; the ids of o200k_harmony are then used.
O200K_VOCAB, O200K_STOPS = 201088, (199999, 200002, 200012)


def stop_ids(folder: Path | None, eos_ids: Iterable[int | list[int] | None], *, d_vocab: int) -> tuple[int, ...]:
    """The stop token ids, sorted: the eos ids in `eos_ids` and generation_config.json, and the tokenizer's `STOPS`.

    >>> stop_ids(None, [7, [9, 8]], d_vocab=10)
    (7, 8, 9)
    """
    eos_ids = list(eos_ids)
    tokens: set[int] = set()
    if folder is not None:
        if (folder / "generation_config.json").is_file():
            eos_ids.append(read_json(folder / "generation_config.json").get("eos_token_id"))
        tokens = {i for text, i in _added_tokens(folder) if text in STOPS}
    ids = set(tokens)
    for value in eos_ids:
        for i in value if isinstance(value, list) else [value]:
            if i is not None and type(i) is not int:
                raise CheckpointError(
                    f"{folder}: eos_token_id must be an integer or a list of integers, got {value!r}."
                )
            ids |= {i} if i is not None else set()
    if not tokens and d_vocab == O200K_VOCAB:
        ids |= set(O200K_STOPS)
    return tuple(sorted(i for i in ids if 0 <= i < d_vocab))


def _added_tokens(folder: Path) -> list[tuple[str, int]]:
    file = folder / "tokenizer.json"
    if file.is_file():
        if is_lfs_pointer(file):
            raise Incomplete(f"{file} is git-lfs's pointer to the file, not the file itself. Run: git lfs pull")
        try:
            return [(t["content"], t["id"]) for t in _added_tokens_in(file.read_text(encoding="utf-8"))]
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(f"{file} is not a tokenizer: {error!r}. Fetch it again.") from None
    file = folder / "tokenizer_config.json"
    tokens = read_json(file).get("added_tokens_decoder", {}) if file.is_file() else {}
    return [(t["content"], int(i)) for i, t in tokens.items() if isinstance(t, Mapping)]


def _added_tokens_in(text: str) -> list[Any]:
    """The list `added_tokens` of a tokenizer.json.

    It is near the top of the file; parsing all 28 MB of gpt-oss's takes a second.
    """
    start = text.find("[", text.find('"added_tokens"'))
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
        if '"added_tokens"' in text[:start] and all(isinstance(t, dict) for t in value):
            return value
    except ValueError:
        pass
    return json.loads(text).get("added_tokens", [])
