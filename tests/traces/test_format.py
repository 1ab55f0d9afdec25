import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load as their_load
from safetensors.numpy import save as safetensors_save

from tests.traces import made
from workbench.errors import TraceCorrupt, TraceError, TraceUnsafe
from workbench.traces.format import (
    DTYPES,
    MAX_HEADER,
    dtype_code,
    encode_header,
    from_raw,
    header_length,
    parse_header,
    raw,
    write_part,
)
from workbench.traces.tensor_parts import joined_shape

NUMPY_DTYPES = sorted(set(DTYPES) - {"BF16", "F8_E4M3", "F8_E5M2"})  # what safetensors.numpy reads without torch


def written(path: Path, arrays: dict[str, np.ndarray]) -> bytes:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_part(fd, arrays)
    finally:
        os.close(fd)
    return path.read_bytes()


def parsed(data: bytes) -> dict[str, np.ndarray]:
    length = header_length(data[:8], len(data))
    slots = parse_header(data[:length], len(data))
    return {
        name: from_raw(np.frombuffer(data[slot.start : slot.stop], "u1").copy(), slot.dtype, slot.shape)
        for name, slot in slots.items()
    }


@st.composite
def any_arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.from_regex(r"[a-z][a-z0-9_]{0,5}(\.[a-z0-9_]{1,5}){0,2}", fullmatch=True), max_size=5))
    arrays = {}
    for name in names:
        dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
        if dtype == np.bool_:
            arrays[name] = draw(hnp.arrays(bool, shape))
        else:
            size = int(np.prod(shape)) * dtype.itemsize
            arrays[name] = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)
    return arrays


@given(any_arrays())
def test_arrays_are_read_back_to_the_last_bit(tmp_path_factory: Any, arrays: dict[str, np.ndarray]) -> None:
    data = written(tmp_path_factory.getbasetemp() / "part", arrays)
    back = parsed(data)
    assert back.keys() == arrays.keys()
    assert all(made.same(back[name], array) for name, array in arrays.items())


@given(any_arrays())
def test_the_safetensors_library_reads_the_same(tmp_path_factory: Any, arrays: dict[str, np.ndarray]) -> None:
    arrays = {name: array for name, array in arrays.items() if dtype_code(array.dtype) in NUMPY_DTYPES}
    back = their_load(written(tmp_path_factory.getbasetemp() / "part", arrays))
    assert back.keys() == arrays.keys()
    assert all(made.same(back[name], array) for name, array in arrays.items())
    assert all(made.same(parsed(safetensors_save(arrays))[name], array) for name, array in arrays.items())


def test_the_safetensors_library_finds_bfloat16_in_our_files(tmp_path: Path) -> None:
    arrays = made.arrays()
    data = written(tmp_path / "part", arrays)
    with safe_open(tmp_path / "part", framework="numpy") as opened:
        assert sorted(opened.keys()) == sorted(arrays)
        for name, array in arrays.items():
            view = opened.get_slice(name)
            assert (view.get_dtype(), view.get_shape()) == (dtype_code(array.dtype), list(array.shape))
            if array.dtype != ml_dtypes.bfloat16:
                assert made.same(opened.get_tensor(name), array)
    slot = parse_header(data[: header_length(data[:8], len(data))], len(data))["blocks.1.hook_resid_post"]
    assert data[slot.start : slot.stop] == arrays["blocks.1.hook_resid_post"].tobytes()


def test_wide_items_come_first_so_that_mapped_reads_are_aligned() -> None:
    table = {"a": ("BOOL", [3]), "b": ("F64", [1]), "c": ("BF16", [5]), "d": ("F32", [1])}
    header = encode_header(table)
    assert len(header) % 8 == 0
    slots = parse_header(header, len(header) + 3 + 8 + 10 + 4)
    assert all(slot.start % DTYPES[slot.dtype].itemsize == 0 for slot in slots.values())


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.arange(9)[::2], np.arange(3, dtype=">i4"), np.array(7.0)]
)
def test_views_of_any_order_are_written_as_they_read(tmp_path: Path, array: np.ndarray) -> None:
    back = parsed(written(tmp_path / "part", {"a": array}))["a"]
    assert np.array_equal(back, array) and back.shape == array.shape


def test_arrays_that_a_trace_cannot_hold_are_refused() -> None:
    for array in (
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, complex),
        np.zeros(2, "M8[s]"),
        np.zeros(2, "f2,f4"),
    ):
        with pytest.raises(TypeError, match="a trace cannot hold"):
            raw(array)


