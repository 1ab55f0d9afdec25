"""Token ids from text that contains control tokens; only tests may encode such text."""

import re
from collections.abc import Sequence

from workbench.conversation.tokenizer import Tokenizer


def ids_of(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of `text`, in which `<|start|>` and the like are control tokens."""
    ids: list[int] = []
    for part in re.split(r"(<\|\w+\|>)", text):
        ids += [tokenizer.special[part]] if part in tokenizer.special else tokenizer.encode(part)
    return ids


def control_tokens(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """The names of the control tokens in `ids`, in order."""
    names = {i: name for name, i in tokenizer.special.items()}
    return [names[i] for i in ids if i in names]
