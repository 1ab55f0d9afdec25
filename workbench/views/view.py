"""A view: an interactive display of a trace, live in Jupyter, as a snapshot in a saved notebook, and as an HTML page.

How to add a view, for example of things:

1. `views/things_view.py`: a subclass of `View`, and a public function that checks its arguments and makes the view. Set
   `module = "things_view"` and `call = "wb.views.things(trace"`: the beginning of the Python code of the view, without
   the closing parenthesis, to which the browser adds the reader's choices. Three methods provide the data:
   `payload()` is the header and the arrays that the browser draws. Start from `header, arrays = self.common()`, which
   has the tokens, messages and steps. Pass model text through `workbench.text`.
   `snapshot()` is the rows of a saved notebook: `Row`, with a picture of `bars` or `heat` from snapshot_html.py, or a
   drawing with ticks and a color scale: `heat_map` of snapshot_svg.py.
   `query(kind, request)` is additional data that the browser requests later, such as a tile or a layer.
   All three may run on another thread, so they must not change anything. Copy the caller's arrays when the view is
   made. Export the function in `views/__init__.py`: the import, and its name in `__all__`. The file name ends in
   `_view` because no file here may have the name of a public function. tokens_view.py is the shortest example.
2. `views/things_view.js`, which begins with `// @ts-check`. It has named imports without renaming from the modules
   beside it. All modules are joined into one script, so top-level names must differ from those of the imported modules.
   Call `register("things", (ctx) => { … })` from mount.js.
   `ctx` is {el, data, tokens, bus, signal, theme, queryPython}; its types are in tests/js/views.d.ts.
   `data` is the payload, and `data.arrays` its arrays, with `.shape`.
   `bus.state` is the state of the view; `bus.set({hover: 7})` changes it. All views of the trace share hover, row, key,
   pin, the selected range first:stop, and query. Layer, head, from, to and only belong to the view until it is linked.
   `layer` and `head` of the payload are the initial values; -1 means none.
   `theme.of.ink` is a color of views.css.
   `await queryPython("tile", {layer, head})` is the unpacked result of `View.query`; in a saved page it is rejected.
   `const view = frame(ctx, {label, args, readout, keys})` from view_frame.js makes the tools, keyboard shortcuts and
   the readout. `view.plot({size, draw, hit, mark, on, axis})` makes a canvas. `draw(pen, width, y0)` uses a pen
   (rect, text, arc, image), so that the same code makes the SVG and the PNG; it runs when a key of the bus in `on`
   changes.
   `mark(state)` gives rectangles that are laid over the canvas while the mouse moves, so hovering redraws nothing.
   Most views do not need `plot`: plots.js has `strip` (a plot over the token axis, with title, marks, positions and
   filter), `matrix` (named cells), `menu` and `queryCache`. token_axis.js and drawing.js have the token axis, pooling
   of tokens that share a column, heat maps and colors. Add listeners with `view.on`. Write "downsampled (max)" where
   tokens share columns. `make format` formats the file, `make js` lints and type-checks it.
3. `tests/views/test_things.py`: test the payload in Python, from a made run (`made.run()` of tests/views/made.py; or
   `whole()` of tests/views/whole.py for queries and keys, routing or a lens); hovering and clicking in the browser with
   Python behind it (`LiveTab`); a saved page (`Tab`), light and dark; and hostile tokens (`HOSTILE` and `check_inert`
   of whole.py). tests/views/test_lens.py has one of each. Without chromium the browser tests are skipped: see
   `make browser`. Look at the screenshots in out/screenshots.
"""

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from workbench.checks import check_index, check_items, check_type, check_whole
from workbench.errors import ArgumentError, ArgumentTypeError, SelectionError
from workbench.text import visible, visible_pieces
from workbench.traces import Trace
from workbench.views.outline import GRAY, KIND_COLORS, message_header, messages, parts
from workbench.views.payload import Payload, packed
from workbench.views.request import selected_place, selected_slice
from workbench.views.snapshot_html import Row

