"""Where a text occurs in a sequence of tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from workbench.checks import check_text
from workbench.errors import ArgumentError


def occurrences(str_tokens: Sequence[str], text: str) -> list[slice]:
    """The slices of tokens that cover each occurrence of `text`, in order; occurrences do not overlap.

    A token of which an occurrence takes only a part is in its slice. So is a token with the first bytes of a character
    that the next token ends: its text is empty.

    >>> occurrences(["My", " name", " is", " K", "ay", "."], "Kay")
    [slice(3, 5, None)]

    Raises ArgumentError for an empty text.
    """
    if not check_text("text", text):
        raise ArgumentError("text must have at least one character; an empty text occurs everywhere.")
    whole, stops = "".join(str_tokens), list(accumulate(map(len, str_tokens)))
    found: list[slice] = []
    at = whole.find(text)
    while at >= 0:
        start, stop = bisect_right(stops, at), bisect_right(stops, at + len(text) - 1) + 1
        if at == (stops[start - 1] if start else 0):
            while start and not str_tokens[start - 1]:
                start -= 1
        found.append(slice(start, stop))
        at = whole.find(text, at + len(text))
    return found
