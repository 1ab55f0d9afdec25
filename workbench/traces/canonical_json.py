"""JSON in a canonical form: equal values have equal bytes, so a hash of the bytes is a hash of the value."""

import json
import re
from typing import Any

from workbench.errors import ArgumentError, TraceCorrupt, TraceUnsafe

MAX_VALUES = 1_000_000  # in one JSON text
# A text of JSON (perhaps without its end, so that no character is looked at twice), or all up to the next one.
_TEXT_OR_REST = re.compile(r'"(?:[^"\\]|\\.)*+"?|[^"]+', re.DOTALL)


def canonical(value: Any) -> bytes:
    """The canonical form: sorted keys, no spaces, ASCII only. Raises ValueError for NaN and infinity.

    >>> canonical({"b": [1, 0.5], "a": "é"})
    b'{"a":"\\\\u00e9","b":[1,0.5]}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def parse(data: bytes, what: str, max_values: int = MAX_VALUES) -> Any:
    """The value of untrusted JSON bytes; `what` names them in the error.

    Raises TraceCorrupt if the bytes are not JSON, or contain duplicate keys, NaN or infinities; TraceUnsafe if they
    have more than `max_values` values.
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
        check_values(data, what, max_values)
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise TraceCorrupt(f"{what} is not valid JSON: {str(error)[:200]}") from None


def check_values(data: bytes, what: str, max_values: int = MAX_VALUES) -> None:
    """Raises TraceUnsafe if JSON bytes have more than `max_values` values.

    An empty list takes three bytes in a file and 64 in memory, so a limit of bytes is not enough.
    """
    if _marks(data) <= max_values:  # those inside texts count too, so it may be more than there are
        return
    # every text has two quotes and is a value or the key of one, so there are at least a quarter as many values
    count = (data.count(b'"') - data.count(b'\\"')) // 4
    _require_few(count, what, max_values)
    count = 0
    for match in _TEXT_OR_REST.finditer(data.decode("utf-8", "replace")):
        if not match[0].startswith('"'):
            _require_few(count := count + _marks(match[0].encode()), what, max_values)


def _require_few(count: int, what: str, max_values: int) -> None:
    if count > max_values:
        raise TraceUnsafe(f"{what} has more than {max_values:,} values, which no trace needs")


def _marks(data: bytes) -> int:
    """The number of marks that begin a list or an object or separate values."""
    return sum(map(data.count, (b",", b"[", b"{")))
