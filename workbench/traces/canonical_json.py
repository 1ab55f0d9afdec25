"""JSON in a canonical form: equal values have equal bytes, so a hash of the bytes is a hash of the value."""

import json
from typing import Any

from workbench.errors import ArgumentError, TraceCorrupt


def canonical(value: Any) -> bytes:
    """The canonical form: sorted keys, no spaces, ASCII only. Raises ValueError for NaN and infinity.

    >>> canonical({"b": [1, 0.5], "a": "é"})
    b'{"a":"\\\\u00e9","b":[1,0.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse(data: bytes, what: str) -> Any:
    """The value of untrusted JSON bytes; `what` names them in the error.

    Raises TraceCorrupt if the bytes are not JSON, or contain duplicate keys, NaN or infinities.
    """

    def finite(text: str) -> float:
        number = float(text)
        if number - number != 0:  # 1e999 is an infinity too
            raise ArgumentError(f"{text[:20]} is not a finite number")
        return number

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise ArgumentError("a key occurs twice")
        return mapping

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise TraceCorrupt(f"{what} is not valid JSON: {str(error)[:200]}") from None
