"""Compares JSON texts by their values."""

import json
from decimal import Decimal, DecimalException
from typing import Any

from workbench.errors import PromptError
from workbench.untrusted import parse_json


def same_json(text: str, other: str) -> bool:
    """Whether two texts are equal, or JSON of the same value: spacing, escapes and the order of keys do not count.

    Numbers are compared digit by digit, and not as Python's floats.

    >>> same_json('{"a": 1, "b": "\\u00e9"}', '{"b":"é","a":1.0}'), same_json("[1]", "[true]")
    (True, False)
    """
    if text == other:
        return True
    try:
        for each in (text, other):
            parse_json(each, "the text", PromptError)  # its depth and size
        return _exact(text) == _exact(other)
    except (PromptError, ValueError, DecimalException):
        return False


def _exact(text: str) -> Any:
    """The value of a JSON text, with repeated keys, and with numbers that equal no truth value."""
    return json.loads(
        text,
        parse_int=lambda digits: ("number", Decimal(digits)),
        parse_float=lambda digits: ("number", Decimal(digits)),
        parse_constant=lambda name: ("number", name),
        object_pairs_hook=lambda pairs: ("object", sorted(pairs, key=lambda pair: pair[0])),
    )
