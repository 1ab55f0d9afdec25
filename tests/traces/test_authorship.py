"""Who wrote each token, and the calls to tools: what a manifest accepts, and what the positions are."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces import made
from workbench.errors import ArgumentError, TraceCorrupt
from workbench.traces import Call, Manifest, Stretch
from workbench.traces.authorship import first_stretches, prompt_then_model, writer_of_each
from workbench.traces.manifest import first_positions
from workbench.traces.reader import decode_manifest, encode_manifest
from workbench.traces.spans import Span

CALC = "functions.calc"
SPANS = [
    Span(0, 4, 1, 3, "user"),
    Span(4, 9, 6, 8, "assistant", "commentary", recipient=CALC),
    Span(9, 13, 11, 12, "tool", "commentary", author=CALC),
    Span(13, 17, 15, 16, "assistant", "final"),
]
WRITTEN = [Stretch(0, 5, "prompt"), Stretch(5, 9, "model"), Stretch(9, 14, CALC), Stretch(14, 17, "model")]
CALL = Call(CALC, " w6 w7", slice(5, 9), slice(9, 13), " w11", "2026-01-02T03:04:05+00:00", 0.25)
THREE = made.manifest(17, spans=SPANS, written=WRITTEN, calls=[CALL], generation=made.GENERATION)


def test_a_manifest_with_three_writers_and_a_call_is_unchanged_after_writing_and_reading() -> None:
    assert decode_manifest(encode_manifest(THREE)) == THREE
    assert THREE.calls == [CALL] and THREE.written == WRITTEN and THREE.prompt_length == 5


def test_the_positions_of_a_writer_are_those_of_its_stretches() -> None:
    trace = made.Trace(THREE, {})
    assert trace.written_by("model").tolist() == [5, 6, 7, 8, 14, 15, 16]
    assert trace.written_by("prompt").tolist() == [0, 1, 2, 3, 4] and trace.written_by(CALC).tolist() == [*range(9, 14)]
    assert trace.written_by(CALC).dtype == np.int64
    assert made.trace().written_by("model").shape == (0,)
    others: tuple[Any, ...] = ("functions.other", "", None, 3, ["model"])
    for who in others:
        with pytest.raises(ArgumentError, match=f"one of prompt, model, {CALC}, got"):
            trace.written_by(who)


writers = st.sampled_from(["prompt", "model", "python", "browser.search"])


@settings(max_examples=60, deadline=None)
@given(st.lists(writers, max_size=30))
def test_the_writers_of_all_positions_are_their_union_and_disjoint(who: list[str]) -> None:
    written: list[Stretch] = []
    for i, name in enumerate(who):
        if written and written[-1].who == name:
            written[-1] = written[-1]._replace(stop=i + 1)
        else:
            written.append(Stretch(i, i + 1, name))
    manifest = made.manifest(len(who), spans=[], written=written)
    trace = made.Trace(manifest, {})
    assert writer_of_each(manifest.written) == who
    by_writer = {name: trace.written_by(name).tolist() for name in {*who, "prompt", "model"}}
    assert by_writer == {name: [i for i, each in enumerate(who) if each == name] for name in by_writer}
    assert manifest.prompt_length == next((i for i, name in enumerate(who) if name != "prompt"), len(who))
    # by hand: what neither the first stretch of the prompt nor the model wrote, token by token
    others = [(i, name) for i, name in enumerate(who) if name != "model" and i >= manifest.prompt_length]
    put_in = manifest.spec()["put_in"]
    assert [(start + k, by) for start, ids, by in put_in for k in range(len(ids))] == others
    assert all(ids == manifest.tokens[start : start + len(ids)] for start, ids, _ in put_in)
    for count in range(len(who) + 1):
        assert writer_of_each(first_stretches(written, count)) == who[:count]


def test_the_id_depends_on_what_tools_put_in_and_where() -> None:
    other = [*THREE.tokens[:11], 10 - THREE.tokens[11], *THREE.tokens[12:]]
    for change in (
        {"tokens": other},
        {"written": prompt_then_model(5, 17), "calls": []},
        {"written": [*WRITTEN[:2], Stretch(9, 13, CALC), Stretch(13, 17, "model")]},
    ):
        assert replace(THREE, **change).id != THREE.id, change
    own = [*THREE.tokens[:15], 10 - THREE.tokens[15], THREE.tokens[16]]
    assert replace(THREE, tokens=own).id == THREE.id  # what the model wrote follows from the rest


def test_a_later_message_of_the_user_is_part_of_the_id() -> None:
    written = [Stretch(0, 3, "prompt"), Stretch(3, 5, "model"), Stretch(5, 7, "prompt"), Stretch(7, 9, "model")]
    one = made.manifest(written=written, generation=made.GENERATION)
    other = replace(one, tokens=[*one.tokens[:5], 10 - one.tokens[5], *one.tokens[6:]])
    assert one.prompt_length == 3 and one.id != other.id


def test_the_times_of_calls_are_no_part_of_the_content() -> None:
    slower = replace(CALL, seconds=9.0, started=None)
    assert replace(THREE, calls=[slower]).content_hash == THREE.content_hash
    assert replace(THREE, calls=[replace(CALL, result="7")]).content_hash != THREE.content_hash
    assert replace(THREE, calls=[replace(CALL, error="timeout")]).content_hash != THREE.content_hash


WRONG_CALLS: list[Any] = [
    None,
    CALL,
    [CALL, CALL],
    ["call"],
    [CALL] * 18,
    *(
        [replace(CALL, **change)]
        for change in (
            {"positions": slice(4, 9)},  # the first token is of the prompt
            {"positions": slice(8, 10)},
            {"positions": slice(5, 5)},
            {"positions": slice(-4, 9)},
            {"positions": slice(5, 9, 1)},
            {"positions": slice(5.0, 9)},
            {"positions": slice(14, 17)},  # after its result
            {"positions": (5, 9)},
            {"positions": None},
            {"result_positions": slice(9, 15)},
            {"result_positions": slice(9, 18)},
            {"result_positions": slice(6, 8)},
            {"result_positions": slice(10**30, 10**40)},
            {"tool": "functions.other"},
            {"tool": None},
            {"arguments": b"1"},
            {"result": None},
            {"result": 5},
            {"error": 1},
            {"started": 7},
            {"seconds": -1},
            {"seconds": float("nan")},
            {"seconds": "1"},
            {"seconds": True},
        )
    ),
]


@pytest.mark.parametrize("calls", WRONG_CALLS)
def test_calls_that_contradict_the_text_are_refused(calls: Any) -> None:
    with pytest.raises(ArgumentError):
        replace(THREE, calls=calls)


IN_JSON: list[Any] = [
    {},
    [3],
    [{}],
    [CALL.to_json() | {"more": 1}],
    [CALL.to_json() | {"positions": 5}],
    [CALL.to_json() | {"positions": [5]}],
    [CALL.to_json() | {"positions": ["a", "b"]}],
    [CALL.to_json() | {"positions": [5, 900]}],
    [CALL.to_json() | {"result_positions": [9, 13, 1]}],
    [CALL.to_json() | {"result_positions": [0, 3]}],
    [CALL.to_json() | {"seconds": []}],
]


@pytest.mark.parametrize("calls", IN_JSON)
def test_hostile_calls_in_json_are_corrupt(calls: Any) -> None:
    with pytest.raises(TraceCorrupt):
        Manifest.from_json(THREE.to_json() | {"calls": calls})


def test_a_writer_must_be_a_tool_that_the_messages_name() -> None:
    renamed = [stretch._replace(who="functions.other") if stretch.who == CALC else stretch for stretch in WRITTEN]
    with pytest.raises(ArgumentError, match=r"name of a tool that the messages call \(functions\.calc\), got"):
        replace(THREE, written=renamed, calls=[])
    unparsed = [Span(0, 17, 0, 17, "unparsed")]
    assert replace(THREE, written=renamed, calls=[], spans=unparsed).written == renamed  # nothing is known of it


def test_the_first_positions_have_the_calls_that_they_contain() -> None:
    assert first_positions(THREE, 8).calls == []
    assert first_positions(THREE, 11).calls == [replace(CALL, result_positions=None)]  # the tool was run
    assert first_positions(THREE, 13).calls == [CALL]
    assert first_positions(THREE, 7).written == [Stretch(0, 5, "prompt"), Stretch(5, 7, "model")]
