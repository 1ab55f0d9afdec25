"""A part: one safetensors file, written as a stream and read with our own bounded parser.

The format: eight bytes with the header's length, a JSON header, then the tensors' bytes without gaps. This module is
independent of traces, manifests and positions; the caller compares hashes and opens files.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import prod

import ml_dtypes
import numpy as np

from workbench.errors import ArgumentError, ArgumentTypeError, TraceCorrupt, TraceUnsafe
from workbench.files import sync_file, write_all
from workbench.text import visible
from workbench.traces.canonical_json import canonical, parse

MAX_HEADER = 8 << 20  # bytes
MAX_TENSORS = 20_000  # in one part
MAX_DIMS = 8
MAX_TENSOR = 64 << 30  # bytes; zero-sized axes count as one, so the limit bounds every axis
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}(\.[a-z0-9_]{1,64}){0,7}")

DTYPES: dict[str, np.dtype] = {
    code: np.dtype(kind).newbyteorder("<")
    for code, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
    }.items()
}
_CODES = {dtype.name: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """The dtype, shape and byte range `start:stop` of one tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def dtype_code(dtype: np.dtype) -> str:
    """The safetensors dtype code of a numpy dtype. Raises ArgumentTypeError if there is none.

    >>> dtype_code(np.dtype("float32")), dtype_code(np.dtype(ml_dtypes.bfloat16))
    ('F32', 'BF16')
    """
    if dtype.name not in _CODES:
        raise ArgumentTypeError(f"a trace cannot hold {dtype.name}: convert it to one of {', '.join(_CODES)}.")
    return _CODES[dtype.name]


def check_name(name: object) -> str:
    """Returns a valid tensor name, such as 'blocks.12.mlp.router.hook_out'. Raises TraceUnsafe for any other value."""
    if not isinstance(name, str) or len(name) > 200 or not NAME.fullmatch(name):
        raise TraceUnsafe(f"{visible(repr(name)[:80])} is not a tensor name; names look like 'blocks.12.hook_mlp_out'")
    return name


