"""What counts as a token id: a whole number, of Python, numpy or torch. Nothing is rounded or read as a number."""

import operator
from typing import Any

MAX_BITS = 63  # of an id in a tensor


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
