"""Files of strangers are read within bounds of size, depth and number, and only if they are regular files."""

import json
import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import CheckpointError
from workbench.untrusted import (
    MAX_DEPTH,
    brief,
    json_member,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    regular_file,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_every_json_value_is_read_as_json_reads_it(value):
    assert parse_json(json.dumps(value), "it", CheckpointError) == value


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "", "{", "[1,", '"\\', "nul"])
def test_text_that_is_no_json_or_too_deep_is_refused(text):
    with pytest.raises(CheckpointError, match="it is n"):
        parse_json(text, "it", CheckpointError)


def test_depth_counts_lists_and_objects_outside_of_strings():
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deepest, "it", CheckpointError)
    with pytest.raises(CheckpointError, match="nested more than"):
        parse_json(f"[{deepest}]", "it", CheckpointError)
    assert parse_json(json.dumps("[" * 1000), "it", CheckpointError) == "[" * 1000


def test_the_number_of_values_is_bounded():
    assert len(parse_json(json.dumps([1] * 50), "it", CheckpointError, max_values=60)) == 50
    with pytest.raises(CheckpointError, match="more than 40 values"):
        parse_json(json.dumps([1] * 50), "it", CheckpointError, max_values=40)


@pytest.mark.parametrize("unit", ['"\\', '\\"', '"', "[]", '"a', "\\"])
def test_looking_at_a_text_takes_time_in_proportion_to_its_length(unit):
    def seconds(n: int) -> float:
        start = time.process_time()
        with pytest.raises(CheckpointError):
            parse_json('{"' + unit * n, "it", CheckpointError)
        return time.process_time() - start

    assert seconds(400_000) < 2  # quadratic: minutes


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in {
        "fifo": "a FIFO",
        "zero": "a device",
        ".": "a folder",
        "loop": "cannot be opened",
        "none": "No such",
    }.items():
        for function in (regular_file, read_bytes, read_text, read_json):
            with pytest.raises(CheckpointError, match=reason):
                function(tmp_path / name, CheckpointError)
    for path in ("nul\0", "n" * 5000, "~nosuchuser/file"):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            read_bytes(path, CheckpointError)


def test_a_link_to_a_file_is_followed_and_its_text_must_be_utf8(tmp_path):
    (tmp_path / "file").write_bytes(b'{"a": 1}')
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link", CheckpointError) == {"a": 1}
    with pytest.raises(CheckpointError, match="limit"):
        read_bytes(tmp_path / "link", CheckpointError, max_bytes=7)
    (tmp_path / "file").write_bytes(b"ab\xff")
    with pytest.raises(CheckpointError, match="byte 2"):
        read_text(tmp_path / "file", CheckpointError)


def test_a_file_of_the_kernel_whose_size_is_unknown_is_bounded_too():
    with pytest.raises(CheckpointError, match="more than 10 B"):
        read_bytes("/proc/self/status", CheckpointError, max_bytes=10)


def test_a_key_that_an_object_has_twice_is_refused():
    assert parse_json('[{"a": 1}, {"a": 2}]', "it", CheckpointError) == [{"a": 1}, {"a": 2}]
    with pytest.raises(CheckpointError, match="it has the key 'a' twice in one object"):
        parse_json('{"x": {"a": 1, "b": 2, "a": 1}}', "it", CheckpointError)


def test_half_of_a_surrogate_pair_is_refused():
    assert parse_json('"\\ud83d\\ude00"', "it", CheckpointError) == "\U0001f600"
    with pytest.raises(CheckpointError, match="surrogate"):
        parse_json('["\\ud83d"]', "it", CheckpointError)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=5))
def test_a_member_of_an_object_is_found_without_reading_the_rest(value):
    text = json.dumps(value, ensure_ascii=False)
    for key, expected in value.items():
        found = json_member(text, key)
        if isinstance(expected, list | dict) and json.dumps(key, ensure_ascii=False) == f'"{key}"':
            assert found is not None and json.loads(found) == expected
        else:
            assert found is None
    assert json_member('{"x": {"a": [1]}, "y": "\\"a\\": [2]", "a": [3]} and more', "a") == "[3]"


def test_a_value_in_an_error_is_short_and_visible():
    assert brief("a\x1b") == "a␛" and brief([1]) == "[1]"
    assert brief("x" * 10**8, 10) == "x" * 9 + "…"
    assert brief(10**5000) == "a number of thousands of digits"