def header(**changes: Any) -> bytes:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return json.dumps({"a": entry | changes}).encode()


def framed(text: bytes, body: int = 8) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(body)


GOOD = {"dtype": "U8", "shape": [4]}
BAD = [
    framed(header(dtype="F33")),
    framed(header(dtype=None)),
    framed(header(shape=[3])),
    framed(header(shape=[-2])),
    framed(header(shape=[2.0])),
    framed(header(shape=[True, 2])),
    framed(header(shape=None)),
    framed(header(shape="2")),
    framed(header(data_offsets=[0])),
    framed(header(data_offsets=[8, 0])),
    framed(header(data_offsets=[8, 16])),
    framed(header(data_offsets=[-8, 0])),
    framed(header(data_offsets=[0, 2**70])),
    framed(header(data_offsets={"0": 0, "8": 8})),
    framed(header(more=1)),
    framed(header(), body=9),
    framed(header(), body=7),
    framed(json.dumps({"a": GOOD | {"data_offsets": [0, 4]}, "b": GOOD | {"data_offsets": [2, 6]}}).encode(), body=6),
    framed(json.dumps({"a": GOOD | {"data_offsets": [0, 4]}, "b": GOOD | {"data_offsets": [5, 9]}}).encode(), body=9),
    framed(
        b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
    ),
    framed(b'{"a":null}'),
    framed(b"[]"),
    framed(b"null"),
    framed(b""),
    framed(b"{"),
    framed(b"[" * 100_000),
    framed(b'{"a":' * 5000),
    framed(b"\xff\xfe"),
    b"",
    b"\x00" * 7,
    (2**63).to_bytes(8, "little") + bytes(64),
    (2**64 - 1).to_bytes(8, "little") + bytes(64),
]


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
def test_a_header_that_does_not_describe_its_file_is_corrupt(data: bytes) -> None:
    with pytest.raises(TraceCorrupt):
        parsed(data)


@pytest.mark.parametrize("shape", [[0, 2**62], [1] * 9, [2**40], [10**300]])
def test_a_header_with_sizes_over_the_limit_is_unsafe(shape: list[int]) -> None:
    with pytest.raises(TraceUnsafe):
        parsed(framed(header(shape=shape)))


def test_a_header_bomb_is_unsafe_before_it_is_read() -> None:
    with pytest.raises(TraceUnsafe, match="over the limit"):
        header_length((MAX_HEADER + 1).to_bytes(8, "little"), 1 << 40)
    many = {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(20_001)}
    with pytest.raises(TraceUnsafe, match="20001 tensors"):
        parsed(framed(json.dumps(many).encode(), body=0))
    with pytest.raises(TraceUnsafe):
        encode_header({name: ("U8", [0]) for name in many})


@pytest.mark.parametrize("name", ["../../etc/x", "<img onerror=x>", "__metadata__", "", "a" * 300, "a\n", "\u202e"])
def test_a_hostile_tensor_name_is_unsafe_and_shown_safely(name: str) -> None:
    text = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    for attempt in (lambda: parsed(framed(text)), lambda: encode_header({name: ("F32", [2])})):
        with pytest.raises(TraceUnsafe) as caught:
            attempt()
        assert str(caught.value).isprintable()


def test_a_boolean_is_zero_or_one() -> None:
    assert parsed(framed(header(dtype="BOOL", shape=[8])))["a"].tolist() == [False] * 8
    with pytest.raises(TraceCorrupt):
        parsed(framed(header(dtype="BOOL", shape=[8]), body=7) + b"\x02")


@given(st.binary(max_size=200))
def test_no_bytes_give_an_untyped_error(data: bytes) -> None:
    for candidate in (data, framed(data), framed(header() + data)):
        with suppress(TraceError):
            parsed(candidate)


def test_a_partial_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, real = written(tmp_path / "a", made.arrays()), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    assert written(tmp_path / "b", made.arrays()) == whole


def test_pieces_that_do_not_fit_together_are_refused() -> None:
    assert joined_shape(("layer", "pos"), [(3, 5), (3, 0), (3, 2)]) == (3, 7)
    for axes, shapes in ((("layer", "head"), [(3, 4), (3, 4)]), (("pos", "d_model"), [(3, 4), (3, 5)])):
        with pytest.raises(ValueError):
            joined_shape(axes, shapes)