def check_shape(dtype: object, shape: object) -> int:
    """The size of a tensor in bytes.

    >>> check_shape("BF16", [3, 5])
    30

    Raises TraceCorrupt if the dtype or the shape is invalid, TraceUnsafe if the size is over the limits.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise TraceCorrupt(f"{visible(repr(dtype)[:40])} is not a dtype; allowed are {', '.join(DTYPES)}")
    if not isinstance(shape, Sequence) or isinstance(shape, str) or any(type(n) is not int or n < 0 for n in shape):
        raise TraceCorrupt(f"{visible(repr(shape)[:80])} is not a shape")
    item = DTYPES[dtype].itemsize
    if (
        len(shape) > MAX_DIMS
        or any(n > MAX_TENSOR for n in shape)
        or item * prod(max(n, 1) for n in shape) > MAX_TENSOR
    ):
        raise TraceUnsafe(f"a tensor of {dtype} {str(shape)[:80]} is over the limit of {MAX_TENSOR >> 30} GiB")
    return item * prod(shape)


def tensor_order(table: Mapping[str, tuple[str, Sequence[int]]]) -> list[str]:
    """The order of tensors in a part: wide items first (aligned for memory-mapped readers), then by name."""
    return sorted(table, key=lambda name: (-DTYPES[table[name][0]].itemsize, name))


def encode_header(table: Mapping[str, tuple[str, Sequence[int]]]) -> bytes:
    """The bytes before the tensors in a part that holds `table`: name -> (dtype code, shape).

    >>> encode_header({"logprob": ("F32", [2])})[8:]
    b'{"logprob":{"data_offsets":[0,8],"dtype":"F32","shape":[2]}}    '

    Raises TraceUnsafe if a reader would refuse it: too many tensors, a header that is too long, invalid names.
    """
    sizes = {check_name(name): check_shape(*entry) for name, entry in table.items()}
    header, end = {}, 0
    for name in tensor_order(table):
        dtype, shape = table[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end := end + sizes[name]]}
    text = canonical(header)
    text += b" " * (-len(text) % 8)
    if len(table) > MAX_TENSORS or len(text) > MAX_HEADER:
        raise TraceUnsafe(f"{len(table)} tensors in one part are too many; the limit is {MAX_TENSORS}")
    return len(text).to_bytes(8, "little") + text


def parse_header(data: bytes, size: int) -> dict[str, Slot]:
    """The place of each tensor in a part of `size` bytes; `data` is the file from its first byte to the header's end.

    Raises TraceCorrupt unless the tensors fill the rest of the file without gap, overlap or trailing byte, and
    TraceUnsafe beyond the limits.
    """
    header = parse(data[8:], "the header of a part")
    if not isinstance(header, dict):
        raise TraceCorrupt("the header of a part is not a JSON object")
    if len(header) > MAX_TENSORS:
        raise TraceUnsafe(f"a part with {len(header)} tensors is over the limit of {MAX_TENSORS}")
    slots = []
    for name, entry in header.items():
        check_name(name)
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise TraceCorrupt(f"the header entry of {name!r} is not (dtype, shape, data_offsets)")
        nbytes = check_shape(entry["dtype"], entry["shape"])
        offsets = entry["data_offsets"]
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(n) is not int or n < 0 for n in offsets):
            raise TraceCorrupt(f"the offsets of {name!r} are not two whole numbers")
        if offsets[1] - offsets[0] != nbytes:
            raise TraceCorrupt(f"the offsets of {name!r} do not fit its dtype and shape")
        slots.append((offsets[0], offsets[1], name, Slot(entry["dtype"], tuple(entry["shape"]), *offsets)))
    end = 0
    for start, stop, name, _ in sorted(slots, key=lambda slot: slot[:3]):
        if start != end:
            raise TraceCorrupt(f"the bytes of {name!r} leave a gap or overlap others")
        end = stop
    if len(data) + end != size:
        raise TraceCorrupt(f"a part has {size} bytes; its header describes {len(data) + end}")
    base = len(data)
    return {name: Slot(slot.dtype, slot.shape, base + start, base + stop) for start, stop, name, slot in slots}


def header_length(first: bytes, size: int) -> int:
    """The number of bytes before the tensors, from the first eight bytes of a file of `size` bytes."""
    length = int.from_bytes(first, "little")
    if length > size - 8:
        raise TraceCorrupt(f"a part of {size} bytes claims a header of {length} bytes")
    if length > MAX_HEADER:
        raise TraceUnsafe(f"a header of {length} bytes is over the limit of {MAX_HEADER}")
    return 8 + length


def table_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """name -> (dtype code, shape). Calls `arrays.table()` if there is one, so that no array is read."""
    table = getattr(arrays, "table", None)
    return table() if table else {name: (dtype_code(array.dtype), array.shape) for name, array in arrays.items()}


def write_part(fd: int, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Writes one part to an open file, tensor by tensor, and calls fsync. Returns the sha256 of each tensor's bytes."""
    table = table_of(arrays)
    write_all(fd, encode_header(table))
    hashes = {}
    for name in tensor_order(table):
        array = arrays[name]
        if (dtype_code(array.dtype), array.shape) != table[name]:
            raise ArgumentError(f"{name!r} changed to {array.dtype} {list(array.shape)} while it was being written")
        data = raw(array)
        hashes[name] = sha256(data).hexdigest()
        write_all(fd, data)
    sync_file(fd)
    return hashes


def raw(array: np.ndarray) -> memoryview:
    """The bytes of an array as a part holds them: C order, little-endian."""
    array = np.asarray(array, dtype=DTYPES[dtype_code(array.dtype)], order="C")
    return array.reshape(-1).view(np.uint8).data


def from_raw(data: np.ndarray, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """The array in these bytes, read-only. Raises TraceCorrupt if a Boolean is neither 0 nor 1."""
    if dtype == "BOOL" and data.size and data.max() > 1:
        raise TraceCorrupt("a Boolean is neither 0 nor 1")
    array = data.view(DTYPES[dtype]).reshape(shape)
    array.flags.writeable = False
    return array
