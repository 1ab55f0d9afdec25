"""Messages and steps of a trace as the views show them: in order, within the text, each with its color."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.spans import Span
from workbench.traces.steps import KINDS, Step, steps
from workbench.views.snapshot_html import Row, cut, ribbon

# A kind of step and a channel have the same colour in every view: .k0 to .k8 in views.css.
KIND_COLOURS = {kind: place for place, kind in enumerate(kind for kind in KINDS if kind != "unknown")}
_CHANNELS = {"analysis": 6, "commentary": 3, "final": 2}
_ROLES = {"user": 4, "tool": 1, "assistant": 3}
GREY = 8


class _Text(NamedTuple):
    str_tokens: tuple[str, ...]
    spans: tuple[Span, ...]


@lru_cache(maxsize=8)  # of traces that are shown one beside another: every view of one needs them
def _steps(text: _Text) -> list[Step]:
    return steps(text)


def parts(trace: Trace) -> list[Step]:
    """The steps that lie within the trace."""
    found = _steps(_Text(tuple(trace.str_tokens), tuple(trace.spans)))
    return [step for step in found if 0 <= step.start < step.stop <= len(trace)]


def messages(spans: Sequence[Span], n: int) -> Iterator[Span]:
    """The spans in order, within 0:n; positions that none of them covers, as unparsed ones."""
    at = 0
    for span in sorted(spans, key=lambda s: s.start):
        begin, stop = max(span.start, at), min(span.stop, n)
        if stop <= begin:
            continue
        if begin > at:
            yield Span(at, begin, at, begin, "unparsed")
        first = min(max(span.content_start, begin), stop)
        last = min(max(span.content_stop, first), stop)
        yield replace(span, start=begin, stop=stop, content_start=first, content_stop=last)
        at = stop
    if at < n:
        yield Span(at, n, at, n, "unparsed")


def message_header(span: Span) -> dict[str, Any]:
    """A message as the browser reads it."""
    who, channel = visible(span.author or span.role), visible(span.channel or "")
    return {
        "start": span.start,
        "stop": span.stop,
        "content": span.content_start,
        "end": span.content_stop,
        "who": who,
        "channel": channel,
        "name": channel or who,
        "to": visible(span.recipient or ""),
        "complete": span.complete,
        "colour": colour_of(span),
    }


def colour_of(span: Span) -> int:
    """Which of the palette's colours a message has."""
    return _CHANNELS.get(span.channel or "", _ROLES.get(span.role, GREY))


def message_ribbon(trace: Trace) -> Row:
    """The messages as a row of a snapshot: one band, each stretch in its color."""
    stretches = [(span.start, span.stop, colour_of(span)) for span in messages(trace.spans, len(trace))]
    return Row("messages", png=ribbon(len(trace), stretches), height=10)


def message_texts(trace: Trace, most: int) -> list[Row]:
    """The text of each message as a row of a snapshot, at most `most` characters of it."""
    rows = []
    for span in messages(trace.spans, len(trace)):
        text = visible("".join(trace.str_tokens[span.content]), "↵ ")
        rows.append(Row(visible(span.channel or span.author or span.role), text=cut(text, most)))
    return rows
