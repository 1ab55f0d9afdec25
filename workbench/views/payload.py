"""The data that Python sends to a view: a header of plain values and named arrays, packed into one buffer.

The buffer consists of the length of the header as a 32-bit number, four zero bytes, the header as ASCII JSON, and the
arrays. Header and arrays are padded to multiples of 8 bytes. Numbers are little-endian. `mount.js` reads it without a
copy.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.errors import ArgumentTypeError

KINDS = ("f4", "f8", "i4", "u1", "u2", "u4")  # dtypes that JavaScript has a typed array for
Payload = tuple[dict[str, Any], dict[str, np.ndarray]]


def packed(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The header and the arrays in one buffer. The header key "arrays" is reserved: it holds their offsets.

    >>> unpacked(packed({"view": "made"}, {"lane": np.arange(3, dtype="f4")}))
    ({'view': 'made'}, {'lane': array([0., 1., 2.], dtype=float32)})

    Raises ArgumentTypeError for a dtype outside `KINDS`, ValueError for a header that JSON cannot represent.
    """
    table, parts, size = {}, [], 0
    for name, array in arrays.items():
        kind = array.dtype.str.lstrip("<>|=")
        if kind not in KINDS:
            raise ArgumentTypeError(f"{name!r} must have one of the dtypes {', '.join(KINDS)}, got {array.dtype}.")
        table[name] = [kind, list(array.shape), size]
        parts.append(_padded(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()))
        size += len(parts[-1])
    text = json.dumps(dict(header) | {"arrays": table}, allow_nan=False, separators=(",", ":")).encode("ascii")
    return struct.pack("<II", len(text), 0) + _padded(text) + b"".join(parts)


def unpacked(data: bytes) -> Payload:
    """The header and the arrays of a buffer made by `packed`."""
    size, _ = struct.unpack_from("<II", data)
    header = json.loads(data[8 : 8 + size])
    begin = 8 + size + -size % 8
    arrays = {
        name: np.frombuffer(data, f"<{kind}", math.prod(shape), begin + start).reshape(shape)
        for name, (kind, shape, start) in header.pop("arrays").items()
    }
    return header, arrays


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 8)
