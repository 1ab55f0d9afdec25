"""The stop token ids of a checkpoint, combined from every file that lists any."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.errors import CheckpointError
from workbench.model.checkpoints.folder_files import read_json, require_file
from workbench.text import brief
from workbench.untrusted import is_there, json_member, parse_json, read_text

MAX_TOKENIZER_VALUES = 5_000_000  # gpt-oss's has 2 million: its merges are pairs

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
        if is_there(folder / "generation_config.json"):
            eos_ids.append(read_json(folder / "generation_config.json").get("eos_token_id"))
        tokens = {i for text, i in _added_tokens(folder) if text in STOPS}
    ids = set(tokens)
    for value in eos_ids:
        for i in value if isinstance(value, list) else [value]:
            if i is not None and type(i) is not int:
                raise CheckpointError(
                    f"{folder}: eos_token_id must be an integer or a list of integers, got {brief(value)}."
                )
            ids |= {i} if i is not None else set()
    if not tokens and d_vocab == O200K_VOCAB:
        ids |= set(O200K_STOPS)
    return tuple(sorted(i for i in ids if 0 <= i < d_vocab))


def _added_tokens(folder: Path) -> list[tuple[str, int]]:
    """Text and id of the added tokens in tokenizer.json, or else in tokenizer_config.json."""
    file = folder / "tokenizer.json"
    if is_there(file):
        require_file(file)
        tokens = _added_tokens_in(read_text(file, CheckpointError), file)
    elif is_there(file := folder / "tokenizer_config.json"):
        by_id = read_json(file).get("added_tokens_decoder") or {}
        if not isinstance(by_id, dict):
            raise _no_tokenizer(file)
        tokens: list[Any] = [
            t | {"id": int(i)} for i, t in by_id.items() if isinstance(t, dict) and re.fullmatch("[0-9]{1,9}", i)
        ]
    else:
        return []
    if not all(isinstance(t, dict) and type(t.get("content")) is str and type(t.get("id")) is int for t in tokens):
        raise _no_tokenizer(file)
    return [(t["content"], t["id"]) for t in tokens]


def _added_tokens_in(text: str, file: Path) -> list[Any]:
    """The list `added_tokens` of a tokenizer.json.

    It is near the top of the file; parsing all 28 MB of gpt-oss's takes a second.
    """
    part = json_member(text, "added_tokens")
    value = parse_json(part or text, str(file), CheckpointError, MAX_TOKENIZER_VALUES)
    if part is None:
        value = value.get("added_tokens") or [] if isinstance(value, dict) else None
    if not isinstance(value, list):
        raise _no_tokenizer(file)
    return value


def _no_tokenizer(file: Path) -> CheckpointError:
    return CheckpointError(
        f"{file} is not a tokenizer: its added tokens must each have a text and a whole number as id. Fetch it again."
    )