if TYPE_CHECKING:
    from workbench.views.page import PageParts


class View:
    """Base class of the views: `selected`, `to_html`, and display in Jupyter.

    `selected` is the place that the reader pinned by a click, as a dict over axes, `{"pos": 37, "layer": 3}`, or None.
    Setting it moves the mark in the browser. `selected_range` is the range of tokens that the reader selected by
    dragging over lanes or text, as a slice of positions, or None; it can be set too. Views of one trace share both.
    Layer, head, zoom and filter belong to each view and start with the values of its Python code; the button "link" in
    the bar of several views makes them share these too.
    """

    module: ClassVar[str]  # the ES module that draws the view
    call: ClassVar[str]  # the beginning of the Python code that makes the view; the browser adds the reader's choices

    def __init__(self, trace: Trace, *, window: Sequence[int] | None = None, selected: int | None = None):
        check_type("a view", trace, Trace)
        n = len(trace)
        self.trace = trace
        self.window = None if window is None else _checked_window(window, n)
        self._begin(None if selected is None else {"pos": check_index("selected", selected, n)})

    def _begin(self, selected: dict[str, int] | None) -> None:
        """The state of a new view."""
        self._selected = selected
        self._selected_range: slice | None = None
        self._observers: list[Callable[[View], object]] = []
        self._observed: Any = self._selected, None
        self._live: Any = None
        self._lock = threading.Lock()

    @property
    def selected(self) -> dict[str, int] | None:
        return self._selected if self._live is None else self._live.selected

    @selected.setter
    def selected(self, value: int | Mapping[str, int] | None) -> None:
        place = self._selected = self.checked_place(value)
        if self._live is not None:
            self._live.selected = place
        else:
            self._changed()

    @property
    def selected_range(self) -> slice | None:
        return self._selected_range if self._live is None else self.checked_range(self._live.selected_range)

    @selected_range.setter
    def selected_range(self, value: slice | None) -> None:
        chosen = self._selected_range = self.checked_range(value)
        if self._live is not None:
            self._live.selected_range = None if chosen is None else [chosen.start, chosen.stop]
        else:
            self._changed()

    def observe(self, function: "Callable[[View], object]") -> None:
        """Call `function(view)` whenever `selected` or `selected_range` changes, in the browser or in Python.

        >>> view = wb.views.tokens(trace)
        >>> view.observe(lambda view: print(view.selected_range))
        >>> view.selected_range = slice(3, 7)
        slice(3, 7, None)
        """
        if not callable(function):
            raise ArgumentTypeError(f"observe takes a function of the view, got {type(function).__name__}.")
        self._observers.append(function)

    def _changed(self, _change: object = None) -> None:
        places = self.selected, self.selected_range
        if places == self._observed:  # a widget also reports values that it has refused
            return
        self._observed = places
        failure: Exception | None = None
        for function in self._observers:
            try:
                function(self)
            except Exception as error:  # the others are called too
                failure = failure or error
        if failure is not None:
            raise failure

    # The data of a view: subclasses override these.

    def payload(self) -> Payload:
        """The data that the browser draws: a header and arrays."""
        raise NotImplementedError

    def query(self, kind: str, request: Mapping[str, Any]) -> Payload:
        """Additional data that the browser requests."""
        raise SelectionError(f"this view does not answer queries of kind {visible(repr(kind)[:60])}")

    def snapshot(self) -> list[Row]:
        """The rows that a saved notebook shows."""
        return []

    def checked_place(self, value: Any) -> dict[str, int] | None:
        """A value of `selected` as a place of this view. Raises ArgumentError or SelectionError for another value."""
        return selected_place(self.trace, value)

    def checked_range(self, value: Any) -> slice | None:
        """A value of `selected_range`, likewise."""
        return selected_slice(self.trace, value)

    # Sending and displaying.

    def reply(self, kind: str, request: Mapping[str, Any]) -> bytes:
        """The packed reply to one message of the browser."""
        return packed(*(self.payload() if kind == "open" else self.query(kind, request)))

    def common(self) -> Payload:
        """The part of the payload that all views of a trace share: tokens, messages and steps."""
        return common(self)

    def page_parts(self) -> "PageParts":
        """What a page of the view shows above and below it, and without a script."""
        from workbench.views.page import parts_of_trace

        return parts_of_trace(self)

    def to_html(self, path: os.PathLike[str] | str):
        """Write the view as one page that needs no network, server or Python, and return its path.

        An existing file at `path` is replaced atomically.
        """
        from workbench.views.page import save_page

        return save_page(self, path)

    def _ipython_display_(self) -> None:
        from workbench.views.notebook import display_in_jupyter

        display_in_jupyter(self)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        from workbench.views.notebook import bundle

        return bundle(self)

    def __repr__(self) -> str:
        name = visible(self.trace.manifest.model["name"])
        return f"<{self.call.rpartition('.')[2].partition('(')[0]} of {name}: {len(self.trace):,} tokens>"


