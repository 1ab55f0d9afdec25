"""Texts in which the value of one step is another value of the same kind; nothing else changes."""

import re
from collections.abc import Sequence
from random import Random

import numpy as np

from workbench.pocket.families.people import COLORS, NAMES
from workbench.pocket.problems import Step
from workbench.pocket.vocabulary import encode, str_tokens


def value_positions(token_ids: Sequence[int], segment: slice, step: Step) -> list[int]:
    """The positions of a step's value: the last occurrence of each of its words. The last token if it has none.

    >>> step = Step("a Ann red Bob red so Ann red Bob red", "red red")
    >>> ids = encode(step.text)
    >>> value_positions(ids, slice(0, len(ids)), step), str_tokens(ids)[7:9]
    ([7, 9], [' red', ' Bob'])
    """
    texts = str_tokens(list(token_ids[segment]))
    stops = np.cumsum([len(text) for text in texts])
    text, stop, positions = "".join(texts), len("".join(texts)), set()
    for word in reversed(step.value.split()):
        first = text.rindex(word, 0, stop)
        inside = (stops > first) & (stops - [len(part.strip()) for part in texts] < first + len(word))
        positions |= {segment.start + int(k) for k in np.flatnonzero(inside)}
        stop = first
    return sorted(positions) or [segment.stop - 1]


def with_another_value(token_ids: Sequence[int], segment: slice, step: Step) -> list[int]:
    """The text with another value in this step: each digit, name, color and letter of the value is replaced.

    Digits are replaced by any other digit, the rest by another of its kind that occurs in the text. Signs stay. The
    choice depends on the text alone. If nothing can be replaced, the text is unchanged.
    """
    changed, texts = list(token_ids), str_tokens(list(token_ids))
    rng = Random(f"{texts} {segment.start}")
    present = {text.strip() for text in texts}
    for position in value_positions(token_ids, segment, step):
        word = texts[position].strip()
        if others := [other for other in _kind(word, present) if other != word]:
            [changed[position]] = encode(texts[position].replace(word, rng.choice(others)))
    return changed


def _kind(word: str, present: set[str]) -> list[str]:
    """The words of the same kind as this one: all digits, or those in the text."""
    if word.isdigit():
        return list("0123456789")
    for kind in (NAMES, COLORS):
        if word in kind:
            return [other for other in kind if other in present]
    return sorted(other for other in present if re.fullmatch("[a-z]", other)) if re.fullmatch("[a-z]", word) else []
