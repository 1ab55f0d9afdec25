"""Messages and steps of a trace for the views: in order, clipped to the trace, each with its color."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.spans import Span
from workbench.traces.steps import KINDS, Step, steps
from workbench.views.snapshot_html import WIDTH, Row, cut
from workbench.views.snapshot_svg import Axis, bands

# Each kind of step and each channel has the same color in every view: .k0 to .k8 in views.css.
KIND_COLORS = {kind: place for place, kind in enumerate(kind for kind in KINDS if kind != "unknown")}
_CHANNELS = {"analysis": 6, "commentary": 3, "final": 2}
_ROLES = {"user": 4, "tool": 1, "assistant": 3}
GRAY = 8


class _Text(NamedTuple):
    str_tokens: tuple[str, ...]
    spans: tuple[Span, ...]


@lru_cache(maxsize=8)  # traces; every view of a trace needs its steps
def _steps(text: _Text) -> list[Step]:
    return steps(text)


def parts(trace: Trace) -> list[Step]:
    """The steps that are within the trace."""
    all_steps = _steps(_Text(tuple(trace.str_tokens), tuple(trace.spans)))
    return [step for step in all_steps if 0 <= step.start < step.stop <= len(trace)]


def messages(spans: Sequence[Span], n: int) -> Iterator[Span]:
    """The spans in order, clipped to 0:n. Positions outside all spans become spans with the role "unparsed"."""
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
    """A message as a dict for the browser."""
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
        "color": color_of(span),
    }


def color_of(span: Span) -> int:
    """The index of a message's color in the palette."""
    return _CHANNELS.get(span.channel or "", _ROLES.get(span.role, GRAY))


def message_ribbon(trace: Trace) -> Row:
    """The messages as a row of a snapshot: one band, each message in its color and with its name, above positions."""
    blocks = [
        (span.start, span.stop, color_of(span), visible(span.channel or span.author or span.role))
        for span in messages(trace.spans, len(trace))
    ]
    return Row("messages", "position", drawing=bands(len(trace), blocks, WIDTH))


def position_axis(trace: Trace, label: str = "position", factor: int = 1) -> Axis:
    """The columns of a snapshot's heat map: the position of every `factor`th token."""
    return Axis(label, [f"{position:,}" for position in range(0, len(trace), factor)])


def token_axis(trace: Trace, label: str, factor: int = 1) -> Axis:
    """The rows of a snapshot's heat map: text and position of every `factor`th token."""
    str_tokens = trace.str_tokens
    return Axis(label, [f"{cut(visible(str_tokens[i]).strip(), 9)} {i}" for i in range(0, len(trace), factor)])


def layer_axis(layers: Sequence[int]) -> Axis:
    """The rows of a snapshot's heat map, one for each layer."""
    return Axis("layer", [str(layer) for layer in layers])


def message_texts(trace: Trace, max_length: int) -> list[Row]:
    """The text of each message as a row of a snapshot, cut to `max_length` characters."""
    rows, str_tokens = [], trace.str_tokens
    for span in messages(trace.spans, len(trace)):
        text = visible(cut("".join(str_tokens[span.content]), max_length), "↵ ")
        rows.append(Row(visible(span.channel or span.author or span.role), text=text))
    return rows
