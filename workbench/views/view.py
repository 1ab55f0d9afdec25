"""A view: something of a trace to look at, live in Jupyter, as a snapshot in a saved notebook, and as one page.

How to add a view, say of things:

1. `views/things.py`: a subclass of `View` and a public function that makes it and checks what it was asked for.
   `module = "things"`; `payload()` gives the header and the arrays that the browser draws from (start from
   `self.common()`, which has the tokens, messages and steps; text of a model goes through `workbench.text`);
   `still()` gives rows for the snapshot; `answer(kind, wanted)` gives more when the browser asks for it (a tile, a
   layer). All three may run on another thread: read the trace, change nothing. Arrays that the caller gave are copied
   when the view is made. Export the function in `views/__init__.py`; no file has the name of a public function.
2. `views/things.js`: `import { frame, register, … } from "./shared.js";` (named imports on one line, no renaming: the
   files are joined into one script, so top-level names must differ from those of `shared.js` and of what is imported),
   then `register("things", (ctx) => { … })`. `ctx` is {el, data, tokens, bus, signal, theme, ask}: `data` is the
   payload, `data.arrays` its arrays with `.shape`; `bus.state` is what the view shows and `bus.set({hover: 7})` changes
   it: hover, row, key, lock and query are those of all views of the trace, layer, head, from, to and only are its own
   until it is linked (`layer` and `head` of the payload are where it begins); `theme.of.ink` is a colour of views.css;
   `await ask("tile", {layer, head})` is an answer of Python, unpacked, and fails in a page.
   `const view = frame(ctx, {label, args, read, keys})` makes the tools, the keys and the line below. `view.plot({size,
   draw, hit, mark, on, axis})` makes a canvas: `draw(pen, width, y0)` uses a pen (rect, text, arc, image) and so is
   also the SVG and PNG; it runs when a key of the bus in `on` changes. `mark(state)` gives rectangles, laid over the
   canvas while the mouse moves: hovering draws nothing anew. `axisOf`, `columns`, `ticks`, `veil`, `raster`, `ramp` do
   the token axis, what shares a column, positions, filters, heat maps, colours. Listeners go through `view.on`.
   Where tokens share columns, say "downsampled (max)".
3. `tests/views/`: the payload in Python; drawn, hovered and clicked in the browser, with hostile tokens, light and
   dark (`tests/views/browser.py`); a row in `benchmarks/views.py`. Look at the screenshots.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import numpy as np

from workbench.checks import check_index
from workbench.errors import ArgumentError
from workbench.text import visible, visible_pieces
from workbench.traces import Trace
from workbench.traces.spans import Span
from workbench.traces.steps import KINDS, Step, steps
from workbench.views.payload import Payload, packed
from workbench.views.snapshot_html import Row

# A kind of step and a channel have the same colour in every view: .k0 to .k8 in views.css.
_KINDS = {kind: place for place, kind in enumerate(kind for kind in KINDS if kind != "unknown")}
_CHANNELS = {"analysis": 6, "commentary": 3, "final": 2}
_ROLES = {"user": 4, "tool": 1, "assistant": 3}
GREY = 8


class View:
    """What all views have: `picked`, `to_html`, and how they show themselves in Jupyter.

    `picked` is what the reader keeps by a click, by the names of the axes, `{"pos": 37, "layer": 3}`, or None. Views of
    one trace share its position; layer and head, like zoom and filter, belong to each view, which begins with those
    of its code. "link" in the bar of several views makes them share these too. Setting `picked` moves the mark in the
    browser.
    """

    module: ClassVar[str]  # the ES module that draws it
    call: ClassVar[str]  # the Python that makes it, up to what the reader changed

    def __init__(self, trace: Trace, *, window: Sequence[int] | None = None, picked: int | None = None):
        n = len(trace)
        if picked is not None:
            check_index("picked", picked, n)
        if window is not None and (len(window) != 2 or not 0 <= window[0] < window[1] <= n):
            raise ArgumentError(f"window must be (first, stop) with 0 <= first < stop <= {n}, got {tuple(window)}.")
        self.trace = trace
        self.window = None if window is None else (int(window[0]), int(window[1]))
        self._picked: dict[str, int] | None = None if picked is None else {"pos": int(picked)}
        self._live: Any = None
        self._lock = threading.Lock()

    @property
    def picked(self) -> dict[str, int] | None:
        return self._picked if self._live is None else self._live.picked

    @picked.setter
    def picked(self, value: int | Mapping[str, int] | None) -> None:
        place = {"pos": int(value)} if isinstance(value, int | np.integer) else None if value is None else dict(value)
        self._picked = place
        if self._live is not None:
            self._live.picked = place

    # What a view gives.

    def payload(self) -> Payload:
        """What the browser draws: a header and arrays."""
        raise NotImplementedError

    def answer(self, kind: str, wanted: Mapping[str, Any]) -> Payload:
        """More of it, when the browser asks."""
        raise LookupError(f"this view has no {kind!r} to give")

    def still(self) -> list[Row]:
        """What a saved notebook shows, row by row."""
        return []

    # What it does with it.

    def reply(self, kind: str, wanted: Mapping[str, Any]) -> bytes:
        """The packed answer to one message of the browser."""
        return packed(*(self.payload() if kind == "open" else self.answer(kind, wanted)))

    def common(self) -> Payload:
        """The part of a payload that all views of a trace need: its tokens, messages and steps."""
        return common(self)

    def to_html(self, path: os.PathLike | str):
        """Write the view as one page that needs no network, server or Python; gives the path.

        What was at `path` is replaced, whole or not at all.
        """
        from workbench.views.page import save_page

        return save_page(self, path)

    def _ipython_display_(self) -> None:
        from workbench.views.notebook import show

        show(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from workbench.views.notebook import bundle

        return bundle(self)

    def __repr__(self) -> str:
        name = visible(self.trace.manifest.model["name"])
        return f"<{self.call.rpartition('.')[2].partition('(')[0]} of {name}: {len(self.trace):,} tokens>"


def common(view: View) -> Payload:
    trace, n = view.trace, len(view.trace)
    texts = visible_pieces(trace.pieces, "\n")
    words, piece = _words(texts)
    header: dict[str, Any] = {
        "view": view.module,
        "call": view.call,
        "args": "",
        "trace": trace.id,
        "foot": f"workbench · {visible(trace.manifest.model['name'])} · trace {trace.id}",
        "hint": f"{n:,} tokens. Hover, click to keep, ← → to move, / to search, + − 0 to zoom.",
        "layers": trace.config["n_layers"],
        "given": trace.prompt_length,
        "words": words,
        "messages": [_message(span) for span in messages(trace.spans, n)],
        "steps": [
            {"start": s.start, "stop": s.stop, "kind": s.kind, "colour": _KINDS.get(s.kind, GREY)} for s in parts(trace)
        ],
        "window": None if view.window is None else list(view.window),
        "picked": view._picked,
    }
    arrays = {"piece": piece}
    logprob = lane(trace, "logprob", n)
    if logprob is not None:
        arrays["logprob"] = logprob
    return header, arrays


class _Text(NamedTuple):
    pieces: tuple[str, ...]
    spans: tuple[Span, ...]


@lru_cache(maxsize=8)  # of traces that are shown one beside another: every view of one needs them
def _steps(text: _Text) -> list[Step]:
    return steps(text)


def parts(trace: Trace) -> list[Step]:
    """The steps that lie within the trace."""
    found = _steps(_Text(tuple(trace.pieces), tuple(trace.spans)))
    return [step for step in found if 0 <= step.start < step.stop <= len(trace)]


def lane(trace: Trace, name: str, *shape: int) -> np.ndarray | None:
    """A lane of the trace as `fitted` in that shape; None if the trace has none of that name."""
    return fitted(trace[name], *shape) if name in trace else None


def fitted(values: Any, *shape: int) -> np.ndarray | None:
    """As float32 in that shape, NaN where the last positions are missing; None for anything else than a lane."""
    values = np.asarray(values)
    if values.ndim != len(shape) or values.shape[:-1] != shape[:-1] or values.shape[-1] > shape[-1]:
        return None
    whole = np.full(shape, np.nan, np.float32)
    whole[..., : values.shape[-1]] = values
    return whole


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


def _message(span: Span) -> dict[str, Any]:
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


def _words(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different texts, and which of them each is."""
    places: dict[str, int] = {}
    piece = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(piece, "u2" if len(places) <= 0xFFFF else "u4")
