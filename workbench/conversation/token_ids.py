"""What counts as a token id: a whole number, of Python, numpy or torch. Nothing is rounded or read as a number."""

import operator
from typing import Any

from workbench.text import visible

MAX_BITS = 63  # of an id in a tensor
SHOWN = 60  # characters of a value in an error


def token_id(value: Any) -> int | None:
    """The value as a token id; None for anything but a whole number, such as 1.0, True, "1" or b"1".

    >>> token_id(7), token_id(7.0), token_id(True), token_id("7")
    (7, None, None, None)
    """
    if type(value).__name__ in ("bool", "bool_"):  # of Python and of numpy
        return None
    try:
        number = operator.index(value)
    except Exception:  # whatever a foreign object raises: it is not a number
        return None
    return number if number.bit_length() <= MAX_BITS else None


def shown(value: Any) -> str:
    """A short text of any value, for an error.

    >>> shown([1.5, 2]), shown(10**5000)
    ('[1.5, 2]', 'a number of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        return f"a number of {value.bit_length()} bits"
    try:
        return visible(repr(value)[:SHOWN])
    except Exception:
        return f"a {type(value).__name__} that cannot be shown"
