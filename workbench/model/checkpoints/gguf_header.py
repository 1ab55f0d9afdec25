"""Reads the header of a .gguf file (the settings, and where each tensor lies) and checks that it describes the file.

The package gguf reads headers too, but it follows any number that a file contains: an array of 2**60 values or three
million empty texts never end, and two tensors may lie on the same bytes. Here everything has a bound, and the tensors
must fill the data section one after another, as llama.cpp demands. Independent of gpt-oss and of the package gguf.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAGIC, VERSIONS = b"GGUF", (2, 3)
MAX_SETTINGS, MAX_TENSORS = 10_000, 250_000
MAX_ELEMENTS = 5_000_000  # of all arrays together; gpt-oss's vocabulary has 850,000
MAX_KEY_BYTES = 65_535  # of a key or a tensor's name, by the format
MAX_ARRAY = 100_000  # of an array whose values are returned
MAX_DIMENSIONS = 4
STRING, ARRAY, U32 = 8, 9, 4
# number of a type -> struct's code
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", U32: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Keep = Callable[[str], bool]
Kinds = Mapping[int, tuple[int, int]]  # number of a tensor type -> values in a block, bytes of a block


class BadHeader(Exception):
    """The header is damaged or does not describe the file; the message says what is wrong."""


class TooNew(BadHeader):
    """A version or a type that these readers do not know."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies in the file."""

    kind: int  # number of the tensor type
    shape: tuple[int, ...]  # outermost axis first; ggml lists the innermost first
    start: int
    n_bytes: int


def read_header(data: memoryview, kinds: Kinds, keep: Keep) -> tuple[dict[str, Any], dict[str, Place]]:
    """The settings that `keep` accepts by key, and the place of each tensor by name.

    Args:
        data: the bytes of the whole file, perhaps mapped.
        kinds: the known types of tensors.
        keep: whether a setting is needed; a vocabulary is skipped in a fraction of a second.

    Raises:
        BadHeader: the header is damaged, or its tensors do not fill the file one after another.
        TooNew: it has a version or a type that is not known.
    """
    cursor = _Cursor(data)
    if bytes(cursor.take(4)) != MAGIC:
        raise BadHeader("it does not begin with the letters GGUF")
    if (version := cursor.number("I")) not in VERSIONS:
        raise TooNew(f"version {version} of GGUF") if version < 1000 else BadHeader(f"version {version}")
    n_tensors, n_settings = cursor.number("Q"), cursor.number("Q")
    if n_tensors > MAX_TENSORS or n_settings > MAX_SETTINGS:
        raise BadHeader(
            f"it has {n_tensors:,} tensors and {n_settings:,} settings; at most {MAX_TENSORS:,} and {MAX_SETTINGS:,} "
            f"are allowed"
        )
    settings, alignment, keys = {}, 32, set()
    for _ in range(n_settings):
        key = cursor.text(MAX_KEY_BYTES)
        if key in keys:
            raise BadHeader(f"it has the setting {key[:100]!r} twice")
        keys.add(key)
        kind, value = cursor.value(keep(key) or key == "general.alignment")
        if key == "general.alignment":
            if kind != U32 or value.bit_count() != 1 or value > 1 << 20:
                raise BadHeader(f"general.alignment must be a power of two up to 2**20, got {value!r:.50}")
            alignment = value
        if keep(key):
            settings[key] = value
    return settings, _places(cursor, n_tensors, alignment, kinds)