def _checked_window(window: Any, n: int) -> tuple[int, int]:
    bounds = [check_whole("a bound of window", bound) for bound in check_items("window", window)]
    if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] <= n:
        raise ArgumentError(f"window must be (first, stop) with 0 <= first < stop <= {n}, got {tuple(bounds)}.")
    return bounds[0], bounds[1]


def common(view: View) -> Payload:
    """The part of the payload that all views share: header fields, and the arrays of the token axis."""
    trace, n = view.trace, len(view.trace)
    texts = visible_pieces(trace.str_tokens, "\n")
    token_texts, token_text_ids = _distinct(texts)
    header: dict[str, Any] = {
        "view": view.module.removesuffix("_view"),
        "call": view.call,
        "args": "",
        "trace": trace.id,
        "foot": f"workbench · {visible(trace.manifest.model['name'])} · trace {trace.id}",
        "hint": f"{n:,} tokens. Hover, click to pin, drag to select a range; ← → to move, / to search, + − 0 to zoom, "
        "c to copy, f for full screen.",
        "layers": trace.config["n_layers"],
        "written": writers_header(trace),
        "token_texts": token_texts,
        "messages": [message_header(span) for span in messages(trace.spans, n)],
        "steps": [
            {"start": s.start, "stop": s.stop, "kind": s.kind, "color": KIND_COLORS.get(s.kind, GRAY)}
            for s in parts(trace)
        ],
        "window": None if view.window is None else list(view.window),
        "selected": view._selected,
        "selected_range": None if (chosen := view.selected_range) is None else [chosen.start, chosen.stop],
    }
    arrays = {"token_text_ids": token_text_ids}
    logprob = lane(trace, "logprob", n)
    if logprob is not None:
        arrays["logprob"] = logprob
    return header, arrays


def writers_header(trace: Trace) -> list[list[Any]]:
    """[start, stop, who] of each stretch of tokens with one writer, for the header of a payload."""
    return [[start, stop, visible(who)] for start, stop, who in trace.written]


def lane(trace: Trace, name: str, *shape: int) -> np.ndarray | None:
    """A recorded array of the trace, `fitted` to a shape; None if the trace does not have it."""
    return fitted(trace[name], *shape) if name in trace else None


def fitted(values: Any, *shape: int) -> np.ndarray | None:
    """The values as float32 of a shape, with NaN for missing last positions; None if they do not fit the shape."""
    values = np.asarray(values)
    if values.ndim != len(shape) or values.shape[:-1] != shape[:-1] or values.shape[-1] > shape[-1]:
        return None
    array = np.full(shape, np.nan, np.float32)
    array[..., : values.shape[-1]] = values
    return array


def _distinct(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The distinct texts, and for each text its index among them."""
    indices: dict[str, int] = {}
    ids = [indices.setdefault(text, len(indices)) for text in texts]
    return list(indices), np.array(ids, "u2" if len(indices) <= 0xFFFF else "u4")
