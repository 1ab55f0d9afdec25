"""A view: something of a trace to look at, live in Jupyter, as a snapshot in a saved notebook, and as one page.

How to add a view, say of things:

1. `views/things_view.py`: a subclass of `View` and a public function that makes it and checks what it was asked for.
   `module = "things_view"`; `call = "wb.views.things(trace"` is the beginning of the Python that makes it, without the
   bracket that closes: the browser adds what the reader chose. `payload()` gives the header and the arrays that the
   browser draws from (start from `header, arrays = self.common()`, which has the tokens, messages and steps; text of a
   model goes through `workbench.text`); `snapshot()` gives rows for a saved notebook (`Row`, with a picture of `bars`
   or `heat`, from snapshot_html.py); `query(kind, request)` gives more when the browser asks for it (a tile, a layer).
   All three may run on another thread: read the trace, change nothing. Arrays that the caller gave are copied when the
   view is made. Export the function in `views/__init__.py`: the import, and its name in `__all__`. The file has `_view`
   in its name because no file here may have that of a public function. tokens_view.py is the shortest to copy.
2. `views/things_view.js`, which begins with `// @ts-check`: named imports without renaming from the modules beside it
   (they are joined into one script, so top-level names must differ from those of what is imported), then
   `register("things", (ctx) => { … })`, from mount.js. `ctx` is {el, data, tokens, bus, signal, theme, ask}, as
   tests/js/views.d.ts says: `data` is the payload, `data.arrays` its arrays with `.shape`; `bus.state` is what the view
   shows and `bus.set({hover: 7})` changes it: hover, row, key, lock and query are those of all views of the trace,
   layer, head, from, to and only are its own until it is linked (`layer` and `head` of the payload are where it begins;
   -1 is none chosen); `theme.of.ink` is a colour of views.css; `await ask("tile", {layer, head})` is the result of a
   query, unpacked, and fails in a page. `const view = frame(ctx, {label, args, read, keys})`, from view_frame.js, makes
   the tools, the keys and the line below. `view.plot({size, draw, hit, mark, on, axis})` makes a canvas: `draw(pen,
   width, y0)` uses a pen (rect, text, arc, image) and so is also the SVG and PNG; it runs when a key of the bus in `on`
   changes. `mark(state)` gives rectangles, laid over the canvas while the mouse moves: hovering draws nothing anew.
   Most views need no `plot` of their own: plots.js has `strip` (a plot over the token axis, with its title, marks,
   positions and filter), `matrix` (named cells), `menu` and `queryCache`. token_axis.js and drawing.js do the token
   axis, what shares a column, heat maps, colours. Listeners go through `view.on`. Where tokens share columns, say
   "downsampled (max)". `make format` formats it, `make js` lints and type-checks it.
3. `tests/views/test_things.py`: the payload in Python, of a made run (`made.run()` of tests/views/made.py; `whole()` of
   tests/views/whole.py if it reads queries and keys, routes or a lens); hovered and clicked in the browser while Python
   answers (`Alive`); as a page (`Seen`), light and dark; with hostile tokens (`HOSTILE` and `inert` of whole.py).
   tests/views/test_lens.py has one of each. Without chromium the tests in a browser are skipped: see `make browser`.
   Look at the screenshots, out/screenshots.
"""

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from workbench.checks import check_index
from workbench.errors import ArgumentError
from workbench.text import visible, visible_pieces
from workbench.traces import Trace
from workbench.views.outline import GREY, KIND_COLOURS, message_header, messages, parts
from workbench.views.payload import Payload, packed
from workbench.views.snapshot_html import Row


class View:
    """What all views have: `selected`, `to_html`, and how they show themselves in Jupyter.

    `selected` is what the reader pinned by a click, by the names of the axes, `{"pos": 37, "layer": 3}`, or None. Views
    of one trace share its position; layer and head, like zoom and filter, belong to each view, which begins with those
    of its code. "link" in the bar of several views makes them share these too. Setting `selected` moves the mark in
    the browser.
    """

    module: ClassVar[str]  # the ES module that draws it
    call: ClassVar[str]  # the Python that makes it, up to what the reader changed

    def __init__(self, trace: Trace, *, window: Sequence[int] | None = None, selected: int | None = None):
        n = len(trace)
        if selected is not None:
            check_index("selected", selected, n)
        if window is not None and (len(window) != 2 or not 0 <= window[0] < window[1] <= n):
            raise ArgumentError(f"window must be (first, stop) with 0 <= first < stop <= {n}, got {tuple(window)}.")
        self.trace = trace
        self.window = None if window is None else (int(window[0]), int(window[1]))
        self._selected: dict[str, int] | None = None if selected is None else {"pos": int(selected)}
        self._live: Any = None
        self._lock = threading.Lock()

    @property
    def selected(self) -> dict[str, int] | None:
        return self._selected if self._live is None else self._live.selected

    @selected.setter
    def selected(self, value: int | Mapping[str, int] | None) -> None:
        place = {"pos": int(value)} if isinstance(value, int | np.integer) else None if value is None else dict(value)
        self._selected = place
        if self._live is not None:
            self._live.selected = place

    # What a view gives.

    def payload(self) -> Payload:
        """What the browser draws: a header and arrays."""
        raise NotImplementedError

    def query(self, kind: str, request: Mapping[str, Any]) -> Payload:
        """More of it, when the browser asks."""
        raise LookupError(f"this view has no {kind!r} to give")

    def snapshot(self) -> list[Row]:
        """What a saved notebook shows, row by row."""
        return []

    # What it does with it.

    def reply(self, kind: str, request: Mapping[str, Any]) -> bytes:
        """The packed answer to one message of the browser."""
        return packed(*(self.payload() if kind == "open" else self.query(kind, request)))

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
    """What every view sends: the header that all have, and the arrays of the token axis."""
    trace, n = view.trace, len(view.trace)
    texts = visible_pieces(trace.str_tokens, "\n")
    words, piece = _words(texts)
    header: dict[str, Any] = {
        "view": view.module.removesuffix("_view"),
        "call": view.call,
        "args": "",
        "trace": trace.id,
        "foot": f"workbench · {visible(trace.manifest.model['name'])} · trace {trace.id}",
        "hint": f"{n:,} tokens. Hover, click to pin, ← → to move, / to search, + − 0 to zoom.",
        "layers": trace.config["n_layers"],
        "prompt_length": trace.prompt_length,
        "words": words,
        "messages": [message_header(span) for span in messages(trace.spans, n)],
        "steps": [
            {"start": s.start, "stop": s.stop, "kind": s.kind, "colour": KIND_COLOURS.get(s.kind, GREY)}
            for s in parts(trace)
        ],
        "window": None if view.window is None else list(view.window),
        "selected": view._selected,
    }
    arrays = {"piece": piece}
    logprob = lane(trace, "logprob", n)
    if logprob is not None:
        arrays["logprob"] = logprob
    return header, arrays


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


def _words(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The different texts, and which of them each is."""
    places: dict[str, int] = {}
    piece = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(piece, "u2" if len(places) <= 0xFFFF else "u4")
