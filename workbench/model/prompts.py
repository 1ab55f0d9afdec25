"""Accepted forms of a prompt: text, a chat, messages, token ids in any of the usual containers, or a Trace.

Anything else is a PromptError; it is never interpreted as token ids by accident.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.conversation.chat import Chat, as_chat, chat
from workbench.conversation.token_ids import token_id
from workbench.errors import PromptError
from workbench.text import shown
from workbench.traces import Trace

MAX_DEPTH = 4  # of lists and dicts in each other; {"messages": [{"input_ids": [[1]]}]} needs them
MAX_ENTRIES = 1 << 22  # an iterator may have no end
ACCEPTED = (
    "A prompt is a question (str), a wb.chat(…), messages ([{'role': 'user', 'content': …}]), token ids "
    "(whole numbers), or a Trace."
)


def parse(prompt: Any) -> Chat | list[int]:
    """The prompt as a Chat (not yet rendered) or as token ids.

    >>> parse([{"role": "user", "content": "What is 1+1?"}]) == chat("What is 1+1?")
    True
    >>> parse(torch.tensor([[1, 2, 3]])), parse({"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]]})
    ([1, 2, 3], [1, 2, 3])

    Raises PromptError for anything else, and for more than one row.
    """
    return _parse(prompt, depth=0)


def _parse(prompt: Any, depth: int) -> Chat | list[int]:
    """`parse` of what is `depth` levels inside a prompt: `{"messages": [{…}]}` has two."""
    if depth > MAX_DEPTH:
        raise _not_a_prompt(f"it has more than {MAX_DEPTH} lists or dicts in each other")
    if isinstance(prompt, Trace):
        return list(prompt.tokens)
    if isinstance(prompt, str | Chat):
        return as_chat(prompt)
    if isinstance(prompt, Mapping):
        return _mapping(prompt, depth)
    if isinstance(prompt, Tensor | np.ndarray):
        return _array(prompt)
    if getattr(prompt, "ndim", 1) == 2:  # a pandas table, which iterates over its column names
        raise _not_a_prompt(f"it is a {type(prompt).__name__} with columns; give one column or row of it")
    if isinstance(prompt, bytes | bytearray | memoryview):
        raise _not_a_prompt(f"it is {type(prompt).__name__}; decode it to str first")
    if isinstance(prompt, set | frozenset) or not isinstance(prompt, Iterable) or getattr(prompt, "ndim", 1) == 0:
        return _encoding(prompt)
    entries = list(islice(prompt, MAX_ENTRIES + 1))
    if len(entries) > MAX_ENTRIES:
        raise _not_a_prompt(f"it has more than {MAX_ENTRIES:,} entries")
    if entries and all(isinstance(entry, Mapping) for entry in entries):
        return messages(entries)
    if entries and all(map(_is_row, entries)):
        if len(entries) > 1:
            raise _not_a_prompt(f"it has {len(entries)} rows; give one prompt at a time")
        return _parse(entries[0], depth + 1)
    return [_id(entry, i) for i, entry in enumerate(entries)]


def messages(history: Sequence[Mapping[str, Any]]) -> Chat:
    """A chat from messages.

    At most one "system" and one "developer" message may come first; they become these arguments of `wb.chat`. The rest
    is the history of the conversation.
    """
    rest = list(history)
    first: dict[str, Any] = {}
    while rest and rest[0].get("role") in ("system", "developer") and rest[0]["role"] not in first:
        first[rest[0]["role"]] = rest[0].get("content")
        rest = rest[1:]
    return chat(None, history=rest, **first)


def _mapping(prompt: Mapping[Any, Any], depth: int) -> Chat | list[int]:
    """Accepts the output of a transformers tokenizer, a dict with messages, or one message."""
    if "input_ids" in prompt:
        ids, mask = _parse(prompt["input_ids"], depth + 1), prompt.get("attention_mask")
        if not isinstance(ids, list):
            raise _not_a_prompt("its input_ids are not token ids")
        if mask is not None and not _all_ones(mask):
            raise _not_a_prompt("its attention_mask excludes tokens; give one prompt without padding")
        return ids
    if "messages" in prompt:
        return _parse(prompt["messages"], depth + 1)
    if "role" in prompt:
        return messages([prompt])
    keys = ", ".join(shown(key) for key in list(prompt)[:5])
    raise _not_a_prompt(f"it is a dict with {keys or 'nothing in it'}")


def _all_ones(mask: Any) -> bool:
    """True if a mask excludes no token."""
    try:
        return bool(torch.as_tensor(mask).bool().all())
    except (TypeError, ValueError, RuntimeError):
        raise _not_a_prompt(f"its attention_mask must be a row of 1, got {shown(mask)}") from None


def _array(prompt: Tensor | np.ndarray) -> list[int]:
    if isinstance(prompt, Tensor):
        if prompt.is_nested or prompt.is_meta or prompt.layout != torch.strided:
            kind = "nested" if prompt.is_nested else "on the meta device" if prompt.is_meta else "sparse"
            raise _not_a_prompt(f"it is a tensor that is {kind}; give a dense one")
        row = prompt.detach().cpu()
    elif np.ma.is_masked(prompt):
        raise _not_a_prompt("it is an array with masked entries; give one prompt without padding")
    elif prompt.dtype.kind == "u" and prompt.max(initial=0) >= 2**63:
        raise _not_a_prompt(f"its largest entry is {prompt.max()}, which is not a token id")
    else:
        row = torch.from_numpy(_numeric(prompt))
    if row.is_floating_point() or row.is_complex() or row.dtype == torch.bool:
        raise _not_a_prompt(f"it is an array of {prompt.dtype}, but token ids are whole numbers")
    if row.ndim not in (1, 2) or (row.ndim == 2 and row.shape[0] != 1):
        raise _not_a_prompt(f"it is an array of shape {tuple(row.shape)}; give one row, one prompt at a time")
    return row.reshape(-1).tolist()


def _numeric(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iufcb":
        raise _not_a_prompt(f"it is an array of {array.dtype}, but token ids are whole numbers")
    return array.astype(np.int64) if array.dtype.kind in "iu" else array.astype(np.float64)


def _is_row(entry: Any) -> bool:
    if isinstance(entry, Tensor | np.ndarray):
        return entry.ndim > 0
    return isinstance(entry, Sequence) and not isinstance(entry, str | bytes | bytearray)


def _encoding(prompt: Any) -> list[int]:
    """The ids of a tokenizers.Encoding, which is not a sequence."""
    ids = getattr(prompt, "ids", None)
    if not isinstance(ids, list):
        raise _not_a_prompt("it is None" if prompt is None else f"it is a {type(prompt).__name__}")
    return [_id(entry, i) for i, entry in enumerate(ids)]


def _id(entry: Any, index: int) -> int:
    token = token_id(entry)
    if token is None:
        several = "; for several prompts, run each: [model.generate(prompt) for prompt in prompts]"
        hint = several if isinstance(entry, str | Trace) else ""
        raise _not_a_prompt(f"its entry {index} is {shown(entry)}, which is not a token id{hint}")
    return token


def _not_a_prompt(reason: str) -> PromptError:
    return PromptError(f"this is not a prompt: {reason}. {ACCEPTED}")
