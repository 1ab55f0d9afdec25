"""The calls that a model made to tools, and what the tools answered."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from workbench.errors import ArgumentError
from workbench.text import shown
from workbench.traces.authorship import MODEL, Stretch
from workbench.traces.fields import plain
from workbench.traces.spans import Span, is_call

TIMES = ("started", "seconds")  # differ between two equal runs, so they are no part of the content of a trace


@dataclass(frozen=True, slots=True)
class Call:
    """A call that the model made to a tool: its arguments, its result, their positions, and how long it took.

    >>> call = Call("functions.calc", '{"x": "8*2"}', slice(39, 68), slice(68, 84), "16", seconds=0.02)
    >>> call.tool, call.result
    ('functions.calc', '16')
    """

    tool: str  # the recipient of the call
    arguments: str  # as the model wrote them
    positions: slice  # of the call, all written by the model
    result_positions: slice | None = None  # of the result, all written by the tool; None if it is not in the text
    result: str | None = None  # the text of the result
    started: str | None = None  # date and time, UTC
    seconds: float | None = None  # from the start of the tool to its result
    error: str | None = None  # why the tool failed

    def to_json(self) -> dict[str, Any]:
        """The call with its positions as [start, stop]; `call_from_json` reads it."""
        call = {name: getattr(self, name) for name in FIELDS}
        return call | {name: None if call[name] is None else [call[name].start, call[name].stop] for name in _PLACES}


FIELDS = [f.name for f in fields(Call)]
_PLACES = ("positions", "result_positions")
_TEXTS = {"tool": str, "arguments": str, "result": str | None, "started": str | None, "error": str | None}


def call_from_json(call: Mapping[str, Any]) -> Call:
    """The call whose `to_json` this is. Raises ArgumentError if positions are not [start, stop] or null."""
    places = {}
    for name in _PLACES:
        place = call[name]
        if place is not None and not (isinstance(place, list) and len(place) == 2):
            raise ArgumentError(f"{name!r} of a call must be [start, stop], got {shown(place)}")
        places[name] = None if place is None else slice(*place)
    return Call(**{**call, **places})


def checked_calls(value: Any, written: Sequence[Stretch]) -> list[Call]:
    """The calls, which must be in order, in tokens of the model, with each result in tokens of the called tool.

    Raises ArgumentError.
    """
    if not isinstance(value, list | tuple):
        raise ArgumentError(f"calls must be a list of Call, got {shown(value)}")
    count = written[-1].stop if written else 0
    if len(value) > count:
        raise ArgumentError(f"there are {len(value)} calls, but only {count} tokens")
    calls, end = [], 0
    for index, call in enumerate(value):
        what = f"calls[{index}]"
        if not isinstance(call, Call):
            raise ArgumentError(f"{what} must be a Call, got {shown(call)}")
        call = _checked_fields(call, what)
        _check_place(call.positions, MODEL, f"{what}.positions", end, written)
        end = call.positions.stop
        if call.result_positions is not None:
            _check_place(call.result_positions, call.tool, f"{what}.result_positions", end, written)
            end = call.result_positions.stop
        calls.append(call)
    return calls


def _check_place(place: slice, who: str, what: str, end: int, written: Sequence[Stretch]) -> None:
    """Raises ArgumentError unless these are positions after `end` that `who` wrote in one stretch."""
    count = written[-1].stop if written else 0
    if not (type(place.start) is int and type(place.stop) is int and place.step is None):
        raise ArgumentError(f"{what} must be a slice of positions, got {shown(place)}")
    if not (end <= place.start < place.stop <= count):
        raise ArgumentError(
            f"{what} has the positions {shown(place.start)}:{shown(place.stop)}; they must be within the {count} "
            f"tokens and in order, after what ends at {end}"
        )
    stretch = written[bisect_right(written, place.start, key=lambda each: each.start) - 1]
    if stretch.who != who or place.stop > stretch.stop:
        raise ArgumentError(
            f"{what} has the positions {place.start}:{place.stop}, and {shown(who)} did not write all of them"
        )


def _checked_fields(call: Call, what: str) -> Call:
    for name, kind in _TEXTS.items():
        if not isinstance(text := getattr(call, name), kind):
            raise ArgumentError(f"{what}.{name} must be a text{'' if kind is str else ' or None'}, got {shown(text)}")
    if not isinstance(call.positions, slice) or not isinstance(call.result_positions, slice | None):
        raise ArgumentError(f"{what} must have slices of positions as `positions` and `result_positions`")
    if call.result_positions is not None and call.result is None:
        raise ArgumentError(f"{what} has the positions of a result, but no `result`")
    seconds = call.seconds
    if seconds is not None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 2**53:
            raise ArgumentError(f"{what}.seconds must be a number of at least 0, got {shown(seconds)}")
        seconds = float(seconds)
    texts = {name: plain(getattr(call, name), f"{what}.{name}") for name in _TEXTS}
    return replace(call, **texts, seconds=seconds)


def calls_in(spans: Sequence[Span], str_tokens: Sequence[str], written: Sequence[Stretch]) -> list[Call]:
    """The calls in messages that the model wrote, each with the result that the called tool put in next, if it did.

    Calls in the prompt, of an earlier run, are not among them. Times and errors are None.
    """
    calls = []
    for span, message_after in zip(spans, [*spans[1:], None]):
        at = bisect_right(written, span.stop - 1, key=lambda stretch: stretch.start) - 1
        if not (is_call(span) and span.complete and at >= 0 and written[at].who == MODEL):
            continue
        call = Call(
            span.recipient or "",
            "".join(str_tokens[span.content]),
            slice(max(span.start, written[at].start), span.stop),
        )
        put_in_next = written[at + 1] if at + 1 < len(written) else None
        if put_in_next and message_after and _answers(message_after, call, put_in_next):
            result = "".join(str_tokens[message_after.content])
            call = replace(call, result_positions=slice(message_after.start, message_after.stop), result=result)
        calls.append(call)
    return calls


def _answers(message: Span, call: Call, put_in_next: Stretch) -> bool:
    """Whether a message is the result of a call: the called tool put it in after the call."""
    inside = put_in_next.start <= message.start and message.stop <= put_in_next.stop
    return message.role == "tool" and put_in_next.who == call.tool and inside


def first_calls(calls: Sequence[Call], count: int) -> list[Call]:
    """The calls that the first `count` tokens contain. One whose result is cut is there without its positions."""
    return [
        call if (at := call.result_positions) is None or at.stop <= count else replace(call, result_positions=None)
        for call in calls
        if call.positions.stop <= count
    ]
