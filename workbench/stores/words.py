"""Conditions as words of a command line: `effort=high`, `n_tokens=100..500`, `verified=true`."""

from collections.abc import Sequence
from typing import Any

from workbench.errors import ArgumentError
from workbench.stores.row import COLUMNS
from workbench.text import shown

_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def conditions_of(words: Sequence[str], *, of_columns: bool) -> dict[str, Any]:
    """The arguments of `store.find` in some words: of columns, or else of scores, whose values are numbers.

    >>> conditions_of(["effort=high", "verified=true", "n_tokens=100..500", "seed=3"], of_columns=True)
    {'effort': 'high', 'verified': True, 'n_tokens': (100, 500), 'seed': 3}
    >>> conditions_of(["correct=..0.5"], of_columns=False)
    {'correct': (None, 0.5)}

    Raises ArgumentError for a word without `=`, and for a value that is not of its column's type.
    """
    given: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise ArgumentError(f"a condition must be NAME=VALUE, such as effort=high, got {shown(word)}.")
        if name in given:
            raise ArgumentError(f"{shown(name)} has two conditions; give one.")
        given[name] = _value(name, value, COLUMNS.get(name, str) if of_columns else float)
    return given


def _value(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _FLAGS:
            raise ArgumentError(f"{name} must be true or false, got {shown(text)}.")
        return _FLAGS[text.lower()]
    low, dots, high = text.partition("..")
    if dots:
        return tuple(_number(name, end, kind) if end else None for end in (low, high))
    return _number(name, text, kind)


def _number(name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ArgumentError(f"{name} must be a number or a range such as 1..5, got {shown(text)}.") from None