def _places(cursor: "_Cursor", n_tensors: int, alignment: int, kinds: Kinds) -> dict[str, Place]:
    tensors: dict[str, tuple[int, tuple[int, ...], int, int]] = {}
    for _ in range(n_tensors):
        name = cursor.text(MAX_KEY_BYTES)
        if name in tensors:
            raise BadHeader(f"it has the tensor {name[:100]!r} twice")
        if (n_dimensions := cursor.number("I")) > MAX_DIMENSIONS:
            raise BadHeader(
                f"the tensor {name[:100]!r} has {n_dimensions:,} axes; at most {MAX_DIMENSIONS} are allowed"
            )
        shape = tuple(cursor.number("Q") for _ in range(n_dimensions))[::-1]
        kind, offset = cursor.number("I"), cursor.number("Q")
        if kind not in kinds:
            raise TooNew(f"type {kind}") if kind < 1000 else BadHeader(f"tensor type {kind}")
        per_block, block_bytes = kinds[kind]
        if not shape or 0 in shape or shape[-1] % per_block:
            raise BadHeader(f"the tensor {name[:100]!r} has the impossible shape {list(shape)}")
        tensors[name] = kind, shape, offset, math.prod(shape) // per_block * block_bytes
    base = _padded(cursor.at, alignment)
    end = 0
    for name, (_, _, offset, n_bytes) in sorted(tensors.items(), key=lambda item: item[1][2]):
        if offset != end:
            raise BadHeader(
                f"the tensor {name[:100]!r} begins at byte {offset:,} of the data, where {end:,} is expected: tensors "
                f"must lie one after another, without gaps, and each at a multiple of {alignment} bytes"
            )
        if base + offset + n_bytes > len(cursor.data):
            raise BadHeader(f"the tensor {name[:100]!r} ends after the end of the file")
        end = _padded(offset + n_bytes, alignment)
    if tensors and (rest := len(cursor.data) - base - end) > 0:
        raise BadHeader(f"{rest:,} bytes follow after the last tensor")
    return {name: Place(kind, shape, base + at, size) for name, (kind, shape, at, size) in tensors.items()}


class _Cursor:
    """A place in the header, from which values are read one after another; BadHeader at the end of the file."""

    def __init__(self, data: memoryview):
        self.data, self.at, self.n_elements = data, 0, 0

    def take(self, n: int) -> memoryview:
        """The next `n` bytes."""
        if n > len(self.data) - self.at:
            raise BadHeader(f"it ends in the middle of its header, at byte {len(self.data):,}")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, code: str) -> Any:
        """The next number, in struct's code."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, most: int) -> str:
        """The next text, of at most `most` bytes."""
        if (n := self.number("Q")) > most:
            raise BadHeader(f"it has a text of {n:,} bytes where at most {most:,} are allowed")
        try:
            return str(self.take(n), "utf-8")
        except UnicodeDecodeError:
            raise BadHeader("it has a text that is not UTF-8") from None

    def value(self, needed: bool) -> tuple[int, Any]:
        """The type and the next value, which is None if it is not needed."""
        kind = self.number("I")
        if kind == ARRAY:
            return kind, self._array(needed)
        if kind == STRING:
            if needed:
                return kind, self.text(1 << 20)
            return kind, self._skip_texts(1)
        if kind not in SCALARS:
            raise TooNew(f"type {kind}") if kind < 1000 else BadHeader(f"a setting of type {kind}")
        return kind, self.number(SCALARS[kind])

    def _array(self, needed: bool) -> list[Any] | None:
        kind, n = self.number("I"), self.number("Q")
        self.n_elements += n
        most = MAX_ARRAY if needed else MAX_ELEMENTS
        if n > most or self.n_elements > MAX_ELEMENTS:
            raise BadHeader(f"it has an array of {n:,} values; at most {most:,} are allowed here")
        if kind == STRING:
            return [self.text(1 << 20) for _ in range(n)] if needed else self._skip_texts(n)
        if kind not in SCALARS:
            raise BadHeader(f"it has an array of values of type {kind}")
        data = self.take(n * struct.calcsize("<" + SCALARS[kind]))
        return list(struct.unpack(f"<{n}{SCALARS[kind]}", data)) if needed else None

    def _skip_texts(self, n: int) -> None:
        at, length = self.at, struct.Struct("<Q")
        try:
            for _ in range(n):
                at += 8 + length.unpack_from(self.data, at)[0]
        except struct.error:
            at = len(self.data) + 1
        self.take(at - self.at)  # refuses a text that ends after the end of the file


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment
